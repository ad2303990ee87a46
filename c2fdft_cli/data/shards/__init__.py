"""The shard format: pairs of images in HDF5 files, of which training reads single crops."""
