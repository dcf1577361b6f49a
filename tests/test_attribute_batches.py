"""What an attribute is learned from: pairs, the base's own pictures, and the programs that draw them."""

import re

import jax
import numpy as np
import pytest

from attrjax.attributes import batches as batching
from attrjax.attributes.base import load_base
from attrjax.attributes.batches import batch_like, make_tools, prior
from attrjax.attributes.learner import DATA, make_learner
from attrjax.attributes.pair_prompts import prior_prompts
from attrjax.data.prompts import tokenize
from attrjax.parallel.mesh import batch_shapes, make_mesh, place_batch
from configs import appearance, shape
from tests.reference_cases import small, write_disc


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return write_disc(tmp_path_factory.mktemp("reference"))


def test_pairs_are_drawn_as_the_config_says(small_base, reference):
    config = small(shape.get_config(), small_base, reference)
    config.batch_size = 4
    base = load_base(config)
    one = make_learner(config, base)

    def masks():
        tools = make_tools(config, base.pipeline)
        batch, _ = tools.draw(jax.random.key(0), one.reference.picture, one.reference.mask)
        return np.asarray(batch["mask"])

    config.draw.zoom, config.draw.shift = (1.0, 1.0), 0.0
    still = masks()
    np.testing.assert_allclose(still, still[:1].repeat(4, 0), atol=1e-6)
    config.draw.zoom, config.draw.shift = (0.7, 0.9), 0.2
    moved = masks()
    assert np.abs(moved - moved[:1]).max((1, 2))[1:].min() > 0.1


def test_programs_hold_no_weights(small_base, reference):
    """At SD 1.5's size each would be larger by a gigabyte, in memory and in the cache on disk."""
    config = small(shape.get_config(), small_base, reference)
    base = load_base(config)
    seen, tools = make_learner(config, base).reference, make_tools(config, base.pipeline)
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(base.pipeline.vae.params))
    many = jax.random.key_data(jax.random.key(0))[None], seen.picture[None], seen.mask[None], None
    for tool, *arguments in (
        (tools.draw, jax.random.key(0), seen.picture, seen.mask),
        (tools.draw_many, *many),
        (tools.encode, seen.picture[None], jax.random.key(0)),
    ):
        text = tool.func.lower(*tool.args, *arguments).as_text()
        assert max((len(digits) // 2 for digits in re.findall('"0x([0-9A-F]+)"', text)), default=0) < largest


@pytest.mark.parametrize("attribute", ["shape", "appearance"])
def test_pairs_are_crossed_with_the_base_s_own_pictures(attribute):
    config = {"shape": shape, "appearance": appearance}[attribute].get_config()
    config.prior.update({"count": 5, "prompts": ("a {} made of ice", "a red {}"), "objects": ("cup", "hat")})
    prompts, of_pairs = prior_prompts(config)
    assert prompts[:4] == ["a cup made of ice", "a red hat", "a hat made of ice", "a red cup"]
    assert prompts[4] == prompts[0] and len(prompts) == len(of_pairs) == 5
    assert of_pairs[0] == {"shape": "a {} made of ice", "appearance": "a cup made of {}"}[attribute]


def test_the_last_pairs_are_crossed_with_pictures_in_which_something_is_found(
    small_base, reference, monkeypatch
):
    config = small(shape.get_config(), small_base, reference, batch_size=4, crossed=0.5)
    config.prior.update({"count": 3, "prompts": ("a {}", "an {}", "{}"), "objects": ("at",)})
    base = load_base(config)
    one, tools = make_learner(config, base), make_tools(config, base.pipeline)
    size, found, given, said = one.reference.mask.shape, iter([0.0, 1.0, 0.5]), [], []
    monkeypatch.setattr(batching, "foreground", lambda judges, picture: np.full(size, next(found)))
    own = prior(config, base, tools, jax.random.key(0))
    assert own is not None and own["crossed"] == ["an {}", "{}"]
    assert own["prompts"] == ["a at", "an at", "at"] and own["known"].shape == (2, *size, 3)
    # Where all of a picture is foreground, its surface is the picture itself.
    assert own["known"].min() >= 0 and own["known"].max() <= 1 and own["known"].std() > 0

    def draw(key, picture, mask, crossed):
        given.append(np.asarray(crossed))
        return tools.draw(key, picture, mask, crossed)

    def tokenized(tokenizer, prompts, length):
        said.extend(prompts)
        return tokenize(tokenizer, prompts, length)

    monkeypatch.setattr(batching, "tokenize", tokenized)
    batch = batching.batches(config, one, jax.random.key(1), tools._replace(draw=draw), own)(0)
    assert len(batch["ids"]) == len(said) == 5 and len(batch["states"]) == 4
    assert given[0].shape == (2, *size, 3)
    for surface, prompt in zip(given[0], said[2:4], strict=True):
        which = [np.array_equal(surface, known) for known in own["known"]].index(True)
        assert own["crossed"][which].replace("{}", "<shape>") in prompt


@pytest.mark.parametrize("case", ["alike", "in parts", "one of them is crossed with nothing"])
def test_a_stack_s_rows_are_each_reference_s_own_batch(case, small_base, reference, monkeypatch):
    config = small(shape.get_config(), small_base, reference, batch_size=4, crossed=0.5)
    base, mesh = load_base(config), make_mesh(devices=jax.devices()[:1])
    one = make_learner(config, base)
    if case == "in parts":
        monkeypatch.setattr(batching, "MOST_PIXELS", 2 * 4 * one.reference.mask.size)
    tools = make_tools(config, base.pipeline, mesh)
    own = prior(config, base, tools, jax.random.key(0))
    assert own is not None
    surfaces = np.random.default_rng(0).random((2, *one.reference.picture.shape), np.float32)
    own |= {"known": surfaces, "crossed": ["a {}", "a red {}"]}
    none = own | {"known": [], "crossed": []}
    roots = [jax.random.key(seed) for seed in (1, 2, 3)]
    owns = [own, none if case.startswith("one") else own, own]
    alone = [batching.batches(config, one, root, tools, of)(7) for root, of in zip(roots, owns, strict=True)]
    sources = [batching.source_of(config, one, root, of) for root, of in zip(roots, owns, strict=True)]
    constants = [{"steps": np.asarray(seed)} for seed in (1, 2, 3)]
    batch = batching.stacked_batches(sources, constants, tools, mesh)(7)
    assert batch["steps"].tolist() == [1, 2, 3]
    for row, expected in enumerate(alone):
        found = jax.tree.map(lambda leaf, row=row: leaf[row], batch["pairs"])
        assert found.keys() == expected.keys()
        for name, leaf in expected.items():
            np.testing.assert_allclose(found[name], leaf, atol=1e-4, err_msg=name)
    assert np.abs(alone[0]["latents"] - alone[2]["latents"]).max() > 0.1


def test_a_step_s_keys_are_folded_from_its_number(small_base, reference):
    config = small(shape.get_config(), small_base, reference, batch_size=2)
    one, root = make_learner(config, load_base(config)), jax.random.key(5)
    source = batching.source_of(config, one, root, None)
    for step in (0, 255, 256, 700, 3):
        key = jax.random.fold_in(jax.random.fold_in(root, DATA), step)
        asked = source.ask(step)
        np.testing.assert_array_equal(asked.key, jax.random.key_data(key))
        of_host = np.asarray(jax.random.key_data(jax.random.fold_in(key, 2)))
        assert asked.generator.random() == np.random.default_rng(of_host).random()


def test_the_next_step_is_begun_before_it_is_asked_for():
    begun = []
    give = batching.one_ahead(lambda step: begun.append(step) or step, end=8)
    assert [give(step) for step in (4, 5, 6)] == [4, 5, 6] and begun == [4, 5, 6, 7]
    assert give(2) == 2 and begun == [4, 5, 6, 7, 2, 3]
    assert give(7) == 7 and give(9) == 9 and begun[6:] == [7, 9]  # none behind the last


def test_what_draws_pairs_is_compiled_before_the_first_are_drawn(small_base, reference, caplog):
    config = small(shape.get_config(), small_base, reference, batch_size=2)
    base, root = load_base(config), jax.random.key(0)
    one, tools = make_learner(config, base), make_tools(config, base.pipeline)
    caplog.set_level("WARNING")

    def compiled(call):
        caplog.clear()
        with jax.log_compiles():
            call()
        return "Compiling jit(draw)" in caplog.text

    assert compiled(lambda: batching.compile_draw(config, one, root, tools, None))
    assert not compiled(lambda: batching.batches(config, one, root, tools, None)(0))


@pytest.mark.parametrize("changes", [{}, {"pairs": "whole", "prior.count": 0}])
def test_the_step_is_compiled_for_the_batches_that_come(changes, small_base, reference):
    """Otherwise it would be compiled again when the first of them is there."""
    config = small(shape.get_config(), small_base, reference, batch_size=4)
    config.update_from_flattened_dict(changes)
    base = load_base(config)
    one, root, mesh = (
        make_learner(config, base),
        jax.random.key(0),
        make_mesh(data=1, devices=jax.devices()[:1]),
    )
    tools = make_tools(config, base.pipeline)
    batch = batching.batches(config, one, root, tools, prior(config, base, tools, root))(0)
    placed, shapes = place_batch(mesh, batch), batch_shapes(mesh, batch_like(config, one, tools))
    told = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), placed)
    assert told == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), shapes)
