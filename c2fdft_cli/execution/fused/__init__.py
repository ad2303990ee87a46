"""A block in strips as few Triton kernels, on CUDA; in training norm and feed-forward network."""
