"""What a step on a pod would need, from the compiler that would run it, without the pod.

python -m benchmark.scale_plan --topology=v5e-256 --family=sd15 --task=concepts

The real train step of a published Stable Diffusion is compiled at full size for the topology's devices;
nothing is allocated and nothing runs. Where ``libtpu`` is installed (``pip install -e ".[tpu]"``) a TPU
topology is compiled by the TPU's own compiler, which needs no TPU; otherwise, and for GPUs, by XLA for as
many virtual CPU devices. There the memory of intermediates is another compiler's, which widens bfloat16.

Tasks:

* ``concepts``: as ``--config.references`` learns a list: each device learns ``--stack`` references side by
  side, of which ``--rule`` of ``--partition`` is tuned (``attributes.stack``).
* ``base``: all of the UNet is trained with a moving average, divided over ``--fsdp`` devices, as
  ``configs/attrworld/unet.py`` does (``attrworld.train_unet.loss_of``); SDXL's with what its UNet reads
  besides, which the package itself does not train.

Printed are bytes of a device by kind, against its memory; what devices tell each other in a step; operations
of a device in a step, as the compiler counts them; and the time of a step and the references in an hour that
follow from these at ``--mfu``, which is an assumption and no measurement.
"""

import argparse
import contextlib
import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

from benchmark.scale_table import TOPOLOGIES, Topology, as_markdown


def main() -> None:
    """Compile, and print the plan."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", choices=list(TOPOLOGIES), default="v5e-256")
    parser.add_argument("--family", choices=("small", "sd15", "sd21", "sdxl"), default="sd15")
    parser.add_argument("--task", choices=("concepts", "base"), default="concepts")
    parser.add_argument("--size", type=int, default=0, help="pixels of a side; 0: what the family is for")
    parser.add_argument("--partition", default="decoder_attention")
    parser.add_argument("--rule", default="lora:4")
    parser.add_argument("--stack", type=int, default=1, help="references of a device, side by side")
    parser.add_argument("--batch", type=int, default=4, help="pictures of a device, or of a reference")
    parser.add_argument("--steps", type=int, default=100, help="of a reference")
    parser.add_argument("--fsdp", type=int, default=1, help="devices that share one copy of the state")
    parser.add_argument("--remat", action="store_true", help="activations are made again, not kept")
    parser.add_argument("--mfu", type=float, default=0.4)
    parser.add_argument(
        "--effort",
        type=float,
        default=0.0,
        help="of the compiler: -1 takes a third of the time, for nearly the same program",
    )
    parser.add_argument("--virtual", action="store_true", help="virtual CPU devices even if libtpu is there")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    given = parser.parse_args()
    if given.family == "sdxl" and given.task == "concepts":
        parser.error("--family=sdxl: attributes are learned of bases with one text encoder; --task=base")
    topology = TOPOLOGIES[given.topology]
    with planning(topology, given.virtual) as (devices, compiler):
        import jax

        from benchmark import scale_steps

        given.size = given.size or 8 * scale_steps.COMPONENTS[given.family]["unet"][1]["sample_size"]
        jax.config.update("jax_exec_time_optimization_effort", given.effort)
        make = {"concepts": scale_steps.concepts_step, "base": scale_steps.base_step}[given.task]
        plan = scale_steps.compiled(make(given, devices), compiler)
    print(as_markdown(plan, topology, given))
    if given.json:
        given.json.write_text(json.dumps(plan._asdict(), indent=1))


@contextlib.contextmanager
def planning(topology: Topology, virtual: bool) -> Iterator[tuple[list[Any], str]]:
    """Devices to compile for, and the compiler's name; meanwhile networks choose algorithms for them."""
    use_libtpu = bool(topology.name) and not virtual and find_spec("libtpu") is not None
    os.environ["JAX_PLATFORMS"] = "cpu"
    if use_libtpu:
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3"}
    else:
        os.environ["JAX_NUM_CPU_DEVICES"] = str(topology.devices)
    import jax
    from jax.experimental import topologies

    if use_libtpu:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology.name)
        devices, compiler = list(described.devices), "the TPU's"
    else:
        devices, compiler = jax.devices("cpu"), "XLA's for virtual CPU devices"
    # XLA for CPUs has no TPU's kernels: networks then choose what a GPU without fused attention is given.
    backend = topology.backend if use_libtpu else "gpu"
    # A network asks jax for backend and devices when it is traced; here those that are planned for.
    with (
        mock.patch.object(jax, "default_backend", return_value=backend),
        mock.patch.object(jax, "device_count", return_value=topology.devices),
    ):
        yield devices, compiler


if __name__ == "__main__":
    main()
