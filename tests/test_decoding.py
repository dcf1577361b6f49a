"""Picture files: every kind is read rightly, or refused in one line."""

import re
import struct
import zlib

import numpy as np
import pytest
from absl import logging
from PIL import Image, ImageCms

from attrjax.data.pictures import load_picture
from attrjax.data.references import load_reference
from tests.picture_cases import BLUE, GREEN, RED, SIZE, boxed, close, noise, saved, unit

# What is learned from, and what pictures begin with.
READERS = {
    "reference": lambda path: load_reference(path, size=SIZE).picture,
    "init_image": lambda path: load_picture(path, SIZE, SIZE),
}


@pytest.fixture(params=READERS)
def read(request):
    """From a file to a picture [SIZE, SIZE, 3] in [-1, 1]."""
    return READERS[request.param]


def png_of(chunks):
    """A PNG file of chunks (name, data)."""
    checked = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(checked)


# Kinds of files.


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_270),
        (8, Image.Transpose.ROTATE_90),
    ],
)
def test_the_rotation_of_a_camera_is_applied(tmp_path, orientation, turn):
    image = noise(60, 90)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = image.transpose(turn)
    mask = saved(boxed(turned.size, (10, 12, 40, 50)), tmp_path / "mask.png")  # as the viewer sees it
    path = saved(image, tmp_path / "turned.png", exif=exif)
    seen = load_reference(path, mask=mask, size=SIZE)
    upright = load_reference(saved(turned, tmp_path / "upright.png"), mask=mask, size=SIZE)
    np.testing.assert_array_equal(seen.picture, upright.picture)
    np.testing.assert_array_equal(seen.mask, upright.mask)


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.pgm"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(read, tmp_path, name):
    ramp = np.tile(np.linspace(0, 65535, SIZE).astype(np.uint16), (SIZE, 1))
    picture = read(saved(Image.fromarray(ramp), tmp_path / name))
    expected = np.repeat((ramp / 32767.5 - 1)[..., None], 3, -1)
    np.testing.assert_allclose(picture, expected, atol=0.01)


def test_sixteen_bit_colours_are_scaled_and_not_clipped(read, tmp_path):
    ramp = np.linspace(0, 65535, SIZE)
    pixels = np.stack(np.broadcast_arrays(ramp[None], ramp[:, None], 0 * ramp + 20000), -1)
    # Pillow does not write 16-bit colours.
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2"))
    header = struct.pack(">IIBBBBB", SIZE, SIZE, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(png_of(chunks))
    picture = read(tmp_path / "a.png")
    np.testing.assert_allclose(picture, pixels / 32767.5 - 1, atol=0.01)


def test_float_pixels_are_scaled_or_refused(read, tmp_path):
    ramp = np.tile(np.linspace(0, 1, SIZE, dtype=np.float32), (SIZE, 1))
    picture = read(saved(Image.fromarray(ramp), tmp_path / "a.tif"))
    np.testing.assert_allclose(picture[..., 1], 2 * ramp - 1, atol=0.01)
    with pytest.raises(ValueError, match=r"b\.tif .*float pixels must be in \[0, 1\]"):
        read(saved(Image.fromarray(200 * ramp), tmp_path / "b.tif"))


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_inks_become_colours(read, tmp_path, name):
    image = Image.new("RGB", (SIZE, SIZE), RED).convert("CMYK")
    picture = read(saved(image, tmp_path / name))
    assert close(picture, unit(RED))


def test_colours_are_converted_from_the_files_profile(read, tmp_path):
    # sRGB's own profile with the primaries of red and blue exchanged: its red is blue.
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = (profile.index(name, 128) for name in (b"rXYZ", b"bXYZ"))
    profile[red + 4 : red + 12], profile[blue + 4 : blue + 12] = (
        profile[blue + 4 : blue + 12],
        profile[red + 4 : red + 12],
    )
    image = Image.new("RGB", (SIZE, SIZE), RED)
    picture = read(saved(image, tmp_path / "a.png", icc_profile=bytes(profile)))
    assert close(picture, unit(RED[::-1]))
    damaged = saved(image, tmp_path / "b.png", icc_profile=b"no profile at all")
    assert close(read(damaged), unit(RED))


def test_a_palette_is_looked_up(read, tmp_path):
    image = boxed((SIZE, SIZE), (0, 0, 32, SIZE), RED, BLUE, "RGB")
    picture = read(saved(image.quantize(4), tmp_path / "a.png"))
    assert close(picture[:, :32], unit(RED)) and close(picture[:, 32:], unit(BLUE))


def test_a_picture_of_two_tones_is_black_and_white(read, tmp_path):
    image = boxed((SIZE, SIZE), (0, 0, 32, SIZE)).convert("1")
    picture = read(saved(image, tmp_path / "a.png"))
    assert (picture[:, :32] == 1).all() and (picture[:, 32:] == -1).all()


# Animations and damage.


def test_of_an_animation_the_first_picture_is_taken_and_logged(read, tmp_path, caplog):
    first, *others = (Image.new("RGB", (SIZE, SIZE), colour) for colour in (RED, GREEN, BLUE))
    path = saved(first, tmp_path / "a.gif", save_all=True, append_images=others, duration=50)
    logging.use_absl_handler()
    with caplog.at_level("INFO"):
        picture = read(path)
    assert close(picture, unit(RED))
    lines = [record.getMessage() for record in caplog.records if "a.gif" in record.getMessage()]
    assert lines == [f"{path} has 3 pictures: the first one is taken"]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.webp", "a.tif", "a.bmp"])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 0.9])
def test_a_file_that_is_cut_off_is_refused_in_one_line(read, tmp_path, name, share):
    path = saved(noise(200, 200), tmp_path / name)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} .*: .*save it") as refused:
        read(path)
    assert "\n" not in str(refused.value)


def test_a_damaged_mask_is_named(tmp_path):
    path = saved(noise(SIZE, SIZE), tmp_path / "a.png")
    (tmp_path / "m.png").write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"m\.png cannot be read"):
        load_reference(path, mask=tmp_path / "m.png", size=SIZE)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(read, tmp_path):
    side = struct.pack(">II", 20_000, 20_000) + bytes([1, 0, 0, 0, 0])
    chunks = [(b"IHDR", side), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(png_of(chunks))
    with pytest.raises(ValueError, match=r"a\.png has more than [\d,]+ pixels, too many to be read safely"):
        read(tmp_path / "a.png")


def test_what_is_no_picture_or_not_there_is_named(read, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match=r"notes\.txt is no picture .*: save it as PNG or JPEG"):
        read(tmp_path / "notes.txt")
    for path in (tmp_path / "missing.png", tmp_path):
        with pytest.raises(FileNotFoundError, match=re.escape(f"there is no picture {path}")):
            read(path)
