"""What tests share: a CPU, and a small base model on disk."""

import os
from pathlib import Path

import pytest

# Before anything imports jax: the tests' tolerances are those of a CPU.
os.environ["JAX_PLATFORMS"] = "cpu"
# Here, and in the processes that tests start, programs are compiled more often than they are run.
QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ.setdefault("XLA_FLAGS", QUICKLY)


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a base of Stable Diffusion 1.x's layout and random weights, pictures of 64x64.

    Its UNet has two levels rather than four: it is compiled in half the time.
    """
    return _write_base(tmp_path_factory, "small", ["CrossAttnDownBlock2D", "DownBlock2D"], [16, 32])


@pytest.fixture(scope="session")
def smallest_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one level."""
    return _write_base(tmp_path_factory, "smallest", ["CrossAttnDownBlock2D"], [16])


def _write_base(
    tmp_path_factory: pytest.TempPathFactory, name: str, blocks: list[str], widths: list[int]
) -> Path:
    from flax.traverse_util import flatten_dict, unflatten_dict

    from attrjax.checkpoints.pipeline import Component, build_network, save_pipeline
    from tests.tiny import random_leaf, tiny_pipeline

    directory = tmp_path_factory.mktemp("base") / name
    pipeline = tiny_pipeline(directory, "sd15")
    config = pipeline.unet.config | {
        "down_block_types": blocks,
        "up_block_types": [block.replace("Down", "Up") for block in reversed(blocks)],
        "block_out_channels": widths,
        "layers_per_block": 1,
    }
    module, abstract = build_network("unet", config)
    shapes = flatten_dict(abstract, sep="/")
    leaves = {path: random_leaf(path, leaf.shape, seed=0) for path, leaf in shapes.items()}
    unet = Component(module, unflatten_dict(leaves, sep="/"), config)
    save_pipeline(directory, pipeline._replace(unet=unet))
    return directory
