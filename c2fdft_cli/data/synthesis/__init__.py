"""Synthetic degradations of clean images."""
