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
} Layers;

static void feed_forward_item(const void *job, int i, float *normed) {
    const Layers *s = job;
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

static void feed_forward_back_item(const void *job, int i, float *normed_grad) {
    const Layers *s = job;
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

/* ---- the whole layer: x + ffn(norm(x, time)) ---- */

/* What the layer is computed from, or the gradients of these tensors, as `Attend` in attention.c. */
typedef struct {
    float *x, *gain, *widen, *narrow;
    float *time, *norm_bias, *widen_bias, *narrow_bias; /* only the forward pass reads them */
} FeedForward;

/* What the forward pass keeps for the backward pass. */
enum {
    NORM_SHIFT,   /* [images][c] */
    HIDDEN_LAYER, /* before GELU, [images][pixels][hidden] */
    FEED_FORWARD_KEPT
};

static ptrdiff_t split_feed_forward(ptrdiff_t images, ptrdiff_t pixels, int c, int hidden, float *kept,
                                    float **of) {
    const ptrdiff_t sizes[FEED_FORWARD_KEPT] = {
        [NORM_SHIFT] = images * c,
        [HIDDEN_LAYER] = images * pixels * hidden,
    };
    return split(FEED_FORWARD_KEPT, sizes, kept, of);
}

/* The number of floats that are kept. */
ptrdiff_t feed_forward_floats(int images, int pixels, int c, int hidden) {
    return split_feed_forward(images, pixels, c, hidden, NULL, NULL);
}

/* y = x + ffn(norm(x, time)); writes `kept` too. Returns 0, or -1 if memory runs out. */
int feed_forward(Parallel parallel, int threads, const Layer *layer, const FeedForward *s, float *kept,
                 float *y) {
    enum { WIDEN, NARROW, COUNT };
    Team team = {parallel, threads};
    int n = layer->images, c = layer->c, hidden = layer->inner, of_image = layer->height * layer->width;
    const ptrdiff_t sizes[COUNT] = {[WIDEN] = panel_floats(c, hidden), [NARROW] = panel_floats(hidden, c)};
    float *of[FEED_FORWARD_KEPT] = {0}, *at[COUNT], *buffer = allocate(COUNT, sizes, at);
    if (!buffer) return -1;
    split_feed_forward(n, of_image, c, hidden, kept, of);
    norm_shifts(n, c, layer->times, s->time, s->norm_bias, of[NORM_SHIFT]);
    Layers job = {.tiles = tiles_of(n, of_image), .c = c, .hidden = hidden, .x = s->x,
                  .norm = {s->gain, of[NORM_SHIFT], layer->eps, layer->centred}, .first = at[WIDEN],
                  .second = at[NARROW], .before = of[HIDDEN_LAYER], .y = y};
    int failed = pack(parallel, threads, 1, c, hidden, s->widen, 1, c, 0, s->widen_bias, at[WIDEN]) ||
                 pack(parallel, threads, 1, hidden, c, s->narrow, 1, hidden, 0, s->narrow_bias, at[NARROW]) ||
                 run(team, feed_forward_item, &job, n * job.tiles.count, TILE * (size_t)(c + HIDDEN));
    free(buffer);
    return failed ? -1 : 0;
}

/* Write the gradients `to`, from `grad`, that of y, and what `feed_forward` kept. A few images at a time, or
 * a part of one, so that what one kernel writes is still in the cache for the products that sum over these
 * pixels. Returns 0, or -1 if memory runs out. */
int feed_forward_back(Parallel parallel, int threads, Gemm gemm, const Layer *layer, const FeedForward *s,
                      float *kept, const float *grad, const FeedForward *to) {
    enum { NARROW, WIDEN, ACTIVE, OF_HIDDEN, NORMED, PART, SUMS, COUNT };
    Team team = {parallel, threads};
    int n = layer->images, c = layer->c, hidden = layer->inner, of_image = layer->height * layer->width;
    ptrdiff_t most = layer->cached / hidden; /* pixels that stay in the cache */
    int images = equal_part(n, most / of_image);
    int pixels = most < of_image ? equal_part(of_image, most) : of_image;
    ptrdiff_t together = (ptrdiff_t)images * pixels;
    const ptrdiff_t sizes[COUNT] = {
        [NARROW] = panel_floats(c, hidden),
        [WIDEN] = panel_floats(hidden, c),
        [ACTIVE] = together * hidden,
        [OF_HIDDEN] = together * hidden,
        [NORMED] = together * c,
        [PART] = (ptrdiff_t)images * 2 * c,
        [SUMS] = (ptrdiff_t)n * 2 * c,
    };
    float *of[FEED_FORWARD_KEPT] = {0}, *at[COUNT], *buffer = allocate(COUNT, sizes, at);
    if (!buffer) return -1;
    split_feed_forward(n, of_image, c, hidden, kept, of);
    memset(at[SUMS], 0, sizeof(float) * (size_t)sizes[SUMS]);
    int failed = pack(parallel, threads, 1, c, hidden, s->narrow, hidden, 1, 0, NULL, at[NARROW]) ||
                 pack(parallel, threads, 1, hidden, c, s->widen, c, 1, 0, NULL, at[WIDEN]);
    for (int done = 0; done < n * of_image && !failed;) {
        int image = done / of_image, some = least(images, n - image);
        int from = done % of_image, size = least(pixels, of_image - from), all = some * size;
        const float *x = s->x + (ptrdiff_t)done * c, *back = grad + (ptrdiff_t)done * c;
        Layers job = {tiles_of(some, size), c, hidden, x,
                      {s->gain, of[NORM_SHIFT] + image * c, layer->eps, layer->centred}, at[NARROW], at[WIDEN], back,
                      of[HIDDEN_LAYER] + (ptrdiff_t)done * hidden, at[ACTIVE], at[OF_HIDDEN], at[NORMED],
                      to->x + (ptrdiff_t)done * c, NULL};
        failed = run_with_sums(team, feed_forward_back_item, &job, &job.sums, some, job.tiles.count, 2 * c,
                               TILE * (size_t)c, at[PART]) ||
                 (to->widen_bias && column_sums(team, all, hidden, at[OF_HIDDEN], done > 0, to->widen_bias));
        for (int j = 0; j < some * 2 * c; j++) at[SUMS][image * 2 * c + j] += at[PART][j];
        if (to->widen)
            pixel_products(gemm, hidden, c, all, at[OF_HIDDEN], hidden, at[NORMED], c, done > 0, to->widen);
        if (to->narrow)
            pixel_products(gemm, c, hidden, all, back, c, at[ACTIVE], hidden, done > 0, to->narrow);
        done += all;
    }
    failed = failed || (to->narrow_bias && column_sums(team, n * of_image, c, grad, 0, to->narrow_bias));
    norm_gradients(n, c, layer->times, at[SUMS], to->time, to->gain, to->norm_bias);
    free(buffer);
    return failed ? -1 : 0;
}
