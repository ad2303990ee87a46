/* Linear layers, attention's products, the feed-forward network and the depth-wise convolution in
 * training, forward and backward, in float32.
 */
#include "depthwise.h"
#include "products.h"

enum {
    ITEMS = 16, /* small jobs are divided into as many items, so that several threads have work */
    LINES = 8   /* image rows of an item of a depth-wise convolution */
};

/* The number of pixels in a tile; `pixels` are those of one of the images. */
INLINE int tile_pixels(int images, int pixels) {
    return least(TILE, ceil_div(ceil_div(pixels, ceil_div(ITEMS, images)), MR) * MR);
}

/* ---- linear layers ---- */

typedef struct {
    int pixels, tile, tiles, k, n;
    ptrdiff_t ldx, size; /* size: floats of an image's weight */
    const float *x, *weight, *stream;
    float *y;
} Linear;

static void linear_item(const void *job, int i, float *scratch) {
    const Linear *s = job;
    int image = i / s->tiles, first = i % s->tiles * s->tile, m = least(s->tile, s->pixels - first);
    ptrdiff_t at = (ptrdiff_t)image * s->pixels + first;
    float *y = s->y + at * s->n;
    Left x = {s->x + at * s->ldx, s->ldx, 1};
    (void)scratch;
    if (s->stream) memcpy(y, s->stream + at * s->n, sizeof(float) * (size_t)m * (size_t)s->n);
    product(m, s->n, s->k, x, packed(s->weight + image * s->size, s->k, 0, 1), s->stream != NULL, y, s->n,
            NULL);
}

/* y[images][pixels][n] = stream + head + x[images][pixels][k] weight; each image has its own weight,
 * packed. `stream` may be NULL, for zeros. Returns 0, or -1 if memory runs out. */
int linear(Parallel parallel, int threads, int images, int pixels, int k, int n, const float *x,
           ptrdiff_t ldx, const float *weight, const float *stream, float *y) {
    int tile = tile_pixels(images, pixels);
    Linear job = {pixels, tile, ceil_div(pixels, tile), k, n, ldx, panel_floats(k, n), x, weight, stream, y};
    Team team = {parallel, threads};
    return run(team, linear_item, &job, images * job.tiles, 0);
}

/* ---- attention ---- */

typedef struct {
    int pixels, tile, tiles, c, heads;
    const float *grad, *qkv, *mixing, *gram, *turned, *scale;
    float *qkv_grad;
} Attention;

static void attention_back_item(const void *job, int i, float *scratch) {
    const Attention *s = job;
    int c = s->c, d = c / s->heads, image = i / s->tiles, first = i % s->tiles * s->tile;
    int m = least(s->tile, s->pixels - first);
    ptrdiff_t at = (ptrdiff_t)image * s->pixels + first, size = (ptrdiff_t)d * d;
    const float *qkv = s->qkv + at * 3 * c, *scale = s->scale + (ptrdiff_t)image * 2 * c;
    const float *mixing = s->mixing + image * panel_floats(c, c);
    float *to = s->qkv_grad + at * 3 * c;
    (void)scratch;
    product(m, c, c, dense(s->grad + at * c, c), packed(mixing, c, 0, 0), 0, to + 2 * c, 3 * c, NULL);
    for (int p = 0; p < m; p++)
        for (int j = 0; j < 2 * c; j++) to[p * 3 * c + j] = scale[j] * qkv[p * 3 * c + j];
    for (int head = 0; head < s->heads; head++) {
        ptrdiff_t matrix = ((ptrdiff_t)image * s->heads + head) * size;
        Left q = {qkv + head * d, 3 * c, 1}, k = {qkv + c + head * d, 3 * c, 1};
        Right gram = {s->gram + matrix, NULL, NR, d}, turned = {s->turned + matrix, NULL, NR, d};
        product(m, d, d, k, turned, 1, to + head * d, 3 * c, NULL);
        product(m, d, d, q, gram, 1, to + c + head * d, 3 * c, NULL);
    }
}

/* The gradients of q, k and v, [images][pixels][3c]: v of grad and the mixing matrices (packed), and
 * q = scale q + k turned, k = scale k + q gram for each head, with gram and its transpose `turned`,
 * [images][heads][d][d], which are read up to a vector beyond their end. scale: [images][2c].
 * Returns 0, or -1 if memory runs out. */
int attention_back(Parallel parallel, int threads, int images, int pixels, int c, int heads,
                   const float *grad, const float *qkv, const float *mixing, const float *gram,
                   const float *turned, const float *scale, float *qkv_grad) {
    int tile = tile_pixels(images, pixels);
    Attention job = {pixels, tile, ceil_div(pixels, tile), c, heads, grad, qkv, mixing, gram, turned, scale, qkv_grad};
    Team team = {parallel, threads};
    return run(team, attention_back_item, &job, images * job.tiles, 0);
}

/* ---- feed-forward network ---- */

/* The slope of GELU: Phi(x) + x phi(x), phi(x) = exp(-x^2 / 2) / sqrt(2 pi). From 13 on phi is less
 * than float32 can add to 1. */
INLINE vec gelu_slope(vec x) {
    x = clamp(x, -13.0f, 13.0f);
    vec power = x * x * -0.72134752f;        /* of 2 */
    vec shifted = power + 12582912.0f;       /* 1.5 2^23: rounds to whole numbers, the last bits */
    vec f = power - (shifted - 12582912.0f); /* -1/2 .. 1/2 */
    vec two = f * 1.535336188e-4f + 1.339887440e-3f; /* 2^f within 2e-7 */
    two = two * f + 9.618437357e-3f;
    two = two * f + 5.550332471e-2f;
    two = two * f + 2.402264791e-1f;
    two = two * f + 6.931472028e-1f;
    two = two * f + 1.0f;
    two = (vec)((uvec)two + ((uvec)shifted << 23));
    return 0.5f + 0.5f * erf_of(x * 0.70710678f) + x * two * 0.39894228f;
}

/* Multiply grad by the slope of GELU at x. */
static void slope_rows(int m, int n, const float *x, float *grad, ptrdiff_t ld) {
    for (int i = 0; i < m; i++, x += ld, grad += ld) {
        int j = 0;
        for (; j + VL <= n; j += VL) *(vec *)(grad + j) *= gelu_slope(*(const vec *)(x + j));
        if (j == n) continue;
        float rest[VL] = {0};
        memcpy(rest, x + j, sizeof(float) * (size_t)(n - j));
        *(vec *)rest = gelu_slope(*(const vec *)rest);
        for (int o = j; o < n; o++) grad[o] *= rest[o - j];
    }
}

/* Backward, x is the gradient of y, `first` and `second` are the transposed weights of the second and
 * the first layer, and `after` and y take the gradients of the hidden layer and of x. */
typedef struct {
    int pixels, tile, c, hidden;
    const float *x, *stream, *first, *second;
    float *before, *after, *y;
} FeedForward;

static void feed_forward_item(const void *job, int i, float *scratch) {
    const FeedForward *s = job;
    int c = s->c, ld = s->hidden;
    ptrdiff_t at = (ptrdiff_t)i * s->tile;
    int m = least(s->tile, s->pixels - (int)at);
    float *y = s->y + at * c;
    (void)scratch;
    memcpy(y, s->stream + at * c, sizeof(float) * (size_t)m * (size_t)c);
    for (int from = 0; from < ld; from += HIDDEN) {
        int wide = least(HIDDEN, ld - from);
        Right widen = packed(s->first + from / NR * panel_floats(c, NR), c, 0, 1);
        float *before = s->before + at * ld + from, *after = s->after + at * ld + from;
        product(m, wide, c, dense(s->x + at * c, c), widen, 0, before, ld, after);
        product(m, c, wide, dense(after, ld), packed(s->second, ld, from, !from), 1, y, c, NULL);
    }
}

/* before = x W_in, after = gelu(before), y = stream + after W_out; both weights packed. Returns 0, or
 * -1 if memory runs out. */
int feed_forward(Parallel parallel, int threads, int pixels, int c, int hidden, const float *x,
                 const float *stream, const float *widen, const float *narrow, float *before,
                 float *after, float *y) {
    FeedForward job = {pixels, tile_pixels(1, pixels), c, hidden, x, stream, widen, narrow, before, after, y};
    Team team = {parallel, threads};
    return run(team, feed_forward_item, &job, ceil_div(pixels, job.tile), 0);
}

static void feed_forward_back_item(const void *job, int i, float *scratch) {
    const FeedForward *s = job;
    int c = s->c, ld = s->hidden;
    ptrdiff_t at = (ptrdiff_t)i * s->tile;
    int m = least(s->tile, s->pixels - (int)at);
    (void)scratch;
    for (int from = 0; from < ld; from += HIDDEN) {
        int wide = least(HIDDEN, ld - from);
        Right narrow = packed(s->first + from / NR * panel_floats(c, NR), c, 0, 0);
        float *grad = s->after + at * ld + from;
        product(m, wide, c, dense(s->x + at * c, c), narrow, 0, grad, ld, NULL);
        slope_rows(m, wide, s->before + at * ld + from, grad, ld);
        product(m, c, wide, dense(grad, ld), packed(s->second, ld, from, 0), from > 0, s->y + at * c, c,
                NULL);
    }
}

/* hidden_grad = (grad W_out^T) * slope of GELU at before, x_grad = hidden_grad W_in^T; both weights
 * packed. Returns 0, or -1 if memory runs out. */
int feed_forward_back(Parallel parallel, int threads, int pixels, int c, int hidden,
                      const float *grad, float *before, const float *narrow, const float *widen,
                      float *hidden_grad, float *x_grad) {
    FeedForward job = {pixels, tile_pixels(1, pixels), c, hidden, grad, NULL, narrow, widen,
                       before, hidden_grad, x_grad};
    Team team = {parallel, threads};
    return run(team, feed_forward_back_item, &job, ceil_div(pixels, job.tile), 0);
}

/* ---- depth-wise 3x3 ---- */

typedef struct {
    int height, width, c, shares;
    const float *x, *in, *weight; /* x: what `in` is the gradient for, with sums */
    float *y, *sums;
} Depthwise;

/* Find the rows around pixels of row y, each from the left neighbour of pixel x on, as
 * `depthwise_row` reads them, and return for how many pixels. Beside an edge of the image they are
 * copied to `patch`, [3][3][c], with zeros outside. `zeros` is a row of (STEP + 2) c of them. */
static int around(const Depthwise *s, const float *image, int y, int x, const float *zeros,
                  float *patch, const float **rows) {
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

static void depthwise_item(const void *job, int i, float *scratch) {
    const Depthwise *s = job;
    int c = s->c, top = i % s->shares * LINES, bottom = least(top + LINES, s->height), pixels;
    ptrdiff_t image = (ptrdiff_t)(i / s->shares) * s->height * s->width * c;
    float *zeros = scratch, *patch = scratch + (STEP + 2) * c;
    float *sums = s->sums ? s->sums + (ptrdiff_t)i * 9 * c : NULL;
    const float *rows[3];
    memset(zeros, 0, sizeof(float) * (STEP + 2) * (size_t)c);
    if (sums) memset(sums, 0, sizeof(float) * 9 * (size_t)c);
    for (int y = top; y < bottom; y++)
        for (int x = 0; x < s->width; x += pixels) {
            ptrdiff_t at = image + ((ptrdiff_t)y * s->width + x) * c;
            if (sums) {
                pixels = around(s, s->x + image, y, x, zeros, patch, rows);
                add_taps(pixels, c, rows, s->in + at, sums);
            }
            pixels = around(s, s->in + image, y, x, zeros, patch, rows);
            depthwise_row(pixels, c, rows, c, s->weight, c, s->weight + 9 * c, s->y + at, c);
        }
}

/* y = x convolved with weight, [10][c]: nine taps and the bias. Returns 0, or -1 if memory runs out. */
int depthwise(Parallel parallel, int threads, int images, int height, int width, int c, const float *x,
              const float *weight, float *y) {
    Depthwise job = {height, width, c, ceil_div(height, LINES), NULL, x, weight, y, NULL};
    Team team = {parallel, threads};
    return run(team, depthwise_item, &job, images * job.shares, (STEP + 11) * (size_t)c);
}

/* Add up parts[count][n] in their order. */
static void add_parts(int count, int n, const float *parts, float *restrict out) {
    memcpy(out, parts, sizeof(float) * (size_t)n);
    for (int i = 1; i < count; i++) {
        parts += n;
        for (int j = 0; j < n; j++) out[j] += parts[j];
    }
}

/* x_grad = grad convolved with the turned weight, [10][c] with a bias of zeros; weight_grad[9][c] =
 * sum over the pixels of grad times x around them. Returns 0, or -1 if memory runs out. */
int depthwise_back(Parallel parallel, int threads, int images, int height, int width, int c,
                   const float *x, const float *grad, const float *turned, float *x_grad,
                   float *weight_grad) {
    Depthwise job = {height, width, c, ceil_div(height, LINES), x, grad, turned, x_grad, NULL};
    Team team = {parallel, threads};
    int items = images * job.shares;
    job.sums = malloc(sizeof(float) * 9 * (size_t)c * (size_t)items);
    if (!job.sums) return -1;
    int failed = run(team, depthwise_item, &job, items, (STEP + 11) * (size_t)c);
    if (!failed) add_parts(items, 9 * c, job.sums, weight_grad);
    free(job.sums);
    return failed;
}
