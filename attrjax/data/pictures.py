"""Pictures as arrays, from files and to files."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from attrjax.data.decoding import decode


def load_picture(path: str | Path, height: int, width: int) -> Float[np.ndarray, "{height} {width} 3"]:
    """A picture in [-1, 1], cut at its sides to the shape asked for and resized to it; on white where
    transparent.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a picture that can be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture {path}")
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGBA")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image, np.float32) / 127.5 - 1


def load_cover(
    path: str | Path, mask: str | Path, height: int, width: int
) -> Float[np.ndarray, "{height} {width}"] | None:
    """What is meant in a picture, in [0, 1], cut and resized as ``load_picture`` does.

    Args:
        path: of the picture.
        mask: of its mask, white where what is meant is; empty for the picture's transparency.
        height, width: in pixels.

    Returns:
        the mask; None where there is none and the picture is opaque.

    Raises:
        FileNotFoundError, ValueError: as ``decode``, or the mask is of another size or empty.
    """
    _, cover, size = decode(path)
    if mask:
        colours, alpha, own_size = decode(mask)
        if own_size != size:
            raise ValueError(
                f"the mask {mask} has {own_size[0]} x {own_size[1]} pixels, and the picture {path} has "
                f"{size[0]} x {size[1]}: they must be the same"
            )
        cover = alpha or colours.convert("L")
        if np.asarray(cover).max() < 128:
            raise ValueError(
                f"the mask {mask} is empty: paint what is meant in white (255), the rest in black"
            )
    if cover is None:
        return None
    cover = ImageOps.fit(cover, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(cover, np.float32) / 255


def to_uint8(pictures: Float[np.ndarray, "*b h w 3"]) -> UInt8[np.ndarray, "*b h w 3"]:
    """From [-1, 1] to 0..255, rounded as diffusers does."""
    unit = np.clip(np.asarray(pictures, np.float32) / 2 + np.float32(0.5), 0, 1)
    return np.round(unit * 255).astype(np.uint8)


def png_bytes(picture: UInt8[np.ndarray, "h w 3"] | Image.Image) -> bytes:
    """A picture as the bytes of a PNG file, without anything in it that could differ between runs."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
