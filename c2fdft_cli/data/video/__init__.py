"""Videos to frames and back."""
