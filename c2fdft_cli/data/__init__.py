"""Files to tensors and back; knows no network."""
