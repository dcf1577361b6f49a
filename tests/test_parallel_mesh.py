"""One device and many give the same parameters."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from attrjax.arguments import read_rules
from attrjax.models import attention
from attrjax.models.attention import dot_product_attention
from attrjax.parallel.mesh import AUTO, make_mesh, own_rows, place_batch, shard_state
from attrjax.training import init_state, make_optimizer, make_step, train

ROOT = Path(__file__).parent.parent
STEPS = 5


def batch_at(step):
    return np.random.default_rng(step).normal(size=(16, 192)).astype(np.float32)


def loss_fn(params, batch, key):
    x = batch + 0.1 * jax.random.normal(key, batch.shape)
    return ((jax.nn.tanh(x @ params["kernel"] + params["bias"]) - batch) ** 2).mean(), {}


def start(mesh, rules=AUTO):
    rng = np.random.default_rng(1)
    params = {"kernel": 0.1 * rng.normal(size=(192, 192)), "bias": np.zeros(192)}
    optimizer = make_optimizer(1e-3, STEPS, weight_decay=0.01)
    state = init_state(jax.tree.map(np.float32, params), optimizer, mesh, ema=True, rules=rules)
    return state, make_step(loss_fn, optimizer, mesh, rules=rules)


def run(mesh, workdir, steps=STEPS, rules=AUTO):
    state, step = start(mesh, rules)
    options = {"steps": steps, "workdir": workdir, "mesh": mesh, "rules": rules}
    return train(state, step, batch_at, root_key=jax.random.key(0), **options).state


def compare_meshes(workdir):
    """In a process with eight devices."""
    assert jax.device_count() == 8
    one, many = make_mesh(devices=jax.devices()[:1]), make_mesh(data=4, fsdp=2)
    expected, got = run(one, f"{workdir}/one"), run(many, f"{workdir}/many")
    assert got.params["kernel"].sharding.spec == PartitionSpec(None, "fsdp")
    assert got.ema["kernel"].addressable_shards[0].data.shape == (192, 96)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=0)

    # Divided along another dimension it learns the same, and stays divided so.
    other = run(make_mesh(data=4, fsdp=2), f"{workdir}/other", rules=[("kernel", "0"), (".*", "copy")])
    assert other.params["kernel"].sharding.spec == other.ema["kernel"].sharding.spec == PartitionSpec("fsdp")
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=0)

    # What was saved on one mesh is read on another, bit for bit.
    restored = run(make_mesh(data=1, fsdp=8), f"{workdir}/many")
    assert restored.params["kernel"].addressable_shards[0].data.shape == (192, 24)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(a, b)

    state, step = start(many)
    for i in range(3):
        state, _ = step(state, place_batch(many, batch_at(i)), jax.random.key(0))
    assert step._cache_size() == 1
    with pytest.raises(ValueError, match="a batch of 6 rows .* over its 8 devices"):
        place_batch(many, np.zeros((6, 2)))


def on_devices(count, call):
    program = f"from tests.test_parallel_mesh import *; {call}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(count)}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_eight_devices_train_as_one_does(tmp_path):
    on_devices(8, f"compare_meshes({str(tmp_path)!r})")


def compare_attention():
    """In a process with four devices, as if they were TPUs."""
    assert jax.device_count() == 4
    batch = np.random.default_rng(0).normal(size=(4, 1024, 1, 128)).astype(np.float32)
    chosen = []

    def fused(q, k, v, causal):
        chosen.append(q.shape)
        return splash(q, k, v, causal, interpret=True)

    def loss_fn(params, batch, key):
        return (dot_product_attention(batch * params["scale"], batch, batch) ** 2).mean(), {}

    def step_of(mesh):
        optimizer = make_optimizer(1e-2, STEPS)
        state = init_state({"scale": np.ones(128, np.float32)}, optimizer, mesh, ema=False)
        return make_step(loss_fn, optimizer, mesh), (state, place_batch(mesh, batch), jax.random.key(0))

    mesh, splash = make_mesh(), attention._splash
    step, given = step_of(mesh)
    expected, _ = step(*given)
    step, given = step_of(mesh)
    with (
        mock.patch.multiple(attention, _splash=fused),
        mock.patch.object(jax, "default_backend", return_value="tpu"),
    ):
        program = step.lower(*given).compile()
    assert chosen and set(chosen) == {(1, 1024, 1, 128)}  # a device's row
    assert "all-gather" not in program.as_text()
    got, _ = program(*given)
    np.testing.assert_allclose(got.params["scale"], expected.params["scale"], atol=1e-5)


def test_a_fused_kernel_is_given_the_rows_of_its_device():
    on_devices(4, "compare_attention()")


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 3},
        {"fsdp": 5},
        {"data": 0},
        {"data": -1, "fsdp": -1},
        {"data": -2},
        {"data": 2, "fsdp": 7},
        {"concept": 3},
        {"concept": -1},  # data is -1 where it is not given
    ],
)
def test_sizes_that_do_not_fit_are_one_clear_line(sizes):
    with pytest.raises(ValueError, match="data|fsdp") as error:
        make_mesh(**sizes, devices=jax.devices()[:1] * 8)
    assert "\n" not in str(error.value)


def test_small_and_odd_leaves_are_copied():
    mesh = make_mesh(devices=jax.devices()[:1])
    assert mesh.shape == {"concept": 1, "data": 1, "fsdp": 1}
    assert make_mesh(concept=-1, data=1, devices=jax.devices()[:1]).shape == mesh.shape
    specs = jax.tree.map(lambda s: s.spec, shard_state(mesh, {"a": np.zeros((300, 300)), "b": np.zeros(3)}))
    assert specs == {"a": PartitionSpec(), "b": PartitionSpec()}


def eight():
    """A mesh that a state can be laid out on, though not put."""
    return SimpleNamespace(shape={"concept": 1, "data": 4, "fsdp": 2})


def specs(tree, rules):
    with mock.patch("attrjax.parallel.mesh.NamedSharding", lambda _, spec: spec):
        return shard_state(eight(), tree, read_rules(rules, "sharding"))


def test_the_first_rule_that_matches_decides_what_is_divided_of_a_parameter_and_of_its_moments():
    params = {"conv_in": {"kernel": np.zeros((300, 200))}, "out": {"kernel": np.zeros((300, 200))}}
    state = {"params": params, "opt_state": [{"mu": params}], "small": np.zeros((4, 4))}
    got = specs(state, "conv_in/kernel 1; out/.* copy; small 0; .* auto")
    for laid in (got["params"], got["opt_state"][0]["mu"]):
        assert laid["conv_in"]["kernel"] == PartitionSpec(None, "fsdp")
        assert laid["out"]["kernel"] == PartitionSpec()
    assert got["small"] == PartitionSpec("fsdp")
    # A name is matched from its beginning on, and the order decides.
    assert specs({"my_out": {"kernel": np.zeros((300, 200))}}, "out/.* copy; .* 1")["my_out"] == {
        "kernel": PartitionSpec(None, "fsdp")
    }
    assert specs(state, ".* auto; out/.* copy")["params"]["out"]["kernel"] == PartitionSpec("fsdp")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("out/.* copy", "no rule of config.sharding matches conv_in: end the list with '.* auto'"),
        (".* fsdp", "the rule 'fsdp' for conv_in in config.sharding must be auto, copy or a dimension"),
        (".* 1", r"dimension 1 of conv_in \(300, 3\) cannot be divided over fsdp=2"),
        (".* 2", "dimension 2 of conv_in"),
        (".*", "must be REGEX RULE, two words"),
        ("( copy", "in the sharding is no regex"),
    ],
)
def test_rules_that_cannot_be_followed_are_one_clear_line(rules, message):
    with pytest.raises(ValueError, match=message) as error:
        specs({"conv_in": np.zeros((300, 3))}, rules)
    assert "\n" not in str(error.value)


def test_processes_contribute_all_rows_of_a_batch_once(monkeypatch):
    batch = {"pairs": np.arange(8).reshape(4, 2), "all": np.arange(6)}
    assert own_rows(batch) is batch
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    parts = []
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        parts.append(own_rows(batch))
    for name, leaf in batch.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), leaf)
    with pytest.raises(ValueError, match="3 rows of a batch cannot be divided over 2 processes"):
        own_rows({"odd": np.arange(3)})
