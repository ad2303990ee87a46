"""Synthetic degradations of clean images: rain, noise, blur."""
