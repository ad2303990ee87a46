"""The job behind `train-coarse` and `train-fine`."""
