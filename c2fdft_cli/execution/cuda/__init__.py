"""What an NVIDIA GPU is asked for: its abilities, its products, its graphs, and copies to it."""
