"""Files to tensors and back: images, layouts, synthesis, shards, patches."""
