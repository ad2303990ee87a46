"""The jobs of `bench`, `doctor`, `info` and `demo`."""
