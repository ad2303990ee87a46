/* The Transformer block on a CPU: matrix products fused with the operations before and after them,
 * on tiles that stay in cache. Plain C with the vector extensions of GCC and Clang.
 *
 * Built twice: in float32, and with -DHALF for products of bfloat16 values. Everything else is
 * float32 in both: sums, the residual stream, norms, depth-wise convolutions, GELU.
 *
 * Activations are [pixel][channel]. Work is divided into items by size alone, never by the number
 * of threads, and sums over items are added in the order of the items. So results do not depend on
 * the number of threads, and every run on one machine gives the same bits.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* A vector has VL floats. A register block of a product is MR rows by NV vectors, chosen so that
 * its MR * NV sums, one row of the right matrix and one value of the left one fill the registers. */
#if defined(__AVX512F__)
enum { VL = 16, NV = 3, MR = 8 };
#elif defined(__AVX2__)
enum { VL = 8, NV = 2, MR = 6 };
#elif defined(__aarch64__)
enum { VL = 4, NV = 3, MR = 8 };
#else
enum { VL = 4, NV = 2, MR = 6 };
#endif
enum {
    NR = NV * VL,      /* columns in a panel of a packed matrix */
    KC = 384,          /* rows of a panel used at a time, so that they fit the L1 cache */
    TILE = 96,         /* pixels of a tile, a multiple of MR; its hidden layer fits the L2 cache */
    HIDDEN = 8 * 48,   /* hidden channels at a time, at most: for TILE pixels they take 144 KiB */
    CHUNK = 32,        /* image rows of an item of `gather` */
    RING = 256 << 10,  /* bytes of the three rows that a depth-wise convolution reads */
    STEP = 32          /* pixels that are convolved depth-wise before they are added to the sums */
};

typedef float vec __attribute__((vector_size(4 * VL), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * VL), aligned(4)));
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* Products multiply and add whole words. A word is a float, or two neighbouring bfloat16 values of a
 * row: so all lengths along the summed dimension are counted in words. */
#ifdef HALF
#ifndef __AVX512BF16__
#error "the compiler does not know AVX-512 BF16"
#endif
#include <immintrin.h>
typedef uint16_t value;
typedef int32_t word __attribute__((may_alias));
enum { PER_WORD = 2 };
#else
typedef float value, word;
enum { PER_WORD = 1 };
#endif

INLINE int least(int a, int b) { return a < b ? a : b; }
INLINE int ceil_div(int a, int b) { return (a + b - 1) / b; }
INLINE int words(int values) { return ceil_div(values, PER_WORD); }

/* sum + left * right in every lane: products of words. */
INLINE vec add_product(vec sum, word left, const word *right) {
#ifdef HALF
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(left),
                                 (__m512bh)_mm512_loadu_si512(right));
#else
    return sum + left * *(const vec *)right;
#endif
}

/* Write a vector as values, which rounds it to nearest for bfloat16. */
INLINE void put(value *to, vec x) {
#ifdef HALF
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
    *(vec *)to = x;
#endif
}

/* Write n floats as values. */
INLINE void put_row(int n, const float *x, value *to) {
#ifdef HALF
    for (int j = 0; j < n; j += VL) {
        __mmask16 lanes = (__mmask16)((1u << least(VL, n - j)) - 1);
        __m512 part = _mm512_maskz_loadu_ps(lanes, x + j);
        _mm256_mask_storeu_epi16(to + j, lanes, (__m256i)_mm512_cvtneps_pbh(part));
    }
#else
    memcpy(to, x, sizeof(float) * (size_t)n);
#endif
}

/* ---- threads: of torch's own OpenMP runtime, whose entry point the caller passes ---- */

typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned); /* GOMP_parallel */
typedef struct {
    Parallel parallel;
    int threads;
} Team;
typedef struct {
    void (*item)(const void *job, int i, float *scratch);
    const void *job;
    int items, next, entered;
    size_t floats;
    float *scratch;
} Queue;

static void work(void *shared) {
    Queue *q = shared;
    float *mine = q->scratch + q->floats * __atomic_fetch_add(&q->entered, 1, __ATOMIC_RELAXED);
    for (;;) {
        int i = __atomic_fetch_add(&q->next, 1, __ATOMIC_RELAXED);
        if (i >= q->items) return;
        q->item(q->job, i, mine);
    }
}

/* Run every item once; each thread has its own scratch memory of `floats` floats. Returns -1 if that
 * memory cannot be allocated. */
static int run(Team team, void (*item)(const void *, int, float *), const void *job, int items,
               size_t floats) {
    int threads = least(team.threads, items);
    floats = (floats + 31) & ~(size_t)15;
    float *scratch = aligned_alloc(64, sizeof(float) * floats * (size_t)(threads > 0 ? threads : 1));
    if (!scratch) return -1;
    Queue q = {item, job, items, 0, 0, floats, scratch};
    if (threads > 1) team.parallel(work, &q, (unsigned)threads, 0);
    else work(&q);
    free(scratch);
    return 0;
}

/* ---- GELU ---- */

/* a where the mask is set, b elsewhere; a lane of the mask has all bits set or none. */
INLINE vec choose(ivec mask, vec a, vec b) { return (vec)(((ivec)a & mask) | ((ivec)b & ~mask)); }
INLINE vec clamp(vec x, float low, float high) {
    vec l = (vec){0} + low, h = (vec){0} + high;
    x = choose(x < l, l, x); /* comparisons with NaN are false, so NaN is kept */
    return choose(x > h, h, x);
}

/* p / q; where the result becomes bfloat16, with a relative error of 2^-14. */
INLINE vec divide(vec p, vec q) {
#ifdef HALF
    return p * (vec)_mm512_rcp14_ps((__m512)q);
#else
    return p / q;
#endif
}

/* erf as x P(x^2) / Q(x^2), within 1.5e-7 but for the division. x is clamped to [-4, 4], beyond which erf is +-1 in
 * float32. */
INLINE vec erf_of(vec x) {
    x = clamp(x, -4.0f, 4.0f);
    vec s = x * x;
    vec p = s * -2.72614225801306e-10f + 2.77068142495902e-08f;
    p = p * s - 2.10102402082508e-06f;
    p = p * s - 5.69250639462346e-05f;
    p = p * s - 7.34990630326855e-04f;
    p = p * s - 2.95459980854025e-03f;
    p = p * s - 1.60960333262415e-02f;
    vec q = s * -1.45660718464996e-05f - 2.13374055278905e-04f;
    q = q * s - 1.68282697438203e-03f;
    q = q * s - 7.37332916720468e-03f;
    q = q * s - 1.42647390514189e-02f;
    return x * divide(p, q);
}

/* GELU(x) = x Phi(x). */
INLINE vec gelu_of(vec x) { return x * (0.5f + 0.5f * erf_of(x * 0.70710678f)); }

/* Write GELU of x to y, which may be x itself if values are floats. */
static void gelu_rows(int m, int n, const float *x, value *y, ptrdiff_t ld) {
    for (int i = 0; i < m; i++, x += ld, y += ld) {
        int j = 0;
        for (; j + VL <= n; j += VL) put(y + j, gelu_of(*(const vec *)(x + j)));
        if (j == n) continue;
        float rest[VL] = {0};
        memcpy(rest, x + j, sizeof(float) * (size_t)(n - j));
        *(vec *)rest = gelu_of(*(const vec *)rest);
        put_row(n - j, rest, y + j);
    }
}

/* ---- products ---- */

/* The right matrix in panels of NR columns of words. Panels are `panel` words apart, rows within one
 * `ld`. Unless it is NULL, `head` is a row of floats for each panel from which the sums start. */
typedef struct {
    const word *rows;
    const float *head;
    ptrdiff_t panel, ld;
} Right;

/* The panels that `pack` makes of a matrix with k rows of words, from row `from` on. A panel is its
 * head (the bias or zeros), then the rows. */
INLINE Right packed(const float *data, int k, int from, int with_head) {
    const word *rows = (const word *)data + (ptrdiff_t)(1 + from) * NR;
    return (Right){rows, with_head ? data : NULL, (ptrdiff_t)(k + 1) * NR, NR};
}

/* c[m][nv VL] = (add ? c : 0) + head + a b, with all sums in registers; element (i, p) of a is at
 * a[i rs + p cs]. */
INLINE void block(const int m, const int nv, int k, const word *a, ptrdiff_t rs, ptrdiff_t cs,
                  const word *b, ptrdiff_t ld, const float *head, int add, float *c, ptrdiff_t ldc) {
    vec sum[MR][NV];
    UNROLL for (int i = 0; i < m; i++) {
        UNROLL for (int j = 0; j < nv; j++) {
            sum[i][j] = add ? *(const vec *)(c + i * ldc + j * VL) : (vec){0};
            if (head) sum[i][j] += *(const vec *)(head + j * VL);
        }
    }
    for (int p = 0; p < k; p++, a += cs, b += ld) {
        UNROLL for (int i = 0; i < m; i++) {
            UNROLL for (int j = 0; j < nv; j++) sum[i][j] = add_product(sum[i][j], a[i * rs], b + j * VL);
        }
    }
    UNROLL for (int i = 0; i < m; i++) {
        UNROLL for (int j = 0; j < nv; j++) *(vec *)(c + i * ldc + j * VL) = sum[i][j];
    }
}

/* `block` for any number of rows up to MR and of columns up to NR. */
static void part(int m, int n, int k, const word *a, ptrdiff_t rs, ptrdiff_t cs, const word *b,
                 ptrdiff_t ld, const float *head, int add, float *c, ptrdiff_t ldc) {
    float whole[MR * NR];
    float *to = c;
    ptrdiff_t step = ldc;
    if (n % VL) { /* the last vector is not full: compute into a whole block, then copy */
        to = whole, step = NR;
        for (int i = 0; add && i < m; i++) memcpy(whole + i * NR, c + i * ldc, sizeof(float) * (size_t)n);
    }
    int vectors = ceil_div(n, VL);
#define ROWS(M)                                                                                   \
    case M:                                                                                       \
        if (vectors == NV) block(M, NV, k, a, rs, cs, b, ld, head, add, to, step);                \
        else                                                                                      \
            for (int j = 0; j < vectors; j++)                                                     \
                block(M, 1, k, a, rs, cs, b + j * VL, ld, head ? head + j * VL : NULL, add,       \
                      to + j * VL, step);                                                         \
        break;
    switch (m) {
        ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
#if defined(__AVX512F__) || defined(__aarch64__)
        ROWS(7) ROWS(8)
#endif
    }
#undef ROWS
    for (int i = 0; to == whole && i < m; i++) memcpy(c + i * ldc, whole + i * NR, sizeof(float) * (size_t)n);
}

/* The left matrix: element (i, p) is at rows[i rs + p cs]. */
typedef struct {
    const word *rows;
    ptrdiff_t rs, cs;
} Left;

INLINE Left dense(const value *rows, int ld) { return (Left){(const word *)rows, ld / PER_WORD, 1}; }

/* c[m][n] = (add ? c : 0) + head + a[m][k] b[k][n] for k words. Unless `gelu` is NULL, GELU of the
 * result is written to it, block by block while the block is in cache. */
static void product(int m, int n, int k, Left a, Right b, int add, float *c, ptrdiff_t ldc,
                    value *gelu) {
    for (int from = 0; from < k; from += KC) {
        int deep = least(KC, k - from), last = from + deep == k;
        for (int j = 0; j < n; j += NR) {
            int wide = least(NR, n - j);
            const word *right = b.rows + j / NR * b.panel + from * b.ld;
            const float *head = b.head && !from ? b.head + j / NR * b.panel : NULL;
            for (int i = 0; i < m; i += MR) {
                int high = least(MR, m - i);
                float *to = c + i * ldc + j;
                part(high, wide, deep, a.rows + i * a.rs + from * a.cs, a.rs, a.cs, right, b.ld, head,
                     add || from, to, ldc);
                if (gelu && last) gelu_rows(high, wide, to, gelu + i * ldc + j, ldc);
            }
        }
    }
}

/* The number of floats that `pack` writes. */
ptrdiff_t packed_floats(int k, int n) { return (ptrdiff_t)ceil_div(n, NR) * (words(k) + 1) * NR; }

typedef struct {
    int k, n;
    const float *b;
    ptrdiff_t rs, cs;
    const float *bias;
    float *out;
} Pack;

static void pack_item(const void *job, int i, float *scratch) {
    const Pack *s = job;
    const float *b = s->b + i * NR * s->cs;
    float *out = s->out + i * packed_floats(s->k, NR);
    int n = least(NR, s->n - i * NR);
    (void)scratch;
    for (int j = 0; j < NR; j++) out[j] = s->bias && j < n ? s->bias[i * NR + j] : 0.0f;
    for (int p = 0; p < s->k; p += PER_WORD) {
        float row[NR * PER_WORD] = {0};
        for (int next = 0; next < PER_WORD && p + next < s->k; next++)
            for (int j = 0; j < n; j++) row[j * PER_WORD + next] = b[(p + next) * s->rs + j * s->cs];
        out += NR;
        put_row(NR * PER_WORD, row, (value *)out);
    }
}

/* Pack the right matrix b[k][n] into panels, each after its head (the bias, or zeros if NULL).
 * Element (p, j) is at b[p rs + j cs]. Returns 0, or -1 if memory runs out. */
int pack(Parallel parallel, int threads, int k, int n, const float *b, ptrdiff_t rs, ptrdiff_t cs,
         const float *bias, float *out) {
    Pack job = {k, n, b, rs, cs, bias, out};
    Team team = {parallel, (ptrdiff_t)k * n > 8192 ? threads : 1};
    return run(team, pack_item, &job, ceil_div(n, NR), 0);
}

/* ---- layer norm ---- */

/* The sum of a vector's lanes, in a fixed order. */
INLINE float total(vec x) {
    UNROLL for (int half = VL / 2; half; half /= 2)
        UNROLL for (int j = 0; j < half; j++) x[j] += x[j + half];
    return x[0];
}

/* The first n floats at x, or as many as a vector holds; less `centre`. Other lanes are 0. */
INLINE vec centred_part(const float *x, int n, float centre) {
    if (n >= VL) return *(const vec *)x - centre;
    float part[VL] = {0};
    for (int j = 0; j < n; j++) part[j] = x[j] - centre;
    return *(const vec *)part;
}

/* (x - mean) / sqrt(var + eps) * gain + shift over the channels of each of up to TILE pixels; unless
 * `centred`, the mean is not subtracted in the numerator. A loop for each step, because the steps of
 * one pixel wait for each other, and those of several do not. */
static void norm_rows(int m, int c, const float *x, const float *gain, const float *shift, float eps,
                      int centred, value *y) {
    float mean[TILE], rate[TILE];
    for (int i = 0; i < m; i++) {
        vec sum = {0};
        for (int j = 0; j < c; j += VL) sum += centred_part(x + i * c + j, c - j, 0);
        mean[i] = total(sum) / (float)c;
    }
    for (int i = 0; i < m; i++) {
        vec sum = {0};
        for (int j = 0; j < c; j += VL) {
            vec part = centred_part(x + i * c + j, c - j, mean[i]);
            sum += part * part;
        }
        rate[i] = total(sum) / (float)c;
    }
    for (int i = 0; i < m; i++) rate[i] = 1.0f / __builtin_sqrtf(rate[i] + eps);
    for (int i = 0; i < m; i++, x += c, y += c) {
        float centre = centred ? mean[i] : 0.0f;
        for (int j = 0; j < c && c >= VL; j += VL) {
            int o = least(j, c - VL); /* the last vector may begin within the one before it */
            vec part = (*(const vec *)(x + o) - centre) * rate[i];
            put(y + o, part * *(const vec *)(gain + o) + *(const vec *)(shift + o));
        }
        if (c >= VL) continue;
        float part[VL];
        for (int j = 0; j < c; j++) part[j] = (x[j] - centre) * rate[i] * gain[j] + shift[j];
        put_row(c, part, y);
    }
}

typedef struct {
    int pixels, c;
    const float *x, *gain, *shift;
    float eps;
    int centred;
    value *y;
} Norm;

static void norm_item(const void *job, int i, float *scratch) {
    const Norm *n = job;
    (void)scratch;
    ptrdiff_t at = (ptrdiff_t)i * TILE * n->c;
    norm_rows(least(TILE, n->pixels - i * TILE), n->c, n->x + at, n->gain, n->shift, n->eps,
              n->centred, n->y + at);
}

/* ---- depth-wise 3x3 ---- */

/* Convolve m neighbouring pixels of one vector of channels: out = bias + sum over taps of
 * weight * in. The nine weights stay in registers, and each input vector is read once for the up to
 * three output pixels that it contributes to. */
INLINE void taps(const int m, const float *const *rows, ptrdiff_t ld, const float *weight,
                 ptrdiff_t ldw, const float *bias, float *out, ptrdiff_t ldo) {
    vec w[9], sum[4];
    UNROLL for (int t = 0; t < 9; t++) w[t] = *(const vec *)(weight + t * ldw);
    UNROLL for (int o = 0; o < m; o++) sum[o] = *(const vec *)bias;
    UNROLL for (int x = 0; x < m + 2; x++) {
        UNROLL for (int r = 0; r < 3; r++) {
            vec in = *(const vec *)(rows[r] + x * ld);
            UNROLL for (int o = 0; o < m; o++) if (x - o >= 0 && x - o < 3) sum[o] += w[3 * r + x - o] * in;
        }
    }
    UNROLL for (int o = 0; o < m; o++) *(vec *)(out + o * ldo) = sum[o];
}

/* Convolve some pixels of one row. rows[0..2] are the rows above, at and below it, each from the
 * left neighbour of the first pixel. */
static void depthwise_row(int pixels, int channels, const float *const *rows, ptrdiff_t ld,
                          const float *weight, ptrdiff_t ldw, const float *bias, float *out,
                          ptrdiff_t ldo) {
    for (int x = 0; x < pixels; x += 4) {
        int m = least(4, pixels - x), c = 0;
        for (; c + VL <= channels; c += VL) {
            const float *at[3];
            float *to = out + x * ldo + c;
            for (int r = 0; r < 3; r++) at[r] = rows[r] + x * ld + c;
            if (m == 4) {
                taps(4, at, ld, weight + c, ldw, bias + c, to, ldo);
                continue;
            }
            for (int o = 0; o < m; o++, to += ldo) {
                taps(1, at, ld, weight + c, ldw, bias + c, to, ldo);
                for (int r = 0; r < 3; r++) at[r] += ld;
            }
        }
        for (; c < channels; c++)
            for (int o = x; o < x + m; o++) {
                float sum = bias[c];
                for (int t = 0; t < 9; t++) sum += weight[t * ldw + c] * rows[t / 3][(o + t % 3) * ld + c];
                out[o * ldo + c] = sum;
            }
    }
}

/* ---- first pass over a strip ---- */

/* Channels are processed in groups of g channels, which are whole heads. q, k and v of a group are
 * side by side, 3g wide. */
typedef struct {
    int height, width, c, heads, g, top, bottom, first, columns, blocks, chunks;
    const value *x;         /* normalised rows from `first` on, [..][width][c] */
    const float *qkv;       /* for each group: 3g columns, packed */
    const float *depthwise; /* for each group: nine weights and the bias, [10][3g] */
    value *v;               /* [height][width][c] */
    float *sums;            /* for each item: Gram matrices of its heads, squares of q, of k */
} Gather;

INLINE int sums_floats(const Gather *s) { return s->g * (s->c / s->heads) + 2 * s->g; }

/* Write qkv of image row y, columns left to right, into a row of the ring; zeros outside the image. */
static void ring_row(const Gather *s, const float *qkv, int y, int left, int right, float *row) {
    int wide = 3 * s->g, from = left > 0 ? left : 0, to = least(right, s->width);
    if (y < 0 || y >= s->height) {
        memset(row, 0, sizeof(float) * (size_t)(right - left) * (size_t)wide);
        return;
    }
    if (left < 0) memset(row, 0, sizeof(float) * (size_t)wide);
    if (right > s->width) memset(row + (ptrdiff_t)(to - left) * wide, 0, sizeof(float) * (size_t)wide);
    const value *x = s->x + ((ptrdiff_t)(y - s->first) * s->width + from) * s->c;
    int k = words(s->c);
    product(to - from, wide, k, dense(x, s->c), packed(qkv, k, 0, 1), 0,
            row + (ptrdiff_t)(from - left) * wide, wide, NULL);
}

/* Return the rows x[pixels][n] as words along the pixels, for products that sum over pixels. Words
 * of two pixels are written to `pairs`. */
INLINE const word *pixel_words(int pixels, int n, const float *x, ptrdiff_t ld, word *pairs) {
#ifdef HALF
    word *out = pairs;
    for (int p = 0; p < pixels; p += 2, x += 2 * ld, out += ld)
        for (int j = 0; j < n; j += VL) {
            vec next = p + 1 < pixels ? *(const vec *)(x + ld + j) : (vec){0};
            __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)*(const vec *)(x + j)));
            __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)next));
            _mm512_storeu_si512(out + j, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
    return pairs;
#else
    (void)pixels, (void)n, (void)ld, (void)pairs;
    return x;
#endif
}

/* Add some pixels to the sums. Their q and k are the first 2g of every 3g floats. */
static void add_sums(const Gather *s, int pixels, const float *qkv, word *pairs, float *sums) {
    int d = s->c / s->heads, wide = 3 * s->g, two = 2 * s->g;
    const word *qk = pixel_words(pixels, two, qkv, wide, pairs);
    for (int head = 0; head < s->g / d; head++) {
        Right k = {qk + s->g + head * d, NULL, NR, wide};
        Left q = {qk + head * d, 1, wide};
        product(d, d, words(pixels), q, k, 1, sums + head * d * d, d, NULL);
    }
    float *restrict squares = sums + s->g * d;
    for (int p = 0; p < pixels; p++, qkv += wide)
        for (int j = 0; j < two; j++) squares[j] += qkv[j] * qkv[j];
}

static void gather_item(const void *job, int i, float *scratch) {
    const Gather *s = job;
    int g = s->g, wide = 3 * g, groups = s->c / g;
    int group = i % groups, block = i / groups % s->blocks, chunk = i / groups / s->blocks;
    int left = block * s->columns, right = least(left + s->columns, s->width);
    int top = s->top + chunk * CHUNK, bottom = least(top + CHUNK, s->bottom);
    const float *qkv = s->qkv + group * packed_floats(s->c, wide);
    const float *weight = s->depthwise + group * 10 * wide, *bias = weight + 9 * wide;
    ptrdiff_t line = (ptrdiff_t)(s->columns + 2) * wide;
    float *out = scratch + 3 * line, *sums = s->sums + (ptrdiff_t)i * sums_floats(s);
    word *pairs = (word *)(out + STEP * wide);
    memset(sums, 0, sizeof(float) * (size_t)sums_floats(s));
    for (int y = top - 1; y <= bottom; y++) {
        ring_row(s, qkv, y, left - 1, right + 1, scratch + (y + 3) % 3 * line);
        if (y <= top) continue;
        for (int x = left; x < right; x += STEP) {
            int pixels = least(STEP, right - x);
            const float *rows[3];
            for (int r = 0; r < 3; r++)
                rows[r] = scratch + (y + 1 + r) % 3 * line + (ptrdiff_t)(x - left) * wide;
            depthwise_row(pixels, wide, rows, wide, weight, wide, bias, out, wide);
            value *v = s->v + ((ptrdiff_t)(y - 1) * s->width + x) * s->c + group * g;
            for (int p = 0; p < pixels; p++) put_row(g, out + p * wide + 2 * g, v + p * s->c);
            add_sums(s, pixels, out, pairs, sums);
        }
    }
}

/* First pass: compute v of the rows top to bottom of one image, and the sums over the pixels of
 * their q and k. `out` is gram[heads][d][d], then the squares q[c] and k[c]. `x` is a buffer of
 * [rows + halo][width][c]. Returns 0, or -1 if memory runs out. */
int gather(Parallel parallel, int threads, int height, int width, int c, int heads, int g, int top,
           int bottom, const float *z, const float *gain, const float *shift, float eps, int centred,
           const float *qkv, const float *depthwise, value *x, value *v, float *out) {
    Team team = {parallel, threads};
    int first = top > 0 ? top - 1 : 0, last = least(bottom + 1, height), groups = c / g;
    int pixels = (last - first) * width, d = c / heads;
    Norm norm = {pixels, c, z + (ptrdiff_t)first * width * c, gain, shift, eps, centred, x};
    if (run(team, norm_item, &norm, ceil_div(pixels, TILE), 0)) return -1;
    int most = RING / (3 * 3 * g * (int)sizeof(float)), blocks = ceil_div(width, most > 8 ? most : 8);
    Gather job = {height, width, c, heads, g, top, bottom, first, ceil_div(width, blocks), blocks,
                  ceil_div(bottom - top, CHUNK), x, qkv, depthwise, v, NULL};
    int items = groups * blocks * job.chunks, floats = sums_floats(&job);
    job.sums = malloc(sizeof(float) * (size_t)items * (size_t)floats);
    if (!job.sums) return -1;
    size_t ring = 3 * (size_t)(job.columns + 2), step = STEP + ceil_div(STEP, 2);
    int failed = run(team, gather_item, &job, items, (ring + step) * 3 * (size_t)g + NR);
    memset(out, 0, sizeof(float) * ((size_t)c * (size_t)d + 2 * (size_t)c));
    for (int i = 0; i < items; i++) {
        const float *sums = job.sums + (ptrdiff_t)i * floats;
        int at = i % groups * g;
        for (int j = 0; j < g * d; j++) out[at * d + j] += sums[j];
        for (int j = 0; j < g; j++) out[c * d + at + j] += sums[g * d + j];
        for (int j = 0; j < g; j++) out[c * d + c + at + j] += sums[g * d + g + j];
    }
    free(job.sums);
    return failed;
}

/* ---- second pass ---- */

typedef struct {
    int pixels, c, hidden;
    float *z;
    const value *v;
    const float *mixing, *gain, *shift, *widen, *narrow;
    float eps;
    int centred;
} Apply;

static void apply_item(const void *job, int i, float *scratch) {
    const Apply *s = job;
    int c = s->c, k = words(c), m = least(TILE, s->pixels - i * TILE), n = least(HIDDEN, s->hidden);
    ptrdiff_t at = (ptrdiff_t)i * TILE * c;
    float *z = s->z + at, *hidden = scratch + TILE * k;
    value *x = (value *)scratch, *active = (value *)(PER_WORD == 1 ? hidden : hidden + TILE * n);
    product(m, c, k, dense(s->v + at, c), packed(s->mixing, k, 0, 1), 1, z, c, NULL);
    norm_rows(m, c, z, s->gain, s->shift, s->eps, s->centred, x);
    for (int from = 0; from < s->hidden; from += n) {
        int wide = least(n, s->hidden - from);
        Right widen = packed(s->widen + from / NR * packed_floats(c, NR), k, 0, 1);
        Right narrow = packed(s->narrow, words(s->hidden), words(from), !from);
        product(m, wide, k, dense(x, c), widen, 0, hidden, n, active);
        product(m, c, words(wide), dense(active, n), narrow, 1, z, c, NULL);
    }
}

/* Second pass: z += v M^T, then z += W_out gelu(W_in norm(z)), tile by tile, so that the hidden layer
 * stays in cache. Returns 0, or -1 if memory runs out. */
int apply(Parallel parallel, int threads, int pixels, int c, int hidden, float *z, const value *v,
          const float *mixing, const float *gain, const float *shift, float eps, int centred,
          const float *widen, const float *narrow) {
    /* An odd number of hidden channels becomes even: widen's next column and narrow's next row are 0,
     * because `pack` fills panels and words with zeros. */
    Apply job = {pixels, c, words(hidden) * PER_WORD, z, v, mixing, gain, shift, widen, narrow, eps, centred};
    Team team = {parallel, threads};
    return run(team, apply_item, &job, ceil_div(pixels, TILE), TILE * (size_t)(c + 2 * HIDDEN));
}
