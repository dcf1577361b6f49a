"""One, two and four processes learn the same, by the command line and launch/local_pod.sh.

Sums cross processes, and are made in another order: what is compared is equal up to that, in float32.
"""

import json

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from attrjax.checkpoints.attribute import load_attribute
from attrjax.checkpoints.pipeline import load_component
from tests.guarantees.test_guarantees import done, last_state, logged, pod
from tests.reference_cases import write_disc

# A base of a few thousand weights, and as little of all else.
SMALL = {
    "filter": "mlp",
    "initial": "at",
    "num_tokens": 2,
    "steps": 6,
    "batch_size": 4,
    "log_every": 1,
    "save_every": 6,
    "optimizer.warmup": 1,
    "probe.every": 6,
    "probe.steps": 2,
    "probe.prompts": '("a {}",)',
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("jit")


def close(one, other, relative):
    """How far two trees of arrays by their paths are apart, in parts of how large they are."""
    assert one.keys() == other.keys()
    flat = [
        np.concatenate([np.ravel(tree[name]).astype(np.float32) for name in one]) for tree in (one, other)
    ]
    assert np.linalg.norm(flat[0] - flat[1]) <= relative * np.linalg.norm(flat[0])


def test_processes_learn_of_one_picture_what_one_does(cache, smallest_base, tmp_path):
    picture, mask = write_disc(tmp_path)
    changes = SMALL | {"base": smallest_base, "reference": picture, "mask": mask, "rule": "lora:2"}
    changes |= {"prior.count": 0, "keep_checkpoints": True}
    one, *others = runs(tmp_path, cache, changes)
    expected = last_state(one, step=SMALL["steps"])
    for other in others:
        state = last_state(other, expected, step=SMALL["steps"])
        assert ups(expected) and all(np.any(leaf) for leaf in ups(expected).values())  # which began at zero
        close(ups(expected), ups(state), 1e-4)
        np.testing.assert_allclose(logged(one, "loss"), logged(other, "loss"), rtol=1e-5)


def test_processes_learn_of_a_list_what_one_does(cache, smallest_base, tmp_path):
    names = ["one", "two", "three", "four"]
    pictures = [write_disc(tmp_path, name, (60 * i, 90, 60), 12 + 2 * i) for i, name in enumerate(names)]
    lines = [{"reference": str(picture), "mask": str(mask)} for picture, mask in pictures]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    changes = SMALL | {"base": smallest_base, "references": tmp_path / "list.jsonl", "prior.count": 0}
    first, *others = runs(tmp_path, cache, changes)
    for other in others:
        for name in names:
            np.testing.assert_allclose(logged(first / name, "loss"), logged(other / name, "loss"), rtol=1e-5)
            one, two = load_attribute(first / name), load_attribute(other / name)
            # Numbers of the file have eleven bits.
            np.testing.assert_allclose(one.vectors, two.vectors, atol=2e-3 * np.abs(one.vectors).max())
            close(one.adapter, two.adapter, 2e-3)


def test_processes_train_a_base_as_one_does(cache, tmp_path):
    changes = {"network.block_out_channels": "(8,8,8)", "size": 32, "batch_size": 4, "steps": 6}
    changes |= {"optimizer.warmup": 1, "save_every": 3, "log_every": 1}
    one, *others = runs(tmp_path, cache, changes, config="attrworld/vae")
    expected = kernels(one)
    for other in others:
        close(expected, kernels(other), 2e-5)
        np.testing.assert_allclose(logged(one, "loss"), logged(other, "loss"), rtol=1e-5)


def kernels(directory):
    """Of a trained VAE. Biases before a norm have a gradient of 0 but for rounding, which Adam enlarges."""
    flat = flatten_dict(load_component(directory / "vae", "vae").params, sep="/")
    return {name: np.asarray(leaf) for name, leaf in flat.items() if name.endswith("kernel")}


def runs(directory, cache, changes, **more):
    """The directories of the same run by one, two and four processes, one after the other."""
    places = [directory / f"by-{count}" for count in (1, 2, 4)]
    for count, place in zip((1, 2, 4), places, strict=True):
        done(pod(count, place, cache, directory / "logs", **changes, **more))
    return places


def ups(state):
    """The second low-rank factors of a train state."""
    flat = flatten_dict(state["params"]["adapter"], sep="/")
    return {name: leaf for name, leaf in flat.items() if name.endswith("lora_up")}
