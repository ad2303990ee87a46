"""The shard format: pairs of images in HDF5 files that training maps into memory."""
