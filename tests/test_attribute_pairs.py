"""Training pairs: what they keep of the reference, and what must not be left of it."""

import functools

import jax
import numpy as np
import pytest
from scipy import ndimage

from attrjax.attributes.pair_prompts import say
from attrjax.attributes.pairs import Cut, Painted, appearance_pair, shape_pair, whole_pair
from attrjax.attributes.silhouettes import SILHOUETTES
from attrjax.attributes.sources import PURE
from attrjax.attributes.textures import BACKDROP_NAMES, COLOUR_NAMES, PATTERNS
from attrjax.attrworld import words
from attrjax.attrworld.looks import COLOURS
from attrjax.attrworld.scenes import BACKDROPS
from tests.pair_cases import SIZE, box_of, references

KEYS = 24
PAIRS = {"shape": shape_pair, "appearance": appearance_pair}
STILL = {"zoom": (1.0, 1.0), "shift": 0.0}


@functools.cache
def drawn(attribute, still=False):
    """Pairs [4 references, KEYS, ...]."""
    make = functools.partial(PAIRS[attribute], **(STILL if still else {}))
    over_keys = jax.vmap(make, (0, None, None))
    keys = jax.random.split(jax.random.key(0), KEYS)
    return jax.tree.map(np.asarray, jax.vmap(over_keys, (None, 0, 0))(keys, *references()))


def one(attribute, seed=5, which=0, **options):
    picture, mask = (of[which] for of in references())
    return jax.tree.map(np.asarray, PAIRS[attribute](jax.random.key(seed), picture, mask, **options))


def overlap(a, b):
    return np.minimum(a, b).sum((-2, -1)) / np.maximum(a, b).sum((-2, -1))


def boxed(mask, side=48):
    """What a mask's box holds, at one size: without place and scale."""
    inner = mask[box_of(mask)]
    return np.clip(ndimage.zoom(inner, np.array([side, side]) / inner.shape, order=1), 0, 1)


# Both kinds.


@pytest.mark.parametrize("attribute", PAIRS)
def test_pairs_are_pictures_with_their_masks(attribute):
    pair = drawn(attribute)
    assert pair.view.shape == pair.target.shape == (4, KEYS, SIZE, SIZE, 3)
    assert pair.view_mask.shape == pair.target_mask.shape == (4, KEYS, SIZE, SIZE)
    for picture in (pair.view, pair.target):
        assert picture.dtype == np.float32 and picture.min() >= -1 and picture.max() <= 1
    for mask in (pair.view_mask, pair.target_mask):
        assert mask.min() == 0 and mask.max() <= 1
        # The bar is the smallest of all.
        assert mask.mean((-2, -1)).min() > 0.03


@pytest.mark.parametrize("attribute", PAIRS)
def test_nothing_of_the_backdrop_is_in_a_pair(attribute):
    pictures, masks = references()
    for which in range(4):
        other = np.random.default_rng(which).uniform(-1, 1, pictures[0].shape).astype(np.float32)
        exchanged = np.where(masks[which, ..., None] < PURE, other, pictures[which])
        pair = one(attribute, which=which)
        again = PAIRS[attribute](jax.random.key(5), exchanged, masks[which])
        jax.tree.map(np.testing.assert_array_equal, pair, again)


@pytest.mark.parametrize("attribute", PAIRS)
def test_a_key_gives_the_same_bytes_and_another_key_others(attribute):
    jax.tree.map(np.testing.assert_array_equal, one(attribute), one(attribute))
    a, b = one(attribute, seed=1), one(attribute, seed=2)
    for left, right in ((a.view, b.view), (a.target, b.target), (a.view, a.target)):
        assert np.abs(left - right).mean() > 0.05


@pytest.mark.parametrize("attribute", PAIRS)
def test_compiled_and_batched_pairs_are_those_of_plain_python(attribute):
    pictures, masks = references()
    batched = drawn(attribute)
    key = jax.random.split(jax.random.key(0), KEYS)[3]
    compiled = PAIRS[attribute](key, pictures[2], masks[2])
    with jax.disable_jit():
        plain = PAIRS[attribute](key, pictures[2], masks[2])
    for leaf, single, of_batch in zip(*map(jax.tree.leaves, (plain, compiled, batched)), strict=True):
        # The edge of a pattern is a pixel wide: a last bit of where it is may be more in its colour.
        np.testing.assert_allclose(single, leaf, atol=1e-3)
        np.testing.assert_allclose(of_batch[2, 3], leaf, atol=1e-3)


@pytest.mark.parametrize("attribute", PAIRS)
def test_no_key_is_used_twice(attribute):
    with jax.debug_key_reuse(True):
        one(attribute)


@pytest.mark.parametrize("attribute", PAIRS)
@pytest.mark.parametrize("size", [512])
def test_pairs_are_made_at_the_size_of_large_bases(attribute, size):
    picture, mask = (of[0] for of in references(size))
    pair = PAIRS[attribute](jax.random.key(0), picture, mask)
    assert pair.target.shape == (size, size, 3) and np.isfinite(pair.target).all()
    # The same outline as in a small picture of the same key.
    small = one(attribute, seed=0).target_mask
    reduced = np.asarray(pair.target_mask).reshape(SIZE, size // SIZE, SIZE, size // SIZE).mean((1, 3))
    assert overlap(reduced, small) > 0.9


# Shape.


def test_shape_targets_have_the_outline_of_the_reference():
    pair = drawn("shape", still=True)
    for mask in (pair.target_mask, pair.view_mask):
        np.testing.assert_allclose(mask, np.broadcast_to(references()[1][:, None], mask.shape), atol=1e-5)


def test_jitter_moves_and_scales_the_outline_and_keeps_it_whole():
    pair, masks = drawn("shape"), references()[1]
    for which in range(4):
        shares = pair.target_mask[which].mean((-2, -1)) / masks[which].mean()
        assert shares.min() > 0.75**2 and shares.max() < 1.25**2 and shares.std() > 0.1
        rows, columns = zip(*(box_of(mask) for mask in pair.target_mask[which]), strict=True)
        assert len({r.start for r in rows}) > 5 and len({c.start for c in columns}) > 5
        for mask in pair.target_mask[which]:
            assert overlap(boxed(mask), boxed(masks[which])) > 0.85


def test_a_mirrored_object_is_asked_for():
    mask = references()[1][0]  # the mug, whose handle is on the right
    mirrored = boxed(mask)[:, ::-1]
    assert overlap(boxed(mask), mirrored) < 0.8
    for seed in range(4):
        for flip, expected in ((0.0, boxed(mask)), (1.0, mirrored)):
            pair = one("shape", seed=seed, flip=flip)
            assert overlap(boxed(pair.target_mask), expected) > 0.85
            assert overlap(boxed(pair.view_mask), expected) > 0.85


def test_colours_of_shape_targets_say_nothing_of_the_reference():
    pictures, masks = references()
    pair = drawn("shape", still=True)
    for seen in (pair.view, pair.target):
        for which in range(4):
            inside = masks[which] > PURE
            own = pictures[which][inside]
            for channel in range(3):
                a = np.tile(own[:, channel], KEYS)
                b = seen[which][:, inside, channel].reshape(-1)
                assert abs(np.corrcoef(a, b)[0, 1]) < 0.2
            # Nor does any one target show the pattern.
            light = seen[which][:, inside].mean(-1)
            each = [abs(np.corrcoef(own.mean(-1), one_light)[0, 1]) for one_light in light if one_light.std()]
            assert np.median(each) < (0.3 if which < 3 else 0.6), which  # the disc is half dark


def test_shape_targets_have_all_patterns_colours_and_backdrops():
    pair = drawn("shape")
    assert set(pair.drawn.pattern[0]) == set(range(len(PATTERNS)))
    assert len(set(pair.drawn.colours[0, :, 0])) > 6 and len(set(pair.drawn.backdrop[0])) > 4
    assert (pair.drawn.colours[..., 0] != pair.drawn.colours[..., 1]).all()


def test_the_shading_that_is_kept_is_the_reference_s():
    # Light from the left, in a plain colour: kept in full it is there again, turned around its opposite.
    picture, mask = np.zeros((SIZE, SIZE, 3), np.float32), references()[1][3]
    picture += np.linspace(0.6, -0.6, SIZE, dtype=np.float32)[:, None]
    sides = {}
    for kept in (0.0, 1.0, -1.0):
        make = functools.partial(shape_pair, shading=(kept, kept), body=(0.0, 0.0), **STILL)
        pair = jax.vmap(make, (0, None, None))(jax.random.split(jax.random.key(3), 32), picture, mask)
        plain = np.asarray(pair.drawn.pattern) == 0
        seen = np.asarray(pair.target)[plain]
        sides[kept] = (seen[:, 32, 16:20].mean() - seen[:, 32, 44:48].mean()).item()
    assert abs(sides[0.0]) < 0.01 and sides[1.0] > 0.2 and sides[-1.0] < -0.2


# Appearance.


def test_silhouettes_do_not_depend_on_the_reference():
    pair = drawn("appearance")
    for mask in (pair.view_mask, pair.target_mask):
        for which in (1, 2, 3):
            np.testing.assert_allclose(mask[which], mask[0], atol=1e-5)
    assert not np.allclose(pair.view_mask, pair.target_mask, atol=0.1)
    assert set(pair.drawn.silhouette[0]) == set(range(len(SILHOUETTES)))


def test_the_material_is_the_reference_s():
    pictures, masks = references()
    pair = drawn("appearance")

    def colours(picture, mask):  # what colours there are and how much of each, wherever they are
        levels = np.linspace(0.05, 0.95, 19)
        return np.quantile(picture[mask > PURE], levels, axis=0)

    own = np.stack([colours(p, m) for p, m in zip(pictures, masks, strict=True)])
    for seen, seen_masks in ((pair.view, pair.view_mask), (pair.target, pair.target_mask)):
        found = np.stack(
            [[colours(p, m) for p, m in zip(*row, strict=True)] for row in zip(seen, seen_masks, strict=True)]
        )
        away = np.abs(found[:, :, None] - own).mean((-2, -1))  # [reference, key, compared with]
        assert (away.argmin(-1) == np.arange(4)[:, None]).mean() > 0.95
        assert np.median(away[np.arange(4), :, np.arange(4)]) < 0.2


def test_the_texture_is_the_reference_s_and_its_place_is_not():
    # Left as it is, the material's colours are those of the two paints alone, and both are there.
    picture = np.where(np.arange(SIZE)[:, None, None] // 8 % 2, 0.8, -0.8) * np.ones((SIZE, SIZE, 3))
    mask = references()[1][3]
    still = {"evened": (0.0, 0.0), "body": (0.0, 0.0), "zoom": (1.0, 1.0), "turn": 0.0, "elastic": 0.0}
    make = functools.partial(appearance_pair, patch=(1.2, 1.2), **still)
    keys = jax.random.split(jax.random.key(0), 8)
    pair = jax.vmap(make, (0, None, None))(keys, np.float32(picture), mask)
    places = []
    for seen, inside in zip(np.asarray(pair.target), np.asarray(pair.target_mask) > 0.99, strict=True):
        pixels = seen[inside].mean(-1)
        assert (np.abs(pixels) > 0.5).mean() > 0.6
        assert 0.2 < (pixels > 0).mean() < 0.8
        # Stripes still lie: neighbours in a row are more alike than neighbours in a column.
        across, down = (np.abs(np.diff(seen.mean(-1), axis=axis)) for axis in (1, 0))
        both = (inside[:, 1:] & inside[:, :-1], inside[1:] & inside[:-1])
        assert across[both[0]].mean() < down[both[1]].mean()
        places.append(np.where(inside, seen.mean(-1) > 0, False))
    assert not all((places[0] == other).all() for other in places[1:])


def test_thin_and_whole_references_have_a_material_too():
    pictures, masks = references()
    thin = masks[1] * (np.abs(np.arange(SIZE) - 35) < 1)  # two pixels wide
    for mask in (thin, np.ones_like(thin)):
        pair = appearance_pair(jax.random.key(0), pictures[1], mask)
        assert np.isfinite(pair.target).all() and np.isfinite(pair.view).all()
        inside = np.asarray(pair.target_mask) > PURE
        blue = np.asarray(pair.target)[inside].mean(0)
        assert mask.all() or blue[2] > blue[0]


# Crossed with what the base knows.


def test_a_target_has_the_surface_that_is_given_and_the_view_has_not():
    surface = np.zeros((SIZE, SIZE, 3), np.float32) + np.array([0.1, 0.6, 0.3], np.float32)
    picture, mask = (of[0] for of in references())
    pair = jax.tree.map(np.asarray, shape_pair(jax.random.key(5), picture, mask, surface))
    shown = (pair.target[pair.target_mask > 0.9999] + 1) / 2
    ratios = shown / surface[0, 0]
    assert (np.ptp(ratios, axis=-1) < 1e-3).all()  # the colour itself, lighter or darker
    assert overlap(boxed(pair.target_mask), boxed(mask)) > 0.85
    view = (pair.view[pair.view_mask > PURE] + 1) / 2
    assert np.abs(view.mean(0) - shown.mean(0)).max() > 0.1


def test_a_target_has_the_form_that_is_given_and_the_view_has_not():
    picture, mask = (of[0] for of in references())
    form = references()[1][1]
    pair = jax.tree.map(np.asarray, appearance_pair(jax.random.key(5), picture, mask, form))
    np.testing.assert_array_equal(pair.target_mask, form)
    assert overlap(pair.view_mask, form) < 0.7


# Prompts.


def test_prompts_say_what_targets_show():
    pair = drawn("shape")
    prompts = say("shape", jax.tree.map(lambda leaf: leaf[3], pair.drawn), "*", np.random.default_rng(0))
    assert len(prompts) == KEYS
    palette = {"": np.array(list(COLOURS.values())), "background": np.array(list(BACKDROPS.values()))}
    plain = 0
    for i, prompt in enumerate(prompts):
        assert prompt.count("*") == 1
        painted = jax.tree.map(lambda leaf, i=i: leaf[3, i], pair.drawn)
        seen, inside = (pair.target[3, i] + 1) / 2, pair.target_mask[3, i]
        named = [name for name in COLOUR_NAMES if f" {name} " in f" {prompt.split(' on ')[0]} "]
        if PATTERNS[painted.pattern] == "plain":
            plain += 1
            bright = np.quantile(seen[inside > PURE], 0.7, axis=0)  # where light falls
            order = np.linalg.norm(palette[""] - bright, axis=1).argsort()
            assert COLOUR_NAMES[painted.colours[0]] in [COLOUR_NAMES[k] for k in order[:2]]
            assert COLOUR_NAMES[painted.colours[0]] in named
        else:
            pattern = words.PATTERNS[PATTERNS[painted.pattern]]
            assert any(said in prompt for said in (*pattern.nouns, *pattern.adjectives))
            assert {COLOUR_NAMES[k] for k in painted.colours} <= set(named)
        around = seen[inside == 0].mean(0)
        behind = np.linalg.norm(palette["background"] - around, axis=1).argmin()
        assert BACKDROP_NAMES[behind] == BACKDROP_NAMES[painted.backdrop]
    assert plain > 2
    assert any("back" in prompt for prompt in prompts) and not all("back" in prompt for prompt in prompts)


def test_prompts_name_silhouettes_and_only_known_words():
    known = {"*", "a", "an", "and", "with", "made", "of"}
    known |= {*COLOUR_NAMES, *BACKDROP_NAMES, *words.UNNAMED}
    known |= set(" ".join(n for name in ("ball", "star", "ring") for n in words.SHAPES[name]).split())
    known |= set(" ".join(words.BACKDROP_PHRASES).split())
    known |= set(" ".join(opening + closing.replace(",", " ") for opening, closing in words.FRAMES).split())
    known |= {w for said in words.PATTERNS.values() for w in (said.nouns[0], said.adjectives[0])}
    many = np.arange(60)
    painted = Painted(many % len(PATTERNS), np.stack([many % 10, (many + 3) % 10], -1), many % 8)
    cut = Cut(many % len(SILHOUETTES), many % 8)
    for attribute, what in (("shape", painted), ("appearance", cut)):
        prompts = say(attribute, what, "*", np.random.default_rng(1))
        assert len(set(prompts)) > 40
        for prompt in prompts:
            assert set(prompt.replace(",", "").split()) <= known, prompt
            assert prompt.count("*") == 1 and " a o" not in prompt and " an b" not in prompt
    for i, prompt in enumerate(prompts):
        named = [
            name for name in ("ball", "star", "ring") if any(n in prompt.split() for n in words.SHAPES[name])
        ]
        silhouette = SILHOUETTES[cut.silhouette[i]]
        assert [silhouette] == named if silhouette in words.SHAPES else not named
    with pytest.raises(ValueError, match="no attribute 'shap'; did you mean 'shape'"):
        say("shap", painted, "*", np.random.default_rng(0))


def test_a_whole_pair_is_the_reference_or_its_mirror_image():
    picture = jax.random.uniform(jax.random.key(0), (16, 16, 3))
    mask = jax.random.uniform(jax.random.key(1), (16, 16))
    made = [whole_pair(jax.random.key(i), picture, mask) for i in range(12)]
    straight = [bool((pair.target == picture).all()) for pair in made]
    assert 0 < sum(straight) < 12
    for pair, as_it_is in zip(made, straight, strict=True):
        expected = (picture, mask) if as_it_is else (picture[:, ::-1], mask[:, ::-1])
        seen_and_target = (pair.view, pair.view_mask, pair.target, pair.target_mask)
        for seen, wanted in zip(seen_and_target, 2 * expected, strict=True):
            np.testing.assert_array_equal(seen, wanted)
