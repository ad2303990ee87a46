"""Restore one photo and save it."""

from PIL import Image, ImageOps

import c2fdft_cli as c2fdft

restorer = c2fdft.load("derain")
photo = ImageOps.exif_transpose(Image.open("photo.jpg"))  # upright
restorer(photo, name="photo.jpg").save("photo_dry.png")
