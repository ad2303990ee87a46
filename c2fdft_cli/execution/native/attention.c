/* Linear layers, and the norm and the attention in training, forward and backward, in float32.
 */
#include "depthwise.h"
#include "norm.h"
#include "products.h"
#include "sums.h"
#include "tiles.h"

enum { LINES = 8 }; /* image rows of an item of a depth-wise convolution */

/* ---- linear layers ---- */

typedef struct {
    Tiles tiles;
    int k, n;
    const float *x;
    ptrdiff_t ldx, size; /* size: floats of an image's weight, 0 if all have the same */
    Norm norm;           /* unless its gain is NULL, x is normalised */
    const float *weight, *stream;
    float *y;
} Linear;

static void linear_item(const void *job, int i, float *normed) {
    const Linear *s = job;
    Tile tile = tile_at(s->tiles, i);
    int m = tile.pixels;
    const float *weight = s->weight + tile.image * s->size;
    float *y = s->y + tile.first * s->n;
    Left x = {s->x + tile.first * s->ldx, s->ldx, 1};
    if (s->norm.gain) {
        norm_rows(m, s->k, x.rows, norm_of(s->norm, tile.image, s->k), normed);
        x = dense(normed, s->k);
    }
    if (s->stream) memcpy(y, s->stream + tile.first * s->n, sizeof(float) * (size_t)m * (size_t)s->n);
    product(m, s->n, s->k, x, packed(weight, s->k, 0, 1), s->stream != NULL, y, s->n, NULL, 0);
}

/* y[images][pixels][n] = stream + head + x[images][pixels][k] weight; each image has its own weight,
 * packed. `stream` may be NULL, for zeros. Returns 0, or -1 if memory runs out. */
int linear(Parallel parallel, int threads, int images, int pixels, int k, int n, const float *x,
           ptrdiff_t ldx, const float *weight, const float *stream, float *y) {
    Linear job = {tiles_of(images, pixels), k, n, x, ldx, panel_floats(k, n), {0}, weight, stream, y};
    Team team = {parallel, threads};
    return run(team, linear_item, &job, images * job.tiles.count, 0);
}

/* y[images][pixels][n] = head + norm(x[images][pixels][k]) weight, packed; the norm has a shift for
 * each image. Returns 0, or -1 if memory runs out. */
int norm_linear(Parallel parallel, int threads, int images, int pixels, int k, int n, const float *x,
                const float *gain, const float *shift, float eps, int centred, const float *weight,
                float *y) {
    Linear job = {tiles_of(images, pixels), k, n, x, k, 0, {gain, shift, eps, centred}, weight, NULL, y};
    Team team = {parallel, threads};
    return run(team, linear_item, &job, images * job.tiles.count, TILE * (size_t)k);
}

typedef struct {
    Tiles tiles;
    int k, n;
    const float *x;
    Norm norm;
    const float *weight, *grad, *stream;
    float *normed, *x_grad, *sums;
} NormLinearBack;

static void norm_linear_back_item(const void *job, int i, float *normed_grad) {
    const NormLinearBack *s = job;
    Tile tile = tile_at(s->tiles, i);
    int k = s->k, m = tile.pixels;
    ptrdiff_t at = tile.first * k;
    float *sums = s->sums + (ptrdiff_t)i * 2 * k;
    memset(sums, 0, sizeof(float) * 2 * (size_t)k);
    product(m, k, s->n, dense(s->grad + tile.first * s->n, s->n), packed(s->weight, s->n, 0, 0), 0,
            normed_grad, k, NULL, 0);
    norm_back_rows(m, k, s->x + at, norm_of(s->norm, tile.image, k), normed_grad, s->stream + at,
                   s->x_grad + at, s->normed + at, sums);
}

/* Backward: x_grad = stream + what the norm makes of grad weight^T, packed. Also the norm once more,
 * and the sums of `norm_back_rows` for each image. Returns 0, or -1 if memory runs out. */
int norm_linear_back(Parallel parallel, int threads, int images, int pixels, int k, int n, const float *x,
                     const float *gain, const float *shift, float eps, int centred, const float *weight,
                     const float *grad, const float *stream, float *normed, float *x_grad, float *sums) {
    NormLinearBack job = {tiles_of(images, pixels), k, n, x, {gain, shift, eps, centred}, weight, grad,
                          stream, normed, x_grad, NULL};
    Team team = {parallel, threads};
    return run_with_sums(team, norm_linear_back_item, &job, &job.sums, images, job.tiles.count, 2 * k,
                         TILE * (size_t)k, sums);
}

/* ---- gradients of q, k and v ---- */

typedef struct {
    Tiles tiles;
    int c, heads;
    const float *grad, *qkv, *mixing, *gram, *turned, *scale;
    float *qkv_grad;
} Attention;

static void attention_back_item(const void *job, int i, float *scratch) {
    const Attention *s = job;
    Tile tile = tile_at(s->tiles, i);
    int c = s->c, d = c / s->heads, image = tile.image, m = tile.pixels;
    ptrdiff_t at = tile.first, size = (ptrdiff_t)d * d;
    const float *qkv = s->qkv + at * 3 * c, *scale = s->scale + (ptrdiff_t)image * 2 * c;
    const float *mixing = s->mixing + image * panel_floats(c, c);
    float *to = s->qkv_grad + at * 3 * c;
    (void)scratch;
    product(m, c, c, dense(s->grad + at * c, c), packed(mixing, c, 0, 0), 0, to + 2 * c, 3 * c, NULL, 0);
    for (int p = 0; p < m; p++)
        for (int j = 0; j < 2 * c; j++) to[p * 3 * c + j] = scale[j] * qkv[p * 3 * c + j];
    for (int head = 0; head < s->heads; head++) {
        ptrdiff_t matrix = ((ptrdiff_t)image * s->heads + head) * size;
        Left q = {qkv + head * d, 3 * c, 1}, k = {qkv + c + head * d, 3 * c, 1};
        Right gram = {s->gram + matrix, NULL, NR, d}, turned = {s->turned + matrix, NULL, NR, d};
        product(m, d, d, k, turned, 1, to + head * d, 3 * c, NULL, 0);
        product(m, d, d, q, gram, 1, to + c + head * d, 3 * c, NULL, 0);
    }
}

/* The gradients of q, k and v, [images][pixels][3c]: v of grad and the mixing matrices (packed), and
 * q = scale q + k turned, k = scale k + q gram for each head, with gram and its transpose `turned`,
 * [images][heads][d][d], which are read up to VL - 1 floats beyond their end. scale: [images][2c].
 * Returns 0, or -1 if memory runs out. */
int attention_back(Parallel parallel, int threads, int images, int pixels, int c, int heads,
                   const float *grad, const float *qkv, const float *mixing, const float *gram,
                   const float *turned, const float *scale, float *qkv_grad) {
    Attention job = {tiles_of(images, pixels), c, heads, grad, qkv, mixing, gram, turned, scale, qkv_grad};
    Team team = {parallel, threads};
    return run(team, attention_back_item, &job, images * job.tiles.count, 0);
}

/* ---- depth-wise 3x3 ---- */

typedef struct {
    int height, width, c, d, shares; /* c channels: q, k and v, with heads of d channels */
    const float *in, *weight, *x;    /* backward, `in` is the gradient of the result for x */
    float *y, *sums;                 /* for each item: sums over its pixels */
} Depthwise;

/* An item: some rows of an image. */
typedef struct {
    const Depthwise *of;
    int top, bottom;
    ptrdiff_t image; /* floats before the image */
    float *zeros, *patch;
} Rows;

static Rows rows_of(const Depthwise *s, int i, float *scratch) {
    int top = i % s->shares * LINES;
    size_t zeros = (STEP + 2) * (size_t)s->c;
    memset(scratch, 0, sizeof(float) * zeros);
    return (Rows){s, top, least(top + LINES, s->height),
                  (ptrdiff_t)(i / s->shares) * s->height * s->width * s->c, scratch, scratch + zeros};
}

enum { SCRATCH = STEP + 2 + 9 }; /* pixels of `zeros` and `patch` */

/* Find the rows around pixels of row y, each from the left neighbour of pixel x on, as
 * `depthwise_row` reads them, and return for how many pixels. Beside an edge of the image they are
 * copied to `patch`, [3][3][c], with zeros outside. `zeros` is a row of (STEP + 2) c of them. */
static int around(const Rows *part, const float *data, int y, int x, const float **rows) {
    const Depthwise *s = part->of;
    const float *image = data + part->image, *zeros = part->zeros;
    float *patch = part->patch;
    int inner = x > 0 && x + 1 < s->width, c = s->c;
    for (int r = 0; r < 3; r++) {
        int above = y + r - 1, inside = above >= 0 && above < s->height;
        const float *row = image + (ptrdiff_t)above * s->width * c;
        if (inner) rows[r] = inside ? row + (ptrdiff_t)(x - 1) * c : zeros;
        else rows[r] = patch + (ptrdiff_t)r * 3 * c;
        for (int p = x - 1; !inner && p < x + 2; p++) {
            float *to = patch + (ptrdiff_t)(3 * r + p - x + 1) * c;
            if (inside && p >= 0 && p < s->width) memcpy(to, row + (ptrdiff_t)p * c, sizeof(float) * (size_t)c);
            else memset(to, 0, sizeof(float) * (size_t)c);
        }
    }
    return inner ? least(STEP, s->width - 1 - x) : 1;
}

/* Add the products of some pixels' gradients with their neighbours to the sums [9][c]. */
static void add_taps(int pixels, int c, const float *const *rows, const float *grad, float *sums) {
    int at = 0;
    for (; at + VL <= c; at += VL) {
        vec sum[9];
        UNROLL for (int t = 0; t < 9; t++) sum[t] = *(const vec *)(sums + t * c + at);
        for (int p = 0; p < pixels; p++) {
            vec g = *(const vec *)(grad + (ptrdiff_t)p * c + at);
            UNROLL for (int t = 0; t < 9; t++)
                sum[t] += g * *(const vec *)(rows[t / 3] + (ptrdiff_t)(p + t % 3) * c + at);
        }
        UNROLL for (int t = 0; t < 9; t++) *(vec *)(sums + t * c + at) = sum[t];
    }
    for (; at < c; at++)
        for (int p = 0; p < pixels; p++)
            for (int t = 0; t < 9; t++)
                sums[t * c + at] += grad[(ptrdiff_t)p * c + at] * rows[t / 3][(ptrdiff_t)(p + t % 3) * c + at];
}

static void convolve(const Rows *part, int y) {
    const Depthwise *s = part->of;
    const float *rows[3];
    for (int x = 0, pixels; x < s->width; x += pixels) {
        pixels = around(part, s->in, y, x, rows);
        float *to = s->y + part->image + ((ptrdiff_t)y * s->width + x) * s->c;
        depthwise_row(pixels, s->c, rows, s->c, s->weight, s->c, s->weight + 9 * s->c, to, s->c);
    }
}

static void depthwise_item(const void *job, int i, float *scratch) {
    const Depthwise *s = job;
    Rows part = rows_of(s, i, scratch);
    int g = s->c / 3, floats = sums_floats(g, s->d), from = part.top * s->width;
    float *sums = s->sums + (ptrdiff_t)i * floats;
    memset(sums, 0, sizeof(float) * (size_t)floats);
    for (int y = part.top; y < part.bottom; y++) {
        convolve(&part, y);
        int to = (y + 1) * s->width;
        if (to - from < TILE && y + 1 < part.bottom) continue; /* longer sums are faster */
        for (; from < to; from += least(TILE, to - from))
            add_sums(g, s->d, least(TILE, to - from), s->y + part.image + (ptrdiff_t)from * s->c, NULL, sums);
    }
}

/* qkv = x convolved with weight, [10][c]: nine taps and the bias; both are [images][height][width][c].
 * sums: for each image those of its q and k, with heads of d channels; up to VL - 1 floats beyond the end
 * of qkv are read. Returns 0, or -1 if memory runs out. */
int depthwise(Parallel parallel, int threads, int images, int height, int width, int c, int d,
              const float *x, const float *weight, float *qkv, float *sums) {
    Depthwise job = {height, width, c, d, ceil_div(height, LINES), x, weight, NULL, qkv, NULL};
    Team team = {parallel, threads};
    return run_with_sums(team, depthwise_item, &job, &job.sums, images, job.shares, sums_floats(c / 3, d),
                         SCRATCH * (size_t)c, sums);
}

static void depthwise_back_item(const void *job, int i, float *scratch) {
    const Depthwise *s = job;
    Rows part = rows_of(s, i, scratch);
    float *sums = s->sums + (ptrdiff_t)i * 9 * s->c;
    const float *rows[3];
    memset(sums, 0, sizeof(float) * 9 * (size_t)s->c);
    for (int y = part.top; y < part.bottom; y++) {
        for (int x = 0, pixels; x < s->width; x += pixels) {
            pixels = around(&part, s->x, y, x, rows);
            add_taps(pixels, s->c, rows, s->in + part.image + ((ptrdiff_t)y * s->width + x) * s->c, sums);
        }
        convolve(&part, y);
    }
}

/* x_grad = grad convolved with the turned weight, [10][c] with a bias of zeros; weight_grad[9][c] =
 * sum over the pixels of grad times x around them. Returns 0, or -1 if memory runs out. */
int depthwise_back(Parallel parallel, int threads, int images, int height, int width, int c,
                   const float *x, const float *grad, const float *turned, float *x_grad,
                   float *weight_grad) {
    Depthwise job = {height, width, c, 0, ceil_div(height, LINES), grad, turned, x, x_grad, NULL};
    Team team = {parallel, threads};
    return run_with_sums(team, depthwise_back_item, &job, &job.sums, 1, images * job.shares, 9 * c,
                         SCRATCH * (size_t)c, weight_grad);
}
