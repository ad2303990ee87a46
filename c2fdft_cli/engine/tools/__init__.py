"""The jobs behind `bench`, `doctor`, `info` and `demo`."""
