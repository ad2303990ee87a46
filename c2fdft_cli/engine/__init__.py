"""The jobs of the program: the only layer that uses both the network and files."""
