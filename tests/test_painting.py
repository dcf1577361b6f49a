"""Pictures that are painted with the material of an appearance, and then made anew."""

import json

import numpy as np
import pytest
from PIL import Image

from attrjax.attributes import painting
from attrjax.attributes.apply import apply_attributes
from attrjax.attributes.customize import customize
from attrjax.attributes.learner import check_config, paint_strength
from attrjax.attributes.material import material_from
from attrjax.attributes.painting import make_with, painted, share_of
from attrjax.checkpoints.attribute import load_attribute, save_attribute, weights_digest
from attrjax.checkpoints.pipeline import load_pipeline
from attrjax.data.pictures import to_floats
from attrjax.data.references import load_cover
from attrjax.diffusion.steps import start_index
from attrjax.generate import Job, Settings, generate, make_pictures
from attrjax.sample import sample
from configs import appearance as appearance_config
from configs import sample as sample_config
from tests.reference_cases import small, write_disc
from tests.test_attribute_files import learned

FAST = Settings(steps=4, guidance=3.0)
ASKED = "a cat of <look>"
ROWS, COLUMNS = np.mgrid[:64, :64]
DISC = (np.hypot(ROWS - 32, COLUMNS - 32) < 20).astype(np.float32)
SURFACE = np.where((COLUMNS // 4 % 2 == 0)[..., None], [1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]).astype(
    np.float32
)


@pytest.fixture(scope="module")
def base(small_base):
    return load_pipeline(small_base), weights_digest(small_base)


@pytest.fixture
def disc(monkeypatch):
    """In pictures of random weights no foreground is found: here it is a disc."""
    monkeypatch.setattr(painting, "foreground", lambda _, picture: DISC)


def look(base, **changes):
    """An appearance, of red and blue stripes."""
    pipeline, digest = base
    recipe = {"paint_strength": 0.5, "draw": appearance_config.get_config().draw.to_dict()}
    one = learned(pipeline, digest, "<look>", "decoder")
    asked = {"attribute": "appearance", "recipe": recipe, "material": material_from(SURFACE, DISC)}
    return one._replace(**asked | changes)


def applied_to(base, one, **more):
    return apply_attributes(base[0], [(one, more.pop("strength", 1.0))], digest=base[1], **more)


def made_with(base, one, prompts=(ASKED,), seeds=(0,), settings=FAST, init_picture=None, **more):
    jobs = [Job(prompt, seed) for prompt in prompts for seed in seeds]
    return np.stack(list(make_with(applied_to(base, one, **more), jobs, settings, init_picture=init_picture)))


def noted(monkeypatch):
    """The forms that are painted from here on."""
    forms, real = [], painting.painted

    def painted(own, seed, form, cover=None):
        forms.append(form)
        return real(own, seed, form, cover)

    monkeypatch.setattr(painting, "painted", painted)
    return forms


def test_the_foreground_shows_the_material_and_the_backdrop_what_was_there(base, disc):
    form = np.full((64, 64, 3), 0.5, np.float32)
    own = applied_to(base, look(base)).paintings["<look>"]
    first, second = (painted(own, seed, form) for seed in (0, 1))
    assert first.shape == form.shape and (first != second).any()
    np.testing.assert_array_equal(first, painted(own, 0, form))
    np.testing.assert_array_equal(first[DISC == 0], form[DISC == 0])
    inside = first[DISC == 1]
    assert (inside[:, 1] < -0.9).all()  # no green in it, as in the material
    assert (inside[:, 0] > 0).mean() > 0.2 and (inside[:, 2] > 0).mean() > 0.2
    half = painted(applied_to(base, look(base), strength=0.5).paintings["<look>"], 0, form)
    np.testing.assert_allclose(half - form, 0.5 * (first - form), atol=1e-6)


@pytest.mark.parametrize("size", [(32, 48), (128, 64)])
def test_pictures_of_any_size_are_painted(base, monkeypatch, size):
    mask = np.zeros(size, np.float32)
    mask[4:-4, 4:-4] = 1
    monkeypatch.setattr(painting, "foreground", lambda _, picture: mask)
    form = np.zeros((*size, 3), np.float32)
    found = painted(applied_to(base, look(base)).paintings["<look>"], 0, form)
    assert found.shape == form.shape and (found[mask == 1][:, 1] < -0.9).all() and not found[mask == 0].any()


def test_a_form_without_foreground_is_not_painted(base, monkeypatch):
    one = look(base)
    monkeypatch.setattr(painting, "foreground", lambda _, picture: np.zeros((64, 64)))
    bare = made_with(base, one)
    np.testing.assert_array_equal(bare, made_with(base, one, paint_strength=0.0))
    monkeypatch.setattr(painting, "foreground", lambda _, picture: DISC)
    assert (made_with(base, one) != bare).any()


def test_a_material_holds_nothing_of_the_backdrop():
    picture = np.random.default_rng(0).uniform(-1, 1, (64, 64, 3)).astype(np.float32)
    other = np.where(DISC[..., None] > 0, picture, -picture)
    np.testing.assert_array_equal(material_from(picture, DISC), material_from(other, DISC))


def test_the_form_is_laid_out_without_the_appearance(base, disc, monkeypatch):
    pipeline, _ = base
    forms = noted(monkeypatch)
    one = look(base)
    made_with(base, one)
    off = applied_to(base, one, strength=0.0)
    without = generate(off.pipeline, [ASKED], [0], FAST, stages=off.stages)[0]
    np.testing.assert_allclose(forms[0], without.astype(np.float32) / 127.5 - 1, atol=1 / 127)
    assert not off.paintings  # at strength 0 there is nothing to paint


def test_a_painted_picture_is_made_anew_by_its_share_of_the_steps(base, disc):
    pipeline, _ = base
    one = look(base)
    applied = applied_to(base, one)
    layouts = np.full((1, 64, 64, 3), 200, np.uint8)
    (found,) = make_with(applied, [Job(ASKED, 0)], FAST, layouts=layouts)
    begun = painted(applied.paintings["<look>"], 0, to_floats(layouts[0]))
    job, half = [Job(ASKED, 0)], FAST._replace(strength=0.5)
    (by_hand,) = make_pictures(applied.pipeline, job, half, init_picture=begun, stages=applied.stages)
    np.testing.assert_array_equal(found, by_hand)


@pytest.mark.parametrize("steps", [1, 2, 3, 49])
def test_one_step_at_least_is_behind_painting(base, steps):
    own = applied_to(base, look(base), paint_strength=0.01).paintings["<look>"]
    assert start_index(share_of(own, steps), steps) == steps - 1
    half = applied_to(base, look(base), paint_strength=0.5).paintings["<look>"]
    assert steps - start_index(share_of(half, steps), steps) == max(1, steps // 2)


def test_a_picture_does_not_depend_on_what_else_is_made(base, disc):
    one = look(base)
    prompts, seeds = ("a dog", ASKED, "a red <look>"), (0, 1)
    all_ = made_with(base, one, prompts, seeds, FAST._replace(batch_size=2))
    for row, prompt in enumerate(prompts):
        for column, seed in enumerate(seeds):
            alone = made_with(base, one, (prompt,), (seed,)).astype(int)[0]
            assert np.abs(all_[2 * row + column] - alone).max() <= 1  # up to rounding
    plain = made_with(base, one, ("a dog",), paint_strength=0.0)
    assert np.abs(all_[0].astype(int) - plain[0]).max() <= 1  # its prompt has no word of it


def test_a_users_picture_is_what_is_painted(base, disc):
    one = look(base)
    mine = np.full((64, 64, 3), -0.5, np.float32)
    settings = FAST._replace(strength=0.25)
    made = made_with(base, one, settings=settings, init_picture=mine)
    plain = made_with(base, one, settings=settings, init_picture=mine, paint_strength=0.0)
    assert (made != plain).any()
    more = made_with(base, one, settings=settings._replace(strength=0.75), init_picture=mine)
    assert (made != more).any()


def test_a_users_mask_says_what_of_it_is_painted(base, disc):
    one, mine = look(base), np.full((64, 64, 3), -0.5, np.float32)
    left = (COLUMNS < 32).astype(np.float32)
    own = applied_to(base, one).paintings["<look>"]
    found = painted(own, 0, mine, left)
    np.testing.assert_array_equal(found[:, 32:], mine[:, 32:])
    assert (found[:, :32, 1] < -0.9).all()


def test_what_is_meant_in_a_picture_is_its_mask_or_its_transparency(tmp_path):
    colours = np.full((40, 80, 3), 90, np.uint8)
    left = np.repeat(255 * (np.arange(80) < 40).astype(np.uint8)[None], 40, 0)
    Image.fromarray(colours).save(tmp_path / "opaque.png")
    Image.fromarray(np.dstack([colours, left])).save(tmp_path / "cut.png")
    Image.fromarray(255 - left).save(tmp_path / "mask.png")
    Image.fromarray(0 * left).save(tmp_path / "empty.png")
    Image.fromarray(left[:, :60]).save(tmp_path / "narrow.png")
    assert load_cover(tmp_path / "opaque.png", "", 20, 40) is None
    cut = load_cover(tmp_path / "cut.png", "", 20, 40)
    assert cut.shape == (20, 40) and (cut[:, :19] == 1).all() and (cut[:, 21:] == 0).all()
    given = load_cover(tmp_path / "cut.png", tmp_path / "mask.png", 20, 40)
    np.testing.assert_allclose(given, 1 - cut, atol=1e-6)
    with pytest.raises(ValueError, match="the mask .*narrow.png has 60x40 pixels"):
        load_cover(tmp_path / "cut.png", tmp_path / "narrow.png", 20, 40)
    with pytest.raises(ValueError, match="empty.png is empty"):
        load_cover(tmp_path / "cut.png", tmp_path / "empty.png", 20, 40)


def test_two_appearances_in_a_prompt_are_not_painted(base, disc):
    pipeline, digest = base
    pair = [look(base), look(base)._replace(word="<other>")]
    jobs = [Job("a <look> of <other>", 0), Job(ASKED, 0)]

    def made(**more):
        both = apply_attributes(pipeline, [(one, 1.0) for one in pair], digest=digest, **more)
        return list(make_with(both, jobs, FAST))

    as_said, never = made(), made(paint_strength=0.0)
    np.testing.assert_array_equal(as_said[0], never[0])
    assert (as_said[1] != never[1]).any()


def test_the_file_keeps_what_is_painted_with(base, tmp_path):
    one = look(base)
    read = load_attribute(save_attribute(tmp_path, one))
    np.testing.assert_array_equal(read.material, one.material)
    assert read.material.dtype == np.uint8 and read.recipe["paint_strength"] == 0.5
    assert load_attribute(save_attribute(tmp_path, one._replace(material=None))).material is None


def test_what_cannot_be_painted_is_refused(base):
    with pytest.raises(ValueError, match="does not hold its reference's material"):
        applied_to(base, look(base, material=None), paint_strength=0.5)
    with pytest.raises(ValueError, match="paint_strength=2 must be from 0 to 1"):
        applied_to(base, look(base), paint_strength=2)
    bare = look(base, recipe={"draw": {}}, material=None)  # a file of before there was painting
    assert not applied_to(base, bare).paintings


def test_what_is_learned_is_measured_shown_and_sampled_as_painted(small_base, disc, tmp_path, monkeypatch):
    config = small(appearance_config.get_config(), small_base, write_disc(tmp_path), paint_strength=0.5)
    config.crossed = 0.0
    forms = noted(monkeypatch)
    customize(config, str(tmp_path / "run"))
    measured = len(forms)
    # Every probe paints the pictures of the untuned base, which are made once.
    assert measured and len({form.tobytes() for form in forms}) < measured
    one = load_attribute(tmp_path / "run")
    assert one.recipe["paint_strength"] == 0.5 and one.material.shape == (64, 64, 4)
    assert "its material on a form" in (tmp_path / "run" / "index.html").read_text()

    asked = sample_config.get_config()
    asked.update({"base": str(small_base), "steps": 4, "seeds": (0,), "cache_dir": "", "guidance": 3.0})
    asked.update({"prompts": ("a vase", "a <appearance>"), "attributes": (str(tmp_path / "run"),)})
    made = {}
    for strength in (-1.0, 0.5, 0.0):
        asked.paint_strength = strength
        sample(asked, str(tmp_path / str(strength)))
        made[strength] = [
            path.read_bytes() for path in sorted((tmp_path / str(strength) / "samples").iterdir())
        ]
    assert made[-1.0] == made[0.5]
    assert sum(one != other for one, other in zip(made[-1.0], made[0.0], strict=True)) == 1
    chosen = json.loads((tmp_path / "-1.0" / "run.json").read_text())["chosen"]
    assert chosen["painted"] == ["a <appearance>"] and chosen["evaluations"] == 4 + 2

    asked.update({"init_image": str(tmp_path / "disc.png"), "init_mask": str(tmp_path / "disc-mask.png")})
    with pytest.raises(ValueError, match="init_mask says what of init_image is painted, and nothing is"):
        sample(asked, str(tmp_path / "unpainted"))
    asked.paint_strength = -1.0
    sample(asked, str(tmp_path / "mine"))
    assert json.loads((tmp_path / "mine" / "run.json").read_text())["chosen"]["evaluations"] == 3


def test_what_is_painted_suits_the_base_and_the_attribute(small_base, tmp_path):
    config = small(appearance_config.get_config(), small_base, write_disc(tmp_path))
    assert paint_strength(config) == 0  # the segmenter knows pictures like the bundled base's
    config.base = ""
    assert paint_strength(config) > 0 and not paint_strength(appearance_config.get_config().other)
    config.paint_strength = 1.5
    with pytest.raises(ValueError, match="paint_strength=1.5 must be from 0 to 1, or -1"):
        check_config(config)
    config.update({"attribute": "shape", "paint_strength": 0.4})
    with pytest.raises(ValueError, match="a shape has no material to paint with"):
        check_config(config)
