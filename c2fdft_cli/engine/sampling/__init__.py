"""Restore a degraded image and score it; used by several jobs."""
