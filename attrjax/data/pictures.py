"""Pictures as arrays, from files and to files."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from attrjax.data.decoding import decode

WHITE = (255, 255, 255)


def load_picture(path: str | Path, height: int, width: int) -> Float[np.ndarray, "{height} {width} 3"]:
    """A picture in [-1, 1], of any kind that ``decoding.decode`` reads, cut at its sides to the shape asked
    for and resized to it; on white where transparent.

    Raises:
        FileNotFoundError, ValueError: as ``decode``.
    """
    image = ImageOps.fit(decode(path, WHITE).colours, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image, np.float32) / 127.5 - 1


def to_uint8(pictures: Float[np.ndarray, "*b h w 3"]) -> UInt8[np.ndarray, "*b h w 3"]:
    """From [-1, 1] to 0..255, rounded as diffusers does."""
    unit = np.clip(np.asarray(pictures, np.float32) / 2 + np.float32(0.5), 0, 1)
    return np.round(unit * 255).astype(np.uint8)


def to_floats(pictures: UInt8[np.ndarray, "*b h w 3"]) -> Float[np.ndarray, "*b h w 3"]:
    """From 0..255 to [-1, 1], as the networks read them."""
    return pictures.astype(np.float32) / 127.5 - 1


def png_bytes(picture: UInt8[np.ndarray, "h w 3"] | Image.Image) -> bytes:
    """A picture as the bytes of a PNG file, without anything in it that could differ between runs."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
