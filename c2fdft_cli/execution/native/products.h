/* Vectors, threads, GELU and matrix products on a CPU. Plain C with the vector extensions of GCC and
 * Clang.
 *
 * Built in float32, and with -DHALF for products of bfloat16 values. Everything else is float32 in
 * both: sums, the residual stream, norms, depth-wise convolutions, GELU.
 *
 * Activations are [pixel][channel]. Work is divided into items by size alone, never by the number
 * of threads, and sums over items are added in the order of the items. So results do not depend on
 * the number of threads, and every run on one machine gives the same bits. Of the products that
 * torch's BLAS computes in training (`pixel_products` in tiles.h) this is not known.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

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
    STEP = 32          /* pixels that are convolved depth-wise before their results are used */
};

typedef float vec __attribute__((vector_size(4 * VL), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * VL), aligned(4)));
typedef uint32_t uvec __attribute__((vector_size(4 * VL), aligned(4)));
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* Products multiply and add whole words. A word is a float, or two neighbouring bfloat16 values of a
 * row: so all lengths along the summed dimension are counted in words. */
#ifdef HALF
#ifndef __AVX512BF16__
#error "the compiler does not know AVX-512 BF16"
#endif
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
    /* Both ways keep NaN: comparisons with it are false, and the instructions return their second
     * operand. Compilers do not find the instructions. */
#if defined(__AVX512F__)
    return (vec)_mm512_min_ps((__m512)h, _mm512_max_ps((__m512)l, (__m512)x));
#elif defined(__AVX2__)
    return (vec)_mm256_min_ps((__m256)h, _mm256_max_ps((__m256)l, (__m256)x));
#else
    x = choose(x < l, l, x);
    return choose(x > h, h, x);
#endif
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
static void gelu_rows(int m, int n, const float *x, ptrdiff_t ldx, value *y, ptrdiff_t ldy) {
    for (int i = 0; i < m; i++, x += ldx, y += ldy) {
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

/* The number of floats of a matrix of k rows and n columns in panels. */
INLINE ptrdiff_t panel_floats(int k, int n) { return (ptrdiff_t)ceil_div(n, NR) * (words(k) + 1) * NR; }

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

/* `block` for whole blocks only: m rows, a multiple of MR. In a function of its own the compiler keeps
 * all sums in registers. */
static __attribute__((noinline)) void blocks(int m, int k, const word *a, ptrdiff_t rs, ptrdiff_t cs,
                                             const word *b, ptrdiff_t ld, const float *head, int add,
                                             float *c, ptrdiff_t ldc) {
    for (int i = 0; i < m; i += MR) block(MR, NV, k, a + i * rs, rs, cs, b, ld, head, add, c + i * ldc, ldc);
}

/* The left matrix: element (i, p) is at rows[i rs + p cs]. */
typedef struct {
    const word *rows;
    ptrdiff_t rs, cs;
} Left;

INLINE Left dense(const value *rows, int ld) { return (Left){(const word *)rows, ld / PER_WORD, 1}; }

/* c[m][n] = (add ? c : 0) + head + a[m][k] b[k][n] for k words. Unless `gelu` is NULL, GELU of the
 * result is written to it, panel by panel while its columns are in cache. */
static void product(int m, int n, int k, Left a, Right b, int add, float *c, ptrdiff_t ldc,
                    value *gelu, ptrdiff_t ldg) {
    for (int from = 0; from < k; from += KC) {
        int deep = least(KC, k - from), last = from + deep == k;
        for (int j = 0; j < n; j += NR) {
            int wide = least(NR, n - j);
            const word *right = b.rows + j / NR * b.panel + from * b.ld;
            const float *head = b.head && !from ? b.head + j / NR * b.panel : NULL;
            const word *left = a.rows + from * a.cs;
            int i = wide == NR ? m / MR * MR : 0;
            blocks(i, deep, left, a.rs, a.cs, right, b.ld, head, add || from, c + j, ldc);
            for (; i < m; i += MR)
                part(least(MR, m - i), wide, deep, left + i * a.rs, a.rs, a.cs, right, b.ld, head,
                     add || from, c + i * ldc + j, ldc);
            if (gelu && last) gelu_rows(m, wide, c + j, ldc, gelu + j, ldg);
        }
    }
}

/* ---- packing ---- */

enum { AT_ONCE = 16 }; /* rows that are packed at a time, an even number */

/* The number of floats that `pack` writes. */
ptrdiff_t packed_floats(int k, int n) { return panel_floats(k, n); }

typedef struct {
    int k, n, panels; /* panels of a matrix */
    const float *b;
    ptrdiff_t rs, cs, size;
    const float *bias;
    float *out;
} Pack;

static void pack_item(const void *job, int i, float *scratch) {
    const Pack *s = job;
    int panel = i % s->panels * NR, n = least(NR, s->n - panel);
    const float *b = s->b + i / s->panels * s->size + panel * s->cs;
    float *out = s->out + i * panel_floats(s->k, NR);
    (void)scratch;
    for (int j = 0; j < NR; j++) out[j] = s->bias && j < n ? s->bias[panel + j] : 0.0f;
    out += NR;
    if (PER_WORD == 1 && s->cs == 1 && n == NR) {
        for (int p = 0; p < s->k; p++, b += s->rs, out += NR) memcpy(out, b, sizeof(float) * NR);
        return;
    }
    /* Column by column, but only a few rows at a time, so that what is written stays in the cache. */
    for (int from = 0; from < s->k; from += AT_ONCE) {
        float rows[AT_ONCE * NR] = {0};
        int deep = least(AT_ONCE, s->k - from);
        for (int j = 0; j < n; j++) {
            const float *column = b + from * s->rs + j * s->cs;
            for (int p = 0; p < deep; p++)
                rows[(p / PER_WORD * NR + j) * PER_WORD + p % PER_WORD] = column[p * s->rs];
        }
        int filled = ceil_div(deep, PER_WORD) * NR;
        put_row(filled * PER_WORD, rows, (value *)out);
        out += filled;
    }
}

/* Pack right matrices b[images][k][n], `size` floats apart, into panels, each after its head (the bias,
 * the same for all, or zeros if NULL). Element (p, j) of a matrix is at b[p rs + j cs]. Returns 0, or -1
 * if memory runs out. */
int pack(Parallel parallel, int threads, int images, int k, int n, const float *b, ptrdiff_t rs,
         ptrdiff_t cs, ptrdiff_t size, const float *bias, float *out) {
    Pack job = {k, n, ceil_div(n, NR), b, rs, cs, size, bias, out};
    Team team = {parallel, (ptrdiff_t)images * k * n > 8192 ? threads : 1};
    return run(team, pack_item, &job, images * job.panels, 0);
}
