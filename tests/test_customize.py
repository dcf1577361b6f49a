"""One attribute of a picture, from its file to a new picture, on a base of a few thousand weights."""

import html
import json
import shlex
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import config_flags
from PIL import Image

from attrjax.attributes import batches as batching
from attrjax.attributes import customize as customization
from attrjax.attributes import learner
from attrjax.attributes.apply import apply_attributes
from attrjax.attributes.base import load_base
from attrjax.attributes.batches import make_tools
from attrjax.attributes.conditioning import context_of
from attrjax.attributes.customize import customize
from attrjax.attributes.export import export
from attrjax.attributes.fusion import places_of
from attrjax.attributes.learner import begun_of, first_params, frozen_of, loss_of, make_learner
from attrjax.attributes.list_report import save_card, write_list_report
from attrjax.attributes.measure import Probe, best_of
from attrjax.attributes.probing import pictures_before, read_probes
from attrjax.attributes.report import write_report
from attrjax.checkpoints.attribute import load_attribute, save_attribute
from attrjax.checkpoints.pipeline import REQUIRED, load_pipeline, save_pipeline
from attrjax.data.prompts import text_encoder, tokenize
from attrjax.data.references import Reference
from attrjax.report import page
from attrjax.runs import write_record
from attrjax.sample import sample
from configs import appearance, faithful, shape
from configs import export as export_config
from configs import sample as sample_config
from tests.reference_cases import small, write_disc


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return write_disc(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def learned(small_base, reference, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "shape"
    customize(recipe_of(small_base, reference), str(workdir))
    return workdir


def recipe_of(small_base, reference):
    changes = {"partition": "encoder", "crossed": 0.5, "keep_checkpoints": True}
    return small(shape.get_config(), small_base, reference, **changes)


def test_a_run_leaves_a_file_a_page_and_what_was_measured(learned):
    attribute = load_attribute(learned)
    assert (attribute.attribute, attribute.word) == ("shape", "<shape>")
    assert attribute.vectors.shape[0] == 2
    probes = read_probes(learned)
    assert [one.step for one in probes] == [1, 2]
    results = json.loads((learned / "run.json").read_text())["results"]
    assert results["chosen"]["step"] == best_of(probes).step
    text = (learned / "index.html").read_text()
    assert "The shape of one picture" in text and "http" not in text.replace("http-equiv", "")


def test_the_encoder_is_tuned_and_nothing_else(learned, small_base):
    attribute = load_attribute(learned)
    before = flatten_dict(load_pipeline(small_base).unet.params, sep="/")
    assert all(path.startswith("down_blocks_") for path in attribute.weights)
    assert attribute.weights.keys() == {path for path in before if path.startswith("down_blocks_")}
    moved = [np.abs(leaf - before[path]).max() for path, leaf in attribute.weights.items()]
    assert np.median(moved) > 1e-4


def test_a_run_that_goes_on_ends_with_the_same_bytes(learned, small_base, reference, tmp_path):
    # As after a kill between the last measurement and its checkpoint, which cut its line off; and once from
    # the beginning.
    config = recipe_of(small_base, reference)
    again = tmp_path / "again"
    shutil.copytree(learned, again)
    shutil.rmtree(again / "checkpoints/2")
    (again / "index.html").unlink()
    if best_of(read_probes(again)).step == 2:
        (again / "attribute.safetensors").unlink()
    probes = (again / "probes.jsonl").read_text()
    (again / "probes.jsonl").write_text(probes[:-20])
    customize(config, str(again), resume=True)
    assert (again / "probes.jsonl").read_text() == probes
    name = "attribute.safetensors"
    assert (again / name).read_bytes() == (learned / name).read_bytes()

    again = tmp_path / "anew"
    customize(config, str(again))
    assert (again / "probes.jsonl").read_text() == (learned / "probes.jsonl").read_text()
    assert (again / name).read_bytes() == (learned / name).read_bytes()


def test_a_run_that_has_ended_has_nothing_left_to_do(learned, small_base, reference, tmp_path, monkeypatch):
    """Its checkpoints are the most of what it wrote, and are dropped unless they are asked for."""
    config = recipe_of(small_base, reference)
    config.keep_checkpoints, config.prior.count, config.crossed = False, 0, 0.0
    customize(config, str(tmp_path))
    assert (learned / "checkpoints").exists() and not (tmp_path / "checkpoints").exists()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    config.steps = 4
    with pytest.raises(
        ValueError, match="has ended, of 2 steps, and its checkpoints are dropped: take another"
    ):
        customize(config, str(tmp_path), resume=True)
    config.update({"steps": 2, "seed": 1})
    with pytest.raises(ValueError, match="had another config: seed was 0, is 1"):
        customize(config, str(tmp_path), resume=True)
    config.seed = 0
    monkeypatch.setattr(customization, "load_base", None)
    shutil.copytree(learned / "checkpoints", tmp_path / "checkpoints")  # killed before they were dropped
    customize(config, str(tmp_path), resume=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_that_kept_its_checkpoints_can_be_made_longer(learned, small_base, reference, tmp_path):
    shutil.copytree(learned, tmp_path / "run")
    config = recipe_of(small_base, reference)
    config.keep_checkpoints = False
    customize(config, str(tmp_path / "run"), resume=True)
    assert (tmp_path / "run/checkpoints").exists()  # kept on purpose, and still there
    config.steps = 3
    customize(config, str(tmp_path / "run"), resume=True)
    assert not (tmp_path / "run/checkpoints").exists()
    assert [one.step for one in read_probes(tmp_path / "run")] == [1, 2, 3]
    assert read_probes(tmp_path / "run")[:2] == read_probes(learned)


def test_what_was_learned_is_sampled_by_its_word(learned, small_base, tmp_path):
    config = sample_config.get_config()
    config.update({"base": str(small_base), "steps": 2, "seeds": (0,), "cache_dir": "", "guidance": 2.0})
    config.update({"prompts": ("a red <shape>",), "attributes": (str(learned),)})
    sample(config, str(tmp_path / "with"))
    config.attribute_strengths = (0.0,)
    sample(config, str(tmp_path / "without"))
    pictures = [
        np.asarray(Image.open(next((tmp_path / name / "samples").glob("*.png")))).astype(int)
        for name in ("with", "without")
    ]
    assert np.abs(pictures[0] - pictures[1]).max() > 2
    config.prompts = ("a red vase",)
    with pytest.raises(ValueError, match="no prompt has <shape> in it"):
        sample(config, str(tmp_path / "forgotten"))
    config.update({"prompts": ("a <shape>",), "attribute_strengths": (1.0, 0.5)})
    with pytest.raises(ValueError, match="2 attribute_strengths for 1 attributes"):
        sample(config, str(tmp_path / "unequal"))


def test_guidance_acts_as_a_file_says_unless_something_else_is_given(learned, small_base, tmp_path):
    one = load_attribute(learned)
    assert one.recipe["guidance_interval"] == [0, 1000] and one.recipe["guidance_rescale"] == 0.7
    says = {"guidance_interval": [600, 1000], "guidance_rescale": 0.9}
    save_attribute(tmp_path / "late", one._replace(recipe=one.recipe | says))
    config = sample_config.get_config()
    config.update({"base": str(small_base), "steps": 4, "seeds": (0,), "cache_dir": "", "guidance": 6.0})
    config.update({"prompts": ("a red <shape>",), "attributes": (str(tmp_path / "late"),)})

    def made(name, interval, rescale):
        config.guidance_interval, config.guidance_rescale = interval, rescale
        sample(config, str(tmp_path / name))
        return next((tmp_path / name / "samples").glob("*.png")).read_bytes()

    as_it_says = made("as-it-says", (), -1.0)
    assert as_it_says == made("the-same", (600, 1000), 0.9)
    assert as_it_says != made("everywhere", (0, 1000), -1.0)
    assert as_it_says != made("as-it-is", (), 0.0)


def test_all_pictures_of_a_run_have_the_size_that_is_asked_for(smallest_base, reference, tmp_path):
    changes = {"size": 32, "crossed": 0.5, "partition": "encoder_attention", "rule": "lora:1"}
    config = small(shape.get_config(), smallest_base, reference, **changes)
    customize(config, str(tmp_path / "run"))
    assert [one.step for one in read_probes(tmp_path / "run")] == [1, 2]
    base = load_base(config)
    assert pictures_before(config, base.pipeline).shape == (1, 32, 32, 3)
    own = batching.prior(config, base, make_tools(config, base.pipeline), jax.random.key(0))
    assert len(own["known"]) and own["known"].shape[1:3] == (32, 32)


@pytest.mark.parametrize(("name", "value"), [("guidance_interval", (600, 1000)), ("guidance_rescale", 0.0)])
def test_what_is_measured_is_guided_as_it_will_be(small_base, reference, name, value):
    config, pipeline = recipe_of(small_base, reference), load_pipeline(small_base, components=REQUIRED)
    before = pictures_before(config, pipeline)
    config[name] = value
    assert (pictures_before(config, pipeline) != before).any()


def test_prompts_that_read_an_attribute_do_so_in_sampling_as_in_training(small_base, reference, tmp_path):
    changes = {"fusion": "cross", "filter": "mlp", "pairs": "whole", "partition": "mid"}
    config = small(shape.get_config(), small_base, reference, **changes)
    config.prior.count = 0
    customize(config, str(tmp_path / "run"))
    found = load_attribute(tmp_path / "run")
    assert found.fusion is not None and found.fusion["gate"] != 0  # it began closed
    wide = found._replace(fusion={**found.fusion, "gate": np.float32(0.8)})

    base = load_base(config)
    prompts = ["a red <shape>", "a red vase"]
    applied, half, none = (
        apply_attributes(base.pipeline, [(wide, strength)], digest=base.digest).pipeline
        for strength in (1.0, 0.5, 0.0)
    )
    read, halved, unread = (np.asarray(text_encoder(one)(prompts).context) for one in (applied, half, none))
    word = make_learner(config, base).word
    ids = tokenize(word.tokenizer, prompts, read.shape[1])
    trained = context_of(
        base.pipeline.text_encoder,
        base.pipeline.text_encoder.params,
        jnp.asarray(ids),
        jnp.asarray(places_of(ids, word.ids)),
        jnp.tile(wide.vectors, (2, 1, 1)),
        unflatten_dict(wide.fusion, sep="/"),
        jnp.asarray(word.origin),
        "cross",
    )
    np.testing.assert_allclose(read, trained, atol=1e-3)  # the file is in float16
    assert np.abs(read - unread)[0].max() > 0.05
    np.testing.assert_allclose(2 * (halved - unread), read - unread, atol=1e-4)
    plain = text_encoder(base.pipeline)(["a red at", "a red vase"]).context
    np.testing.assert_allclose(unread[0], plain[0], atol=1e-3)
    np.testing.assert_array_equal(read[1], plain[1])  # a prompt without the word is the base's

    with pytest.raises(ValueError, match="cannot hold what encoded prompts read"):
        save_pipeline(tmp_path / "base", applied)
    asked = export_config.get_config()
    asked.update({"base": str(small_base), "attributes": (str(tmp_path / "run"),)})
    with pytest.raises(ValueError, match="fusion=placeholder to export it"):
        export(asked, str(tmp_path / "exported"))


def test_appearance_is_learned_by_low_rank_factors_of_the_decoder(small_base, reference, tmp_path):
    config = small(
        appearance.get_config(), small_base, reference, rule="lora:2", dtype="bfloat16", crossed=1.0
    )
    config.trained_as_sampled = False  # a step that trains the word alone leaves them as they are
    customize(config, str(tmp_path / "appearance"))
    attribute = load_attribute(tmp_path / "appearance")
    assert not attribute.weights and attribute.adapter
    assert all(path.startswith("up_blocks_") for path in attribute.adapter)
    assert any(np.abs(leaf).max() > 0 for path, leaf in attribute.adapter.items() if "lora_up" in path)


def test_a_run_whose_loss_is_no_number_keeps_the_best_file_and_ends_in_one_line(
    smallest_base, reference, tmp_path, monkeypatch
):
    changes = {"partition": "encoder_attention", "rule": "lora:1", "steps": 3}
    config = small(shape.get_config(), smallest_base, reference, **changes)
    config.prior.count = 0
    drawn = customization.batches

    def poisoned(*args):
        batch_at = drawn(*args)

        def batch_of(step):
            batch = batch_at(step)
            return batch | {"latents": batch["latents"] * (np.nan if step == 1 else 1)}

        return batch_of

    monkeypatch.setattr(customization, "batches", poisoned)
    with pytest.raises(ValueError, match=r"nan at step 2: .*newest checkpoint is of step 1") as error:
        customize(config, str(tmp_path))
    assert "\n" not in str(error.value)
    assert [one.step for one in read_probes(tmp_path)] == [1]
    kept = load_attribute(tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in (kept.vectors, *kept.adapter.values()))
    assert any(np.abs(leaf).max() > 0 for name, leaf in kept.adapter.items() if name.endswith("lora_up"))


def test_what_is_only_read_is_held_in_the_type_of_the_networks(small_base, reference):
    config = small(appearance.get_config(), small_base, reference, dtype="bfloat16")
    learner = make_learner(config, load_base(config))
    frozen = frozen_of(config, learner)
    held = {leaf.dtype for leaf in jax.tree.leaves([frozen["unet"], frozen["text"]])}
    assert held == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(first_params(learner))} == {np.dtype("float32")}


def test_what_is_kept_is_the_moving_average(smallest_base, reference, tmp_path):
    """After one step a tenth of it is the beginning (``training.update``); low-rank factors begin at 0."""
    files = []
    for decay in (0.0, 0.9):
        changes = {"partition": "encoder_attention", "rule": "lora:1", "steps": 1, "ema_decay": decay}
        config = small(shape.get_config(), smallest_base, reference, **changes)
        config.prior.count = config.optimizer.warmup = 0
        customize(config, str(tmp_path / str(decay)))
        files.append(load_attribute(tmp_path / str(decay)).adapter)
    ups = [name for name in files[0] if name.endswith("lora_up")]
    assert ups and all(np.abs(files[0][name]).max() > 0 for name in ups)
    for name in ups:
        np.testing.assert_allclose(files[1][name], 0.9 * files[0][name], rtol=2e-3)  # stored in float16


def gradient_of(config):
    """``jax.grad`` of a config's loss, by what is trained and a key, of one batch; and what is trained."""
    base = load_base(config)
    one = make_learner(config, base)
    tools, root = make_tools(config, base.pipeline), jax.random.key(0)
    pairs, frozen = batching.batches(config, one, root, tools, None)(0), frozen_of(config, one)
    gradient = jax.grad(loss_of(config, one), has_aux=True)
    frozen |= {"begun": begun_of(one)}
    return (lambda params, key: gradient(params, pairs, key, frozen)), first_params(one)


def test_activations_can_be_made_again(small_base, reference):
    """More is computed in the backward pass, then, of what gives the same gradient (tests/test_unet.py)."""

    def convolutions(remat: bool) -> int:
        gradient, params = gradient_of(small(shape.get_config(), small_base, reference, remat=remat))
        return str(jax.make_jaxpr(gradient)(params, jax.random.key(0))).count("conv_general")

    assert convolutions(remat=True) > convolutions(remat=False)


@pytest.mark.parametrize("rule", ["train", "lora:1"])
def test_a_step_trains_what_acts_in_sampling_at_its_timesteps(smallest_base, reference, rule):
    """The UNet's part within ``sampling_timesteps``, and the filter there and beyond."""
    config = small(shape.get_config(), smallest_base, reference, partition="encoder_attention", rule=rule)
    config.update({"sampling_timesteps": (500, 1000), "trained_as_sampled": True})
    gradient, params = gradient_of(config)
    gradient, seen = jax.jit(gradient), set()
    for seed in range(8):
        key = jax.random.key(seed)
        acts, (low, high) = learner._drawn_range(jax.random.split(key)[0], (0, 500, 1000), (500, 1000))
        assert (int(low), int(high)) == ((500, 1000) if acts else (0, 500))
        gradients, _ = gradient(params, key)
        tuned, filtered = (
            max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))
            for tree in ((gradients["unet"], gradients["adapter"]), gradients["filter"])
        )
        assert (tuned > 0) == bool(acts) and filtered > 0
        seen.add(bool(acts))
    assert seen == {True, False}


@pytest.mark.parametrize("timesteps", [(700, 300), (0, 1001)])
def test_timesteps_that_the_base_does_not_have_are_refused(smallest_base, reference, timesteps):
    config = small(appearance.get_config(), smallest_base, reference, timesteps=timesteps)
    with pytest.raises(ValueError, match="is empty or outside"):
        loss_of(config, make_learner(config, load_base(config)))


def test_ranges_are_drawn_as_often_as_they_are_long():
    keys = jax.random.split(jax.random.key(0), 4000)
    acts, (low, high) = jax.vmap(lambda k: learner._drawn_range(k, (0, 200, 750, 1000), (200, 750)))(keys)
    assert np.asarray(acts).mean() == pytest.approx(0.55, abs=0.03)
    assert {(int(a), int(b), bool(c)) for a, b, c in zip(low, high, acts, strict=True)} == {
        (0, 200, False),
        (200, 750, True),
        (750, 1000, False),
    }
    config = {"timesteps": (300, 1000), "sampling_timesteps": (200, 750), "trained_as_sampled": True}
    assert learner._edges(config) == [300, 750, 1000]
    assert learner._edges(config | {"trained_as_sampled": False}) == [300, 1000]


def test_the_recipe_that_ours_began_from_learns_from_the_reference_as_it_is(small_base, reference, tmp_path):
    config = small(faithful.get_config("attribute=shape"), small_base, reference, batch_size=1)
    config.prior.count = 0
    customize(config, str(tmp_path / "faithful"))
    attribute = load_attribute(tmp_path / "faithful")
    kinds = {path.rsplit("/", 2)[-2] for path in attribute.adapter}
    assert all("/attn" in path for path in attribute.adapter) and kinds <= {"to_q", "to_k", "to_v"}
    assert not any("to_q/kernel" in path for path in attribute.weights)
    assert all(path.startswith("down_blocks_") for path in [*attribute.weights, *attribute.adapter])


def test_the_commands_on_pages_load_the_base_as_the_run_did(tmp_path):
    config = shape.get_config()
    config.update({"base": "a base", "variant": "fp16", "size": 32})
    given = Reference(np.zeros((32, 32, 3), np.float32), np.ones((32, 32), np.float32), "given")
    pictures = np.zeros((1, 32, 32, 3), np.uint8)
    probes = [Probe(1, 0.1, 0.0, 0.1, 0.0)]
    results = {"chosen": probes[0]._asdict(), "bytes": 1, "peak_memory": 1, "timings": {}, "mask": "given"}
    results["tuned"] = ["tuned: nothing"]
    place = tmp_path / "one"
    write_record(place, config, {"results": results})
    write_report(place, config, given, [("a <shape>", 0)], pictures, pictures, probes, results)
    save_card(place, given, pictures)
    write_list_report(tmp_path, config, [place], 1.0)
    for page_of in (place, tmp_path):
        text = html.unescape((page_of / "index.html").read_text())
        assert (
            "configs/sample.py --config.base='a base' --config.variant=fp16 --config.height=32 "
            "--config.width=32 \\\n"
        ) in text


@pytest.mark.parametrize("attribute", ["shape", "appearance"])
def test_the_command_on_a_page_makes_its_run_again_whatever_it_began_from(attribute, monkeypatch):
    config = faithful.get_config(f"attribute={attribute}")
    found = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=found)
    flags.DEFINE_string("workdir", None, "", flag_values=found)
    given = shlex.split(page.command(f"configs/{attribute}.py", "runs/again", config))[2:]
    monkeypatch.setattr(sys, "argv", given)  # where the config's keys are looked for
    found(given)
    assert found.config.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"placeholder": "at"}, "ordinary word"),
        ({"attribute": "pose"}, "must be one of shape, appearance"),
        ({"filter": "cnn"}, "must be one of mlp"),
        ({"fusion": "sum"}, "must be one of placeholder, cross"),
        ({"partition": "encodr"}, "did you mean 'encoder'"),
        ({"initial": ""}, "must be a word that the placeholder begins as"),
        ({"probe": {"prompts": ("a red vase",)}}, "has no {}, where the placeholder stands"),
        (
            {"crossed": 0.5, "prior": {"prompts": ("a red vase",)}},
            "has no {}, where its objects and the placeholder stand",
        ),
        ({"prior": {"objects": ()}}, "must name one each at least"),
        ({"crossed": 3.0}, "crossed=3.0 must be a share of the pairs"),
        ({"probe": {"every": 3}}, "at most steps=2"),
        ({"mask": "nowhere.png"}, "nowhere.png"),
        ({"dtype": "float16"}, "must be one of float32, bfloat16"),
        ({"pairs": "half"}, "must be one of destroyed, whole"),
        ({"steps": 0}, "has no filter that recognizes the shape"),
        ({"filter_weights": "nowhere.safetensors"}, "nowhere.safetensors"),
    ],
)
def test_what_cannot_be_learned_is_refused_in_one_line(small_base, reference, tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        customize(small(shape.get_config(), small_base, reference, **changes), str(tmp_path / "run"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()  # the next attempt may have this name


def test_a_base_that_cannot_see_is_refused(small_base, reference, tmp_path):
    save_pipeline(tmp_path / "blind", load_pipeline(small_base, components=REQUIRED))
    with pytest.raises(ValueError, match="has no image_encoder"):
        customize(small(shape.get_config(), tmp_path / "blind", reference), str(tmp_path / "run"))
