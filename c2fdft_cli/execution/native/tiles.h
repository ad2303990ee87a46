/* How images are divided into tiles of pixels, and sums of parts, in training. */
#pragma once
#include "norm.h"
#include "products.h"

enum { ITEMS = 16 }; /* small jobs are divided into as many items, so that several threads have work */

typedef struct {
    int pixels, size, count; /* pixels of an image, of a tile, tiles of an image */
} Tiles;

static Tiles tiles_of(int images, int pixels) {
    int size = least(TILE, ceil_div(ceil_div(pixels, ceil_div(ITEMS, images)), MR) * MR);
    return (Tiles){pixels, size, ceil_div(pixels, size)};
}

typedef struct {
    int image, pixels;
    ptrdiff_t first; /* pixels of all images before it */
} Tile;

static Tile tile_at(Tiles tiles, int i) {
    int image = i / tiles.count, first = i % tiles.count * tiles.size;
    return (Tile){image, least(tiles.size, tiles.pixels - first), (ptrdiff_t)image * tiles.pixels + first};
}

/* The norm of an image; `shift` has c floats for each. */
INLINE Norm norm_of(Norm norm, int image, int c) {
    norm.shift += (ptrdiff_t)image * c;
    return norm;
}

/* Add up parts[count][n] in their order. */
static void add_parts(int count, int n, const float *parts, float *restrict out) {
    memcpy(out, parts, sizeof(float) * (size_t)n);
    for (int i = 1; i < count; i++) {
        parts += n;
        for (int j = 0; j < n; j++) out[j] += parts[j];
    }
}

/* Run items that each have n sums of their own, `count` for each image, then add up those of an
 * image: sums[images][n]. `parts` is the field of the job that the items write them to. Returns 0, or
 * -1 if memory runs out. */
static int run_with_sums(Team team, void (*item)(const void *, int, float *), const void *job, float **parts,
                         int images, int count, int n, size_t floats, float *sums) {
    size_t share = (size_t)n * (size_t)count;
    *parts = malloc(sizeof(float) * share * (size_t)images);
    if (!*parts) return -1;
    int failed = run(team, item, job, images * count, floats);
    for (int i = 0; i < images && !failed; i++)
        add_parts(count, n, *parts + (size_t)i * share, sums + (ptrdiff_t)i * n);
    free(*parts);
    return failed;
}
