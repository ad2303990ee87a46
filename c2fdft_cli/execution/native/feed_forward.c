/* The norm and the feed-forward network in training, forward and backward, in float32.
 */
#include "norm.h"
#include "products.h"
#include "tiles.h"

/* GELU of x in `y`, and its slope: Phi(x) + x phi(x), phi(x) = exp(-x^2 / 2) / sqrt(2 pi). From 13 on
 * phi is less than float32 can add to 1. */
INLINE vec gelu_and_slope(vec x, float *y) {
    vec whole = 0.5f + 0.5f * erf_of(x * 0.70710678f); /* Phi(x) */
    *(vec *)y = x * whole;
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
    return whole + x * two * 0.39894228f;
}

/* Multiply grad by the slope of GELU at x, and write GELU of x to y. */
static void slope_rows(int m, int n, const float *x, float *grad, float *y, ptrdiff_t ld) {
    for (int i = 0; i < m; i++, x += ld, grad += ld, y += ld) {
        int j = 0;
        for (; j + VL <= n; j += VL) *(vec *)(grad + j) *= gelu_and_slope(*(const vec *)(x + j), y + j);
        if (j == n) continue;
        float rest[VL] = {0}, active[VL];
        memcpy(rest, x + j, sizeof(float) * (size_t)(n - j));
        *(vec *)rest = gelu_and_slope(*(const vec *)rest, active);
        for (int o = j; o < n; o++) grad[o] *= rest[o - j];
        memcpy(y + j, active, sizeof(float) * (size_t)(n - j));
    }
}

/* `first` and `second` are the packed weights in the order in which they are used: backward, the
 * transposed ones of the second layer and the first. */
typedef struct {
    Tiles tiles;
    int c, hidden;
    const float *x;
    Norm norm;
    const float *first, *second, *grad;
    float *before, *after, *hidden_grad; /* before and after GELU */
    float *normed, *y, *sums;
} FeedForward;

static void feed_forward_item(const void *job, int i, float *normed) {
    const FeedForward *s = job;
    Tile tile = tile_at(s->tiles, i);
    int c = s->c, ld = s->hidden, m = tile.pixels;
    const float *x = s->x + tile.first * c;
    float *y = s->y + tile.first * c, *before = s->before + tile.first * ld, *after = normed + TILE * c;
    norm_rows(m, c, x, norm_of(s->norm, tile.image, c), normed);
    memcpy(y, x, sizeof(float) * (size_t)m * (size_t)c);
    for (int from = 0; from < ld; from += HIDDEN) {
        int wide = least(HIDDEN, ld - from);
        Right widen = packed(s->first + from / NR * panel_floats(c, NR), c, 0, 1);
        product(m, wide, c, dense(normed, c), widen, 0, before + from, ld, after, wide);
        product(m, c, wide, dense(after, wide), packed(s->second, ld, from, !from), 1, y, c, NULL, 0);
    }
}

/* before = norm(x) W_in, y = x + gelu(before) W_out for [images][pixels][c]; both weights packed. The
 * norm has a shift for each image. Returns 0, or -1 if memory runs out. */
int feed_forward(Parallel parallel, int threads, int images, int pixels, int c, int hidden, const float *x,
                 const float *gain, const float *shift, float eps, int centred, const float *widen,
                 const float *narrow, float *before, float *y) {
    FeedForward job = {.tiles = tiles_of(images, pixels), .c = c, .hidden = hidden, .x = x,
                       .norm = {gain, shift, eps, centred}, .first = widen, .second = narrow,
                       .before = before, .y = y};
    Team team = {parallel, threads};
    return run(team, feed_forward_item, &job, images * job.tiles.count, TILE * (size_t)(c + HIDDEN));
}

static void feed_forward_back_item(const void *job, int i, float *normed_grad) {
    const FeedForward *s = job;
    Tile tile = tile_at(s->tiles, i);
    int c = s->c, ld = s->hidden, m = tile.pixels;
    ptrdiff_t at = tile.first * c;
    float *sums = s->sums + (ptrdiff_t)i * 2 * c;
    memset(sums, 0, sizeof(float) * 2 * (size_t)c);
    for (int from = 0; from < ld; from += HIDDEN) {
        int wide = least(HIDDEN, ld - from);
        ptrdiff_t hidden = tile.first * ld + from;
        Right narrow = packed(s->first + from / NR * panel_floats(c, NR), c, 0, 0);
        float *grad = s->hidden_grad + hidden;
        product(m, wide, c, dense(s->grad + at, c), narrow, 0, grad, ld, NULL, 0);
        slope_rows(m, wide, s->before + hidden, grad, s->after + hidden, ld);
        product(m, c, wide, dense(grad, ld), packed(s->second, ld, from, 0), from > 0, normed_grad, c, NULL, 0);
    }
    norm_back_rows(m, c, s->x + at, norm_of(s->norm, tile.image, c), normed_grad, s->grad + at, s->y + at,
                   s->normed + at, sums);
}

/* after = gelu(before), hidden_grad = (grad W_out^T) * slope of GELU at before, x_grad = grad + what
 * norm and W_in make of it; both weights packed. Also the norm once more, and the sums of
 * `norm_back_rows` for each image. Returns 0, or -1 if memory runs out. */
int feed_forward_back(Parallel parallel, int threads, int images, int pixels, int c, int hidden,
                      const float *x, const float *gain, const float *shift, float eps, int centred,
                      const float *narrow, const float *widen, const float *grad, float *before,
                      float *after, float *hidden_grad, float *normed, float *x_grad, float *sums) {
    FeedForward job = {tiles_of(images, pixels), c, hidden, x, {gain, shift, eps, centred}, narrow, widen,
                       grad, before, after, hidden_grad, normed, x_grad, NULL};
    Team team = {parallel, threads};
    return run_with_sums(team, feed_forward_back_item, &job, &job.sums, images, job.tiles.count, 2 * c,
                         TILE * (size_t)c, sums);
}
