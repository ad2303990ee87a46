/* The Transformer block in inference: matrix products fused with the operations before and after
 * them, on tiles that stay in cache.
 */
#include "depthwise.h"
#include "norm.h"
#include "products.h"
#include "sums.h"

enum {
    CHUNK = 32,      /* image rows of an item of `gather` */
    RING = 256 << 10 /* bytes of the three rows that a depth-wise convolution reads */
};

/* ---- first pass over a strip ---- */

typedef struct {
    int pixels, c;
    const float *x;
    Norm norm;
    value *y;
} Normed;

static void norm_item(const void *job, int i, float *scratch) {
    const Normed *s = job;
    (void)scratch;
    ptrdiff_t at = (ptrdiff_t)i * TILE * s->c;
    norm_rows(least(TILE, s->pixels - i * TILE), s->c, s->x + at, s->norm, s->y + at);
}

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
            row + (ptrdiff_t)(from - left) * wide, wide, NULL, 0);
}

static void gather_item(const void *job, int i, float *scratch) {
    const Gather *s = job;
    int g = s->g, wide = 3 * g, groups = s->c / g;
    int group = i % groups, block = i / groups % s->blocks, chunk = i / groups / s->blocks;
    int left = block * s->columns, right = least(left + s->columns, s->width);
    int top = s->top + chunk * CHUNK, bottom = least(top + CHUNK, s->bottom);
    const float *qkv = s->qkv + group * panel_floats(s->c, wide);
    const float *weight = s->depthwise + group * 10 * wide, *bias = weight + 9 * wide;
    int d = s->c / s->heads, floats = sums_floats(g, d);
    ptrdiff_t line = (ptrdiff_t)(s->columns + 2) * wide;
    float *out = scratch + 3 * line, *sums = s->sums + (ptrdiff_t)i * floats;
    word *pairs = (word *)(out + STEP * wide);
    memset(sums, 0, sizeof(float) * (size_t)floats);
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
            add_sums(g, d, pixels, out, pairs, sums);
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
    Normed norm = {pixels, c, z + (ptrdiff_t)first * width * c, {gain, shift, eps, centred}, x};
    if (run(team, norm_item, &norm, ceil_div(pixels, TILE), 0)) return -1;
    int most = RING / (3 * 3 * g * (int)sizeof(float)), blocks = ceil_div(width, most > 8 ? most : 8);
    Gather job = {height, width, c, heads, g, top, bottom, first, ceil_div(width, blocks), blocks,
                  ceil_div(bottom - top, CHUNK), x, qkv, depthwise, v, NULL};
    int items = groups * blocks * job.chunks, floats = sums_floats(g, d);
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
    const float *mixing, *widen, *narrow;
    Norm norm;
} Apply;

static void apply_item(const void *job, int i, float *scratch) {
    const Apply *s = job;
    int c = s->c, k = words(c), m = least(TILE, s->pixels - i * TILE), n = least(HIDDEN, s->hidden);
    ptrdiff_t at = (ptrdiff_t)i * TILE * c;
    float *z = s->z + at, *hidden = scratch + TILE * k;
    value *x = (value *)scratch, *active = (value *)(PER_WORD == 1 ? hidden : hidden + TILE * n);
    product(m, c, k, dense(s->v + at, c), packed(s->mixing, k, 0, 1), 1, z, c, NULL, 0);
    norm_rows(m, c, z, s->norm, x);
    for (int from = 0; from < s->hidden; from += n) {
        int wide = least(n, s->hidden - from);
        Right widen = packed(s->widen + from / NR * panel_floats(c, NR), k, 0, 1);
        Right narrow = packed(s->narrow, words(s->hidden), words(from), !from);
        product(m, wide, k, dense(x, c), widen, 0, hidden, n, active, n);
        product(m, c, words(wide), dense(active, n), narrow, 1, z, c, NULL, 0);
    }
}

/* Second pass: z += v M^T, then z += W_out gelu(W_in norm(z)), tile by tile, so that the hidden layer
 * stays in cache. Returns 0, or -1 if memory runs out. */
int apply(Parallel parallel, int threads, int pixels, int c, int hidden, float *z, const value *v,
          const float *mixing, const float *gain, const float *shift, float eps, int centred,
          const float *widen, const float *narrow) {
    /* An odd number of hidden channels becomes even: widen's next column and narrow's next row are 0,
     * because `pack` fills panels and words with zeros. */
    Apply job = {pixels, c, words(hidden) * PER_WORD, z, v, mixing, widen, narrow, {gain, shift, eps, centred}};
    Team team = {parallel, threads};
    return run(team, apply_item, &job, ceil_div(pixels, TILE), TILE * (size_t)(c + 2 * HIDDEN));
}
