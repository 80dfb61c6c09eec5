/* y = x W^T + b on a CPU, for weights in bf16, int8 and int4; called from linear.py through ctypes.
 *
 * Every weight is kept in panels of 16 outputs, so that a vector holds neighbouring outputs and the
 * sum over k runs in one fixed order: a row of x gives the same bits alone and among others.
 *   bf16  [N/16][K/2][16][2]
 *   int8  [N/16][K/4][16][4], stored + 128
 *   int4  [N/16][K/8][16][4], the low nibbles are k .. k+3, the high ones k+4 .. k+7;
 *         per group of 128 k: scale fp16 [N/16][K/128][16], zero uint8 likewise
 * int8 and int4 multiply by activations in int8 with one scale a row (int8) or a row and group (int4)
 * and sum in int32, which is exact.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define PANEL 16
#define GROUP 128
#define ROWS_AT_ONCE 96 /* of x, which then stay in the cache while the weights pass by */
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define VNNI 1
#endif
#if defined(__AVX512BF16__)
#define BF16_DOT 1
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#define PARTS (PANEL / LANES) /* vectors in a panel */

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef float vfu __attribute__((vector_size(LANES * 4), aligned(4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vuu __attribute__((vector_size(LANES * 4), aligned(4)));

INLINE vf splat(float v) { return (vf){} + v; }

/* one panel of one row of y; the last panel may reach beyond the N outputs */
INLINE void put(float *y, const float *bias, const vf *values, long from, long n) {
    float out[PANEL];
    memcpy(out, values, sizeof out);
    long count = n - from < PANEL ? n - from : PANEL;
    for (long j = 0; j < count; j++) y[from + j] = bias ? out[j] + bias[from + j] : out[j];
}

/* ---- bf16 ------------------------------------------------------------------------------------ */

#if defined(BF16_DOT)
typedef uint16_t bf16_value;

INLINE uint16_t to_bf16(float value) { /* to the nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#else
typedef float bf16_value;
#endif

INLINE void bf16_tile(const int rows, const int panels, const bf16_value *x, const uint16_t *w,
                      const float *bias, float *y, long first, long n, long k) {
    vf sum[6][4 * PARTS]; /* what is not used goes away; a size by arguments would stay in memory */
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int p = 0; p < panels * PARTS; p++) sum[r][p] = splat(0);
    for (long i = 0; i < k; i += 2) {
        vu pairs[4 * PARTS];
        UNROLL for (int p = 0; p < panels * PARTS; p++)
            pairs[p] = *(const vuu *)(w + (p / PARTS * k + i) * PANEL + p % PARTS * LANES * 2);
#if defined(BF16_DOT)
        UNROLL for (int r = 0; r < rows; r++) {
            int32_t two;
            memcpy(&two, x + r * k + i, 4);
            UNROLL for (int p = 0; p < panels; p++)
                sum[r][p] = (vf)_mm512_dpbf16_ps((__m512)sum[r][p], (__m512bh)pairs[p],
                                                 (__m512bh)_mm512_set1_epi32(two));
        }
#else
        vf even[4 * PARTS], odd[4 * PARTS];
        UNROLL for (int p = 0; p < panels * PARTS; p++) {
            even[p] = (vf)(pairs[p] << 16);
            odd[p] = (vf)(pairs[p] & 0xffff0000);
        }
        UNROLL for (int r = 0; r < rows; r++) {
            const vf first_x = splat(x[r * k + i]), second_x = splat(x[r * k + i + 1]);
            UNROLL for (int p = 0; p < panels * PARTS; p++) sum[r][p] += even[p] * first_x;
            UNROLL for (int p = 0; p < panels * PARTS; p++) sum[r][p] += odd[p] * second_x;
        }
#endif
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int p = 0; p < panels; p++) {
            vf out[PARTS];
            UNROLL for (int q = 0; q < PARTS; q++) out[q] = sum[r][p * PARTS + q];
            put(y + r * n, bias, out, (first + p) * PANEL, n);
        }
}

/* k even; scratch has room for m * k values of 16 bits */
void qvl_linear_bf16(const float *fp32_x, uint16_t *scratch, const uint16_t *w, const float *bias,
                     float *y, long m, long n, long k) {
    const long panels = (n + PANEL - 1) / PANEL;
#if defined(BF16_DOT)
#pragma omp parallel for schedule(static) if (m > 4)
    for (long row = 0; row < m; row++)
        for (long i = row * k; i < (row + 1) * k; i++) scratch[i] = to_bf16(fp32_x[i]);
    const bf16_value *x = scratch;
#else
    const bf16_value *x = fp32_x;
    (void)scratch;
#endif
    for (long from = 0; from < m; from += ROWS_AT_ONCE) {
        const long to = from + ROWS_AT_ONCE < m ? from + ROWS_AT_ONCE : m;
#pragma omp parallel for schedule(static)
        for (long four = 0; four < panels; four += 4) {
            const long end = four + 4 < panels ? four + 4 : panels;
#define TILE(r, p, panel)                                                                          \
    bf16_tile(r, p, x + row * k, w + (panel)*k * PANEL, bias, y + row * n, panel, n, k)
            long row = from;
            if (to - from == 1 && end - four == 4) { /* generation: four panels hide the latency */
                TILE(1, 4, four);
                continue;
            }
            for (long p = four; p < end; p++) {
                for (row = from; row + 6 <= to; row += 6) TILE(6, 1, p);
                for (; row + 3 <= to; row += 3) TILE(3, 1, p);
                for (; row < to; row++) TILE(1, 1, p);
            }
#undef TILE
        }
    }
}

/* ---- int8 ------------------------------------------------------------------------------------ */

#if defined(VNNI)
typedef int8_t i8_value;
#define I8_PLACE(i) (i)

INLINE void i8_tile(const int rows, const int panels, const i8_value *q, const uint8_t *w, vi *sums,
                    long k) {
    __m512i sum[4][2];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int p = 0; p < panels; p++) sum[r][p] = _mm512_setzero_si512();
    for (long i = 0; i < k; i += 4)
        UNROLL for (int p = 0; p < panels; p++) {
            const __m512i bytes = _mm512_loadu_si512(w + (p * k + i) * PANEL);
            UNROLL for (int r = 0; r < rows; r++) {
                int32_t four;
                memcpy(&four, q + r * k + i, 4);
                sum[r][p] = _mm512_dpbusd_epi32(sum[r][p], bytes, _mm512_set1_epi32(four));
            }
        }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int p = 0; p < panels; p++) sums[r * panels + p] = (vi)sum[r][p];
}
#elif defined(__AVX2__)
/* products of unsigned and signed bytes would overflow vpmaddubsw, so pairs of 16 bit are
 * multiplied: the even bytes of the weights with activations 0 and 2 of each four, the odd ones
 * with 1 and 3 */
typedef int16_t i8_value;
#define I8_PLACE(i) (((i) & ~3L) | ((i) & 1) << 1 | ((i) & 2) >> 1)

INLINE void i8_tile(const int rows, const int panels, const i8_value *q, const uint8_t *w, vi *sums,
                    long k) {
    __m256i sum[4][4];
    const __m256i low = _mm256_set1_epi16(0x00ff);
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int p = 0; p < panels * 2; p++) sum[r][p] = _mm256_setzero_si256();
    for (long i = 0; i < k; i += 4) {
        __m256i even[4], odd[4];
        UNROLL for (int p = 0; p < panels * 2; p++) {
            const uint8_t *at = w + (p / 2 * k + i) * PANEL + p % 2 * 32;
            const __m256i bytes = _mm256_loadu_si256((const __m256i *)at);
            even[p] = _mm256_and_si256(bytes, low);
            odd[p] = _mm256_srli_epi16(bytes, 8);
        }
        UNROLL for (int r = 0; r < rows; r++) {
            int32_t pairs[2];
            memcpy(pairs, q + r * k + i, 8);
            const __m256i first = _mm256_set1_epi32(pairs[0]), second = _mm256_set1_epi32(pairs[1]);
            UNROLL for (int p = 0; p < panels * 2; p++) {
                sum[r][p] = _mm256_add_epi32(sum[r][p], _mm256_madd_epi16(even[p], first));
                sum[r][p] = _mm256_add_epi32(sum[r][p], _mm256_madd_epi16(odd[p], second));
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int p = 0; p < panels * 2; p++) sums[r * panels * 2 + p] = (vi)sum[r][p];
}
#else
typedef int8_t i8_value;
#define I8_PLACE(i) (i)

INLINE void i8_tile(const int rows, const int panels, const i8_value *q, const uint8_t *w, vi *sums,
                    long k) {
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++) {
            int32_t sum[PANEL] = {0};
            for (long i = 0; i < k; i++)
                for (int j = 0; j < PANEL; j++)
                    sum[j] += (int32_t)w[(p * k + i / 4 * 4) * PANEL + 4 * j + i % 4] * q[r * k + i];
            memcpy(sums + (r * panels + p) * PARTS, sum, sizeof sum);
        }
}
#endif

/* ---- activations in int8 --------------------------------------------------------------------- */

/* the largest of them without their signs; not a number when one is none or infinite, and so is then
 * all that follows from it */
INLINE float largest(const float *x, long count) {
    float most = 0, zero = 0;
    for (long i = 0; i < count; i++) {
        most = fmaxf(most, fabsf(x[i]));
        zero += x[i] * 0.0f;
    }
    return most + zero;
}

/* rows of x to whole numbers of -127 .. 127, a scale and a sum for each row */
void qvl_quantise_i8(const float *x, i8_value *q, float *scales, int32_t *sums, long m, long k) {
#pragma omp parallel for schedule(static) if (m > 4)
    for (long row = 0; row < m; row++) {
        const float most = largest(x + row * k, k), inverse = most > 0 ? 127.0f / most : 0;
        int32_t total = 0;
        for (long i = 0; i < k; i++) {
            const int32_t value = (int32_t)__builtin_rintf(x[row * k + i] * inverse);
            q[row * k + I8_PLACE(i)] = (i8_value)value;
            total += value;
        }
        scales[row] = most / 127.0f;
        sums[row] = total;
    }
}

/* the same for every 128 numbers */
void qvl_quantise_i4(const float *x, int8_t *q, float *scales, int32_t *sums, long m, long k) {
    const long groups = m * k / GROUP;
#pragma omp parallel for schedule(static) if (m > 4)
    for (long g = 0; g < groups; g++) {
        const float *from = x + g * GROUP;
        const float most = largest(from, GROUP), inverse = most > 0 ? 127.0f / most : 0;
        int32_t total = 0;
        for (long i = 0; i < GROUP; i++) {
            const int32_t value = (int32_t)__builtin_rintf(from[i] * inverse);
            q[g * GROUP + i] = (int8_t)value;
            total += value;
        }
        scales[g] = most / 127.0f;
        sums[g] = total;
    }
}

INLINE void i8_rows(const int rows, const int panels, const i8_value *q, const float *scales,
                    const int32_t *q_sums, const uint8_t *w, const float *w_scales,
                    const float *bias, float *y, long first, long n, long k) {
    vi sums[4 * 2 * PARTS];
    i8_tile(rows, panels, q, w + first * k * PANEL, sums, k);
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++) {
            vf out[PARTS];
            for (int part = 0; part < PARTS; part++) {
                const long at = (first + p) * PANEL + part * LANES;
                const vi exact = sums[(r * panels + p) * PARTS + part] - 128 * q_sums[r];
                const vf scale = *(const vfu *)(w_scales + at) * splat(scales[r]);
                out[part] = __builtin_convertvector(exact, vf) * scale;
            }
            put(y + r * n, bias, out, (first + p) * PANEL, n);
        }
}

/* q as qvl_quantise writes it for a group of k; w_scales [panels * 16] */
void qvl_linear_i8(const i8_value *q, const float *scales, const int32_t *q_sums, const uint8_t *w,
                   const float *w_scales, const float *bias, float *y, long m, long n, long k) {
    const long panels = (n + PANEL - 1) / PANEL;
    for (long from = 0; from < m; from += ROWS_AT_ONCE) {
        const long to = from + ROWS_AT_ONCE < m ? from + ROWS_AT_ONCE : m;
#pragma omp parallel for schedule(static)
        for (long two = 0; two < panels; two += 2) {
            const long end = two + 2 < panels ? two + 2 : panels;
#define ROWS(r, p, panel)                                                                          \
    i8_rows(r, p, q + row * k, scales + row, q_sums + row, w, w_scales, bias, y + row * n, panel, n, k)
            long row = from;
            if (to - from == 1 && end - two == 2) {
                ROWS(1, 2, two);
                continue;
            }
            for (long p = two; p < end; p++) {
                for (row = from; row + 4 <= to; row += 4) ROWS(4, 1, p);
                for (; row + 2 <= to; row += 2) ROWS(2, 1, p);
                for (; row < to; row++) ROWS(1, 1, p);
            }
#undef ROWS
        }
    }
}

/* ---- int4 ------------------------------------------------------------------------------------ */

INLINE float from_fp16(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    const uint32_t rest = half & 0x7fff;
    float value;
    if (rest < 0x0400) { /* subnormal: steps of 2^-24 */
        value = (float)rest * 5.9604644775390625e-8f;
    } else {
        const uint32_t bits = (rest << 13) + (112u << 23);
        memcpy(&value, &bits, 4);
    }
    return sign ? -value : value;
}

INLINE vf widen_fp16(const uint16_t *at) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at));
#elif defined(__AVX2__) && defined(__F16C__)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at));
#else
    vf out;
    for (int j = 0; j < LANES; j++) out[j] = from_fp16(at[j]);
    return out;
#endif
}

INLINE vf widen_u8(const uint8_t *at) {
    vf out;
#if defined(__AVX512F__)
    out = (vf)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)at)));
#elif defined(__AVX2__)
    out = (vf)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)at)));
#else
    for (int j = 0; j < LANES; j++) out[j] = at[j];
#endif
    return out;
}

/* the products of one group of one panel: sums[rows][PARTS] */
INLINE void i4_group(const int rows, const int8_t *q, const uint8_t *w, vi *sums, long k) {
#if defined(VNNI)
    const __m512i low = _mm512_set1_epi8(15);
    __m512i sum[4];
    UNROLL for (int r = 0; r < rows; r++) sum[r] = _mm512_setzero_si512();
    UNROLL for (int i = 0; i < GROUP; i += 8) {
        const __m512i bytes = _mm512_loadu_si512(w + i / 8 * 64);
        const __m512i first = _mm512_and_si512(bytes, low);
        const __m512i second = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
        UNROLL for (int r = 0; r < rows; r++) {
            int32_t four[2];
            memcpy(four, q + r * k + i, 8);
            sum[r] = _mm512_dpbusd_epi32(sum[r], first, _mm512_set1_epi32(four[0]));
            sum[r] = _mm512_dpbusd_epi32(sum[r], second, _mm512_set1_epi32(four[1]));
        }
    }
    UNROLL for (int r = 0; r < rows; r++) sums[r] = (vi)sum[r];
#elif defined(__AVX2__)
    /* pairs of products stay below 2 * 15 * 127, so eight of them fit into 16 bits */
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    UNROLL for (int half = 0; half < 2; half++) {
        __m256i sum[4];
        UNROLL for (int r = 0; r < rows; r++) sum[r] = _mm256_setzero_si256();
        for (int i = 0; i < GROUP; i += 32) {
            __m256i part[4];
            UNROLL for (int r = 0; r < rows; r++) part[r] = _mm256_setzero_si256();
            UNROLL for (int j = i; j < i + 32; j += 8) {
                const __m256i bytes =
                    _mm256_loadu_si256((const __m256i *)(w + j / 8 * 64 + half * 32));
                const __m256i first = _mm256_and_si256(bytes, low);
                const __m256i second = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
                UNROLL for (int r = 0; r < rows; r++) {
                    int32_t four[2];
                    memcpy(four, q + r * k + j, 8);
                    part[r] = _mm256_add_epi16(
                        part[r], _mm256_maddubs_epi16(first, _mm256_set1_epi32(four[0])));
                    part[r] = _mm256_add_epi16(
                        part[r], _mm256_maddubs_epi16(second, _mm256_set1_epi32(four[1])));
                }
            }
            UNROLL for (int r = 0; r < rows; r++)
                sum[r] = _mm256_add_epi32(sum[r], _mm256_madd_epi16(part[r], ones));
        }
        UNROLL for (int r = 0; r < rows; r++) sums[r * 2 + half] = (vi)sum[r];
    }
#else
    for (int r = 0; r < rows; r++) {
        int32_t sum[PANEL] = {0};
        for (int i = 0; i < GROUP; i += 8)
            for (int j = 0; j < PANEL; j++)
                for (int b = 0; b < 4; b++) {
                    const uint8_t two = w[i / 8 * 64 + 4 * j + b];
                    sum[j] += (two & 15) * q[r * k + i + b] + (two >> 4) * q[r * k + i + 4 + b];
                }
        memcpy(sums + r * PARTS, sum, sizeof sum);
    }
#endif
}

INLINE void i4_rows(const int rows, const int8_t *q, const float *scales, const int32_t *q_sums,
                    const uint8_t *w, const uint16_t *w_scales, const uint8_t *zeros,
                    const float *bias, float *y, long panel, long n, long k) {
    const long groups = k / GROUP;
    vf sum[4 * PARTS];
    UNROLL for (int i = 0; i < rows * PARTS; i++) sum[i] = splat(0);
    for (long g = 0; g < groups; g++) {
        vi exact[4 * PARTS];
        const long block = panel * groups + g;
        i4_group(rows, q + g * GROUP, w + block * GROUP * PANEL / 2, exact, k);
        UNROLL for (int part = 0; part < PARTS; part++) {
            const vf scale = widen_fp16(w_scales + block * PANEL + part * LANES);
            const vf zero = widen_u8(zeros + block * PANEL + part * LANES);
            UNROLL for (int r = 0; r < rows; r++) {
                const vf product = __builtin_convertvector(exact[r * PARTS + part], vf);
                const vf above = product - zero * splat((float)q_sums[r * groups + g]);
                sum[r * PARTS + part] += above * (scale * splat(scales[r * groups + g]));
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        vf out[PARTS];
        UNROLL for (int part = 0; part < PARTS; part++) out[part] = sum[r * PARTS + part];
        put(y + r * n, bias, out, panel * PANEL, n);
    }
}

void qvl_linear_i4(const int8_t *q, const float *scales, const int32_t *q_sums, const uint8_t *w,
                   const uint16_t *w_scales, const uint8_t *zeros, const float *bias, float *y,
                   long m, long n, long k) {
    const long panels = (n + PANEL - 1) / PANEL, groups = k / GROUP;
    for (long from = 0; from < m; from += ROWS_AT_ONCE) {
        const long to = from + ROWS_AT_ONCE < m ? from + ROWS_AT_ONCE : m;
#pragma omp parallel for schedule(static)
        for (long p = 0; p < panels; p++) {
#define ROWS(r)                                                                                    \
    i4_rows(r, q + row * k, scales + row * groups, q_sums + row * groups, w, w_scales, zeros, bias,\
            y + row * n, p, n, k)
            long row = from;
            for (; row + 4 <= to; row += 4) ROWS(4);
            for (; row + 2 <= to; row += 2) ROWS(2);
            for (; row < to; row++) ROWS(1);
#undef ROWS
        }
    }
}
