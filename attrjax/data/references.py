"""The reference: the one picture that an attribute is learned from, and what in it is meant."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps

from attrjax.data.decoding import decode

Picture = Float[np.ndarray, "size size 3"]  # in [-1, 1]
Mask = Float[np.ndarray, "size size"]  # in [0, 1]
Segmenter = Callable[[Picture], Mask]
Origin = Literal["given", "alpha", "segmenter", "whole"]

SMALLEST = 16  # pixels of a side, in the file, of what is learned from
LEAST_FILLED = 0.4  # a smaller share of the square's side is enlarged to it
_FAINT, _HALF = 26, 128  # of 255: what is perhaps, and what is rather in the mask than not


class Reference(NamedTuple):
    """What an attribute is learned from.

    Attributes:
        picture: float32 [size, size, 3] in [-1, 1], with its own backdrop.
        mask: float32 [size, size] in [0, 1], how much of each pixel the foreground covers; 0 where the square
            reaches out of the picture.
        origin: where the mask came from. "given": a file of the user's; "alpha": the picture's transparency;
            "segmenter": found; "whole": nobody said, so that all of the picture is meant.
    """

    picture: Picture
    mask: Mask
    origin: Origin


def load_reference(
    path: str | Path,
    *,
    mask: str | Path | None = None,
    size: int,
    segmenter: Segmenter | None = None,
) -> Reference:
    """Read the picture that an attribute is learned from, and cut the square out of it that is learned.

    The foreground is the mask's if one is given, else what is not transparent, else what the segmenter finds,
    else the whole picture.

    **The square.** Stretching would change the shape, and cutting off a part of the foreground would teach a
    shape that does not exist. So the square is cut from the picture around the mask's centroid, and moved no
    further than it takes to show the whole foreground. Its side is the shorter one of the picture. A longer
    foreground makes it larger, up to its own length; what then lies outside of the picture gets the mean
    colour of the picture's border, and mask 0. A foreground that would fill less than ``LEAST_FILLED`` of the
    side makes it smaller: at 64 pixels there would be little left to learn. A square picture with one object
    of common size is taken as it is.

    Pictures are resampled with Lanczos' filter of three lobes over the area of each new pixel, masks with a
    triangle, which has no negative lobe: a faint ring around the foreground would be learned as a part of it.

    A picture of a few pixels is refused rather than enlarged: all that could be learned from it is how the
    enlarging filter looks.

    Args:
        path: a picture, of any kind that ``decoding.decode`` reads.
        mask: a picture of the same size, white on black or opaque on transparent.
        size: side of the result in pixels.
        segmenter: from a picture [size, size, 3] in [-1, 1] to its mask [size, size] in [0, 1]. It is asked
            twice: where the foreground is, in the whole picture padded to a square, and then in the square
            itself, in which the foreground is larger.

    Raises:
        FileNotFoundError: there is no such picture or mask.
        ValueError: a file cannot be read; the mask has another size than the picture, or nothing in it; the
            segmenter finds nothing, or nothing but foreground; or the picture or its foreground is smaller
            than can be learned from.
    """
    image, alpha, full_size = decode(path)
    if min(full_size) < SMALLEST:
        raise ValueError(
            f"{path} has {_sides(full_size)} pixels, too few to learn from: take a picture of at least"
            f" {SMALLEST}x{SMALLEST}, better {size}x{size}"
        )
    border = _border_colour(image)
    origin: Origin
    if mask:
        origin, cover = "given", _read_mask(mask, path, image.size, full_size)
    elif alpha:
        origin, cover = "alpha", alpha
        _check_filled(cover, f"{path} is transparent everywhere: take a picture that can be seen")
    elif segmenter:
        origin, cover = "segmenter", _find(segmenter, image, border, size, path)
    else:
        origin, cover = "whole", Image.new("L", image.size, 255)

    square = _square(np.asarray(cover))
    side = (square[2] - square[0]) * max(full_size) / max(image.size)
    if side < SMALLEST:
        raise ValueError(
            f"the foreground of {path} is {LEAST_FILLED * side:.0f} pixels long, too few to learn from: take"
            " a picture in which it is larger, or check the mask"
        )
    picture = _to_floats(_cut(image, square, size, Image.Resampling.LANCZOS, border))
    if origin == "segmenter" and segmenter:
        return Reference(picture, _segment(segmenter, picture, path), origin)
    cut = _cut(cover, square, size, Image.Resampling.BILINEAR, 0)
    return Reference(picture, np.asarray(cut, np.float32) / 255, origin)


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
    image, cover, size = decode(path)
    if mask:
        cover = _read_mask(mask, path, image.size, size)
    if cover is None:
        return None
    cover = ImageOps.fit(cover, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(cover, np.float32) / 255


def _read_mask(
    path: str | Path, of: str | Path, size: tuple[int, int], full_size: tuple[int, int]
) -> Image.Image:
    """The mask of a file, resized to the picture as it was read; ``full_size`` is the picture's own."""
    colours, alpha, own_size = decode(path)
    if own_size != full_size:
        raise ValueError(
            f"the mask {path} has {_sides(own_size)} pixels, and the picture {of} has {_sides(full_size)}:"
            " they must be the same"
        )
    # A cut-out on transparent ground says by its alpha what is meant, whatever its colours are.
    cover = alpha or colours.convert("L")
    _check_filled(cover, f"the mask {path} is empty: paint what is meant in white (255), the rest in black")
    return cover if cover.size == size else cover.resize(size, Image.Resampling.BILINEAR)


def _find(
    segmenter: Segmenter, image: Image.Image, border: tuple[int, ...], size: int, path: str | Path
) -> Image.Image:
    """What the segmenter finds in the whole picture, as mode L of the picture's size."""
    longer = max(image.size)
    left, top = (image.width - longer) // 2, (image.height - longer) // 2
    padded = _cut(image, (left, top, left + longer, top + longer), size, Image.Resampling.LANCZOS, border)
    found = Image.fromarray(np.round(255 * _segment(segmenter, _to_floats(padded), path)).astype(np.uint8))
    found = found.resize((longer, longer), Image.Resampling.BILINEAR)
    cover = found.crop((-left, -top, image.width - left, image.height - top))
    _check_filled(cover, _unfound(path))
    return cover


def _segment(segmenter: Segmenter, picture: Picture, path: str | Path) -> Mask:
    mask = np.asarray(segmenter(picture), np.float32)
    if mask.shape != picture.shape[:2]:
        raise ValueError(
            f"the segmenter made a mask {list(mask.shape)} of a picture {list(picture.shape)}:"
            f" it must be {list(picture.shape[:2])}"
        )
    mask = np.clip(mask, 0, 1)
    if not (mask.max() >= 0.5 > mask.min()):
        raise ValueError(_unfound(path))
    return mask


def _unfound(path: str | Path) -> str:
    return (
        f"no foreground is found in {path}: give a mask, all white if the whole picture is meant, or make the"
        " backdrop transparent"
    )


def _check_filled(cover: Image.Image, message: str) -> None:
    """A mask in which no pixel is rather foreground than backdrop is empty."""
    if np.max(np.asarray(cover)) < _HALF:
        raise ValueError(message)


def _square(cover: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the square to cut out, of a mask [h, w] of 0..255 that is not empty."""
    height, width = cover.shape
    columns, rows = (np.flatnonzero(cover.max(axis) > _FAINT) for axis in (0, 1))
    low = np.array([columns[0], rows[0]])
    high = np.array([columns[-1], rows[-1]]) + 1
    longest = int((high - low).max())
    side = int(np.clip(min(width, height), longest, np.ceil(longest / LEAST_FILLED)))

    weights = cover.astype(np.float64)
    centroid = (
        np.array([weights.sum(0) @ (np.arange(width) + 0.5), weights.sum(1) @ (np.arange(height) + 0.5)])
        / weights.sum()
    )
    corner = np.round(centroid - side / 2)
    # Within the picture, or around it where it is smaller; then around the foreground, which keeps that true.
    rest = np.array([width, height]) - side
    corner = np.clip(corner, np.minimum(rest, 0), np.maximum(rest, 0))
    left, top = np.clip(corner, high - side, low).astype(int).tolist()
    return left, top, left + side, top + side


def _cut(
    image: Image.Image,
    square: tuple[int, int, int, int],
    size: int,
    resampling: Image.Resampling,
    fill: tuple[int, ...] | int,
) -> Image.Image:
    """The part of a picture in a square, resized; with a colour where the square reaches out of it."""
    canvas = Image.new(image.mode, (square[2] - square[0], square[3] - square[1]), fill)
    canvas.paste(image, (-square[0], -square[1]))
    return canvas.resize((size, size), resampling)


def _border_colour(image: Image.Image) -> tuple[int, ...]:
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return tuple(np.round(border.mean(0)).astype(int).tolist())


def _to_floats(image: Image.Image) -> Picture:
    return np.asarray(image, np.float32) / 127.5 - 1


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
