"""Where is a restoration a guess? The standard deviation of several samples shows it."""

import numpy as np
from PIL import Image

import c2fdft_cli as c2fdft

photo = np.asarray(Image.open("photo.jpg"))
restorer = c2fdft.load("derain")
image, deviation = restorer.uncertainty(photo, samples=4)
Image.fromarray(image).save("mean.png")
brightness = np.clip(deviation / deviation.max(), 0, 1) * 255
Image.fromarray(brightness.astype(np.uint8)).save("deviation.png")
y, x = np.unravel_index(deviation.argmax(), deviation.shape)
print(f"least certain at x={x}, y={y}: {255 * deviation.max():.1f} levels")
