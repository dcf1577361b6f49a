"""A list of references, learned at once on a base of a few thousand weights."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from attrjax.arguments import exchanged
from attrjax.attributes import many
from attrjax.attributes.concepts import read_list
from attrjax.attributes.customize import customize
from attrjax.attributes.many import stack_of
from attrjax.attributes.measure import Probe
from attrjax.attributes.probing import ended, read_probes
from attrjax.checkpoints.attribute import load_attribute
from attrjax.metrics_log import METRICS
from configs import appearance, shape
from tests.reference_cases import small, write_disc

ROOT = Path(__file__).parent.parent
LINES = [
    {"steps": 2, "seed": 1, "name": "first"},
    {"steps": 3, "seed": 2, "prompts": ["at {}"], "placeholder": "<round>"},
]


def recipe(base, reference, **changes):
    """Low-rank factors, of which the second step alone is measured; side by side, as on an accelerator."""
    config = small(shape.get_config(), base, reference, **{"stack": 8} | changes)
    config.update({"rule": "lora:2", "partition": "encoder_attention"})
    config.update({"pairs": "whole", "filter": "mlp"})  # which are compiled soonest
    config.probe.every = 2
    # Adam divides gradients that are 0 but for rounding by their own size: with this eps it does not.
    config.optimizer.eps = 1e-3
    return config


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two pictures with their masks, and a list of them."""
    directory = tmp_path_factory.mktemp("references")
    found = [write_disc(directory, name, (90 * i, 50, 60), 12 + 6 * i) for i, name in enumerate(["a", "b_c"])]
    lines = [
        line | {"reference": str(paths[0]), "mask": str(paths[1])}
        for line, paths in zip(LINES, found, strict=True)
    ]
    text = "\n".join(map(json.dumps, lines))
    (directory / "list.jsonl").write_text(f"{text}\n\n")
    return directory, found


def listed(base, pictures, **changes):
    config = recipe(base, pictures[1][0], references=str(pictures[0] / "list.jsonl"), **changes)
    config.update({"reference": "", "mask": ""})
    return config


@pytest.fixture(scope="module")
def learned(smallest_base, pictures, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "list"
    customize(listed(smallest_base, pictures), str(workdir))
    return workdir


def metrics_of(directory):
    lines = [json.loads(line) for line in (directory / METRICS).read_text().splitlines()]
    return [[line[name] for name in ("step", "loss", "grad_norm", "pairs", "prior")] for line in lines]


def test_each_is_what_a_run_of_its_own_makes(learned, smallest_base, pictures, tmp_path):
    config = recipe(smallest_base, pictures[1][1], steps=3, seed=2, placeholder="<round>")
    config.probe.prompts = ("at {}",)
    customize(config, str(tmp_path / "alone"))
    one, other = load_attribute(tmp_path / "alone"), load_attribute(learned / "b-c")
    assert (one.word, one.recipe) == (other.word, other.recipe)
    np.testing.assert_allclose(one.vectors, other.vectors, rtol=1e-3, atol=1e-5)  # stored in float16
    assert one.adapter.keys() == other.adapter.keys()
    for name, leaf in one.adapter.items():
        np.testing.assert_allclose(leaf, other.adapter[name], rtol=1e-3, atol=1e-6)
    assert max(abs(leaf).max() for name, leaf in one.adapter.items() if name.endswith("lora_up")) > 1e-5
    np.testing.assert_allclose(
        metrics_of(tmp_path / "alone"), metrics_of(learned / "b-c"), rtol=1e-5, atol=1e-6
    )
    (alone,), (in_list,) = read_probes(tmp_path / "alone"), read_probes(learned / "b-c")
    assert alone.step == in_list.step == 2  # a third step could not be kept, so it is not made
    np.testing.assert_allclose(alone, in_list, atol=1e-3)  # of pictures of 8 bits


def test_each_has_a_directory_and_the_list_a_page(learned):
    for name in ("first", "b-c"):
        assert {"attribute.safetensors", "index.html", "probes.jsonl", "run.json"} <= {
            path.name for path in (learned / name).iterdir()
        }
    record = json.loads((learned / "run.json").read_text())
    assert record["results"]["chosen"].keys() == {"first", "b-c"}
    config = json.loads((learned / "b-c" / "run.json").read_text())["config"]
    assert config["references"] == "" and config["reference"].endswith("b_c.png")
    text = (learned / "index.html").read_text()
    assert text.count("<img ") == 2 and 'href="b-c/index.html"' in text


def test_a_list_has_both_attributes(smallest_base, pictures, tmp_path):
    """Lines of the other attribute are what its own config makes of them, and tune its part of the UNet."""
    paths = [dict(zip(("reference", "mask"), map(str, found), strict=True)) for found in pictures[1]]
    lines = [
        {"name": "form"} | paths[0],
        {"name": "look", "attribute": "appearance", "seed": 3} | paths[1],
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = listed(smallest_base, pictures)
    config.references = str(tmp_path / "list.jsonl")
    config.prior.count = 0
    config.other.update({"initial": "at", "filter": "mlp", "steps": 3, "crossed": 0.0})
    config.other.prior.count = 0
    config.other.probe.prompts = ("at {}",)
    form, look = read_list(config)
    alone = recipe(smallest_base, pictures[1][1], seed=3, steps=3)
    alone.prior.update({"count": 0, "objects": appearance.RECIPE["prior"]["objects"]})
    alone.update({name: appearance.RECIPE[name] for name in ("attribute", "placeholder", "partition")})
    for name in (
        "sampling_timesteps",
        "guidance_interval",
        "guidance_rescale",
        "paint_strength",
        "trained_as_sampled",
    ):
        alone[name] = appearance.RECIPE[name]
    alone.draw = ConfigDict(appearance.RECIPE["draw"])
    alone.optimizer.update(appearance.RECIPE["optimizer"])
    alone.probe.prompts = ("at {}",)
    ignored = ("other", "cache_dir")
    assert {k: v for k, v in look.config.items() if k not in ignored} == {
        k: v for k, v in alone.items() if k not in ignored
    }
    assert exchanged(look.config).attribute == form.config.attribute == "shape"

    customize(config, str(tmp_path / "run"))
    learned = {name: load_attribute(tmp_path / "run" / name) for name in ("form", "look")}
    assert {name: one.attribute for name, one in learned.items()} == {"form": "shape", "look": "appearance"}
    assert learned["look"].word == "<appearance>"
    for name, blocks in (("form", "down_blocks_"), ("look", "up_blocks_")):
        assert learned[name].adapter and all(path.startswith(blocks) for path in learned[name].adapter)
    assert sorted(path.name for path in (tmp_path / "run/stacks").iterdir()) == ["0", "1"]
    text = (tmp_path / "run/index.html").read_text()
    assert "The shape or the appearance of 2 pictures" in text
    assert "Mean gain in shape" in text and "Mean gain in appearance" in text


def test_a_run_that_was_killed_goes_on_where_it_was(learned, smallest_base, pictures, tmp_path, monkeypatch):
    written = []

    def finish(run, started, really=many.finish):
        if written:
            raise KeyboardInterrupt
        written.append(run.directory.name)
        return really(run, started)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(many, "finish", finish)
        customize(listed(smallest_base, pictures), str(tmp_path / "run"))
    assert not (tmp_path / "run/index.html").exists()
    customize(listed(smallest_base, pictures), str(tmp_path / "run"), resume=True)
    for name in ("first", "b-c"):
        for file in ("attribute.safetensors", "probes.jsonl"):
            assert (tmp_path / "run" / name / file).read_bytes() == (learned / name / file).read_bytes()
    # What was learned of all has no checkpoints left, and what is there in full is not made again.
    assert (tmp_path / "run/stacks/0/0/metrics.jsonl").exists()
    assert not list((tmp_path / "run/stacks").rglob("checkpoints"))
    monkeypatch.setattr(many, "learn", None)
    (tmp_path / "run/stacks/0/0/checkpoints/2").mkdir(parents=True)  # killed before they were dropped
    customize(listed(smallest_base, pictures), str(tmp_path / "run"), resume=True)
    assert not list((tmp_path / "run/stacks").rglob("checkpoints"))


def test_a_list_that_has_changed_is_another_run(learned, smallest_base, pictures, tmp_path):
    shutil.copytree(pictures[0], tmp_path / "other")
    line = {"reference": str(pictures[1][0][0])}
    (tmp_path / "other/list.jsonl").write_text(json.dumps(line))
    with pytest.raises(FileExistsError, match="already holds a run"):
        customize(listed(smallest_base, pictures), str(learned))
    config = listed(smallest_base, pictures)
    (pictures[0] / "list.jsonl").rename(pictures[0] / "kept.jsonl")
    try:
        (pictures[0] / "list.jsonl").write_text(json.dumps(line))
        with pytest.raises(
            ValueError, match="concepts was '2 references .* is '1 references .* Take another --workdir"
        ):
            customize(config, str(learned), resume=True)
    finally:
        (pictures[0] / "kept.jsonl").rename(pictures[0] / "list.jsonl")


def test_patience_ends_a_run_at_the_measurement():
    config = shape.get_config()
    config.update({"steps": 110, "patience": 2})
    config.probe.every = 25

    def probes(*scores):
        found = enumerate(scores, 1)
        return [Probe(25 * i, score, 0.0, 0.0, 0.0) for i, score in found]

    assert ended(config, probes(0.1, 0.2, 0.1)) is None
    assert ended(config, probes(0.1, 0.2, 0.1, 0.2)) == 100
    assert ended(config, probes(0.3, 0.2, 0.1)) == 75
    config.patience = 0
    assert ended(config, probes(0.3, 0.2, 0.1)) is None
    assert ended(config, probes(0.3, 0.2, 0.1, 0.0)) == 100  # the last that is measured


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "this is not JSON"),
        ("[]", 'a line looks like {"reference": "mug.png"}'),
        ('{"mask": "m.png"}', "there is no reference"),
        ('{"reference": "r.png", "maks": "m.png"}', "did you mean 'mask'"),
        ('{"reference": "r.png", "steps": "9"}', "steps='9' must be of type int"),
        ('{"reference": "r.png", "seed": -1}', "seed=-1 must be 0 or more"),
        ('{"reference": "r.png", "steps": 1}', "at most steps=1"),
        ('{"reference": "r.png", "prompts": ["a ball"]}', "has no {}, where the placeholder stands"),
        ('{"reference": "r.png", "prompts": "a {}"}', "must be of type list"),
        ('{"reference": "r.png", "name": "../x"}', "is to be a directory"),
        ('{"reference": "r.png", "name": "one"}', "is that of line 1 already"),
        ('{"reference": "r.png", "attribute": "apearance"}', "did you mean 'appearance'"),
    ],
)
def test_a_bad_line_is_named(smallest_base, pictures, tmp_path, line, message):
    config = listed(smallest_base, pictures)
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{{"reference": "r.png", "name": "one"}}\n\n{line}\n')
    config.references = str(path)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_list(config)
    assert str(error.value).startswith(f"{path}, line 3: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [({"reference": "nowhere.png"}, "nowhere.png"), ({"placeholder": "at"}, "ordinary word")],
)
def test_a_line_that_cannot_be_learned_is_named_before_anything_is(
    smallest_base, pictures, tmp_path, line, message
):
    config, path = listed(smallest_base, pictures), tmp_path / "bad.jsonl"
    good = {"reference": str(pictures[1][0][0])}
    path.write_text(f"{json.dumps(good)}\n{json.dumps(good | line)}\n")
    config.references = str(path)
    with pytest.raises(ValueError, match=message) as error:
        customize(config, str(tmp_path / "run"))
    assert str(error.value).startswith(f"{path}, line 2: ") and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"references": "nowhere.jsonl"}, "there is no list of references nowhere.jsonl"),
        ({"reference": "one.png"}, "give one of the two"),
        ({"stack": -1}, "--config.stack"),
        ({"patience": -1}, "patience=-1"),
        ({"guidance_interval": (500, 200)}, r"guidance_interval=\(500, 200\)"),
    ],
)
def test_a_list_that_cannot_be_learned(smallest_base, pictures, tmp_path, changes, message):
    config = listed(smallest_base, pictures)
    config.update(changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        customize(config, str(tmp_path / "run"))
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_names_are_of_pictures_and_unique(smallest_base, pictures, tmp_path):
    config = listed(smallest_base, pictures)
    names = ["x/mug.png", "y/mug.png", "stacks.png", "Das Bild.png"]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps({"reference": name}) + "\n" for name in names))
    config.references = str(tmp_path / "list.jsonl")
    found = [one.name for one in read_list(config)]
    assert found[:3] == ["mug", "mug-2", "stacks-2"] and found[3].startswith("das-bild-")


def compiled_for_four(base, directory):
    """In a process with four devices: what draws pairs of four references and learns of them, as programs."""
    from attrjax.attributes import batches, learner, stack
    from attrjax.attributes.base import load_base
    from attrjax.parallel.mesh import make_mesh, place_batch

    assert jax.device_count() == 4
    mesh = make_mesh(concept=-1, data=1)
    paths = Path(directory) / "a.png", Path(directory) / "a-mask.png"
    config = recipe(base, paths)
    config.prior.count = 0
    one = learner.make_learner(config, load_base(config))
    root, programs = jax.random.key(0), {}
    tools = batches.make_tools(config, one.pipeline, mesh)

    def draw_many(*arguments):
        lowered = tools.draw_many.func.lower(*tools.draw_many.args, *arguments)
        programs["draw"] = lowered.compile().as_text()
        return tools.draw_many(*arguments)

    own = stack.own_of(learner.begun_of(one), root, 2)
    sources = [batches.source_of(config, one, jax.random.fold_in(root, i), None) for i in range(4)]
    batch = batches.stacked_batches(sources, [own] * 4, tools._replace(draw_many=draw_many), mesh)(0)
    # Each lies where it is learned from: nothing is copied.
    placed = place_batch(mesh, batch)
    where = [
        [leaf.addressable_shards[3].data.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)]
        for tree in (batch, placed)
    ]
    assert where[0] == where[1]
    state = stack.first_stack([learner.first_params(one)] * 4, config.optimizer, mesh, ema=False)
    step = stack.make_stacked_step(learner.loss_of(config, one), config.optimizer, mesh, ema_decay=0.0)
    lowered = step.lower(state, placed, None, learner.frozen_of(config, one))
    programs["step"] = lowered.compile().as_text()
    print(*programs.values())


def test_devices_that_learn_references_of_their_own_tell_each_other_nothing(smallest_base, pictures):
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    program = (
        f"from tests.test_many import *; compiled_for_four({str(smallest_base)!r}, {str(pictures[0])!r})"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("num_partitions=4") == 2 and "convolution" in done.stdout
    found = r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
    assert not re.findall(found, done.stdout)


def test_a_device_learns_as_many_at_once_as_it_is_told_or_as_suits_it(monkeypatch):
    config = shape.get_config()
    assert stack_of(config) == 1  # a CPU is filled by one
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert stack_of(config) == 8
    config.stack = 3
    assert stack_of(config) == 3
