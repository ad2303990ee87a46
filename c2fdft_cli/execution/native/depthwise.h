/* The depth-wise 3x3 convolution of a row of pixels. */
#pragma once
#include "products.h"

/* Convolve m neighbouring pixels of one vector of channels: out = bias + sum over taps of
 * weight * in. The nine weights stay in registers, and each input vector is read once for the up to
 * three output pixels that it contributes to. */
INLINE void taps(const int m, const float *const *rows, ptrdiff_t ld, const float *weight,
                 ptrdiff_t ldw, const float *bias, float *out, ptrdiff_t ldo) {
    vec w[9], sum[4];
    UNROLL for (int t = 0; t < 9; t++) w[t] = *(const vec *)(weight + t * ldw);
    UNROLL for (int o = 0; o < m; o++) sum[o] = *(const vec *)bias;
    UNROLL for (int x = 0; x < m + 2; x++) {
        UNROLL for (int r = 0; r < 3; r++) {
            vec in = *(const vec *)(rows[r] + x * ld);
            UNROLL for (int o = 0; o < m; o++) if (x - o >= 0 && x - o < 3) sum[o] += w[3 * r + x - o] * in;
        }
    }
    UNROLL for (int o = 0; o < m; o++) *(vec *)(out + o * ldo) = sum[o];
}

/* Convolve some pixels of one row. rows[0..2] are the rows above, at and below it, each from the
 * left neighbour of the first pixel. */
static void depthwise_row(int pixels, int channels, const float *const *rows, ptrdiff_t ld,
                          const float *weight, ptrdiff_t ldw, const float *bias, float *out,
                          ptrdiff_t ldo) {
    for (int x = 0; x < pixels; x += 4) {
        int m = least(4, pixels - x), c = 0;
        for (; c + VL <= channels; c += VL) {
            const float *at[3];
            float *to = out + x * ldo + c;
            for (int r = 0; r < 3; r++) at[r] = rows[r] + x * ld + c;
            if (m == 4) {
                taps(4, at, ld, weight + c, ldw, bias + c, to, ldo);
                continue;
            }
            for (int o = 0; o < m; o++, to += ldo) {
                taps(1, at, ld, weight + c, ldw, bias + c, to, ldo);
                for (int r = 0; r < 3; r++) at[r] += ld;
            }
        }
        for (; c < channels; c++)
            for (int o = x; o < x + m; o++) {
                float sum = bias[c];
                for (int t = 0; t < 9; t++) sum += weight[t * ldw + c] * rows[t / 3][(o + t % 3) * ld + c];
                out[o * ldo + c] = sum;
            }
    }
}
