"""From a degraded image to a restored one and its score; what the jobs share."""
