"""One optimiser step: its loss, its updates of the weights, and the memory that it needs."""
