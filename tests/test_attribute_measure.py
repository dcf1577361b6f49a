"""What a step is chosen by: similarity to the reference in one attribute and not in the other."""

import jax
import numpy as np
import pytest

from attrjax.attributes.measure import Probe, best_of, encoded, judged, probe
from attrjax.attrworld.bundled import BASE
from attrjax.attrworld.evaluate import seen
from attrjax.attrworld.judges import load_judges, segment
from attrjax.attrworld.scenes import draw_scenes
from attrjax.checkpoints.pipeline import load_component
from attrjax.data.pictures import to_floats
from attrjax.data.references import Reference


@pytest.fixture(scope="module")
def judges():
    return load_judges()


@pytest.fixture(scope="module")
def pictures():
    """A tiger teapot, another teapot, another thing of tiger, and neither."""
    names = [("teapot", "tiger"), ("teapot", "galaxy"), ("anchor", "tiger"), ("anchor", "galaxy")]
    shapes, materials = zip(*names, strict=True)
    drawn = draw_scenes(np.random.default_rng(2), 4, shape_names=shapes, material_names=materials)
    return seen(drawn)


@pytest.fixture(scope="module")
def reference(pictures, judges):
    picture = to_floats(pictures[:1])
    return Reference(picture[0], segment(judges, picture)[0], "segmenter")


def test_the_judges_find_each_attribute_where_it_is(judges, reference, pictures):
    found = judged(judges, reference)(pictures)
    np.testing.assert_allclose([found["shape"][0], found["appearance"][0]], 1, atol=1e-3)
    assert found["shape"][1] > max(found["shape"][2:]) + 0.3
    assert found["appearance"][2] > max(found["appearance"][[1, 3]]) + 0.3


def test_without_judges_the_reference_is_like_itself_and_colours_are_appearance(judges, reference, pictures):
    encoder = load_component(BASE / "image_encoder", "image_encoder")
    similarity = encoded(encoder, reference, lambda picture: segment(judges, picture[None])[0])
    found = similarity(pictures)
    np.testing.assert_allclose([found["shape"][0], found["appearance"][0]], 1, atol=1e-3)
    assert found["appearance"][2] > found["appearance"][1]
    assert all(value < 0.999 for name in found for value in found[name][1:])


ROWS, COLUMNS = np.mgrid[:64, :64]
BACKDROP, RED, GREEN = (210, 215, 220), (200, 40, 30), (20, 140, 60)


def corner(top, left, side):
    """The outline of an L."""
    inside = (ROWS >= top) & (ROWS < top + side) & (COLUMNS >= left) & (COLUMNS < left + side)
    return inside & ((ROWS >= top + 2 * side // 3) | (COLUMNS < left + side // 3))


def disc(row, column, radius):
    return (ROWS - row) ** 2 + (COLUMNS - column) ** 2 < radius**2


def painted(outline, colour, backdrop=BACKDROP):
    return np.where(outline[..., None], colour, backdrop).astype(np.uint8)


def drawn_similarity(segment=None):
    """``encoded`` of a red L, with a segmenter that knows how the pictures here are drawn."""
    outline = corner(14, 14, 36)
    reference = Reference(to_floats(painted(outline, RED)), outline.astype(np.float32), "given")

    def drawn(picture):
        return (np.abs(picture - picture[0, 0]).max(-1) > 0.1).astype(np.float32)

    return encoded(load_component(BASE / "image_encoder", "image_encoder"), reference, segment or drawn)


def test_an_outline_stays_itself_where_it_is_moved_scaled_and_recoloured():
    same = [painted(corner(6, 24, 27), RED), painted(corner(14, 14, 36), GREEN)]
    elsewhere = [painted(corner(14, 14, 36), RED, backdrop) for backdrop in ((90, 160, 210), (20, 20, 20))]
    others = [painted(disc(32, 32, 16), RED), painted(corner(14, 14, 36)[:, ::-1][::-1], RED)]
    found = drawn_similarity()(np.stack([*same, *elsewhere, *others]))["shape"]
    assert found[:4].min() > found[4:].max() + 0.1


def test_where_no_foreground_is_found_a_picture_is_taken_as_a_whole():
    pictures = np.stack([painted(disc(32, 32, 16), RED), painted(corner(14, 14, 36), GREEN)])
    none, speck, all_ = np.zeros((64, 64)), np.eye(64) * (ROWS < 20), np.ones((64, 64))
    found = [drawn_similarity(lambda _, mask=mask: mask)(pictures) for mask in (none, speck, all_)]
    for attribute in ("shape", "appearance"):
        np.testing.assert_array_equal(found[0][attribute], found[2][attribute])
        np.testing.assert_array_equal(found[1][attribute], found[2][attribute])
    assert min(found[0]["appearance"]) > 0.1


def test_gain_less_leakage_is_the_score_and_less_leakage_than_none_is_no_merit():
    before = {"shape": np.array([0.1, 0.3]), "appearance": np.array([0.2, 0.2])}
    after = {"shape": np.array([0.5, 0.7]), "appearance": np.array([0.3, 0.3])}
    shape = probe("shape", 3, before, after)
    assert (shape.gain, shape.leakage) == (pytest.approx(0.4), pytest.approx(0.1))
    assert shape.score == pytest.approx(0.3) and shape.target == pytest.approx(0.6)
    appearance = probe("appearance", 3, before, after)
    assert (appearance.gain, appearance.leakage) == (pytest.approx(0.1), pytest.approx(0.4))
    less = jax.tree.map(np.negative, {"shape": -after["shape"], "appearance": after["appearance"]})
    assert probe("shape", 3, before, less).score == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ((0.5, 0.669, 0.668, 0.666), 4),  # alike, so the last
        ((0.669, 0.66, 0.64), 2),
        ((0.5, 0.9, 0.8), 2),
        ((0.669, 0.668, 0.9, 0.7), 3),  # what is like a step that is not the best does not count
        ((-0.1, -0.1001, -0.2), 2),
        ((0.0, -0.1), 1),
    ],
)
def test_of_steps_that_are_alike_the_last_is_kept(scores, kept):
    probes = [Probe(step, score, 0.0, 0.0, 0.0) for step, score in enumerate(scores, 1)]
    assert best_of(probes).step == kept
    # As a run finds it, which sees one after the other; and one that goes on, which sees them again.
    seen = [step for step in range(1, len(probes) + 1) if best_of(probes[:step]).step == step]
    assert seen[-1] == kept
    assert [step for step in range(kept, len(probes) + 1) if best_of(probes).step == step] == [kept]
