"""How this machine runs the core: device, memory, strips, kernels, compiling."""
