/* All kernels as one unit, in which the register blocks of `product` are compiled only once. */
#include "inference.c"
#ifndef HALF /* in bfloat16 torch's own products are oneDNN's in training */
#include "attention.c"
#include "feed_forward.c"
#endif
