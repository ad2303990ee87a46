"""The paper: network, diffusion, objectives, metrics. Tensors in, tensors out."""
