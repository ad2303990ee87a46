/* What happens between the channels in training: from the sums over the pixels to the matrix that mixes
 * the channels of v, and back. For one image and head of d channels,
 *
 *     cosine = gram / (|q| |k|),   attention = softmax(temperature * cosine),
 *     mixing = project attention,  with those columns of the projection that are the head's.
 */
#pragma once
#include "norm.h"
#include "products.h"
#include "sums.h"

#define SMALLEST_NORM 1e-12f /* of q or k over the pixels, as in core/attention.py */

/* What the backward pass needs of the forward one: attention and cosine, [images][heads][d][d] each, and
 * the norms, [images][2][c]. */
typedef struct {
    float *attention, *cosine, *norms;
} Channels;

static Channels channels_of(float *data, int images, int c, int d) {
    ptrdiff_t size = (ptrdiff_t)images * c * d;
    return (Channels){data, data + size, data + 2 * size};
}

/* exp of numbers up to 0, within 2e-7 of the result; below -87 that of -87. */
INLINE vec exp_of(vec x) {
    const float round = 12582912.0f; /* 1.5 * 2^23: sums with it have no digits after the point */
    x = clamp(x, -87.0f, 0.0f);
    vec shifted = x * 1.44269504f + round, n = shifted - round;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f; /* ln 2 in two parts */
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    ivec power = (ivec)shifted - (ivec)((vec){0} + round) + 127;
    return p * (vec)(power << 23);
}

typedef struct {
    int c, heads;
    const float *sums, *temperature, *project;
    Channels to;
    float *mixing;
} Mix;

static void softmax_row(int d, const float *cosine, float temperature, float *row) {
    vec all = {0};
    /* Rounded before the largest is subtracted, so that this one becomes 0 however large it is. */
    for (int j = 0; j < d; j++) row[j] = cosine[j] * temperature;
    float most = row[0];
    for (int j = 1; j < d; j++) most = row[j] > most ? row[j] : most;
    for (int j = 0; j < d; j += VL) {
        int n = d - j;
        vec part = exp_of(centred_part(row + j, n, most));
        put_part(row + j, n, part);
        all += centred_part(row + j, n, 0); /* read again, for zeros in the other lanes */
    }
    float sum = total(all);
    for (int j = 0; j < d; j++) row[j] /= sum;
}

/* The norm of a channel from its sum of squares; NaN stays NaN. */
INLINE float channel_norm(float square) {
    const float smallest = SMALLEST_NORM * SMALLEST_NORM;
    return __builtin_sqrtf(square < smallest ? smallest : square);
}

static void mix_item(const void *job, int i, float *scratch) {
    const Mix *s = job;
    int c = s->c, d = c / s->heads, image = i / s->heads, head = i % s->heads;
    const float *sums = s->sums + (ptrdiff_t)image * sums_floats(c, d), *gram = sums + head * d * d;
    const float *squares = sums + c * d + head * d;
    float *q = s->to.norms + (ptrdiff_t)image * 2 * c + head * d, *k = q + c;
    ptrdiff_t at = (ptrdiff_t)i * d * d;
    (void)scratch;
    for (int j = 0; j < d; j++) {
        q[j] = channel_norm(squares[j]);
        k[j] = channel_norm(squares[c + j]);
    }
    for (int row = 0; row < d; row++) {
        float *cosine = s->to.cosine + at + row * d;
        for (int j = 0; j < d; j++) cosine[j] = gram[row * d + j] / (q[row] * k[j]);
        softmax_row(d, cosine, s->temperature[head], s->to.attention + at + row * d);
    }
    Left project = {s->project + head * d, c, 1};
    Right attention = {s->to.attention + at, NULL, NR, d};
    product(c, d, d, project, attention, 0, s->mixing + (ptrdiff_t)image * c * c + head * d, c, NULL, 0);
}

/* The mixing matrices [images][c][c], rows out, columns in, from the sums of `depthwise`; temperature:
 * [heads], project: [c][c]. `channels` is as `Channels` describes; up to VL - 1 floats beyond an attention
 * are read, which another thread may be writing, but they do not count. Returns 0, or -1 if memory runs out. */
int mix(Parallel parallel, int threads, int images, int c, int heads, const float *sums,
        const float *temperature, const float *project, float *channels, float *mixing) {
    Mix job = {c, heads, sums, temperature, project, channels_of(channels, images, c, c / heads), mixing};
    Team team = {parallel, threads};
    return run(team, mix_item, &job, images * heads, 0);
}

typedef struct {
    int images, c, heads, tiles; /* tiles of TILE rows of the projection */
    const float *grad, *temperature, *project;
    Channels from;
    float *gram, *turned, *scale, *temperature_grad, *project_grad;
} MixBack;

static void mix_back_item(const void *job, int i, float *scores) {
    const MixBack *s = job;
    int c = s->c, d = c / s->heads, image = i / s->heads, head = i % s->heads;
    ptrdiff_t at = (ptrdiff_t)i * d * d, of_image = (ptrdiff_t)image * 2 * c + head * d;
    const float *attention = s->from.attention + at, *cosine = s->from.cosine + at;
    const float *q = s->from.norms + of_image, *k = q + c;
    float temperature = s->temperature[head], *of_k = scores + d * d, of_all = 0;
    Left project = {s->project + head * d, 1, c};
    Right grad = {s->grad + (ptrdiff_t)image * c * c + head * d, NULL, NR, c};
    product(d, d, c, project, grad, 0, scores, d, NULL, 0);
    memset(of_k, 0, sizeof(float) * (size_t)d);
    for (int row = 0; row < d; row++, attention += d, cosine += d, scores += d) {
        vec along = {0}, turned = {0};
        for (int j = 0; j < d; j += VL)
            along += centred_part(attention + j, d - j, 0) * centred_part(scores + j, d - j, 0);
        float slope = total(along);
        for (int j = 0; j < d; j += VL) {
            int n = d - j;
            vec score = centred_part(attention + j, n, 0) * (centred_part(scores + j, n, 0) - slope);
            vec of_norm = score * centred_part(cosine + j, n, 0);
            put_part(scores + j, n, score);
            put_part(of_k + j, n, centred_part(of_k + j, n, 0) + of_norm);
            turned += of_norm;
        }
        float of_q = total(turned);
        of_all += of_q;
        s->scale[of_image + row] = q[row] > SMALLEST_NORM ? -of_q * temperature / (q[row] * q[row]) : 0;
        for (int j = 0; j < d; j++) {
            float of_gram = scores[j] * temperature / (q[row] * k[j]);
            s->gram[at + row * d + j] = of_gram;
            s->turned[at + j * d + row] = of_gram;
        }
    }
    for (int j = 0; j < d; j++)
        s->scale[of_image + c + j] = k[j] > SMALLEST_NORM ? -of_k[j] * temperature / (k[j] * k[j]) : 0;
    s->temperature_grad[i] = of_all;
}

/* The gradient for some rows of the projection and the columns of a head: the sum over the images of
 * grad attention^T. */
static void project_back_item(const void *job, int i, float *turned) {
    const MixBack *s = job;
    int c = s->c, d = c / s->heads, head = i / s->tiles, from = i % s->tiles * TILE;
    for (int image = 0; image < s->images; image++) {
        const float *attention = s->from.attention + ((ptrdiff_t)image * s->heads + head) * d * d;
        for (int row = 0; row < d; row++)
            for (int j = 0; j < d; j++) turned[j * d + row] = attention[row * d + j];
        Left grad = {s->grad + ((ptrdiff_t)image * c + from) * c + head * d, c, 1};
        Right right = {turned, NULL, NR, d};
        product(least(TILE, c - from), d, d, grad, right, image > 0, s->project_grad + from * c + head * d, c,
                NULL, 0);
    }
}

/* Backward of `mix`, from the gradient of the mixing matrices, grad: those of the Gram matrices, and of
 * their transposes `turned`; twice those of the squares of q and k, scale[images][2c]; of the temperature
 * [images][heads] and, unless NULL, of the projection. Up to VL - 1 floats beyond the end of grad are read. Returns 0,
 * or -1 if memory runs out. */
static int mix_back(Team team, int images, int c, int heads, const float *grad, float *channels,
                    const float *temperature, const float *project, float *gram, float *turned, float *scale,
                    float *temperature_grad, float *project_grad) {
    int d = c / heads, tiles = ceil_div(c, TILE);
    Channels from = channels_of(channels, images, c, d);
    MixBack job = {images, c, heads, tiles, grad, temperature, project, from, gram, turned, scale,
                   temperature_grad, project_grad};
    size_t matrix = (size_t)d * (size_t)d;
    int failed = run(team, mix_back_item, &job, images * heads, matrix + (size_t)d);
    if (failed || !project_grad) return failed;
    return run(team, project_back_item, &job, heads * tiles, matrix + VL);
}
