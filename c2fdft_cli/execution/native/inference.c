/* The Transformer block in inference: matrix products fused with the operations before and after
 * them, on tiles that stay in cache.
 */
#include "depthwise.h"
#include "products.h"

enum {
    CHUNK = 32,      /* image rows of an item of `gather` */
    RING = 256 << 10 /* bytes of the three rows that a depth-wise convolution reads */
};

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
    const float *qkv = s->qkv + group * panel_floats(s->c, wide);
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
        Right widen = packed(s->widen + from / NR * panel_floats(c, NR), k, 0, 1);
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
