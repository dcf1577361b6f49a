"""Reference pictures: what of them is meant, and the square that is cut out."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from attrjax.data.references import load_reference
from tests.picture_cases import BLUE, GREEN, RED, SIZE, boxed, close, noise, saved, unit


def bright(picture):
    """A segmenter: what is lighter than mid grey."""
    return (picture.mean(-1) > 0).astype(np.float32)


# Transparency.


@pytest.mark.parametrize("kind", ["RGBA", "palette", "one colour"])
def test_what_is_not_transparent_is_the_mask(tmp_path, kind):
    shape = boxed((100, 100), (20, 20, 80, 80))
    image = Image.composite(Image.new("RGB", (100, 100), RED), Image.new("RGB", (100, 100), GREEN), shape)
    if kind == "RGBA":
        image.putalpha(shape)
        path = saved(image, tmp_path / "a.png")
    elif kind == "palette":
        indices = Image.fromarray((np.asarray(shape) > 0).astype(np.uint8), "P")
        indices.putpalette([*GREEN, *RED])
        path = saved(indices, tmp_path / "a.gif", transparency=0)
    else:
        path = saved(image, tmp_path / "a.png", transparency=GREEN)
    seen = load_reference(path, size=50)
    assert seen.origin == "alpha"
    assert (seen.mask[12:38, 12:38] == 1).all() and seen.mask[:8].max() == seen.mask[:, 42:].max() == 0
    assert close(seen.picture[12:38, 12:38], unit(RED))
    assert close(seen.picture[:8], 0, 0.01)  # neutral grey, and not what is hidden there


def test_hidden_colours_leak_into_no_pixel(tmp_path):
    # The picture is reduced and resized, and its edges are soft: all that could mix hidden colours in.
    alpha = boxed((420, 40), (150, 10, 170, 30)).resize((4200, 400))
    seen = []
    for hidden in (GREEN, BLUE):
        image = Image.new("RGB", alpha.size, hidden)
        image.paste(RED, mask=alpha.point(lambda a: 255 * (a > 0)))
        image.putalpha(alpha)
        seen.append(load_reference(saved(image, tmp_path / "a.png"), size=SIZE))
    np.testing.assert_array_equal(seen[0].picture, seen[1].picture)
    assert close(seen[0].picture[30:34, 30:34], unit(RED))


def test_opaque_alpha_says_nothing(tmp_path):
    image = noise(SIZE, SIZE).convert("RGBA")
    assert load_reference(saved(image, tmp_path / "a.png"), size=SIZE).origin == "whole"


def test_a_given_mask_is_used_and_not_the_alpha(tmp_path):
    image = noise(SIZE, SIZE).convert("RGBA")
    image.putalpha(boxed((SIZE, SIZE), (4, 4, 60, 30)))
    mask = boxed((SIZE, SIZE), (10, 20, 50, 60))
    seen = load_reference(
        saved(image, tmp_path / "a.png"), mask=saved(mask, tmp_path / "m.png"), size=SIZE, segmenter=bright
    )
    assert seen.origin == "given"
    np.testing.assert_array_equal(seen.mask, np.asarray(mask, np.float32) / 255)
    assert close(seen.picture[40:], 0, 0.01)  # transparent, and so grey


# Masks.


def test_a_mask_may_be_a_cut_out(tmp_path):
    shape = boxed((SIZE, SIZE), (10, 20, 50, 60))
    cut_out = Image.new("RGB", (SIZE, SIZE), "black")
    cut_out.putalpha(shape)
    path = saved(noise(SIZE, SIZE), tmp_path / "a.png")
    seen = load_reference(path, mask=saved(cut_out, tmp_path / "m.png"), size=SIZE)
    np.testing.assert_array_equal(seen.mask, np.asarray(shape, np.float32) / 255)


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path):
    path = saved(noise(60, 90), tmp_path / "a.png")
    mask = saved(boxed((60, 90), (10, 10, 50, 50)), tmp_path / "m.png")
    with pytest.raises(ValueError, match=r"m\.png has 60x90 pixels, and the picture .*a\.png has 90x60"):
        load_reference(path, mask=mask, size=SIZE)


@pytest.mark.parametrize("value", [0, 1])  # all black, and ones that were written where 255 was meant
def test_an_empty_mask_is_refused_with_the_remedy(tmp_path, value):
    path = saved(noise(SIZE, SIZE), tmp_path / "a.png")
    mask = saved(boxed((SIZE, SIZE), (8, 8, 40, 40), inside=value), tmp_path / "m.png")
    with pytest.raises(ValueError, match=r"m\.png is empty: paint what is meant in white \(255\)"):
        load_reference(path, mask=mask, size=SIZE)


def test_a_picture_that_is_transparent_everywhere_is_refused(tmp_path):
    path = saved(Image.new("RGBA", (SIZE, SIZE), (9, 9, 9, 0)), tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is transparent everywhere"):
        load_reference(path, size=SIZE)


def test_a_full_mask_means_the_whole_picture(tmp_path):
    path = saved(noise(SIZE, SIZE), tmp_path / "a.png")
    mask = saved(Image.new("L", (SIZE, SIZE), 255), tmp_path / "m.png")
    seen = load_reference(path, mask=mask, size=SIZE, segmenter=bright)
    assert seen.origin == "given" and (seen.mask == 1).all()


# The segmenter.


def test_the_segmenter_finds_the_foreground_of_a_long_picture(tmp_path):
    image = boxed((900, 300), (600, 100, 700, 200), (230, 220, 240), (20, 30, 40), "RGB")
    asked = []

    def segmenter(picture):
        asked.append(picture)
        return bright(picture)

    seen = load_reference(saved(image, tmp_path / "a.png"), size=SIZE, segmenter=segmenter)
    assert seen.origin == "segmenter"
    assert all(p.shape == (SIZE, SIZE, 3) and p.dtype == np.float32 for p in asked)
    # The padding is not taken for foreground, and the mask is that of the picture that comes with it.
    assert close(asked[0][:20], unit((20, 30, 40)))
    np.testing.assert_array_equal(seen.mask, bright(seen.picture))
    assert 0.3 < np.sqrt(seen.mask.mean()) < 0.5  # a third of the shorter side, enlarged to LEAST_FILLED


@pytest.mark.parametrize("colour", ["black", "white"])
def test_a_segmenter_that_finds_nothing_or_all_is_an_error_with_the_remedy(tmp_path, colour):
    path = saved(Image.new("RGB", (SIZE, SIZE), colour), tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"no foreground is found in .*a\.png: give a mask, .* transparent"):
        load_reference(path, size=SIZE, segmenter=bright)


def test_a_segmenter_of_another_size_is_an_error(tmp_path):
    path = saved(noise(SIZE, SIZE), tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a mask \[32, 32\] of a picture \[64, 64, 3\]"):
        load_reference(path, size=SIZE, segmenter=lambda picture: bright(picture)[::2, ::2])


# The square.


def test_a_square_picture_is_taken_as_it_is(tmp_path):
    image = noise(SIZE, SIZE)
    seen = load_reference(saved(image, tmp_path / "a.png"), size=SIZE)
    np.testing.assert_array_equal(seen.picture, np.asarray(image, np.float32) / 127.5 - 1)
    assert seen.picture.dtype == seen.mask.dtype == np.float32
    assert (seen.mask == 1).all() and seen.origin == "whole"


def placed(tmp_path, size, box, out=SIZE):
    """A box of one colour on another in a picture of that size, with its mask."""
    path = saved(boxed(size, box, RED, BLUE, "RGB"), tmp_path / "a.png")
    return load_reference(path, mask=saved(boxed(size, box), tmp_path / "m.png"), size=out)


def extent(mask):
    """Left, top, right and bottom of a mask."""
    rows, columns = (np.flatnonzero(mask.max(axis) > 0.5) for axis in (1, 0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def test_the_square_is_around_the_centroid(tmp_path):
    seen = placed(tmp_path, (300, 100), (180, 30, 230, 80))
    np.testing.assert_allclose(extent(seen.mask), (16, 19, 48, 51), atol=1)


def test_the_square_stays_within_the_picture(tmp_path):
    seen = placed(tmp_path, (300, 100), (240, 30, 290, 80))
    np.testing.assert_allclose(extent(seen.mask), (26, 19, 58, 51), atol=1)
    assert close(seen.picture[:, :20], unit(BLUE))


@pytest.mark.parametrize("size", [(300, 100), (100, 300), (97, 233), (64, 64), (500, 499)])
def test_nothing_is_distorted_and_all_foreground_is_there(tmp_path, size):
    # A cross over the whole picture, whose bars must end inside, with a weight that moves its centroid.
    w, h = size
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    draw.rectangle((0, h // 2 - 6, w, h // 2 + 6), fill=255)
    draw.rectangle((w // 4 - 12, h // 4 - 12, w // 4 + 11, h // 4 + 11), fill=255)
    draw.rectangle((w // 2 - 6, 0, w // 2 + 6, h), fill=255)
    path = saved(noise(h, w), tmp_path / "a.png")
    seen = load_reference(path, mask=saved(mask, tmp_path / "m.png"), size=SIZE)
    share = np.asarray(mask).sum() / 255 / max(size) ** 2
    np.testing.assert_allclose(seen.mask.mean(), share, rtol=0.03)
    left, top, right, bottom = extent(seen.mask)
    np.testing.assert_allclose((right - left, bottom - top), np.array(size) / max(size) * SIZE, atol=1.5)


def test_a_whole_picture_is_padded_with_its_border_and_masked(tmp_path):
    seen = load_reference(saved(Image.new("RGB", (200, 100), GREEN), tmp_path / "a.png"), size=SIZE)
    assert (seen.mask[17:47] == 1).all() and seen.mask[:15].max() == seen.mask[49:].max() == 0
    assert close(seen.picture, unit(GREEN))


def test_a_small_foreground_is_enlarged(tmp_path):
    seen = placed(tmp_path, (1000, 800), (500, 400, 560, 460))
    left, top, right, bottom = extent(seen.mask)
    assert 0.37 < (right - left) / SIZE < 0.43 and 0.37 < (bottom - top) / SIZE < 0.43


def test_masks_have_no_ring_around_them(tmp_path):
    seen = placed(tmp_path, (500, 500), (113, 97, 391, 402))
    left, top, right, bottom = extent(seen.mask)
    around = seen.mask.copy()
    around[top - 1 : bottom + 1, left - 1 : right + 1] = 0
    assert around.max() == 0


# Sizes.


@pytest.mark.parametrize("size", [(1, 1), (400, 3)])
def test_a_picture_of_a_few_pixels_is_refused(tmp_path, size):
    path = saved(Image.new("RGB", size, RED), tmp_path / "a.png")
    with pytest.raises(ValueError, match=rf"a\.png has {size[0]}x{size[1]} pixels, too few .*at least 16x16"):
        load_reference(path, size=SIZE, segmenter=bright)


def test_a_foreground_of_a_few_pixels_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.png is 4 pixels long, too few .* check the mask"):
        placed(tmp_path, (400, 300), (200, 100, 204, 103))


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_picture_of_twenty_thousand_pixels_is_read_at_less(tmp_path, name, monkeypatch):
    wide, box = (20_000, 1_000), (15_000, 200, 15_600, 900)
    path = saved(boxed(wide, box, RED, BLUE, "RGB"), tmp_path / name)
    mask = saved(boxed(wide, box), tmp_path / "m.png")
    seen = load_reference(path, mask=mask, size=SIZE)
    assert close(seen.picture[30:34, 30:34], unit(RED)) and close(seen.picture[:, :8], unit(BLUE))
    np.testing.assert_allclose(extent(seen.mask), (13, 13, 51, 58), atol=1)

    in_memory = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda image: (in_memory.append(image.width), load(image))[1])
    load_reference(path, size=SIZE)
    # A PNG can only be decoded in full; a JPEG never is.
    assert (max(in_memory) == 20_000) == (name == "a.png") and min(in_memory) <= 4096


def test_a_decompression_bomb_is_refused_in_one_line(tmp_path, monkeypatch, recwarn):
    path = saved(Image.new("1", (400, 300)), tmp_path / "a.png")
    for limit in (100_000, 1_000):  # over the limit, of which Pillow only warns, and over twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(
            ValueError, match=rf"a\.png has more than {limit:,} pixels.*: scale it"
        ) as refused:
            load_reference(path, size=SIZE)
        assert "\n" not in str(refused.value)
    assert not recwarn
