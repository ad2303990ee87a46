"""Read and write data: files to tensors and back, independent of the network."""
