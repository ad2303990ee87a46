/* Packs the right matrices of products. */
#include "products.h"

enum { AT_ONCE = 16 }; /* rows that are packed at a time, an even number */

/* The number of floats that `pack` writes. */
ptrdiff_t packed_floats(int k, int n) { return panel_floats(k, n); }

typedef struct {
    int k, n;
    const float *b;
    ptrdiff_t rs, cs;
    const float *bias;
    float *out;
} Pack;

static void pack_item(const void *job, int i, float *scratch) {
    const Pack *s = job;
    const float *b = s->b + i * NR * s->cs;
    float *out = s->out + i * panel_floats(s->k, NR);
    int n = least(NR, s->n - i * NR);
    (void)scratch;
    for (int j = 0; j < NR; j++) out[j] = s->bias && j < n ? s->bias[i * NR + j] : 0.0f;
    out += NR;
    if (PER_WORD == 1 && s->cs == 1 && n == NR) {
        for (int p = 0; p < s->k; p++, b += s->rs, out += NR) memcpy(out, b, sizeof(float) * NR);
        return;
    }
    /* Column by column, but only a few rows at a time, so that what is written stays in the cache. */
    for (int from = 0; from < s->k; from += AT_ONCE) {
        float rows[AT_ONCE * NR] = {0};
        int deep = least(AT_ONCE, s->k - from);
        for (int j = 0; j < n; j++) {
            const float *column = b + from * s->rs + j * s->cs;
            for (int p = 0; p < deep; p++)
                rows[(p / PER_WORD * NR + j) * PER_WORD + p % PER_WORD] = column[p * s->rs];
        }
        int filled = ceil_div(deep, PER_WORD) * NR;
        put_row(filled * PER_WORD, rows, (value *)out);
        out += filled;
    }
}

/* Pack the right matrix b[k][n] into panels, each after its head (the bias, or zeros if NULL).
 * Element (p, j) is at b[p rs + j cs]. Returns 0, or -1 if memory runs out. */
int pack(Parallel parallel, int threads, int k, int n, const float *b, ptrdiff_t rs, ptrdiff_t cs,
         const float *bias, float *out) {
    Pack job = {k, n, b, rs, cs, bias, out};
    Team team = {parallel, (ptrdiff_t)k * n > 8192 ? threads : 1};
    return run(team, pack_item, &job, ceil_div(n, NR), 0);
}
