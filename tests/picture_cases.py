"""Small pictures with known colours, to write into files of many kinds."""

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
RED, GREEN, BLUE = (200, 30, 40), (30, 160, 60), (40, 60, 210)


def unit(colour):
    return np.array(colour, np.float32) / 127.5 - 1


def noise(height, width, seed=0):
    """A picture of smooth random colours, so that turned, cut and reduced ones can be told apart."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def boxed(size, box, inside=255, outside=0, mode="L"):
    image = Image.new(mode, size, outside)
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=inside)
    return image


def saved(image, path, **options):
    image.save(path, **options)
    return path


def close(a, b, tolerance=0.02):
    return float(np.abs(np.asarray(a) - np.asarray(b)).mean()) < tolerance
