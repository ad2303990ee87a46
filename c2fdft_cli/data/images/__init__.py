"""Read and write image files, preserving all that they contain."""
