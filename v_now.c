/* The decoder on a CPU: y = x W^T + b for weights in bf16, int8 and int4, and what stands between two
 * such products; called through ctypes by linear.py, parts.py and attention.py.
 *
 * Every weight is kept in panels of 16 outputs, so that a vector holds neighbouring outputs and the
 * sum over k runs in one fixed order: a row of x gives the same bits alone and among others.
 *   bf16  [N/16][K/2][16][2]
 *   int8  [N/16][K/4][16][4], stored + 128
 *   int4  [N/16][K/8][16][4], the low nibbles are k .. k+3, the high ones k+4 .. k+7;
 *         per group of 128 k: scale fp16 [N/16][K/128][16], zero uint8 likewise
 * int8 and int4 multiply by activations in int8 with one scale a row (int8) or a row and group (int4)
 * and sum in int32, which is exact.
 *
 * Few rows take the weights as they come from memory. For many, a block of a panel is first widened
 * to what the processor multiplies, in the nearest cache, and then meets all rows.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define PANEL 16
#define GROUP 128
#define FEW_ROWS 8       /* so many take the weights as they come */
#define TILE_ROWS 4      /* of those that share a load of weights */
#define ROWS_AT_ONCE 192 /* that meet a widened block */
#define BLOCK 512        /* of k in a widened block */
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define VNNI 1
#endif
#if defined(__AVX512BF16__) && defined(VNNI)
#define BF16_DOT 1
#endif

#if defined(VNNI) /* AVX-512 without it has nothing to add for whole numbers */
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#define PARTS (PANEL / LANES) /* vectors in a panel */
#define WIDE_ROWS (PARTS == 1 ? 12 : 6) /* that meet a widened block together: their sums fill the
                                           registers. Always so many, the last ones perhaps zeros */

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef float vfu __attribute__((vector_size(LANES * 4), aligned(4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vuu __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int32_t viu __attribute__((vector_size(LANES * 4), aligned(4)));

INLINE vf splat(float v) { return v - (vf){}; } /* a sum with 0 would be computed: -0 + 0 is 0 */

/* gcc keeps no eight sums in registers unless it is told what belongs together */
#if defined(__AVX2__)
#define HELD(v) __asm__("" : "+x"(v))
#define SUM_OF_PRODUCTS(multiply, add, sum, a, b)                                                  \
    do {                                                                                           \
        __m256i product;                                                                           \
        __asm__(multiply " %3, %2, %1\n\t" add " %1, %0, %0"                                       \
                : "+x"(sum), "=&x"(product)                                                        \
                : "x"(a), "x"(b));                                                                 \
    } while (0)
/* the same four bytes everywhere, from memory: by way of a plain register it would cost a shuffle */
INLINE __m256i four_bytes(const void *at) {
    __m256i all;
    __asm__("vpbroadcastd %1, %0" : "=x"(all) : "m"(*(const int32_t *)at));
    return all;
}
#else
#define HELD(v)
#endif
INLINE long least(long a, long b) { return a < b ? a : b; }

/* one panel of one row of y; the last panel may reach beyond the N outputs */
INLINE void put(float *y, const float *bias, const float *values, long from, long n) {
    const long count = least(PANEL, n - from);
    for (long j = 0; j < count; j++) y[from + j] = bias ? values[j] + bias[from + j] : values[j];
}

/* TILE(rows) for `count` rows from `row` on, in tiles as even as can be */
#define IN_TILES(row, count, TILE)                                                                 \
    for (long left = (count), tiles = (left + TILE_ROWS - 1) / TILE_ROWS, here; tiles > 0;         \
         row += here, left -= here, tiles--) {                                                     \
        here = (left + tiles - 1) / tiles;                                                         \
        switch (here) {                                                                            \
        case 1: TILE(1); break;                                                                    \
        case 2: TILE(2); break;                                                                    \
        case 3: TILE(3); break;                                                                    \
        default: TILE(4);                                                                          \
        }                                                                                          \
    }

/* ---- bf16 ------------------------------------------------------------------------------------ */

/* rows and panels that give enough independent sums to hide the latency, and not too many */
#define PANELS_FOR(rows) ((rows) == 1 ? 4 : (rows) == 2 ? 2 : PARTS == 1 ? 2 : 1)

#if defined(BF16_DOT)
INLINE uint16_t to_bf16(float value) { /* to the nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#define BF16_X uint16_t
#else
#define BF16_X float

/* sums[WIDE_ROWS][PANEL] += a tile [count][WIDE_ROWS] of x times a widened block [count][PANEL] */
INLINE void fp32_tile(const float *x, const float *w, float *sums, long count) {
    vf sum[WIDE_ROWS][PARTS];
    UNROLL for (int r = 0; r < WIDE_ROWS; r++)
        UNROLL for (int p = 0; p < PARTS; p++) sum[r][p] = *(vfu *)(sums + r * PANEL + p * LANES);
    for (long i = 0; i < count; i++) {
        vf weights[PARTS];
        UNROLL for (int p = 0; p < PARTS; p++) {
            weights[p] = *(const vfu *)(w + i * PANEL + p * LANES);
            HELD(weights[p]);
        }
        UNROLL for (int r = 0; r < WIDE_ROWS; r++) {
            const vf value = splat(x[i * WIDE_ROWS + r]);
            UNROLL for (int p = 0; p < PARTS; p++) sum[r][p] += weights[p] * value;
        }
    }
    UNROLL for (int r = 0; r < WIDE_ROWS; r++)
        UNROLL for (int p = 0; p < PARTS; p++) *(vfu *)(sums + r * PANEL + p * LANES) = sum[r][p];
}

/* a tile of x: its rows' values side by side, so that they are read as one stream */
INLINE void fp32_side_by_side(const float *x, long rows, long k, float *tile) {
    for (long i = 0; i < k; i++)
        UNROLL for (long r = 0; r < WIDE_ROWS; r++)
            tile[i * WIDE_ROWS + r] = r < rows ? x[r * k + i] : 0;
}

INLINE void widen_bf16(const uint16_t *w, float *wide, long count) {
    for (long i = 0; i < count; i += 2)
        UNROLL for (int p = 0; p < PARTS; p++) {
            const vu pairs = *(const vuu *)(w + i * PANEL + p * LANES * 2);
            *(vuu *)(wide + i * PANEL + p * LANES) = pairs << 16;
            *(vuu *)(wide + (i + 1) * PANEL + p * LANES) = pairs & 0xffff0000;
        }
}
#endif

/* whole rows by whole panels from `first` on, the weights as they come */
INLINE void bf16_tile(const int rows, const int panels, const BF16_X *x, const uint16_t *w,
                      const float *bias, float *y, long first, long n, long k) {
    vf sum[TILE_ROWS][4 * PARTS]; /* what is not used goes away */
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int p = 0; p < panels * PARTS; p++) sum[r][p] = splat(0);
    w += first * k * PANEL;
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
        UNROLL for (int r = 0; r < rows; r++) {
            const vf even = splat(x[r * k + i]), odd = splat(x[r * k + i + 1]);
            UNROLL for (int p = 0; p < panels * PARTS; p++) sum[r][p] += (vf)(pairs[p] << 16) * even;
            UNROLL for (int p = 0; p < panels * PARTS; p++)
                sum[r][p] += (vf)(pairs[p] & 0xffff0000) * odd;
        }
#endif
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int p = 0; p < panels; p++)
            put(y + r * n, bias, (float *)(sum[r] + p * PARTS), (first + p) * PANEL, n);
}

/* k even */
void qvl_linear_bf16(const float *fp32_x, void *scratch, const uint16_t *w, const float *bias,
                     float *y, long m, long n, long k) {
    const long panels = (n + PANEL - 1) / PANEL;
#if defined(BF16_DOT)
    BF16_X *x = scratch;
#pragma omp parallel for schedule(static) if (m > TILE_ROWS)
    for (long row = 0; row < m; row++)
        for (long i = row * k; i < (row + 1) * k; i++) x[i] = to_bf16(fp32_x[i]);
#else
    const BF16_X *x = fp32_x;
    float *tiles = scratch;
    for (long from = 0; m > FEW_ROWS && from < m; from += ROWS_AT_ONCE) {
        const long count = least(ROWS_AT_ONCE, m - from);
#pragma omp parallel for schedule(static)
        for (long row = 0; row < count; row += WIDE_ROWS)
            fp32_side_by_side(x + (from + row) * k, count - row, k, tiles + row * k);
#pragma omp parallel for schedule(static)
        for (long p = 0; p < panels; p++) {
            float wide[BLOCK * PANEL], sums[ROWS_AT_ONCE * PANEL] = {0};
            for (long at = 0; at < k; at += BLOCK) {
                const long ks = least(BLOCK, k - at);
                widen_bf16(w + (p * k + at) * PANEL, wide, ks);
                for (long row = 0; row < count; row += WIDE_ROWS)
                    fp32_tile(tiles + row * k + at * WIDE_ROWS, wide, sums + row * PANEL, ks);
            }
            for (long row = 0; row < count; row++)
                put(y + (from + row) * n, bias, sums + row * PANEL, p * PANEL, n);
        }
    }
    if (m > FEW_ROWS) return;
#endif
    for (long from = 0; from < m; from += ROWS_AT_ONCE) {
        const long count = least(ROWS_AT_ONCE, m - from);
#pragma omp parallel for schedule(static)
        for (long four = 0; four < panels; four += 4) {
            const long end = least(four + 4, panels);
            long row = from;
#define TILE(r)                                                                                    \
    do {                                                                                           \
        long p = four;                                                                             \
        for (; p + PANELS_FOR(r) <= end; p += PANELS_FOR(r))                                       \
            bf16_tile(r, PANELS_FOR(r), x + row * k, w, bias, y + row * n, p, n, k);               \
        for (; p < end; p++) bf16_tile(r, 1, x + row * k, w, bias, y + row * n, p, n, k);          \
    } while (0)
            IN_TILES(row, count, TILE)
#undef TILE
        }
    }
}

/* ---- activations in int8 --------------------------------------------------------------------- */

/* the largest of them without their signs; not a number when one is none or infinite, and so is then
 * all that follows from it */
INLINE float largest(const float *x, long count) {
    float most[LANES] = {0}, zero[LANES] = {0};
    for (long i = 0; i < count; i += LANES)
        for (long j = 0; j < least(LANES, count - i); j++) {
            const float value = fabsf(x[i + j]);
            most[j] = value > most[j] ? value : most[j];
            zero[j] += value * 0.0f;
        }
    for (int j = 1; j < LANES; j++) {
        most[0] = most[j] > most[0] ? most[j] : most[0];
        zero[0] += zero[j];
    }
    return most[0] + zero[0];
}

#if defined(VNNI) || !defined(__AVX2__)
typedef int8_t i8_value;
#define I8_PLACE(i) (i)
#else
/* products of unsigned and signed bytes would overflow vpmaddubsw, so pairs of 16 bits are
 * multiplied: the even bytes of the weights with activations 0 and 2 of each four, the odd ones
 * with 1 and 3 */
typedef int16_t i8_value;
#define I8_PLACE(i) ((i) == 1 ? 2 : (i) == 2 ? 1 : (i))
#endif

/* to whole numbers of -127 .. 127, in units of so many that lie `apart`, PLACE(0 .. 3) of each four;
 * returns their scale, *total is their sum; count a multiple of 4 */
#define QUANTISED(name, value_t, UNIT, PLACE)                                                      \
    INLINE float name(const float *x, long count, value_t *to, const long apart, int32_t *total) { \
        const float most = largest(x, count), inverse = most > 0 ? 127.0f / most : 0;              \
        int32_t values[GROUP], together = 0;                                                       \
        for (long at = 0; at < count; at += GROUP) {                                               \
            const long here = least(GROUP, count - at);                                            \
            for (long i = 0; i < here; i++) {                                                      \
                values[i] = __builtin_irintf(x[at + i] * inverse);                                 \
                together += values[i];                                                             \
            }                                                                                      \
            for (long i = 0; i < here; i += 4)                                                     \
                UNROLL for (long j = 0; j < 4; j++)                                                \
                    to[(at + i + j) / UNIT * apart + j % UNIT] = (value_t)values[i + PLACE(j)];    \
        }                                                                                          \
        *total = together;                                                                         \
        return most / 127.0f;                                                                      \
    }
#define I4_PLACE(i) (i)
QUANTISED(i8_quantised, i8_value, 2, I8_PLACE)
QUANTISED(i4_quantised, int8_t, 4, I4_PLACE)

/* ---- int8 ------------------------------------------------------------------------------------ */

/* sums[rows][panels * PARTS] of whole rows by whole panels, the weights as they come */
INLINE void i8_tile(const int rows, const int panels, const i8_value *q, const uint8_t *w, vi *sums,
                    long k) {
#if defined(VNNI)
    __m512i sum[TILE_ROWS][4];
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
#elif defined(__AVX2__)
    __m256i sum[TILE_ROWS][8];
    const __m256i low = _mm256_set1_epi16(0x00ff);
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int p = 0; p < panels * 2; p++) sum[r][p] = _mm256_setzero_si256();
    for (long i = 0; i < k; i += 4)
        UNROLL for (int p = 0; p < panels * 2; p++) {
            const uint8_t *at = w + (p / 2 * k + i) * PANEL + p % 2 * 32;
            const __m256i bytes = _mm256_loadu_si256((const __m256i *)at);
            const __m256i even = _mm256_and_si256(bytes, low), odd = _mm256_srli_epi16(bytes, 8);
            UNROLL for (int r = 0; r < rows; r++) {
                const i8_value *four = q + r * k + i;
                SUM_OF_PRODUCTS("vpmaddwd", "vpaddd", sum[r][p], even, four_bytes(four));
                SUM_OF_PRODUCTS("vpmaddwd", "vpaddd", sum[r][p], odd, four_bytes(four + 2));
            }
        }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int p = 0; p < panels * 2; p++) sums[r * panels * 2 + p] = (vi)sum[r][p];
#else
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++) {
            int32_t sum[PANEL] = {0};
            for (long i = 0; i < k; i++)
                for (int j = 0; j < PANEL; j++)
                    sum[j] += (int32_t)w[(p * k + i / 4 * 4) * PANEL + 4 * j + i % 4] * q[r * k + i];
            memcpy(sums + (r * panels + p) * PARTS, sum, sizeof sum);
        }
#endif
}

/* what the whole numbers of one panel of one row stand for */
INLINE void i8_put(const vi *sums, float scale, int32_t q_sum, const float *w_scales,
                   const float *bias, float *y, long panel, long n) {
    vf out[PARTS];
    UNROLL for (int p = 0; p < PARTS; p++) {
        const vf w_scale = *(const vfu *)(w_scales + panel * PANEL + p * LANES);
        out[p] = __builtin_convertvector(sums[p] - 128 * q_sum, vf) * (w_scale * splat(scale));
    }
    put(y, bias, (float *)out, panel * PANEL, n);
}

#if defined(__AVX2__) && !defined(VNNI)
#define I8_WIDE 1
/* [count / 4][even bytes of 16 outputs, odd bytes], 16 bits each */
INLINE void widen_i8(const uint8_t *w, __m256i *wide, long count) {
    const __m256i low = _mm256_set1_epi16(0x00ff);
    for (long i = 0; i < count / 4; i++)
        UNROLL for (int p = 0; p < 2; p++) {
            const __m256i bytes = _mm256_loadu_si256((const __m256i *)(w + i * 4 * PANEL) + p);
            wide[i * 4 + p] = _mm256_and_si256(bytes, low);
            wide[i * 4 + 2 + p] = _mm256_srli_epi16(bytes, 8);
        }
}

/* sums[WIDE_ROWS][2] += a tile [count / 2][WIDE_ROWS][2] of q times a widened block */
INLINE void i8_wide_tile(const i8_value *q, const __m256i *wide, vi *sums, long count) {
    __m256i sum[WIDE_ROWS][2];
    UNROLL for (int r = 0; r < WIDE_ROWS; r++)
        UNROLL for (int p = 0; p < 2; p++) sum[r][p] = (__m256i)sums[r * 2 + p];
    for (long i = 0; i < count / 2; i++) { /* a pair of each four */
        __m256i weights[2] = {wide[i * 2], wide[i * 2 + 1]};
        UNROLL for (int p = 0; p < 2; p++) HELD(weights[p]);
        UNROLL for (int r = 0; r < WIDE_ROWS; r++) {
            const __m256i values = four_bytes(q + (i * WIDE_ROWS + r) * 2);
            UNROLL for (int p = 0; p < 2; p++)
                SUM_OF_PRODUCTS("vpmaddwd", "vpaddd", sum[r][p], weights[p], values);
        }
    }
    UNROLL for (int r = 0; r < WIDE_ROWS; r++)
        UNROLL for (int p = 0; p < 2; p++) sums[r * 2 + p] = (vi)sum[r][p];
}
#endif

/* k a multiple of 4 */
void qvl_linear_i8(const float *x, void *scratch, const uint8_t *w, const float *w_scales,
                   const float *bias, float *y, long m, long n, long k) {
    const long panels = (n + PANEL - 1) / PANEL;
    float *scales = scratch;
    int32_t *q_sums = (int32_t *)(scales + m);
    i8_value *q = (i8_value *)(q_sums + m);
#if defined(I8_WIDE)
    for (long from = 0; m > FEW_ROWS && from < m; from += ROWS_AT_ONCE) {
        const long count = least(ROWS_AT_ONCE, m - from);
#pragma omp parallel for schedule(static)
        for (long row = 0; row < count; row += WIDE_ROWS) {
            const long rows = least(WIDE_ROWS, count - row);
            if (rows < WIDE_ROWS) memset(q + row * k, 0, (size_t)(WIDE_ROWS * k) * sizeof *q);
            for (long r = 0, i = from + row; r < rows; r++, i++)
                scales[i] = i8_quantised(x + i * k, k, q + row * k + r * 2, WIDE_ROWS * 2, q_sums + i);
        }
#pragma omp parallel for schedule(static)
        for (long p = 0; p < panels; p++) {
            __m256i wide[BLOCK * PANEL / 16];
            vi sums[ROWS_AT_ONCE * PARTS] = {0};
            for (long at = 0; at < k; at += BLOCK) {
                const long ks = least(BLOCK, k - at);
                widen_i8(w + (p * k + at) * PANEL, wide, ks);
                for (long row = 0; row < count; row += WIDE_ROWS)
                    i8_wide_tile(q + row * k + at * WIDE_ROWS, wide, sums + row * PARTS, ks);
            }
            for (long i = 0, row = from; i < count; i++, row++)
                i8_put(sums + i * PARTS, scales[row], q_sums[row], w_scales, bias, y + row * n, p, n);
        }
    }
    if (m > FEW_ROWS) return;
#endif
#pragma omp parallel for schedule(static) if (m > TILE_ROWS)
    for (long row = 0; row < m; row++)
        scales[row] = i8_quantised(x + row * k, k, q + row * k, 2, q_sums + row);
    for (long from = 0; from < m; from += ROWS_AT_ONCE) {
        const long count = least(ROWS_AT_ONCE, m - from);
#pragma omp parallel for schedule(static)
        for (long four = 0; four < panels; four += 4) {
            const long end = least(four + 4, panels);
            long row = from;
#define I8_ROWS(r, ps)                                                                             \
    do {                                                                                           \
        vi sums[TILE_ROWS * 4 * PARTS];                                                            \
        i8_tile(r, ps, q + row * k, w + p * k * PANEL, sums, k);                                   \
        for (int i = 0; i < (r) * (ps); i++)                                                       \
            i8_put(sums + i * PARTS, scales[row + i / (ps)], q_sums[row + i / (ps)], w_scales,     \
                   bias, y + (row + i / (ps)) * n, p + i % (ps), n);                               \
    } while (0)
#define TILE(r)                                                                                    \
    do {                                                                                           \
        long p = four;                                                                             \
        for (; p + PANELS_FOR(r) <= end; p += PANELS_FOR(r)) I8_ROWS(r, PANELS_FOR(r));            \
        for (; p < end; p++) I8_ROWS(r, 1);                                                        \
    } while (0)
            IN_TILES(row, count, TILE)
#undef TILE
#undef I8_ROWS
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
#if LANES == 16
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
#if LANES == 16
    out = (vf)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)at)));
#elif defined(__AVX2__)
    out = (vf)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)at)));
#else
    for (int j = 0; j < LANES; j++) out[j] = at[j];
#endif
    return out;
}

/* the products of one group of one panel, the weights as they come: sums[rows][PARTS] */
INLINE void i4_group(const int rows, const int8_t *q, const uint8_t *w, vi *sums, long k) {
#if defined(VNNI)
    const __m512i low = _mm512_set1_epi8(15);
    __m512i sum[TILE_ROWS];
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
    UNROLL for (int i = 0; i < rows * 2; i++) sums[i] = (vi){};
    for (int i = 0; i < GROUP; i += 32) {
        __m256i part[TILE_ROWS][2];
        UNROLL for (int r = 0; r < rows; r++) part[r][0] = part[r][1] = _mm256_setzero_si256();
        UNROLL for (int j = i; j < i + 32; j += 8) {
            __m256i first[2], second[2];
            UNROLL for (int p = 0; p < 2; p++) {
                const __m256i bytes = _mm256_loadu_si256((const __m256i *)(w + j * 8) + p);
                first[p] = _mm256_and_si256(bytes, low);
                second[p] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
            }
            UNROLL for (int r = 0; r < rows; r++) {
                const __m256i one = four_bytes(q + r * k + j), two = four_bytes(q + r * k + j + 4);
                UNROLL for (int p = 0; p < 2; p++) { /* the weights are the unsigned operand */
                    SUM_OF_PRODUCTS("vpmaddubsw", "vpaddw", part[r][p], first[p], one);
                    SUM_OF_PRODUCTS("vpmaddubsw", "vpaddw", part[r][p], second[p], two);
                }
            }
        }
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int p = 0; p < 2; p++)
                sums[r * 2 + p] += (vi)_mm256_madd_epi16(part[r][p], ones);
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

/* sums[rows][PARTS] += what the whole numbers of one group of one panel stand for */
INLINE void i4_add(const int rows, const vi *exact, const float *scales, const int32_t *q_sums,
                   const uint16_t *w_scales, const uint8_t *zeros, vf *sums, long groups) {
    UNROLL for (int p = 0; p < PARTS; p++) {
        const vf scale = widen_fp16(w_scales + p * LANES), zero = widen_u8(zeros + p * LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            const vf product = __builtin_convertvector(exact[r * PARTS + p], vf);
            const vf above = product - zero * splat((float)q_sums[r * groups]);
            sums[r * PARTS + p] += above * (scale * splat(scales[r * groups]));
        }
    }
}

#if defined(I8_WIDE)
/* [GROUP / 4][16 outputs][4] */
INLINE void widen_i4(const uint8_t *w, __m256i *wide) {
    const __m256i low = _mm256_set1_epi8(15);
    for (int i = 0; i < GROUP / 8; i++)
        UNROLL for (int p = 0; p < 2; p++) {
            const __m256i bytes = _mm256_loadu_si256((const __m256i *)w + i * 2 + p);
            wide[i * 4 + p] = _mm256_and_si256(bytes, low);
            wide[i * 4 + 2 + p] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
        }
}

/* sums[WIDE_ROWS][2] += a group: a tile [GROUP / 4][WIDE_ROWS][4] of q times a widened block */
INLINE void i4_wide_tile(const int8_t *q, const __m256i *wide, vi *sums) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int i = 0; i < GROUP / 4; i += 8) { /* eight sums of two products fit into 16 bits */
        __m256i part[WIDE_ROWS][2];
        UNROLL for (int r = 0; r < WIDE_ROWS; r++) part[r][0] = part[r][1] = _mm256_setzero_si256();
        for (int j = i; j < i + 8; j++) {
            __m256i weights[2] = {wide[j * 2], wide[j * 2 + 1]};
            UNROLL for (int p = 0; p < 2; p++) HELD(weights[p]);
            UNROLL for (int r = 0; r < WIDE_ROWS; r++) {
                const __m256i values = four_bytes(q + (j * WIDE_ROWS + r) * 4);
                UNROLL for (int p = 0; p < 2; p++)
                    SUM_OF_PRODUCTS("vpmaddubsw", "vpaddw", part[r][p], weights[p], values);
            }
        }
        UNROLL for (int r = 0; r < WIDE_ROWS; r++)
            UNROLL for (int p = 0; p < 2; p++)
                sums[r * 2 + p] += (vi)_mm256_madd_epi16(part[r][p], ones);
    }
}
#endif

/* k a multiple of 128 */
void qvl_linear_i4(const float *x, void *scratch, const uint8_t *w, const uint16_t *w_scales,
                   const uint8_t *zeros, const float *bias, float *y, long m, long n, long k) {
    const long panels = (n + PANEL - 1) / PANEL, groups = k / GROUP;
    float *scales = scratch;
    int32_t *q_sums = (int32_t *)(scales + m * groups);
    int8_t *q = (int8_t *)(q_sums + m * groups);
#if defined(I8_WIDE)
    for (long from = 0; m > FEW_ROWS && from < m; from += ROWS_AT_ONCE) {
        const long count = least(ROWS_AT_ONCE, m - from);
#pragma omp parallel for schedule(static)
        for (long row = 0; row < count; row += WIDE_ROWS) {
            const long rows = least(WIDE_ROWS, count - row);
            if (rows < WIDE_ROWS) memset(q + row * k, 0, (size_t)(WIDE_ROWS * k));
            for (long i = 0; i < rows * groups; i++) {
                const long r = i / groups, g = i % groups, at = (from + row) * groups + i;
                scales[at] = i4_quantised(x + at * GROUP, GROUP,
                                          q + row * k + g * GROUP * WIDE_ROWS + r * 4,
                                          WIDE_ROWS * 4, q_sums + at);
            }
        }
#pragma omp parallel for schedule(static)
        for (long p = 0; p < panels; p++) {
            __m256i wide[GROUP * PANEL / 32];
            vf sums[ROWS_AT_ONCE * PARTS] = {0};
            for (long g = 0; g < groups; g++) {
                const long block = p * groups + g;
                widen_i4(w + block * GROUP * PANEL / 2, wide);
                for (long row = 0; row < count; row += WIDE_ROWS) {
                    const long at = (from + row) * groups + g;
                    vi exact[WIDE_ROWS * PARTS] = {0};
                    i4_wide_tile(q + row * k + g * GROUP * WIDE_ROWS, wide, exact);
                    i4_add(least(WIDE_ROWS, count - row), exact, scales + at, q_sums + at,
                           w_scales + block * PANEL, zeros + block * PANEL, sums + row * PARTS,
                           groups);
                }
            }
            for (long row = 0; row < count; row++)
                put(y + (from + row) * n, bias, (float *)(sums + row * PARTS), p * PANEL, n);
        }
    }
    if (m > FEW_ROWS) return;
#endif
#pragma omp parallel for schedule(static) if (m > TILE_ROWS)
    for (long g = 0; g < m * groups; g++)
        scales[g] = i4_quantised(x + g * GROUP, GROUP, q + g * GROUP, 4, q_sums + g);
    for (long from = 0; from < m; from += ROWS_AT_ONCE) {
        const long count = least(ROWS_AT_ONCE, m - from);
#pragma omp parallel for schedule(static)
        for (long p = 0; p < panels; p++) {
            vf sums[ROWS_AT_ONCE * PARTS];
            memset(sums, 0, (size_t)count * PARTS * sizeof *sums);
            for (long g = 0; g < groups; g++) {
                const long block = p * groups + g;
                const uint8_t *from_w = w + block * GROUP * PANEL / 2;
                long row = 0;
#define TILE(r)                                                                                    \
    do {                                                                                           \
        const long at = (from + row) * groups + g;                                                 \
        vi exact[TILE_ROWS * PARTS];                                                               \
        i4_group(r, q + at * GROUP, from_w, exact, k);                                                                  \
        i4_add(r, exact, scales + at, q_sums + at, w_scales + block * PANEL, zeros + block * PANEL,\
               sums + row * PARTS, groups);                                                        \
    } while (0)
                IN_TILES(row, count, TILE)
#undef TILE
            }
            for (long row = 0; row < count; row++)
                put(y + (from + row) * n, bias, (float *)(sums + row * PARTS), p * PANEL, n);
        }
    }
}

/* ---- between the products -------------------------------------------------------------------- */

#define ALONE (1 << 15) /* numbers below which one thread is done before a second has begun */

INLINE float total(vf v) {
    float lanes[LANES];
    memcpy(lanes, &v, sizeof lanes);
    UNROLL for (int half = LANES / 2; half > 0; half /= 2)
        UNROLL for (int j = 0; j < half; j++) lanes[j] += lanes[j + half];
    return lanes[0];
}

INLINE vf chosen(vi where, vf yes, vf no) { return (vf)((where & (vi)yes) | (~where & (vi)no)); }

/* e^x to about 2 units in the last place between -87 and 88, constant beyond; the polynomial is that
 * of Cephes (expf.c) */
INLINE vf exponential(vf x) {
    x = chosen(x < splat(-87.0f), splat(-87.0f), x);
    x = chosen(x > splat(88.0f), splat(88.0f), x);
    const vf round = splat(12582912.0f); /* 1.5 * 2^23 */
    const vf n = (x * splat(1.44269504f) + round) - round;
    const vf r = (x - n * splat(0.693359375f)) + n * splat(2.12194440e-4f);
    vf p = splat(1.9875691500e-4f);
    p = p * r + splat(1.3981999507e-3f);
    p = p * r + splat(8.3334519073e-3f);
    p = p * r + splat(4.1665795894e-2f);
    p = p * r + splat(1.6666665459e-1f);
    p = p * r + splat(5.0000001201e-1f);
    const vi power = (__builtin_convertvector(n, vi) + 127) << 23;
    return (p * (r * r) + r + splat(1)) * (vf)power;
}

INLINE void norm_row(const float *x, const float *weight, float eps, float *y, long width) {
    vf sums[2] = {splat(0), splat(0)};
    for (long i = 0; i < width; i += LANES) {
        const vf part = *(const vfu *)(x + i);
        sums[i / LANES % 2] += part * part;
    }
    const float scale = 1.0f / sqrtf(total(sums[0] + sums[1]) / (float)width + eps);
    for (long i = 0; i < width; i += LANES)
        *(vfu *)(y + i) = *(const vfu *)(weight + i) * (*(const vfu *)(x + i) * splat(scale));
}

/* RMS norm of rows [m][width]; width a multiple of 16 */
void qvl_norm(const float *x, const float *weight, float eps, float *y, long m, long width) {
#pragma omp parallel for schedule(static) if (m * width > ALONE)
    for (long row = 0; row < m; row++) norm_row(x + row * width, weight, eps, y + row * width, width);
}

/* y = silu(gate) * up of rows [gate, up]; width of each a multiple of 16 */
void qvl_silu_mul(const float *gate_up, float *y, long m, long width) {
#pragma omp parallel for schedule(static) if (m * width > ALONE)
    for (long row = 0; row < m; row++)
        for (long i = 0; i < width; i += LANES) {
            const vf gate = *(const vfu *)(gate_up + row * 2 * width + i);
            const vf up = *(const vfu *)(gate_up + row * 2 * width + width + i);
            *(vfu *)(y + row * width + i) = gate / (splat(1) + exponential(-gate)) * up;
        }
}

/* x sigmoid(a x + b x^3) in place, which quick_gelu and gelu_tanh both are; count a multiple of 16 */
void qvl_gate(float *x, float a, float b, long count) {
#pragma omp parallel for schedule(static) if (count > ALONE)
    for (long i = 0; i < count; i += LANES) {
        const vf v = *(vfu *)(x + i);
        *(vfu *)(x + i) = v / (splat(1) + exponential(-v * (splat(a) + splat(b) * v * v)));
    }
}

/* Queries and keys of rows [heads + 2 kv_heads][width] in place: their norm where there are weights
 * for it, then the rotation by cos and sin [m][width]; width a multiple of 32. */
void qvl_rotate(float *qkv, const float *q_weight, const float *k_weight, float eps,
                const float *cos, const float *sin, long m, long heads, long kv_heads, long width) {
    const long half = width / 2;
#pragma omp parallel for schedule(static) if (m * heads * width > ALONE)
    for (long row = 0; row < m; row++)
        for (long head = 0; head < heads + kv_heads; head++) {
            float *x = qkv + (row * (heads + 2 * kv_heads) + head) * width;
            const float *weight = head < heads ? q_weight : k_weight;
            const float *c = cos + row * width, *s = sin + row * width;
            if (weight) norm_row(x, weight, eps, x, width);
            for (long i = 0; i < half; i += LANES) {
                const vf first = *(vfu *)(x + i), second = *(vfu *)(x + half + i);
                *(vfu *)(x + i) = first * *(const vfu *)(c + i) - second * *(const vfu *)(s + i);
                *(vfu *)(x + half + i) =
                    second * *(const vfu *)(c + half + i) + first * *(const vfu *)(s + half + i);
            }
        }
}

/* ---- attention over the cache ---------------------------------------------------------------- */

/* q times `count` keys that lie `apart` numbers from each other */
INLINE void dots(const int count, const float *q, const float *keys, long apart, long width,
                 float scale, float *scores) {
    vf sums[8];
    UNROLL for (int j = 0; j < count; j++) sums[j] = splat(0);
    for (long i = 0; i < width; i += LANES)
        UNROLL for (int j = 0; j < count; j++)
            sums[j] += *(const vfu *)(keys + j * apart + i) * *(const vfu *)(q + i);
    UNROLL for (int j = 0; j < count; j++) scores[j] = total(sums[j]) * scale;
}

/* out[width] += scores times the values of `count` tokens */
INLINE void add_values(const float *scores, long count, const float *values, long apart, long width,
                       float *out) {
    for (long i = 0; i < width; i += 2 * LANES) {
        vf first = *(vfu *)(out + i), second = *(vfu *)(out + i + LANES);
        for (long j = 0; j < count; j++) {
            first += splat(scores[j]) * *(const vfu *)(values + j * apart + i);
            second += splat(scores[j]) * *(const vfu *)(values + j * apart + i + LANES);
        }
        *(vfu *)(out + i) = first;
        *(vfu *)(out + i + LANES) = second;
    }
}

/* scores to probabilities, those from `count` up to a full vector to 0 */
INLINE void softmax(float *scores, long count) {
    float most = -INFINITY;
    for (long j = 0; j < count; j++) most = scores[j] > most ? scores[j] : most;
    vf sum = splat(0);
    for (long j = 0; j < count; j += LANES) {
        vf part = exponential(*(vfu *)(scores + j) - splat(most));
        for (long i = count - j; i < LANES; i++) part[i] = 0;
        *(vfu *)(scores + j) = part;
        sum += part;
    }
    const float inverse = 1.0f / total(sum);
    for (long j = 0; j < count; j++) scores[j] *= inverse;
}

/* Keys and values of `tokens` new tokens into the cache, then their causal attention over it.
 * q [tokens][heads * width], k and v [tokens][kv_heads * width], rows q_apart and kv_apart numbers
 * from each other; cache [2][blocks][per_block][kv_heads][width]; token t stands at positions[t] of the
 * sequence whose blocks are listed from tables[starts[t]] on. width a multiple of 32. */
void qvl_attend(const float *q, const float *k, const float *v, long q_apart, long kv_apart,
                float *cache, long blocks, long per_block, const int32_t *tables,
                const int64_t *starts, const int64_t *positions, float *out, long tokens, long heads, long kv_heads,
                long width) {
    const long group = heads / kv_heads, token_size = kv_heads * width;
    const long plane = blocks * per_block * token_size;
    const float scale = 1.0f / sqrtf((float)width);
    long longest = 0;
    for (long t = 0; t < tokens; t++) {
        const long at = positions[t], block = tables[starts[t] + at / per_block];
        float *slot = cache + (block * per_block + at % per_block) * token_size;
        memcpy(slot, k + t * kv_apart, (size_t)token_size * sizeof *slot);
        memcpy(slot + plane, v + t * kv_apart, (size_t)token_size * sizeof *slot);
        longest = longest > at + 1 ? longest : at + 1;
    }
    const long room = (longest + LANES - 1) / LANES * LANES;
#pragma omp parallel if (tokens * longest * heads * width > ALONE)
    {
        float *scores = malloc((size_t)(group * room) * sizeof *scores);
#pragma omp for schedule(dynamic, 1)
        for (long item = tokens * kv_heads - 1; item >= 0; item--) { /* the longest first */
            const long t = item / kv_heads, head = item % kv_heads, count = positions[t] + 1;
            const float *from = q + t * q_apart + head * group * width;
            float *to = out + (t * heads + head * group) * width;
            for (long at = 0; at < count; at += per_block) {
                const float *keys = cache +
                    tables[starts[t] + at / per_block] * per_block * token_size + head * width;
                const long here = least(per_block, count - at);
                for (long r = 0; r < group; r++) {
                    long j = 0;
                    float *row = scores + r * room + at;
                    for (; j + 8 <= here; j += 8)
                        dots(8, from + r * width, keys + j * token_size, token_size, width, scale,
                             row + j);
                    for (; j < here; j++)
                        dots(1, from + r * width, keys + j * token_size, token_size, width, scale,
                             row + j);
                }
            }
            memset(to, 0, (size_t)(group * width) * sizeof *to);
            for (long r = 0; r < group; r++) softmax(scores + r * room, count);
            for (long at = 0; at < count; at += per_block) {
                const float *values = cache + plane +
                    tables[starts[t] + at / per_block] * per_block * token_size + head * width;
                for (long r = 0; r < group; r++)
                    add_values(scores + r * room + at, least(per_block, count - at), values,
                               token_size, width, to + r * width);
            }
        }
        free(scores);
    }
}

/* ---- a decoder layer, up to its attention and from there on ---------------------------------- */

/* as kernels/parts.py fills them */
typedef struct {
    const char *kind; /* "bf16", "int8" or "int4" */
    const void *panels, *scales, *zeros;
    const float *bias;
    long n, k;
} linear;

typedef struct {
    linear qkv, o, gate_up, down;
    const float *before, *after, *q_norm, *k_norm; /* weights of norms, the last two maybe NULL */
    float eps;
    long heads, kv_heads, width;
} layer;

static void multiply(const linear *l, const float *x, void *scratch, float *y, long m) {
    if (l->kind[0] == 'b')
        qvl_linear_bf16(x, scratch, l->panels, l->bias, y, m, l->n, l->k);
    else if (l->kind[3] == '8')
        qvl_linear_i8(x, scratch, l->panels, l->scales, l->bias, y, m, l->n, l->k);
    else
        qvl_linear_i4(x, scratch, l->panels, l->scales, l->zeros, l->bias, y, m, l->n, l->k);
}

static void add(const float *a, const float *b, float *y, long count) {
#pragma omp parallel for schedule(static) if (count > ALONE)
    for (long i = 0; i < count; i++) y[i] = a[i] + b[i];
}

/* queries, keys and values of rows x [m][hidden], rotated; work has room for m * hidden numbers */
void qvl_before_attention(const layer *l, const float *x, const float *cos, const float *sin,
                          float *work, void *scratch, float *qkv, long m) {
    qvl_norm(x, l->before, l->eps, work, m, l->qkv.k);
    multiply(&l->qkv, work, scratch, qkv, m);
    qvl_rotate(qkv, l->q_norm, l->k_norm, l->eps, cos, sin, m, l->heads, l->kv_heads, l->width);
}

/* y = what the layer makes of x, whose attention is there; work has room for m rows of hidden and
 * three times the MLP's width */
void qvl_after_attention(const layer *l, const float *x, const float *attended, float *work,
                         void *scratch, float *y, long m) {
    const long hidden = l->o.n, width = l->down.k;
    float *gate_up = work + m * hidden, *inner = gate_up + m * 2 * width;
    multiply(&l->o, attended, scratch, work, m);
    add(x, work, y, m * hidden);
    qvl_norm(y, l->after, l->eps, work, m, hidden);
    multiply(&l->gate_up, work, scratch, gate_up, m);
    qvl_silu_mul(gate_up, inner, m, width);
    multiply(&l->down, inner, scratch, work, m);
    add(y, work, y, m * hidden);
}
