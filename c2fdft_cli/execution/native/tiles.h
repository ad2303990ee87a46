/* How images are divided into tiles of pixels and memory into buffers, and sums over pixels, in training. */
#pragma once
#include "norm.h"
#include "products.h"

enum { ITEMS = 16 }; /* small jobs are divided into as many items, so that several threads have work */

typedef struct {
    int pixels, size, count; /* pixels of an image, of a tile, tiles of an image */
} Tiles;

static Tiles tiles_of(int images, int pixels) {
    int size = least(TILE, ceil_div(ceil_div(pixels, ceil_div(ITEMS, images)), MR) * MR);
    return (Tiles){pixels, size, ceil_div(pixels, size)};
}

typedef struct {
    int image, pixels;
    ptrdiff_t first; /* pixels of all images before it */
} Tile;

static Tile tile_at(Tiles tiles, int i) {
    int image = i / tiles.count, first = i % tiles.count * tiles.size;
    return (Tile){image, least(tiles.size, tiles.pixels - first), (ptrdiff_t)image * tiles.pixels + first};
}

/* The norm of an image; `shift` has c floats for each. */
INLINE Norm norm_of(Norm norm, int image, int c) {
    norm.shift += (ptrdiff_t)image * c;
    return norm;
}

/* Add up parts[count][n] in their order. */
static void add_parts(int count, int n, const float *parts, float *restrict out) {
    memcpy(out, parts, sizeof(float) * (size_t)n);
    for (int i = 1; i < count; i++) {
        parts += n;
        for (int j = 0; j < n; j++) out[j] += parts[j];
    }
}

/* Run items that each have n sums of their own, `count` for each image, then add up those of an
 * image: sums[images][n]. `parts` is the field of the job that the items write them to. Returns 0, or
 * -1 if memory runs out. */
static int run_with_sums(Team team, void (*item)(const void *, int, float *), const void *job, float **parts,
                         int images, int count, int n, size_t floats, float *sums) {
    size_t share = (size_t)n * (size_t)count;
    *parts = malloc(sizeof(float) * share * (size_t)images);
    if (!*parts) return -1;
    int failed = run(team, item, job, images * count, floats);
    for (int i = 0; i < images && !failed; i++)
        add_parts(count, n, *parts + (size_t)i * share, sums + (ptrdiff_t)i * n);
    free(*parts);
    return failed;
}

/* A layer `x + f(norm(x, time))` as the caller describes it; `_Layer` in training.py. */
typedef struct {
    int images, height, width, c;
    int inner;  /* heads, or channels of the hidden layer */
    int times;  /* 1, or as many as images */
    int centred;
    int cached; /* values of a tensor that stay in the cache: so much is processed together */
    float eps;
} Layer;

/* The length of parts of at most `most`, but at least 1, into as few of which a whole can be divided, all
 * equal but for the last. */
static int equal_part(int whole, ptrdiff_t most) {
    if (most >= whole) return whole;
    return ceil_div(whole, ceil_div(whole, most > 1 ? (int)most : 1));
}

/* Divide a buffer, unless it is NULL, into parts of these sizes in floats, each with room for a vector
 * beyond it, which kernels read. Returns the size of the buffer. */
static ptrdiff_t split(int count, const ptrdiff_t *sizes, float *buffer, float **parts) {
    ptrdiff_t used = 0;
    for (int i = 0; i < count; i++) {
        if (buffer) parts[i] = buffer + used;
        used += (sizes[i] + VL + 15) / 16 * 16;
    }
    return used;
}

/* Allocate a buffer and divide it; NULL if memory runs out. */
static float *allocate(int count, const ptrdiff_t *sizes, float **parts) {
    float *buffer = aligned_alloc(64, sizeof(float) * (size_t)split(count, sizes, NULL, NULL));
    if (buffer) split(count, sizes, buffer, parts);
    return buffer;
}

/* sgemm of torch's BLAS, which is the fastest for sums over pixels. Its matrices are column-major, and its
 * integers have 32 bits, as torch's own calls of it do. */
typedef void (*Gemm)(const char *, const char *, const int *, const int *, const int *, const float *,
                     const float *, const int *, const float *, const int *, const float *, float *,
                     const int *);

/* sums[m][n] = (add ? sums : 0) + sum over the pixels of a[pixels][m] times b[pixels][n]. */
static void pixel_products(Gemm gemm, int m, int n, int pixels, const float *a, int lda, const float *b,
                           int ldb, int add, float *sums) {
    float one = 1, old = (float)add;
    gemm("N", "T", &n, &m, &pixels, &one, b, &ldb, a, &lda, &old, sums, &n);
}

typedef struct {
    Tiles tiles;
    int n;
    const float *x;
    float *parts;
} ColumnSums;

static void column_sums_item(const void *job, int i, float *scratch) {
    const ColumnSums *s = job;
    Tile tile = tile_at(s->tiles, i);
    float *restrict sums = s->parts + (ptrdiff_t)i * s->n;
    const float *x = s->x + tile.first * s->n;
    (void)scratch;
    memset(sums, 0, sizeof(float) * (size_t)s->n);
    for (int p = 0; p < tile.pixels; p++, x += s->n)
        for (int j = 0; j < s->n; j++) sums[j] += x[j];
}

/* sums[n] = (add ? sums : 0) + sum over the pixels of x[pixels][n]. Returns 0, or -1 if memory runs out. */
static int column_sums(Team team, int pixels, int n, const float *x, int add, float *restrict sums) {
    ColumnSums job = {tiles_of(1, pixels), n, x, NULL};
    float *all = malloc(sizeof(float) * (size_t)n);
    if (!all || run_with_sums(team, column_sums_item, &job, &job.parts, 1, job.tiles.count, n, 0, all)) {
        free(all);
        return -1;
    }
    for (int j = 0; j < n; j++) sums[j] = all[j] + (add ? sums[j] : 0);
    free(all);
    return 0;
}

/* The norm's shift of each image, [images][c]: time, that of all images or of each, plus the bias. */
static void norm_shifts(int images, int c, int times, const float *time, const float *bias, float *shift) {
    for (int i = 0; i < images; i++)
        for (int j = 0; j < c; j++) shift[i * c + j] = time[(times == 1 ? 0 : i) * c + j] + (bias ? bias[j] : 0);
}

/* The gradients of time, gain and bias, unless NULL, from the sums of `norm_back_rows`, [images][2][c]. */
static void norm_gradients(int images, int c, int times, const float *sums, float *time, float *gain,
                           float *bias) {
    for (int j = 0; j < c; j++) {
        float of_shift = 0, of_gain = 0;
        for (int i = 0; i < images; i++) {
            float part = sums[2 * i * c + j];
            if (time && times > 1) time[i * c + j] = part;
            of_shift += part;
            of_gain += sums[(2 * i + 1) * c + j];
        }
        if (time && times == 1) time[j] = of_shift;
        if (gain) gain[j] = of_gain;
        if (bias) bias[j] = of_shift;
    }
}
