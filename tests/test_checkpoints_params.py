"""Trees from weight files: every leaf, in the type and sharding that was asked for, in little memory."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import SingleDeviceSharding
from safetensors.numpy import load_file, save_file

from attrjax.checkpoints.params import load_params, save_params

STEM = "model"
SHAPES = {
    "conv_in/kernel": (3, 3, 4, 8),
    "conv_in/bias": (8,),
    "norm/scale": (8,),
    "layers_0/proj/kernel": (8, 6),
    "token_embedding/embedding": (5, 8),
}
ROOT = Path(__file__).parents[1]


def abstract(shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict:
    leaves = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}
    return unflatten_dict(leaves, sep="/")


def random_params() -> dict:
    random = np.random.default_rng(0)
    leaves = {path: random.standard_normal(shape).astype(np.float32) for path, shape in SHAPES.items()}
    return unflatten_dict(leaves, sep="/")


def assert_trees_equal(a: dict, b: dict) -> None:
    a, b = flatten_dict(a, sep="/"), flatten_dict(b, sep="/")
    assert a.keys() == b.keys()
    for path, value in a.items():
        np.testing.assert_array_equal(value, b[path], err_msg=path)


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wanted", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_round_trip_in_every_type(tmp_path, stored, wanted):
    params = random_params()
    save_params(tmp_path, STEM, params, dtype=stored)
    assert {v.dtype for v in load_file(tmp_path / "model.safetensors").values()} == {np.dtype(stored)}
    loaded = load_params(tmp_path, STEM, abstract(), dtype=wanted)
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == wanted for leaf in jax.tree.leaves(loaded))
    assert_trees_equal(loaded, jax.tree.map(lambda x: x.astype(stored).astype(wanted), params))


def test_leaves_can_be_donated(tmp_path):
    """Leaves may share memory with the host: a computation that takes them over changes nothing else."""
    save_params(tmp_path, STEM, random_params())
    before = (tmp_path / "model.safetensors").read_bytes()
    loaded = load_params(tmp_path, STEM, abstract())
    doubled = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree), donate_argnums=0)(loaded)
    assert_trees_equal(doubled, jax.tree.map(lambda x: 2 * x, random_params()))
    assert_trees_equal(load_params(tmp_path, STEM, abstract()), random_params())
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_all_that_does_not_fit_is_listed(tmp_path):
    shapes = SHAPES | {"norm/bias": (8,), "layers_1/proj/kernel": (8, 6)}
    tensors = {
        "conv_in.weight": np.zeros((8, 4, 5, 5), np.float32),
        "conv_in.bias": np.zeros(8, np.float32),
        "norm.weight": np.zeros(8, np.int64),
        "layers.0.proj.weight": np.zeros((8, 6), np.float32),
        "extra.weight": np.zeros(3, np.float32),
        "another.weight": np.zeros(3, np.float32),
        "position_ids": np.zeros(3, np.int64),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as error:
        load_params(tmp_path, STEM, abstract(shapes))
    first, *lines = str(error.value).split("\n")
    assert str(tmp_path) in first and "config.json" in first
    assert "3 missing, 2 unexpected, 3 of the wrong shape or type" in first
    assert [line.strip() for line in lines] == [
        "missing: layers.1.proj.weight",
        "missing: norm.bias",
        "missing: token_embedding.weight",
        "unexpected: another.weight",
        "unexpected: extra.weight",
        "of the wrong shape or type: conv_in.weight: [8, 4, 5, 5] in the file, [8, 4, 3, 3] in the network",
        "of the wrong shape or type: layers.0.proj.weight: [8, 6] in the file, [6, 8] in the network",
        "of the wrong shape or type: norm.weight: int64 in the file, floating point in the network",
    ]


def test_numbers_beyond_half_precision_are_refused(tmp_path):
    params = random_params()
    params["norm"]["scale"][3] = 1e6
    with pytest.raises(ValueError, match="norm/scale.*float16.*dtype=float32"):
        save_params(tmp_path, STEM, params, dtype=np.float16)
    save_params(tmp_path, STEM, params, dtype=ml_dtypes.bfloat16)


def test_the_rule_for_shardings_sees_paths_and_shapes(tmp_path):
    save_params(tmp_path, STEM, random_params())
    seen = {}

    def rule(path, shape):
        seen[path] = shape
        return SingleDeviceSharding(jax.devices()[0]) if path == "norm/scale" else None

    loaded = load_params(tmp_path, STEM, abstract(), sharding=rule)
    assert seen == SHAPES
    assert loaded["norm"]["scale"].committed and not loaded["conv_in"]["bias"].committed


SHARDED = """
import json, sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from tests.test_checkpoints_params import SHAPES, STEM, abstract, random_params, assert_trees_equal
from attrjax.checkpoints import params
directory = __import__("pathlib").Path(sys.argv[1])
mesh = jax.make_mesh((2, 2), ("x", "y"))
specs = {"conv_in/kernel": P(None, None, "x", "y"), "layers_0/proj/kernel": P("y"), "norm/scale": P()}
copied, copy = [], params._host_copy
params._host_copy = lambda view, dtype: copied.append(view.shape) or copy(view, dtype)
rule = lambda path, shape: NamedSharding(mesh, specs[path]) if path in specs else None
loaded = params.load_params(directory, STEM, abstract(), sharding=rule)
assert_trees_equal(loaded, random_params())
leaf = loaded["conv_in"]["kernel"]
assert leaf.sharding == NamedSharding(mesh, specs["conv_in/kernel"])
assert {shard.data.shape for shard in leaf.addressable_shards} == {(3, 3, 2, 4)}
assert len(loaded["norm"]["scale"].sharding.device_set) == 4
print(json.dumps(copied))
"""


def test_a_leaf_split_over_devices_is_read_in_parts(tmp_path):
    save_params(tmp_path, STEM, random_params())
    flags = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    copied = json.loads(run_python(SHARDED, flags, str(tmp_path)))
    assert sorted(copied) == sorted(
        [[3, 3, 2, 4]] * 4 + [[4, 6]] * 2 + [[8], [8], [5, 8]]  # replicas share one copy
    )


DIVIDED = {"conv_in/kernel": (3, 3, 64, 128), "proj/kernel": (256, 128), "norm/scale": (128,)}
SHARE = """
import json, sys
from pathlib import Path
from attrjax.parallel.start import start
directory, port, process = sys.argv[1:]
start(f"localhost:{port}", 2, int(process))
import jax
from attrjax.checkpoints import params
from attrjax.parallel.mesh import make_mesh, on_host, shard_leaf
from tests.test_checkpoints_params import DIVIDED, STEM, abstract, assert_trees_equal
given = Path(directory), STEM, abstract(DIVIDED)
expected = jax.device_get(params.load_params(*given))
read, copy = [], params._host_copy
params._host_copy = lambda view, dtype: read.append(view.nbytes) or copy(view, dtype)
mesh = make_mesh(data=1, fsdp=8)
loaded = params.load_params(*given, sharding=lambda path, shape: shard_leaf(mesh, path, shape))
shards = loaded["conv_in"]["kernel"].addressable_shards
assert [shard.data.shape for shard in shards] == [(3, 3, 64, 16)] * 4
assert_trees_equal(on_host(loaded), expected)
print(json.dumps(sum(read)))
"""


def test_of_two_processes_each_reads_what_its_devices_hold(tmp_path):
    random = np.random.default_rng(0)
    leaves = {path: random.standard_normal(shape).astype(np.float32) for path, shape in DIVIDED.items()}
    save_params(tmp_path, STEM, unflatten_dict(leaves, sep="/"), dtype=np.float16)
    with socket.socket() as server:
        server.bind(("localhost", 0))
        port = server.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SHARE, str(tmp_path), str(port), str(process)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    ended = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    halves = sum(leaves[path].size for path in ("conv_in/kernel", "proj/kernel")) // 2
    assert [json.loads(output.splitlines()[-1]) for output, _ in ended] == [2 * (halves + 128)] * 2


MEMORY = """
import json, resource, sys
from pathlib import Path
import jax
from tests.test_checkpoints_params import LARGE, STEM, SHAPES, abstract
from attrjax.checkpoints.params import load_params

def peak():
    # Not ru_maxrss where it can be had: that begins with the peak of the process that started this one.
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

load_params(Path(sys.argv[1]), STEM, abstract())
before = peak()
loaded = load_params(Path(sys.argv[2]), STEM, abstract(LARGE))
size = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded))
print(json.dumps({"size": size, "grown": peak() - before}))
"""
LARGE = {
    **{f"conv{i}/kernel": (3, 3, 1024, 1024) for i in range(5)},
    **{f"linear{i}/kernel": (1024, 2048) for i in range(4)},
    "norm/bias": (2**20,),
}


def test_loading_takes_less_than_a_fifth_more_than_the_component(tmp_path):
    """On a CPU the parameters themselves are host memory; what comes on top must be small."""
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    large.mkdir()
    save_params(small, STEM, random_params())
    random = np.random.default_rng(0)
    leaves = {path: random.random(shape, np.float32) for path, shape in LARGE.items()}
    save_params(large, STEM, unflatten_dict(leaves, sep="/"))
    used = json.loads(run_python(MEMORY, {"JAX_PLATFORMS": "cpu"}, str(small), str(large)))
    assert used["size"] > 200e6
    assert used["size"] * 0.9 < used["grown"]  # it was the parameters that were measured
    assert used["grown"] < used["size"] * 1.2


def run_python(script: str, environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split("\n")[-1]
