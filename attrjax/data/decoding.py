"""Picture files of any kind as upright 8-bit sRGB: every format and mode that Pillow reads.

Files of users come from phones, scanners and image editors. What such a file may hold is made the same here,
so that nothing behind this module needs to know about it.
"""

import io
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

# Of the longer side, in pixels: more is not decoded where the format allows it, and else thrown away at once.
LONGEST = 4096
NEUTRAL = (128, 128, 128)  # shows through transparent pixels unless something else is asked for


class Decoded(NamedTuple):
    """A picture from a file.

    Attributes:
        colours: mode RGB, upright, in sRGB; on the backdrop where it is transparent. Its longer side has at
            most ``LONGEST`` pixels.
        alpha: mode L, of the same size, 255 where it is opaque; None where no pixel is transparent.
        size: width and height of the upright picture as the file has it.
    """

    colours: Image.Image
    alpha: Image.Image | None
    size: tuple[int, int]


def decode(path: str | Path, backdrop: tuple[int, int, int] = NEUTRAL) -> Decoded:
    """Read a picture.

    * A camera's rotation (EXIF) is applied.
    * Colours are converted from the profile in the file (CMYK, Display P3, ...) to sRGB, or by Pillow's rule
      where there is none.
    * 16 bits a channel are scaled to 8, and so are float pixels, which must be in [0, 1].
    * Of an animation, or of a file with several pages, the first picture is read, and one line is logged.
    * Large pictures are reduced by a whole number as they are read: a JPEG while it is decoded, others right
      after. Colours under transparent pixels take no part in it.

    Args:
        path: of any format that Pillow reads.
        backdrop: what shows through transparent pixels, 0..255.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as a picture; it is damaged or cut off; or it has so many pixels that
            Pillow takes it for a decompression bomb (over ``PIL.Image.MAX_IMAGE_PIXELS``, 89 millions).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture {path}")
    try:
        with warnings.catch_warnings():
            # Pillow only warns up to twice the limit, and a warning scrolls away while memory fills.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                return _decode(opened, path, backdrop)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels, too many to be read safely:"
            f" scale it to {LONGEST} pixels or less"
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{path} is no picture of a format that can be read: save it as PNG or JPEG"
        ) from error
    # Damaged files make decoders raise OSError, SyntaxError, ValueError, TypeError, RuntimeError and others.
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read, it may be damaged or cut off ({_first_line(error)}):"
            " fetch it again, or save it anew as PNG or JPEG"
        ) from error


def _decode(opened: Image.Image, path: Path, backdrop: tuple[int, int, int]) -> Decoded:
    pictures = getattr(opened, "n_frames", 1)
    if pictures > 1:
        logging.info("%s has %d pictures: the first one is taken", path, pictures)
    width, height = opened.size
    if opened.getexif().get(ExifTags.Base.Orientation, 1) >= 5:  # turned by a quarter
        width, height = height, width
    shrink = -(-max(width, height) // LONGEST)
    opened.draft(None, (opened.width // shrink, opened.height // shrink))  # JPEGs alone can do this
    image = ImageOps.exif_transpose(opened)
    profile = image.info.get("icc_profile")

    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode in ("1", "P"):
        image = image.convert("RGB")
    rest = -(-max(image.size) // LONGEST)
    if rest > 1:
        image = image.reduce(rest)  # weights colours with their alpha

    alpha = None
    if image.mode == "RGBA":
        alpha = image.getchannel("A")
        image = image.convert("RGB")
        if alpha.getextrema()[0] == 255:
            alpha = None
    image = _to_srgb(image, profile)
    if alpha is not None:
        image = Image.composite(image, Image.new("RGB", image.size, backdrop), alpha)
    return Decoded(image, alpha, (width, height))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits or of floats as mode L. Pillow's own conversion clips it."""
    values = np.asarray(image)
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):  # also where one is not a number
            raise ValueError(f"float pixels must be in [0, 1], not in [{values.min()}, {values.max()}]")
        return Image.fromarray(np.round(255 * values).astype(np.uint8))
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(f"pixels must have 16 bits, and lie in [{values.min()}, {values.max()}]")
    return Image.fromarray((values >> 8).astype(np.uint8))  # as Pillow does with 16-bit colours


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(
                image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            assert converted is not None  # it is None only where it was to change the picture itself
            return converted
        except (ImageCms.PyCMSError, OSError):
            # Damaged, or of another colour space than the picture, such as sRGB's profile in a grey JPEG.
            logging.debug("a colour profile is left out, which does not fit its picture")
    return image.convert("RGB")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
