"""Finds the pairs of degraded and clean images in a folder."""
