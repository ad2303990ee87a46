/* Linear layers, and the norm and the attention in training, forward and backward, in float32.
 */
#include "depthwise.h"
#include "mixing.h"
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
static int norm_linear(Team team, int images, int pixels, int k, int n, const float *x, Norm norm,
                       const float *weight, float *y) {
    Linear job = {tiles_of(images, pixels), k, n, x, k, 0, norm, weight, NULL, y};
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
static int norm_linear_back(Team team, int images, int pixels, int k, int n, const float *x, Norm norm,
                            const float *weight, const float *grad, const float *stream, float *normed,
                            float *x_grad, float *sums) {
    NormLinearBack job = {tiles_of(images, pixels), k, n, x, norm, weight, grad, stream, normed, x_grad, NULL};
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
static int attention_back(Team team, int images, int pixels, int c, int heads, const float *grad,
                          const float *qkv, const float *mixing, const float *gram, const float *turned,
                          const float *scale, float *qkv_grad) {
    Attention job = {tiles_of(images, pixels), c, heads, grad, qkv, mixing, gram, turned, scale, qkv_grad};
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
static int depthwise(Team team, int images, int height, int width, int c, int d, const float *x,
                     const float *weight, float *qkv, float *sums) {
    Depthwise job = {height, width, c, d, ceil_div(height, LINES), x, weight, NULL, qkv, NULL};
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
static int depthwise_back(Team team, int images, int height, int width, int c, const float *x,
                          const float *grad, const float *turned, float *x_grad, float *weight_grad) {
    Depthwise job = {height, width, c, 0, ceil_div(height, LINES), grad, turned, x, x_grad, NULL};
    return run_with_sums(team, depthwise_back_item, &job, &job.sums, 1, images * job.shares, 9 * c,
                         SCRATCH * (size_t)c, weight_grad);
}

/* ---- the whole layer: x + attention(norm(x, time)) ---- */

/* What the layer is computed from, or the gradients of these tensors. Biases may be NULL, for zeros; that
 * of the norm is added to time, [times][c], which is that of all images or of each. Gradients other than
 * that of x are NULL if they are not needed. */
typedef struct {
    float *x, *gain, *qkv, *taps, *temperature, *project;
    float *time, *norm_bias, *qkv_bias, *taps_bias, *project_bias; /* only the forward pass reads them */
} Attend;

/* What the forward pass keeps for the backward pass. */
enum {
    SHIFT,    /* [images][c], of the norm */
    BEFORE,   /* [images][pixels][3c]: q, k and v before the depth-wise convolution */
    QKV,      /* the same after it */
    CHANNELS, /* as `Channels` in mixing.h */
    MIXING,   /* [images][c][c] */
    ATTEND_KEPT
};

static ptrdiff_t split_attend(ptrdiff_t images, ptrdiff_t pixels, int c, int heads, float *kept, float **of) {
    const ptrdiff_t sizes[ATTEND_KEPT] = {
        [SHIFT] = images * c,
        [BEFORE] = 3 * images * pixels * c,
        [QKV] = 3 * images * pixels * c,
        [CHANNELS] = 2 * images * c * (c / heads + 1),
        [MIXING] = images * c * c,
    };
    return split(ATTEND_KEPT, sizes, kept, of);
}

/* The number of floats that are kept. */
ptrdiff_t attend_floats(int images, int pixels, int c, int heads) {
    return split_attend(images, pixels, c, heads, NULL, NULL);
}

/* y = x + attention(norm(x, time)); writes `kept` too. Returns 0, or -1 if memory runs out. */
int attend(Parallel parallel, int threads, const Layer *layer, const Attend *s, float *kept, float *y) {
    enum { WEIGHT, TAPS, SUMS, MATRICES, COUNT };
    Team team = {parallel, threads};
    int n = layer->images, c = layer->c, heads = layer->inner, d = c / heads;
    int pixels = layer->height * layer->width;
    const ptrdiff_t sizes[COUNT] = {
        [WEIGHT] = panel_floats(c, 3 * c),
        [TAPS] = 30 * c,
        [SUMS] = (ptrdiff_t)n * sums_floats(c, d),
        [MATRICES] = n * panel_floats(c, c),
    };
    float *of[ATTEND_KEPT] = {0}, *at[COUNT], *buffer = allocate(COUNT, sizes, at);
    if (!buffer) return -1;
    split_attend(n, pixels, c, heads, kept, of);
    norm_shifts(n, c, layer->times, s->time, s->norm_bias, of[SHIFT]);
    for (int channel = 0; channel < 3 * c; channel++) {
        for (int t = 0; t < 9; t++) at[TAPS][t * 3 * c + channel] = s->taps[channel * 9 + t];
        at[TAPS][27 * c + channel] = s->taps_bias ? s->taps_bias[channel] : 0;
    }
    int failed = pack(parallel, threads, 1, c, 3 * c, s->qkv, 1, c, 0, s->qkv_bias, at[WEIGHT]);
    ptrdiff_t size = (ptrdiff_t)pixels * c; /* values of an image's stream */
    int step = equal_part(n, layer->cached / (3 * size));
    for (int i = 0; i < n && !failed; i += step) {
        int images = least(step, n - i);
        Norm norm = {s->gain, of[SHIFT] + i * c, layer->eps, layer->centred};
        float *before = of[BEFORE] + i * 3 * size, *qkv = of[QKV] + i * 3 * size;
        failed = norm_linear(team, images, pixels, c, 3 * c, s->x + i * size, norm, at[WEIGHT], before) ||
                 depthwise(team, images, layer->height, layer->width, 3 * c, d, before, at[TAPS], qkv,
                           at[SUMS] + (ptrdiff_t)i * sums_floats(c, d));
    }
    failed = failed ||
             mix(parallel, threads, n, c, heads, at[SUMS], s->temperature, s->project, of[CHANNELS],
                 of[MIXING]) ||
             pack(parallel, threads, n, c, c, of[MIXING], 1, c, (ptrdiff_t)c * c, s->project_bias,
                  at[MATRICES]) ||
             linear(parallel, threads, n, pixels, c, c, of[QKV] + 2 * c, 3 * c, at[MATRICES], s->x, y);
    free(buffer);
    return failed ? -1 : 0;
}

/* Write the gradients `to`, from `grad`, that of y, and what `attend` kept. A few images at a time, so that
 * what one kernel writes is still in the cache for the next. Returns 0, or -1 if memory runs out. */
int attend_back(Parallel parallel, int threads, Gemm gemm, const Layer *layer, const Attend *s, float *kept,
                const float *grad, const Attend *to) {
    enum {
        OF_MIXING,    /* gradients of the mixing matrices, [images][c][c] */
        GRAM, TURNED, SCALE, TEMPERATURES, /* of `mix_back` */
        TAPS,         /* turned, [10][3c] */
        MATRICES, WEIGHT, /* packed: the mixing matrices, and the weight of q, k and v, transposed */
        OF_QKV, OF_BEFORE, NORMED, /* of a few images: gradients after and before the convolution, the norm */
        SUMS,         /* of `norm_back_rows`, [images][2][c] */
        OF_TAPS, TAPS_PART, /* [9][3c]: of all images, and of a few */
        COUNT
    };
    Team team = {parallel, threads};
    int c = layer->c, wide = 3 * c, heads = layer->inner, d = c / heads;
    int pixels = layer->height * layer->width;
    ptrdiff_t n = layer->images, size = (ptrdiff_t)pixels * c, matrix = (ptrdiff_t)c * c;
    int step = equal_part(layer->images, layer->cached / (3 * size));
    const ptrdiff_t sizes[COUNT] = {
        [OF_MIXING] = n * matrix,
        [GRAM] = n * c * d,
        [TURNED] = n * c * d,
        [SCALE] = n * 2 * c,
        [TEMPERATURES] = n * heads,
        [TAPS] = 10 * wide,
        [MATRICES] = n * panel_floats(c, c),
        [WEIGHT] = panel_floats(wide, c),
        [OF_QKV] = step * 3 * size,
        [OF_BEFORE] = step * 3 * size,
        [NORMED] = step * size,
        [SUMS] = n * 2 * c,
        [OF_TAPS] = 9 * wide,
        [TAPS_PART] = 9 * wide,
    };
    float *of[ATTEND_KEPT] = {0}, *at[COUNT], *buffer = allocate(COUNT, sizes, at);
    if (!buffer) return -1;
    split_attend(n, pixels, c, heads, kept, of);
    for (ptrdiff_t i = 0; i < n; i++)
        pixel_products(gemm, c, c, pixels, grad + i * size, c, of[QKV] + i * 3 * size + 2 * c, wide, 0,
                       at[OF_MIXING] + i * matrix);
    for (int channel = 0; channel < wide; channel++) {
        for (int t = 0; t < 9; t++) at[TAPS][t * wide + channel] = s->taps[channel * 9 + 8 - t];
        at[TAPS][9 * wide + channel] = 0;
    }
    memset(at[OF_TAPS], 0, sizeof(float) * 9 * (size_t)wide);
    int failed = mix_back(team, layer->images, c, heads, at[OF_MIXING], of[CHANNELS],
                          s->temperature, s->project, at[GRAM], at[TURNED], at[SCALE], at[TEMPERATURES],
                          to->project) ||
                 pack(parallel, threads, layer->images, c, c, of[MIXING], c, 1, matrix, NULL, at[MATRICES]) ||
                 pack(parallel, threads, 1, wide, c, s->qkv, c, 1, 0, NULL, at[WEIGHT]);
    for (int i = 0; i < layer->images && !failed; i += step) {
        int images = least(step, layer->images - i), all = images * pixels;
        Norm norm = {s->gain, of[SHIFT] + i * c, layer->eps, layer->centred};
        const float *from = grad + i * size;
        failed = attention_back(team, images, pixels, c, heads, from, of[QKV] + i * 3 * size,
                                at[MATRICES] + i * panel_floats(c, c), at[GRAM] + (ptrdiff_t)i * c * d,
                                at[TURNED] + (ptrdiff_t)i * c * d, at[SCALE] + i * 2 * c, at[OF_QKV]) ||
                 depthwise_back(team, images, layer->height, layer->width, wide, of[BEFORE] + i * 3 * size,
                                at[OF_QKV], at[TAPS], at[OF_BEFORE], at[TAPS_PART]) ||
                 norm_linear_back(team, images, pixels, c, wide, s->x + i * size, norm, at[WEIGHT],
                                  at[OF_BEFORE], from, at[NORMED], to->x + i * size, at[SUMS] + i * 2 * c) ||
                 (to->qkv_bias && column_sums(team, all, wide, at[OF_BEFORE], i > 0, to->qkv_bias)) ||
                 (to->taps_bias && column_sums(team, all, wide, at[OF_QKV], i > 0, to->taps_bias));
        if (to->qkv)
            pixel_products(gemm, wide, c, all, at[OF_BEFORE], wide, at[NORMED], c, i > 0, to->qkv);
        for (int j = 0; j < 9 * wide; j++) at[OF_TAPS][j] += at[TAPS_PART][j];
    }
    failed = failed || (to->project_bias && column_sums(team, (int)(n * pixels), c, grad, 0, to->project_bias));
    for (int j = 0; to->taps && j < 9 * wide; j++) to->taps[j % wide * 9 + j / wide] = at[OF_TAPS][j];
    if (to->temperature) add_parts(layer->images, heads, at[TEMPERATURES], to->temperature);
    norm_gradients(layer->images, c, layer->times, at[SUMS], to->time, to->gain, to->norm_bias);
    free(buffer);
    return failed ? -1 : 0;
}
