/* The sums over the pixels that attention depends on: for g channels of q, k and v, which are whole
 * heads of d channels, side by side in 3g floats for each pixel.
 */
#pragma once
#include "products.h"

/* Their Gram matrices [g / d][d][d], then the squares of q and of k. */
INLINE int sums_floats(int g, int d) { return g * d + 2 * g; }

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

/* Add some pixels to the sums. Whole vectors are read, so up to VL - 1 floats beyond the last k; of a
 * pixel that another thread may be writing, but they do not count. */
static void add_sums(int g, int d, int pixels, const float *qkv, word *pairs, float *sums) {
    int wide = 3 * g, two = 2 * g;
    const word *qk = pixel_words(pixels, two, qkv, wide, pairs);
    for (int head = 0; head < g / d; head++) {
        Right k = {qk + g + head * d, NULL, NR, wide};
        Left q = {qk + head * d, 1, wide};
        product(d, d, words(pixels), q, k, 1, sums + head * d * d, d, NULL, 0);
    }
    float *restrict squares = sums + g * d;
    for (int p = 0; p < pixels; p++, qkv += wide)
        for (int j = 0; j < two; j++) squares[j] += qkv[j] * qkv[j];
}
