/* The layer norm over the channels of each pixel, forward and backward. */
#pragma once
#include "products.h"

/* (x - mean) / sqrt(var + eps) * gain + shift; unless `centred`, the mean is not subtracted in the
 * numerator. */
typedef struct {
    const float *gain, *shift;
    float eps;
    int centred;
} Norm;

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

/* Write the first n lanes, or all. */
INLINE void put_part(float *to, int n, vec x) {
    if (n >= VL) *(vec *)to = x;
    else memcpy(to, &x, sizeof(float) * (size_t)n);
}

/* The mean and 1 / sqrt(var + eps) of each of up to TILE pixels. A loop for each step, because the
 * steps of one pixel wait for each other, and those of several do not. */
static void statistics(int m, int c, const float *x, float eps, float *mean, float *rate) {
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
}

/* The norm of up to TILE pixels. */
static void norm_rows(int m, int c, const float *x, Norm norm, value *y) {
    float mean[TILE], rate[TILE];
    statistics(m, c, x, norm.eps, mean, rate);
    for (int i = 0; i < m; i++, x += c, y += c) {
        float centre = norm.centred ? mean[i] : 0.0f;
        for (int j = 0; j < c && c >= VL; j += VL) {
            int o = least(j, c - VL); /* the last vector may begin within the one before it */
            vec part = (*(const vec *)(x + o) - centre) * rate[i];
            put(y + o, part * *(const vec *)(norm.gain + o) + *(const vec *)(norm.shift + o));
        }
        if (c >= VL) continue;
        float part[VL];
        for (int j = 0; j < c; j++) part[j] = (x[j] - centre) * rate[i] * norm.gain[j] + norm.shift[j];
        put_row(c, part, y);
    }
}

#ifndef HALF
/* Backward for up to TILE pixels, from `grad`, the gradient of the norm, and `stream`, that of the
 * residual stream: x_grad = stream + derivative. With z = (x - mean) rate and dz = grad gain, the
 * derivative is rate (dz - average of dz - z * average of dz z); without centring, the first average
 * is 0, and the second one has x rate instead of z. Writes the norm once more, and adds to the sums
 * over the pixels, [2][c], of grad and of grad times the norm without gain and shift. */
static void norm_back_rows(int m, int c, const float *x, Norm norm, const float *grad, const float *stream,
                           float *x_grad, float *normed, float *sums) {
    float mean[TILE], rate[TILE];
    statistics(m, c, x, norm.eps, mean, rate);
    for (int i = 0; i < m; i++, x += c, grad += c, stream += c, x_grad += c, normed += c) {
        float centre = norm.centred ? mean[i] : 0.0f;
        vec all = {0}, along = {0};
        for (int j = 0; j < c; j += VL) {
            int n = c - j;
            vec z = centred_part(x + j, n, centre) * rate[i], dy = centred_part(grad + j, n, 0);
            vec gain = centred_part(norm.gain + j, n, 0);
            put_part(normed + j, n, z * gain + centred_part(norm.shift + j, n, 0));
            put_part(sums + j, n, centred_part(sums + j, n, 0) + dy);
            put_part(sums + c + j, n, centred_part(sums + c + j, n, 0) + dy * z);
            all += dy * gain;
            along += dy * gain * z;
        }
        float offset = norm.centred ? total(all) / (float)c : 0.0f, slope = total(along) / (float)c;
        for (int j = 0; j < c; j += VL) {
            int n = c - j;
            vec z = centred_part(x + j, n, mean[i]) * rate[i];
            vec dz = centred_part(grad + j, n, 0) * centred_part(norm.gain + j, n, 0);
            put_part(x_grad + j, n, centred_part(stream + j, n, 0) + rate[i] * (dz - offset - z * slope));
        }
    }
}
#endif
