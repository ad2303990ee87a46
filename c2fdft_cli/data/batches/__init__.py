"""Which patches an iteration trains on, as tensors, ahead of time."""
