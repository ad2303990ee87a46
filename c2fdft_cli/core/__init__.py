"""The paper: network, diffusion, objectives. Tensors in, tensors out."""
