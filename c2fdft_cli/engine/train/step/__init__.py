"""One optimiser step: its loss, what it moves, and the memory that it takes."""
