"""Scores of images: by protocol, full-reference, no-reference, and their statistics."""
