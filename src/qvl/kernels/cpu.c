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
 * Rows of x are words of four bytes, as many numbers as the processor multiplies and sums at once:
 * one fp32 or two bf16; one int32, two int16 or four int8.
 * Few rows take the weights as they come from memory. For many, a block of panels is first widened
 * to such words, where it is not stored in them, in the nearest cache, and then meets all rows.
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
#define ROWS_AT_ONCE 384 /* that meet a widened block */
#define ALONE (1 << 15)  /* numbers below which one thread is done before a second has begun */
#define AHEAD 2048       /* bytes that are asked of memory before they are needed */
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define VNNI 1
#else
#define VNNI 0
#endif
#if defined(__AVX512BF16__) && VNNI
#define BF16_DOT 1
#else
#define BF16_DOT 0
#endif

#if VNNI /* AVX-512 without it has nothing to add for whole numbers */
#define LANES 16
#define REGISTER "v"
#elif defined(__AVX2__)
#define LANES 8
#define REGISTER "x"
#else
#define LANES 4
#endif
#define PARTS (PANEL / LANES)               /* vectors in a panel */
#define TILE_ROWS (PARTS == 1 ? 8 : 4)      /* few rows that share a load of weights */
#define WIDE_ROWS (PARTS == 1 ? 12 : 6)     /* rows and panels of the many that are multiplied */
#define WIDE_PANELS (PARTS == 1 ? 2 : 1)    /* together: their sums fill the registers. Always so */
#define WIDE (WIDE_PANELS * PARTS)          /* many, the last ones perhaps zeros */
#define BLOCK_WORDS (PARTS == 1 ? 256 : 512) /* of a widened panel */

typedef float vf __attribute__((vector_size(LANES * 4)));
/* in memory, of whatever numbers */
typedef float vfu __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vuu __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t viu __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

enum kind { BF16, INT8, INT4 };

/* each kind has code of its own */
#define FOR_KIND(kind, function, ...)                                                              \
    switch (kind) {                                                                                \
    case BF16: function(BF16, __VA_ARGS__); break;                                                 \
    case INT8: function(INT8, __VA_ARGS__); break;                                                 \
    default: function(INT4, __VA_ARGS__);                                                          \
    }

/* numbers in a word of x */
#define DEPTH(kind)                                                                                \
    ((kind) == BF16 ? (BF16_DOT ? 2 : 1) : VNNI ? 4 : LANES < 8 ? 1 : (kind) == INT8 ? 2 : 4)
/* are a panel's words stored as they are multiplied? */
#define AS_STORED(kind) ((kind) == BF16 ? BF16_DOT : (kind) == INT8 ? VNNI : 0)

/* as kernels/linear.py fills it */
typedef struct {
    const void *panels, *scales, *zeros;
    const float *bias;
    long kind, n, k; /* k even, of int8 a multiple of 4, of int4 of 128 */
} linear;

INLINE vf splat(float v) { return v - (vf){}; } /* a sum with 0 would be computed: -0 + 0 is 0 */
INLINE long least(long a, long b) { return a < b ? a : b; }

/* gcc keeps no sums in registers unless it is told what belongs together */
#if defined(__AVX2__)
#define HELD(v) __asm__("" : "+" REGISTER(v))
#define SUM_OF_PRODUCTS(multiply, add, sum, a, b)                                                  \
    do {                                                                                           \
        vi product;                                                                                \
        __asm__(multiply " %3, %2, %1\n\t" add " %1, %0, %0"                                       \
                : "+" REGISTER(sum), "=&" REGISTER(product)                                        \
                : REGISTER(a), REGISTER(b));                                                       \
    } while (0)
#define DOTS(dot, sum, a, b) __asm__(dot " %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b))
/* the same word everywhere, from memory: by way of a plain register it would cost a shuffle */
INLINE vi same_word(const uint32_t *at) {
    vi all;
    __asm__("vpbroadcastd %1, %0" : "=" REGISTER(all) : "m"(*at));
    return all;
}
#else
#define HELD(v)
INLINE vi same_word(const uint32_t *at) { return (int32_t)*at - (vi){}; }
#endif

/* one panel of one row of y; the last panel may reach beyond the N outputs */
INLINE void put(float *y, const float *bias, const vf *values, long from, long n) {
    if (from + PANEL <= n) {
        UNROLL for (int p = 0; p < PARTS; p++) {
            const long at = from + p * LANES;
            *(vfu *)(y + at) = bias ? values[p] + *(const vfu *)(bias + at) : values[p];
        }
        return;
    }
    for (long j = 0; j < n - from; j++) {
        const float value = values[j / LANES][j % LANES];
        y[from + j] = bias ? value + bias[from + j] : value;
    }
}

/* fp32 bits whose upper half is the nearest bf16, ties to even */
#define NEAREST(bits) ((bits) + 0x7fff + ((bits) >> 16 & 1))

/* ---- rows of x as words ---------------------------------------------------------------------- */

/* k numbers of a row, word i to to[i * apart] */
INLINE void rounded(const float *x, long k, uint32_t *to, long apart) {
#if BF16_DOT
    for (long at = 0; at < k; at += GROUP) {
        uint32_t bits[GROUP];
        const long here = least(GROUP, k - at);
        memcpy(bits, x + at, (size_t)here * 4);
        for (long i = 0; i < here; i++) bits[i] = NEAREST(bits[i]) >> 16;
        for (long i = 0; i < here; i += 2) to[(at + i) / 2 * apart] = bits[i] | bits[i + 1] << 16;
    }
#else
    for (long i = 0; i < k; i++) memcpy(to + i * apart, x + i, 4);
#endif
}

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

/* `count` numbers, a multiple of 4, in whole ones of -127 .. 127, word i to to[i * apart]; returns
 * their scale, *total is their sum */
INLINE float quantised(const enum kind kind, const float *x, long count, uint32_t *to, long apart,
                       int32_t *total) {
    const float most = largest(x, count), inverse = most > 0 ? 127.0f / most : 0;
    int32_t together = 0;
    for (long at = 0; at < count; at += GROUP, to += GROUP / DEPTH(kind) * apart) {
        int32_t values[GROUP];
        const long here = least(GROUP, count - at);
        for (long i = 0; i < here; i++) {
            values[i] = __builtin_irintf(x[at + i] * inverse);
            together += values[i];
        }
        for (long i = 0; i < here; i += 4) {
            const uint32_t *v = (uint32_t *)values + i;
            if (DEPTH(kind) == 4) {
                to[i / 4 * apart] = (v[0] & 255) | (v[1] & 255) << 8 | (v[2] & 255) << 16 | v[3] << 24;
            } else if (DEPTH(kind) == 2) { /* of each four the even ones, then the odd ones */
                to[i / 2 * apart] = (v[0] & 65535) | v[2] << 16;
                to[(i / 2 + 1) * apart] = (v[1] & 65535) | v[3] << 16;
            } else {
                UNROLL for (int j = 0; j < 4; j++) to[(i + j) * apart] = v[j];
            }
        }
    }
    *total = together;
    return most / 127.0f;
}

/* Where the rows' words lie in the scratch, behind the scales and sums of what is quantised: one of
 * each a row (int8) or a row and group (int4). */
typedef struct {
    float *scales;
    int32_t *sums;
    uint32_t *words;
    long groups;
} rows_of_x;

INLINE rows_of_x laid_out(const linear *l, void *scratch, long m) {
    const long groups = l->kind == BF16 ? 0 : l->kind == INT8 ? 1 : l->k / GROUP;
    float *scales = scratch;
    int32_t *sums = (int32_t *)(scales + m * groups);
    return (rows_of_x){scales, sums, (uint32_t *)(sums + m * groups), groups};
}

INLINE void lay_as(const enum kind kind, const linear *l, const float *x, rows_of_x rows, long row,
                   uint32_t *to, long apart) {
    const long width = kind == INT4 ? GROUP : l->k;
    x += row * l->k;
    if (kind == BF16) rounded(x, l->k, to, apart);
    for (long g = row * rows.groups; g < (row + 1) * rows.groups; g++, x += width) {
        rows.scales[g] = quantised(kind, x, width, to, apart, rows.sums + g);
        to += width / DEPTH(kind) * apart;
    }
}

/* row `row` of x, its words to to[i * apart] */
static void lay(const linear *l, const float *x, rows_of_x rows, long row, uint32_t *to, long apart) {
    FOR_KIND(l->kind, lay_as, l, x, rows, row, to, apart);
}

INLINE long words_of(const linear *l) { return l->k / DEPTH(l->kind); }

/* ---- few rows: the weights as they come ------------------------------------------------------ */

/* TILE(rows) for `count` rows from `row` on, in tiles as even as can be, or one of eight */
#define IN_TILES(row, count, TILE)                                                                 \
    for (long left = (count), here; left > 0; row += here, left -= here) {                         \
        here = left < 8 || PARTS > 1 ? left / ((left + 3) / 4) : 8;                                \
        switch (here) {                                                                            \
        case 1: TILE(1); break;                                                                    \
        case 2: TILE(2); break;                                                                    \
        case 3: TILE(3); break;                                                                    \
        case 8: TILE(TILE_ROWS); break;                                                            \
        default: TILE(4);                                                                          \
        }                                                                                          \
    }

/* rows and panels that give enough independent sums to hide the latency, and not too many */
#define PANELS_FOR(kind, rows)                                                                     \
    ((kind) == INT4 ? 1 : (rows) == 1 ? 4 : (rows) == 2 ? 2 : PARTS == 1 ? 2 : 1)

/* Each of the tiles below gives sums[rows][panels][PARTS] of whole rows by whole panels; `words` of x,
 * `apart` from row to row. */

INLINE void bf16_tile(const int rows, const int panels, const uint32_t *x, long apart,
                      const uint16_t *w, vf *sums, long k) {
    vf sum[TILE_ROWS][4 * PARTS]; /* what is not used goes away */
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int p = 0; p < panels * PARTS; p++) sum[r][p] = splat(0);
    for (long i = 0; i < k; i += 2) {
        vu pairs[4 * PARTS];
        if (rows > 1) /* one row is left to the processor, which foresees four streams well */
            UNROLL for (int p = 0; p < panels; p++)
                __builtin_prefetch((const char *)(w + (p * k + i) * PANEL) + AHEAD);
        UNROLL for (int p = 0; p < panels * PARTS; p++)
            pairs[p] = *(const vuu *)(w + (p / PARTS * k + i) * PANEL + p % PARTS * LANES * 2);
#if BF16_DOT
        UNROLL for (int r = 0; r < rows; r++) {
            const vi two = same_word(x + r * apart + i / 2);
            UNROLL for (int p = 0; p < panels; p++) DOTS("vdpbf16ps", sum[r][p], pairs[p], two);
        }
#else
        UNROLL for (int r = 0; r < rows; r++) {
            const vf even = (vf)same_word(x + r * apart + i);
            const vf odd = (vf)same_word(x + r * apart + i + 1);
            UNROLL for (int p = 0; p < panels * PARTS; p++) sum[r][p] += (vf)(pairs[p] << 16) * even;
            UNROLL for (int p = 0; p < panels * PARTS; p++)
                sum[r][p] += (vf)(pairs[p] & 0xffff0000) * odd;
        }
#endif
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int p = 0; p < panels * PARTS; p++) sums[r * panels * PARTS + p] = sum[r][p];
}

/* whole numbers */
INLINE void i8_tile(const int rows, const int panels, const uint32_t *x, long apart,
                    const uint8_t *w, vf *sums, long k) {
#if defined(__AVX2__)
    vi sum[TILE_ROWS][4 * PARTS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int p = 0; p < panels * PARTS; p++) sum[r][p] = (vi){};
    for (long i = 0; i < k; i += 4) {
        if (rows > 1)
            UNROLL for (int p = 0; p < panels; p++)
                __builtin_prefetch(w + (p * k + i) * PANEL + AHEAD);
        UNROLL for (int p = 0; p < panels * PARTS; p++) {
            const vu bytes =
                *(const vuu *)(w + (p / PARTS * k + i) * PANEL + p % PARTS * LANES * 4);
#if VNNI
            UNROLL for (int r = 0; r < rows; r++)
                DOTS("vpdpbusd", sum[r][p], bytes, same_word(x + r * apart + i / 4));
#else
            const vu even = bytes & 0x00ff00ff, odd = bytes >> 8 & 0x00ff00ff;
            UNROLL for (int r = 0; r < rows; r++) {
                const uint32_t *two = x + r * apart + i / 2;
                SUM_OF_PRODUCTS("vpmaddwd", "vpaddd", sum[r][p], even, same_word(two));
                SUM_OF_PRODUCTS("vpmaddwd", "vpaddd", sum[r][p], odd, same_word(two + 1));
            }
#endif
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int p = 0; p < panels * PARTS; p++) sums[r * panels * PARTS + p] = (vf)sum[r][p];
#else
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++) {
            int32_t sum[PANEL] = {0};
            for (long i = 0; i < k; i++)
                for (int j = 0; j < PANEL; j++)
                    sum[j] += (int32_t)w[(p * k + i / 4 * 4) * PANEL + 4 * j + i % 4] *
                              (int32_t)x[r * apart + i];
            memcpy(sums + (r * panels + p) * PARTS, sum, sizeof sum);
        }
#endif
}

/* whole numbers of one group of one panel */
INLINE void i4_group(const int rows, const uint32_t *x, long apart, const uint8_t *w, vf *sums) {
#if VNNI
    vi sum[TILE_ROWS];
    UNROLL for (int r = 0; r < rows; r++) sum[r] = (vi){};
    for (int i = 0; i < GROUP / 8; i++) {
        const vu bytes = *(const vuu *)(w + i * 64);
        const vu first = bytes & 0x0f0f0f0f, second = bytes >> 4 & 0x0f0f0f0f;
        __builtin_prefetch(w + i * 64 + AHEAD);
        UNROLL for (int r = 0; r < rows; r++) {
            DOTS("vpdpbusd", sum[r], first, same_word(x + r * apart + i * 2));
            DOTS("vpdpbusd", sum[r], second, same_word(x + r * apart + i * 2 + 1));
        }
    }
    UNROLL for (int r = 0; r < rows; r++) sums[r] = (vf)sum[r];
#elif defined(__AVX2__)
    /* pairs of products stay below 2 * 15 * 127, so eight of them fit into 16 bits */
    const __m256i ones = _mm256_set1_epi16(1);
    vi whole[TILE_ROWS * PARTS] = {0};
    for (int i = 0; i < GROUP / 8; i += 4) {
        vi part[TILE_ROWS][PARTS];
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int p = 0; p < PARTS; p++) part[r][p] = (vi){};
        UNROLL for (int j = i; j < i + 4; j++) {
            vu first[PARTS], second[PARTS];
            __builtin_prefetch(w + j * 64 + AHEAD);
            UNROLL for (int p = 0; p < PARTS; p++) {
                const vu bytes = *(const vuu *)(w + j * 64 + p * 32);
                first[p] = bytes & 0x0f0f0f0f;
                second[p] = bytes >> 4 & 0x0f0f0f0f;
            }
            UNROLL for (int r = 0; r < rows; r++) {
                const vi one = same_word(x + r * apart + j * 2);
                const vi two = same_word(x + r * apart + j * 2 + 1);
                UNROLL for (int p = 0; p < PARTS; p++) { /* the weights are the unsigned operand */
                    SUM_OF_PRODUCTS("vpmaddubsw", "vpaddw", part[r][p], first[p], one);
                    SUM_OF_PRODUCTS("vpmaddubsw", "vpaddw", part[r][p], second[p], two);
                }
            }
        }
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int p = 0; p < PARTS; p++)
                whole[r * PARTS + p] += (vi)_mm256_madd_epi16((__m256i)part[r][p], ones);
    }
    UNROLL for (int i = 0; i < rows * PARTS; i++) sums[i] = (vf)whole[i];
#else
    for (int r = 0; r < rows; r++) {
        int32_t sum[PANEL] = {0};
        for (int i = 0; i < GROUP; i += 8)
            for (int j = 0; j < PANEL; j++)
                for (int b = 0; b < 4; b++) {
                    const uint8_t two = w[i / 8 * 64 + 4 * j + b];
                    const int32_t *from = (const int32_t *)x + r * apart + i + b;
                    sum[j] += (two & 15) * from[0] + (two >> 4) * from[4];
                }
        memcpy(sums + r * PARTS, sum, sizeof sum);
    }
#endif
}

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

/* sums[rows] += what the whole numbers of group g of one panel stand for; rows lie `apart` vectors from
 * each other */
INLINE void i4_add(const int rows, const linear *l, rows_of_x x, long row, long panel, long g,
                   const vf *exact, vf *sums, const long apart) {
    const long at = (panel * x.groups + g) * PANEL;
    const float *scales = x.scales + row * x.groups + g;
    const int32_t *q_sums = x.sums + row * x.groups + g;
    UNROLL for (int p = 0; p < PARTS; p++) {
        const vf scale = widen_fp16((const uint16_t *)l->scales + at + p * LANES);
        const vf zero = widen_u8((const uint8_t *)l->zeros + at + p * LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            const vf product = __builtin_convertvector((vi)exact[r * apart + p], vf);
            const vf above = product - zero * splat((float)q_sums[r * x.groups]);
            sums[r * apart + p] += above * (scale * splat(scales[r * x.groups]));
        }
    }
}

/* one panel of one row of y, from sums in fp32 or, of int8, in whole numbers */
INLINE void finish(const enum kind kind, const linear *l, rows_of_x x, long row, long panel,
                   const vf *sums, float *y) {
    vf out[PARTS];
    UNROLL for (int p = 0; p < PARTS; p++) {
        out[p] = sums[p];
        if (kind == INT8) {
            const vf w_scale = *(const vfu *)((const float *)l->scales + panel * PANEL + p * LANES);
            const vi exact = (vi)sums[p] - 128 * x.sums[row];
            out[p] = __builtin_convertvector(exact, vf) * (w_scale * splat(x.scales[row]));
        }
    }
    put(y + row * l->n, l->bias, out, panel * PANEL, l->n);
}

INLINE void few_tile(const enum kind kind, const int rows, const int panels, const linear *l,
                     rows_of_x x, long row, long panel, float *y) {
    const long k = l->k, apart = k / DEPTH(kind);
    const uint32_t *words = x.words + row * apart;
    vf sums[TILE_ROWS * 4 * PARTS];
    if (kind == BF16) {
        bf16_tile(rows, panels, words, apart, (const uint16_t *)l->panels + panel * k * PANEL, sums, k);
    } else if (kind == INT8) {
        i8_tile(rows, panels, words, apart, (const uint8_t *)l->panels + panel * k * PANEL, sums, k);
    } else {
        UNROLL for (int i = 0; i < rows * PARTS; i++) sums[i] = splat(0);
        for (long g = 0; g < x.groups; g++) {
            const uint8_t *w = (const uint8_t *)l->panels + (panel * k + g * GROUP) * PANEL / 2;
            vf exact[TILE_ROWS * PARTS];
            i4_group(rows, words + g * (GROUP / DEPTH(kind)), apart, w, exact);
            i4_add(rows, l, x, row, panel, g, exact, sums, PARTS);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int p = 0; p < panels; p++)
            finish(kind, l, x, row + r, panel + p, sums + (r * panels + p) * PARTS, y);
}

/* panels from `first` to `end` of all rows */
INLINE void few_panels(const enum kind kind, const linear *l, rows_of_x x, long first, long end,
                       long m, float *y) {
    long row = 0;
#define TILE(r)                                                                                    \
    do {                                                                                           \
        long p = first;                                                                            \
        for (; p + PANELS_FOR(kind, r) <= end; p += PANELS_FOR(kind, r))                           \
            few_tile(kind, r, PANELS_FOR(kind, r), l, x, row, p, y);                               \
        for (; p < end; p++) few_tile(kind, r, 1, l, x, row, p, y);                                \
    } while (0)
    IN_TILES(row, m, TILE)
#undef TILE
}

static void few_rows(const linear *l, const float *x, void *scratch, float *y, long m) {
    const long panels = (l->n + PANEL - 1) / PANEL, step = PANELS_FOR(l->kind, least(m, TILE_ROWS));
    rows_of_x rows = laid_out(l, scratch, m);
    if (l->kind == BF16 && !BF16_DOT)
        rows.words = (uint32_t *)x; /* they are words */
    else
#pragma omp parallel for schedule(static) if (m > 4)
        for (long row = 0; row < m; row++) lay(l, x, rows, row, rows.words + row * words_of(l), 1);
#pragma omp parallel for schedule(static) if (l->n * l->k > ALONE)
    for (long p = 0; p < panels; p += step)
        FOR_KIND(l->kind, few_panels, l, rows, p, least(p + step, panels), m, y);
}

/* ---- many rows: widened blocks --------------------------------------------------------------- */

/* `count` words of a panel from word `at` on, [count][PANEL]: where they are stored, or in `to` */
INLINE const uint32_t *widened(const enum kind kind, const linear *l, long panel, long at,
                               long count, uint32_t *to) {
    const long first = (panel * l->k + at * DEPTH(kind)) * PANEL;
    if (AS_STORED(kind)) {
        return (const uint32_t *)l->panels + first / DEPTH(kind);
    } else if (kind == BF16) {
        const uint16_t *w = (const uint16_t *)l->panels + first;
        for (long i = 0; i < count; i += 2)
            UNROLL for (int p = 0; p < PARTS; p++) {
                const vu pairs = *(const vuu *)(w + i * PANEL + p * LANES * 2);
                *(vuu *)(to + i * PANEL + p * LANES) = pairs << 16;
                *(vuu *)(to + (i + 1) * PANEL + p * LANES) = pairs & 0xffff0000;
            }
    } else if (kind == INT8) {
        const uint8_t *w = (const uint8_t *)l->panels + first;
        for (long i = 0; i < count; i += 4 / DEPTH(kind))
            UNROLL for (int p = 0; p < PARTS; p++) {
                const vu bytes = *(const vuu *)(w + i * DEPTH(kind) * PANEL + p * LANES * 4);
                uint32_t *at_part = to + i * PANEL + p * LANES;
                if (DEPTH(kind) == 2) {
                    *(vuu *)at_part = bytes & 0x00ff00ff;
                    *(vuu *)(at_part + PANEL) = bytes >> 8 & 0x00ff00ff;
                } else {
                    UNROLL for (int j = 0; j < 4; j++)
                        *(vuu *)(at_part + j * PANEL) = bytes >> 8 * j & 255;
                }
            }
    } else {
        const uint8_t *w = (const uint8_t *)l->panels + first / 2;
        for (long i = 0; i < count; i += 8 / DEPTH(kind))
            UNROLL for (int p = 0; p < PARTS; p++) {
                const vu bytes = *(const vuu *)(w + i * DEPTH(kind) / 2 * PANEL + p * LANES * 4);
                uint32_t *at_part = to + i * PANEL + p * LANES;
                if (DEPTH(kind) == 4) {
                    *(vuu *)at_part = bytes & 0x0f0f0f0f;
                    *(vuu *)(at_part + PANEL) = bytes >> 4 & 0x0f0f0f0f;
                } else {
                    UNROLL for (int j = 0; j < 4; j++) {
                        *(vuu *)(at_part + j * PANEL) = bytes >> 8 * j & 15;
                        *(vuu *)(at_part + (j + 4) * PANEL) = bytes >> (8 * j + 4) & 15;
                    }
                }
            }
    }
    return to;
}

/* sums[WIDE_ROWS][WIDE] += a tile [words][WIDE_ROWS] of x times the same words of WIDE_PANELS panels */
INLINE void wide_tile(const enum kind kind, const uint32_t *x, const uint32_t *const *w, vf *sums,
                      long words) {
    vf sum[WIDE_ROWS][WIDE];
    UNROLL for (int r = 0; r < WIDE_ROWS; r++)
        UNROLL for (int v = 0; v < WIDE; v++) sum[r][v] = sums[r * WIDE + v];
#if defined(__AVX2__) && !VNNI
    const __m256i ones = _mm256_set1_epi16(1);
    for (long i = 0; kind == INT4 && i < words; i += 8) { /* eight sums of two fit into 16 bits */
        vi part[WIDE_ROWS][WIDE];
        UNROLL for (int r = 0; r < WIDE_ROWS; r++)
            UNROLL for (int v = 0; v < WIDE; v++) part[r][v] = (vi){};
        for (long j = i; j < i + 8; j++) {
            vi weights[WIDE];
            UNROLL for (int v = 0; v < WIDE; v++) {
                weights[v] = *(const viu *)(w[v / PARTS] + j * PANEL + v % PARTS * LANES);
                HELD(weights[v]);
            }
            UNROLL for (int r = 0; r < WIDE_ROWS; r++) {
                const vi word = same_word(x + j * WIDE_ROWS + r);
                UNROLL for (int v = 0; v < WIDE; v++)
                    SUM_OF_PRODUCTS("vpmaddubsw", "vpaddw", part[r][v], weights[v], word);
            }
        }
        UNROLL for (int r = 0; r < WIDE_ROWS; r++)
            UNROLL for (int v = 0; v < WIDE; v++)
                sum[r][v] = (vf)((vi)sum[r][v] + (vi)_mm256_madd_epi16((__m256i)part[r][v], ones));
    }
    if (kind == INT4) words = 0;
#endif
    for (long i = 0; i < words; i++) {
        vf weights[WIDE];
        UNROLL for (int v = 0; v < WIDE; v++) {
            weights[v] = *(const vfu *)(w[v / PARTS] + i * PANEL + v % PARTS * LANES);
            HELD(weights[v]);
        }
        UNROLL for (int r = 0; r < WIDE_ROWS; r++) {
            const vf word = (vf)same_word(x + i * WIDE_ROWS + r);
            UNROLL for (int v = 0; v < WIDE; v++) {
                if (kind == BF16 && !BF16_DOT)
                    sum[r][v] += weights[v] * word;
#if BF16_DOT
                else if (kind == BF16)
                    DOTS("vdpbf16ps", sum[r][v], weights[v], word);
#endif
#if VNNI
                else
                    DOTS("vpdpbusd", sum[r][v], weights[v], word);
#elif defined(__AVX2__)
                else
                    SUM_OF_PRODUCTS("vpmaddwd", "vpaddd", sum[r][v], weights[v], word);
#else
                else
                    sum[r][v] = (vf)((vi)sum[r][v] + (vi)weights[v] * (vi)word);
#endif
            }
        }
    }
    UNROLL for (int r = 0; r < WIDE_ROWS; r++)
        UNROLL for (int v = 0; v < WIDE; v++) sums[r * WIDE + v] = sum[r][v];
}

/* WIDE_PANELS panels from `panel` on of `count` rows from `from` on, whose tiles are laid */
INLINE void many_panels(const enum kind kind, const linear *l, rows_of_x x, long panel, long from,
                        long count, float *y) {
    const long panels = (l->n + PANEL - 1) / PANEL, words = l->k / DEPTH(kind);
    const long block = kind == INT4 ? GROUP / DEPTH(kind) : BLOCK_WORDS;
    uint32_t blocks[WIDE_PANELS][BLOCK_WORDS * PANEL];
    const uint32_t *w[WIDE_PANELS];
    vf sums[ROWS_AT_ONCE * WIDE];
    for (long i = 0; i < least(ROWS_AT_ONCE, count + WIDE_ROWS) * WIDE; i++) sums[i] = splat(0);
    for (long at = 0; at < words; at += block) {
        const long here = least(block, words - at);
        for (int j = 0; j < WIDE_PANELS; j++) /* behind the last one it comes once more */
            w[j] = widened(kind, l, least(panel + j, panels - 1), at, here, blocks[j]);
        for (long row = 0; row < count; row += WIDE_ROWS) {
            const uint32_t *tile = x.words + row * words + at * WIDE_ROWS;
            vf *to = sums + row * WIDE;
            if (kind != INT4) {
                wide_tile(kind, tile, w, to, here);
                continue;
            }
            vf exact[WIDE_ROWS * WIDE];
            UNROLL for (int i = 0; i < WIDE_ROWS * WIDE; i++) exact[i] = splat(0);
            wide_tile(kind, tile, w, exact, here);
            for (int j = 0; j < WIDE_PANELS; j++) {
                const long p = least(panel + j, panels - 1), g = at / block;
                const vf *const part = exact + j * PARTS;
                if (row + WIDE_ROWS <= count)
                    i4_add(WIDE_ROWS, l, x, from + row, p, g, part, to + j * PARTS, WIDE);
                else
                    i4_add((int)(count - row), l, x, from + row, p, g, part, to + j * PARTS, WIDE);
            }
        }
    }
    for (long row = 0; row < count; row++)
        for (long j = 0; j < least(WIDE_PANELS, panels - panel); j++)
            finish(kind, l, x, from + row, panel + j, sums + row * WIDE + j * PARTS, y);
}

static void many_rows(const linear *l, const float *x, void *scratch, float *y, long m) {
    const long panels = (l->n + PANEL - 1) / PANEL, words = words_of(l);
    const rows_of_x rows = laid_out(l, scratch, m);
    for (long from = 0; from < m; from += ROWS_AT_ONCE) {
        const long count = least(ROWS_AT_ONCE, m - from);
#pragma omp parallel for schedule(static)
        for (long row = 0; row < count; row += WIDE_ROWS)
            for (long r = 0; r < WIDE_ROWS; r++) {
                uint32_t *to = rows.words + row * words + r;
                if (row + r < count)
                    lay(l, x, rows, from + row + r, to, WIDE_ROWS);
                else
                    for (long i = 0; i < words; i++) to[i * WIDE_ROWS] = 0;
            }
#pragma omp parallel for schedule(static)
        for (long p = 0; p < panels; p += WIDE_PANELS)
            FOR_KIND(l->kind, many_panels, l, rows, p, from, count, y);
    }
}

/* y [m][n] of x [m][k]; scratch has room for 4 k bytes and 8 a group of m rows, of many for WIDE_ROWS
 * more */
void qvl_linear(const linear *l, const float *x, void *scratch, float *y, long m) {
    if (m > FEW_ROWS)
        many_rows(l, x, scratch, y, m);
    else
        few_rows(l, x, scratch, y, m);
}

/* ---- between the products -------------------------------------------------------------------- */

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
 * for it, then the rotation by cos and sin [m][width]; width a multiple of 32, or even and no norm. */
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
            long i = 0;
            for (; i + LANES <= half; i += LANES) {
                const vf first = *(vfu *)(x + i), second = *(vfu *)(x + half + i);
                *(vfu *)(x + i) = first * *(const vfu *)(c + i) - second * *(const vfu *)(s + i);
                *(vfu *)(x + half + i) =
                    second * *(const vfu *)(c + half + i) + first * *(const vfu *)(s + half + i);
            }
            for (; i < half; i++) {
                const float first = x[i], second = x[half + i];
                x[i] = first * c[i] - second * s[i];
                x[half + i] = second * c[half + i] + first * s[half + i];
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
    const vf never = splat(-INFINITY);
    vf most = never, sum = splat(0);
    for (long j = count; j % LANES; j++) scores[j] = -INFINITY;
    for (long j = 0; j < count; j += LANES) {
        const vf part = *(vfu *)(scores + j);
        most = chosen(part > most, part, most);
    }
    for (int j = 1; j < LANES; j++) most[0] = most[j] > most[0] ? most[j] : most[0];
    for (long j = 0; j < count; j += LANES) {
        const vf part = *(vfu *)(scores + j), power = exponential(part - splat(most[0]));
        *(vfu *)(scores + j) = chosen(part == never, splat(0), power);
        sum += *(vfu *)(scores + j);
    }
    const vf inverse = splat(1.0f / total(sum));
    for (long j = 0; j < count; j += LANES) *(vfu *)(scores + j) *= inverse;
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

/* ---- attention of whole sequences: the vision tower ------------------------------------------ */

#define QUERIES (WIDE_PANELS * PANEL) /* that meet all keys together, each in a lane of its own */

/* two probabilities, or with fp32 words one, as a word in each lane */
INLINE vu probable(vf first, vf second) {
    if (DEPTH(BF16) == 1) return (vu)first;
    return NEAREST((vu)first) >> 16 | (NEAREST((vu)second) & 0xffff0000);
}

/* Full attention within each segment bounds[i] .. bounds[i + 1] of tokens. Rows of q, k and v lie
 * `apart` numbers from each other, out is [tokens][heads][width]; width even. Queries, keys, values
 * and probabilities are multiplied as the words of bf16 products are: keys, and the values' columns,
 * are the rows of x, queries and their probabilities the panels. */
void qvl_attend_whole(const float *q, const float *k, const float *v, long apart,
                      const int64_t *bounds, long segments, float *out, long heads, long width) {
    const long depth = DEPTH(BF16), words = width / depth;
    const long columns = (width + WIDE_ROWS - 1) / WIDE_ROWS; /* tiles of values' columns */
    const float scale = 1.0f / sqrtf((float)width);
    long longest = 0;
    for (long i = 0; i < segments; i++)
        longest = longest > bounds[i + 1] - bounds[i] ? longest : bounds[i + 1] - bounds[i];
    const long room = (longest + WIDE_ROWS - 1) / WIDE_ROWS * WIDE_ROWS; /* keys, in whole tiles */
    const size_t sizes[5] = {(size_t)(room * QUERIES), (size_t)(room * words),
                             (size_t)(columns * WIDE_ROWS * room), (size_t)(room * QUERIES),
                             (size_t)(words * QUERIES)};
#pragma omp parallel
    {
        const size_t all = (sizes[0] + sizes[1] + sizes[2] + sizes[3] + sizes[4]) * 4;
        vf *scores = aligned_alloc(64, (all + 63) / 64 * 64);
        uint32_t *keys = (uint32_t *)scores + sizes[0], *values = keys + sizes[1];
        uint32_t *likely = values + sizes[2], *asked = likely + sizes[3];
#pragma omp for schedule(dynamic, 1)
        for (long item = 0; item < segments * heads; item++) {
            const long first = bounds[item / heads], count = bounds[item / heads + 1] - first;
            const long at = item % heads * width, pairs = (count + depth - 1) / depth;
            const float *of_k = k + first * apart + at, *of_v = v + first * apart + at;
            memset(keys, 0, (size_t)((count + WIDE_ROWS - 1) / WIDE_ROWS * WIDE_ROWS * words) * sizeof *keys);
            for (long j = 0; j < count; j++)
                rounded(of_k + j * apart, width,
                        keys + j / WIDE_ROWS * words * WIDE_ROWS + j % WIDE_ROWS, WIDE_ROWS);
            memset(values, 0, (size_t)(columns * WIDE_ROWS * pairs) * sizeof *values);
            for (long i = 0; i < pairs; i++)
                for (long d = 0; d < width; d++) {
                    const float *pair = of_v + i * depth * apart + d;
                    const vf one = splat(pair[0]);
                    const vf two = splat(depth == 2 && i * 2 + 1 < count ? pair[apart] : 0);
                    values[(d / WIDE_ROWS * pairs + i) * WIDE_ROWS + d % WIDE_ROWS] =
                        probable(one, two)[0];
                }
            for (long row = 0; row < count; row += QUERIES) {
                const long queries = least(QUERIES, count - row);
                const uint32_t *w[WIDE_PANELS], *p[WIDE_PANELS];
                vf most[WIDE], sum[WIDE];
                memset(asked, 0, sizes[4] * sizeof *asked);
                for (long r = 0; r < queries; r++)
                    rounded(q + (first + row + r) * apart + at, width,
                            asked + r / PANEL * words * PANEL + r % PANEL, PANEL);
                for (int j = 0; j < WIDE_PANELS; j++) {
                    w[j] = asked + j * words * PANEL;
                    p[j] = likely + j * pairs * PANEL;
                }
                UNROLL for (int i = 0; i < WIDE; i++) most[i] = splat(-INFINITY), sum[i] = splat(0);
                for (long j = 0; j < count; j += WIDE_ROWS) {
                    vf *to = scores + j * WIDE;
                    UNROLL for (int i = 0; i < WIDE_ROWS * WIDE; i++) to[i] = splat(0);
                    wide_tile(BF16, keys + j * words, w, to, words);
                    for (long r = 0; r < least(WIDE_ROWS, count - j); r++)
                        UNROLL for (int i = 0; i < WIDE; i++) {
                            const vf score = to[r * WIDE + i] * splat(scale);
                            to[r * WIDE + i] = score;
                            most[i] = chosen(score > most[i], score, most[i]);
                        }
                }
                for (long i = 0; i < pairs; i++)
                    UNROLL for (int j = 0; j < WIDE; j++) {
                        const vf *of = scores + i * depth * WIDE + j;
                        const vf one = exponential(of[0] - most[j]);
                        vf two = splat(0);
                        if (depth == 2 && i * 2 + 1 < count) two = exponential(of[WIDE] - most[j]);
                        sum[j] += one + two;
                        *(vuu *)(likely + (j / PARTS * pairs + i) * PANEL + j % PARTS * LANES) =
                            probable(one, two);
                    }
                UNROLL for (int j = 0; j < WIDE; j++) sum[j] = splat(1) / sum[j];
                for (long c = 0; c < columns; c++) {
                    vf found[WIDE_ROWS * WIDE];
                    UNROLL for (int i = 0; i < WIDE_ROWS * WIDE; i++) found[i] = splat(0);
                    wide_tile(BF16, values + c * pairs * WIDE_ROWS, p, found, pairs);
                    for (long r = 0; r < least(WIDE_ROWS, width - c * WIDE_ROWS); r++) {
                        float column[QUERIES], *to = out + (first + row) * heads * width + at;
                        UNROLL for (int i = 0; i < WIDE; i++)
                            *(vfu *)(column + i * LANES) = found[r * WIDE + i] * sum[i];
                        for (long i = 0; i < queries; i++)
                            to[i * heads * width + c * WIDE_ROWS + r] = column[i];
                    }
                }
            }
        }
        free(scores);
    }
}

/* ---- a decoder layer, up to its attention and from there on ---------------------------------- */

/* as kernels/parts.py fills it */
typedef struct {
    linear qkv, o, gate_up, down;
    const float *before, *after, *q_norm, *k_norm; /* weights of norms, the last two maybe NULL */
    float eps;
    long heads, kv_heads, width;
} layer;

static void add(const float *a, const float *b, float *y, long count) {
#pragma omp parallel for schedule(static) if (count > ALONE)
    for (long i = 0; i < count; i++) y[i] = a[i] + b[i];
}

/* queries, keys and values of rows x [m][hidden], rotated; work has room for m * hidden numbers */
void qvl_before_attention(const layer *l, const float *x, const float *cos, const float *sin,
                          float *work, void *scratch, float *qkv, long m) {
    qvl_norm(x, l->before, l->eps, work, m, l->qkv.k);
    qvl_linear(&l->qkv, work, scratch, qkv, m);
    qvl_rotate(qkv, l->q_norm, l->k_norm, l->eps, cos, sin, m, l->heads, l->kv_heads, l->width);
}

/* y = what the layer makes of x, whose attention is there; work has room for m rows of hidden and
 * three times the MLP's width */
void qvl_after_attention(const layer *l, const float *x, const float *attended, float *work,
                         void *scratch, float *y, long m) {
    const long hidden = l->o.n, width = l->down.k;
    float *gate_up = work + m * hidden, *inner = gate_up + m * 2 * width;
    qvl_linear(&l->o, attended, scratch, work, m);
    add(x, work, y, m * hidden);
    qvl_norm(y, l->after, l->eps, work, m, hidden);
    qvl_linear(&l->gate_up, work, scratch, gate_up, m);
    qvl_silu_mul(gate_up, inner, m, width);
    qvl_linear(&l->down, inner, scratch, work, m);
    add(y, work, y, m * hidden);
}

/* `count` layers one after the other, x [m][hidden] in place; the keys and values of layer i are in
 * caches[i], and the rest is as qvl_attend takes it. qkv and attended have room for m rows. */
void qvl_layers(const layer *const *layers, long count, float *x, const float *cos, const float *sin,
                float *const *caches, long blocks, long per_block, const int32_t *tables,
                const int64_t *starts, const int64_t *positions, float *work, void *scratch,
                float *qkv, float *attended, long m) {
    for (long i = 0; i < count; i++) {
        const layer *l = layers[i];
        const long apart = (l->heads + 2 * l->kv_heads) * l->width;
        const float *k = qkv + l->heads * l->width, *v = k + l->kv_heads * l->width;
        qvl_before_attention(l, x, cos, sin, work, scratch, qkv, m);
        qvl_attend(qkv, k, v, apart, apart, caches[i], blocks, per_block, tables, starts, positions,
                   attended, m, l->heads, l->kv_heads, l->width);
        qvl_after_attention(l, x, attended, work, scratch, x, m);
    }
}
