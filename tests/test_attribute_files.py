"""Learned attributes as files, and bases that know them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from flax.traverse_util import flatten_dict

from attrjax.attributes.apply import apply_attributes
from attrjax.attributes.conditioning import new_word
from attrjax.attributes.export import FORMATS, export
from attrjax.attributes.learner import paint_strength
from attrjax.attributes.partition import rules_of, split
from attrjax.checkpoints.attribute import (
    Attribute,
    as_stored,
    load_attribute,
    placeholder_error,
    save_attribute,
    weights_digest,
)
from attrjax.checkpoints.pipeline import build_network, load_pipeline, save_pipeline
from attrjax.data.prompts import text_encoder
from attrjax.diffusion.samplers import SAMPLERS
from attrjax.generate import Job, Settings, choose_sampler, decode, generate, latent_shape, make_pictures
from attrjax.models.adapters import merge
from attrjax.runs import plain
from configs import appearance, shape
from configs import export as export_config
from tests.attribute_cases import learned
from tests.published import UNET

FAST = Settings(steps=2, guidance=3.0)


@pytest.fixture(scope="module")
def base(small_base):
    return load_pipeline(small_base), weights_digest(small_base)


def picture(pipeline, prompt, adapters=None):
    return generate(pipeline, [prompt], [3], FAST, adapters=adapters)[0].astype(int)


@pytest.mark.parametrize("rule", ["train", "lora:2", "offset:1"])
def test_a_saved_attribute_makes_the_picture_that_it_made_before(base, tmp_path, rule):
    pipeline, digest = base
    attribute = learned(pipeline, digest, "<it>", "encoder", rule)
    read = load_attribute(save_attribute(tmp_path, attribute).parent)
    assert read.recipe == {"steps": 3} and read.word == "<it>" and read.base == digest
    stored = as_stored(attribute)
    jax.tree.map(np.testing.assert_array_equal, stored._replace(recipe=None), read._replace(recipe=None))
    assert (stored.vectors != attribute.vectors).any()  # which has more bits
    pictures = []
    for one in (attribute, read):
        tuned, adapters, stages, *_ = apply_attributes(pipeline, [(one, 1.0)], digest=digest)
        pictures.append(picture(tuned, "a red <it>", adapters))
    assert np.abs(pictures[0] - pictures[1]).mean() < 2  # what float16 loses
    assert np.abs(pictures[0] - picture(pipeline, "a red cat")).mean() > 4


def test_at_strength_zero_weights_are_the_bases_and_the_word_is_what_it_began_as(base):
    pipeline, digest = base
    attribute = learned(pipeline, digest, "<it>", "decoder")
    tuned, *_ = apply_attributes(pipeline, [(attribute, 0.0)], digest=digest)
    jax.tree.map(np.testing.assert_array_equal, tuned.unet.params, pipeline.unet.params)
    table = tuned.text_encoder.params["text_model"]["embeddings"]["token_embedding"]["embedding"]
    for token in ("<it>", "<it>_1"):
        row = table[tuned.tokenizer.convert_tokens_to_ids(token)]
        np.testing.assert_allclose(row, attribute.origin, atol=1e-6)


def test_attributes_of_two_parts_do_not_touch_each_other(base):
    pipeline, digest = base
    shape = learned(pipeline, digest, "<s>", "encoder", seed=1)
    look = learned(pipeline, digest, "<a>", "decoder", seed=2)
    both, *_ = apply_attributes(pipeline, [(shape, 1.0), (look, 1.0)], digest=digest)
    after, before = (flatten_dict(one.unet.params, sep="/") for one in (both, pipeline))
    for path, leaf in after.items():
        expected = shape.weights.get(path, look.weights.get(path, before[path]))
        np.testing.assert_allclose(leaf, expected, atol=1e-6)


@pytest.mark.parametrize("rule", ["train", "lora:2"])
def test_weights_act_at_their_timesteps_alone(base, rule):
    """Against a sampler whose network is chosen by hand at every step."""
    pipeline, digest = base
    early = learned(pipeline, digest, "<s>", "full", rule, seed=1)
    late = learned(pipeline, digest, "<a>", "decoder", rule, seed=2)
    pairs = [(early, 1.0), (late, 0.5)]
    settings = Settings(steps=4, guidance=1.0, sampler="ddim")
    applied = apply_attributes(pipeline, pairs, digest=digest, timesteps=[(400, 1000), (0, 700)])
    assert [stage.low for stage in applied.stages] == [700, 400, 0]

    def weights(pairs):
        one = apply_attributes(pipeline, pairs, digest=digest)
        collection = one.adapters.get("unet", {})
        return merge(one.pipeline.unet.params, collection) if collection else one.pipeline.unet.params

    by_hand = [weights(pairs[:1]), weights(pairs), weights(pairs[1:])]
    noise = np.random.default_rng(0).standard_normal((1, *latent_shape(pipeline, settings, []))).astype("f4")
    context = text_encoder(applied.pipeline, None)(["a <s> made of <a>"]).context

    def denoise(x, t, i):
        made = [pipeline.unet.module.apply({"params": params}, x, t, context) for params in by_hand]
        return jnp.where(t >= 700, made[0], jnp.where(t >= 400, made[1], made[2]))

    _, schedule = choose_sampler(pipeline, settings)
    latents = SAMPLERS["ddim"](denoise, noise, schedule, steps=4)
    job = Job("a <s> made of <a>", 0, noise[0])
    (made,) = make_pictures(
        applied.pipeline, [job], settings, adapters=applied.adapters, stages=applied.stages
    )
    expected = decode(applied.pipeline, latents[0], job)
    assert np.abs(made.astype(int) - expected.astype(int)).max() <= 1
    (always,) = make_pictures(
        applied.pipeline._replace(unet=pipeline.unet._replace(params=by_hand[1])), [job], settings
    )
    assert np.abs(always.astype(int) - expected.astype(int)).mean() > 1


def test_what_only_has_a_word_needs_no_stages(base):
    pipeline, digest = base
    word = learned(pipeline, digest, "<it>", "mid")._replace(weights={}, adapter={})
    applied = apply_attributes(pipeline, [(word, 1.0)], digest=digest, timesteps=[(300, 1000)])
    assert applied.stages == [] and applied.adapters == {}


@pytest.mark.parametrize("timesteps", [(500, 500), (-1, 500), (0, 1001)])
def test_timesteps_that_are_no_range_are_refused(base, timesteps):
    pipeline, digest = base
    attribute = learned(pipeline, digest, "<it>", "mid")
    with pytest.raises(ValueError, match="0 <= low < high <= 1000"):
        apply_attributes(pipeline, [(attribute, 1.0)], digest=digest, timesteps=[timesteps])


def test_guidance_acts_as_all_attributes_allow(base):
    pipeline, digest = base
    shape, look, early = (
        learned(pipeline, digest, word, "mid")._replace(recipe=recipe)
        for word, recipe in (
            ("<s>", {"guidance_interval": [200, 900], "guidance_rescale": 0.7}),
            ("<a>", {"guidance_interval": [500, 1000], "guidance_rescale": 0.4}),
            ("<b>", {"guidance_interval": [0, 150], "guidance_rescale": 0.1}),
        )
    )
    old = learned(pipeline, digest, "<o>", "mid")  # its file says nothing of it

    def guidance(*pairs):
        return tuple(apply_attributes(pipeline, pairs, digest=digest).guidance.values())

    assert guidance((old, 1.0)) == ((0, 1000), 0) and guidance((shape, 1.0)) == ((200, 900), 0.7)
    assert guidance((shape, 1.0), (old, 1.0)) == ((200, 900), 0)
    assert guidance((shape, 1.0), (look, 0.5)) == ((500, 900), 0.4)
    assert guidance((shape, 1.0), (early, 0.0)) == ((200, 900), 0.7)
    with pytest.raises(ValueError, match="<s> and <b> are to be guided at no timestep together"):
        guidance((shape, 1.0), (early, 1.0))


def test_another_base_is_refused_unless_forced(base):
    pipeline, digest = base
    attribute = learned(pipeline, "0" * 64, "<it>", "mid")
    with pytest.raises(ValueError, match="learned on a base with the digest 000000000000.*config.force"):
        apply_attributes(pipeline, [(attribute, 1.0)], digest=digest)
    forced, *_ = apply_attributes(pipeline, [(attribute, 1.0)], digest=digest, force=True)
    assert "<it>" in forced.tokenizer.get_vocab()


def test_two_attributes_need_two_words_and_shapes_that_fit(base):
    pipeline, digest = base
    attribute = learned(pipeline, digest, "<it>", "mid")
    with pytest.raises(ValueError, match="same word"):
        apply_attributes(pipeline, [(attribute, 1.0), (attribute, 0.5)], digest=digest)
    name = next(iter(attribute.weights))
    odd = attribute._replace(weights={name: np.zeros((1, 2, 3))})
    with pytest.raises(ValueError, match="not in that shape"):
        apply_attributes(pipeline, [(odd, 1.0)], digest=digest)


def test_what_is_no_attribute_is_refused(base, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds none of attribute.safetensors"):
        load_attribute(tmp_path)
    pipeline, digest = base
    file = save_attribute(tmp_path, learned(pipeline, digest, "<it>", "mid"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"attribute\.safetensors"):
        load_attribute(tmp_path)
    other = next(pipeline.path.glob("unet/*.safetensors"))
    with pytest.raises(ValueError, match="is no learned attribute"):
        load_attribute(other)


@pytest.mark.parametrize("module", [shape, appearance])
@pytest.mark.parametrize("family", ["sd15", "sd21"])
def test_what_low_rank_learning_leaves_of_a_published_base_is_at_most_5_mb(tmp_path, module, family):
    config = module.get_config(f"base={family}")
    _, shapes = build_network("unet", UNET[family])
    rules = rules_of(config.partition, config.rule)
    adapter = jax.eval_shape(lambda key: split(shapes, rules, key).adapter, jax.random.key(0))
    words = np.zeros((config.num_tokens, UNET[family]["cross_attention_dim"]), np.float32)
    one = Attribute(
        attribute=config.attribute,
        word=config.placeholder,
        initial=config.initial,
        base="0" * 64,
        vectors=words,
        origin=words[0],
        other=words,
        weights={},
        adapter={path: np.zeros(leaf.shape) for path, leaf in flatten_dict(adapter, sep="/").items()},
        recipe=plain(config),
        material=np.zeros((config.size, config.size, 4), np.uint8) if paint_strength(config) else None,
    )
    assert 500_000 < save_attribute(tmp_path, one).stat().st_size <= 5_000_000


def test_the_digest_is_of_the_weights_and_not_of_their_files(small_base, base, tmp_path):
    pipeline, digest = base
    save_pipeline(tmp_path / "sharded", pipeline, max_shard_size=200_000)
    assert len(list((tmp_path / "sharded/unet").glob("*.safetensors"))) > 1
    assert weights_digest(tmp_path / "sharded") == digest
    changed = jax.tree.map(lambda leaf: leaf, pipeline.unet.params)
    changed["conv_in"]["bias"] = changed["conv_in"]["bias"] + 1e-3
    save_pipeline(tmp_path / "changed", pipeline._replace(unet=pipeline.unet._replace(params=changed)))
    assert weights_digest(tmp_path / "changed") != digest


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_says_what_it_loses_and_what_to_learn_it_with(small_base, base, tmp_path, caplog, form):
    logging.use_absl_handler()

    def said(recipe):
        one = learned(*base, "<it>", "encoder_attention", "lora:1")._replace(recipe=recipe)
        asked = export_config.get_config()
        asked.update({"base": str(small_base), "attributes": (str(save_attribute(tmp_path / "one", one)),)})
        asked.format = form
        caplog.clear()
        with caplog.at_level("WARNING"):
            export(asked, str(tmp_path / f"out{len(recipe)}"))
        return "\n".join(record.getMessage() for record in caplog.records if "<it>" in record.getMessage())

    told = said(
        {
            "sampling_timesteps": [0, 750],
            "guidance_interval": [500, 1000],
            "guidance_rescale": 0.7,
            "paint_strength": 0.4,
        }
    )
    tuned = "is left out" if form == "textual_inversion" else "--config.sampling_timesteps='(0,1000)'"
    for part in (tuned, "guidance_interval='(0,1000)'", "guidance_rescale=0", "paint_strength=0"):
        assert part in told
    assert len(told.splitlines()) == 1
    told = said({"sampling_timesteps": [0, 1000], "guidance_rescale": 0.0})
    assert ("what was tuned" in told) == (form == "textual_inversion") and "guidance" not in told


@pytest.mark.parametrize("word", ["", "two words", " <it>", "at", "At"])
def test_ordinary_words_and_no_words_cannot_be_placeholders(base, word):
    assert placeholder_error("<it>", base[0].tokenizer) is None
    assert placeholder_error(word, base[0].tokenizer)


def test_a_placeholder_of_letters_alone_is_warned_of_once(base, caplog):
    """Words of several tokens are such as sks, which people take, and such as elephant, which is one."""
    logging.use_absl_handler()
    with caplog.at_level("WARNING"):
        for word in ("elephant", "<elephant>", "elephant", "t-shirt1"):
            assert len(new_word(base[0], word, "at", 2, "placeholder").ids) == 2
    (line,) = [record.getMessage() for record in caplog.records if "placeholder" in record.getMessage()]
    assert line.startswith("placeholder 'elephant' is letters alone") and "'<elephant>'" in line
