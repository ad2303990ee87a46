"""The job of `train-coarse` and `train-fine`."""
