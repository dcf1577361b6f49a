"""Pictures of several devices are those of one up to a grey level, and those of several processes exactly."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from attrjax.checkpoints.pipeline import load_pipeline
from attrjax.generate import Settings, devices_of, make_jobs, make_pictures
from attrjax.parallel.mesh import make_mesh

ROOT = Path(__file__).parent.parent
# With noise on the way and an initial picture for each, so that all that is divided is there.
SETTINGS = Settings(steps=3, guidance=3.0, sampler="euler_ancestral", strength=0.7, batch_size=2)


def on_eight_devices(base):
    """In a process with eight devices: of the second round most rows are filled up."""
    assert jax.device_count() == 8
    pipeline, seen = load_pipeline(base), []
    picture = np.linspace(-1, 1, 64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3)
    pictures = np.linspace(-1, 1, 19, dtype=np.float32)[:, None, None, None] * picture
    jobs = make_jobs(["a cat"], range(19))
    one = np.stack(list(make_pictures(pipeline, jobs, SETTINGS, init_picture=pictures)))
    divided = make_pictures(
        pipeline, jobs, SETTINGS, init_picture=pictures, mesh=make_mesh(), on_step=seen.append
    )
    many = np.stack(list(divided))
    (alone,) = make_pictures(pipeline, jobs[4:5], SETTINGS, init_picture=pictures[4])
    assert np.abs(np.int32(alone) - one[4]).max() <= 1
    jax.effects_barrier()
    assert len({made.tobytes() for made in one}) == 19
    # Fully optimized programs differed in 4 of 233,472 values, by one grey level.
    difference = np.abs(np.int32(many) - one)
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
    assert seen == [1, 2] * 2  # both rounds, of all devices at once
    with pytest.raises(ValueError, match="fsdp=2 would divide the base") as error:
        devices_of(make_mesh(data=4, fsdp=2))
    assert "\n" not in str(error.value)


def test_eight_devices_make_the_pictures_of_one(smallest_base):
    program = f"from tests.test_sample_divided import *; on_eight_devices({str(smallest_base)!r})"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_single_device_needs_no_mesh():
    assert devices_of(make_mesh(devices=jax.devices()[:1])) is None


def start(workdir, *arguments):
    command = [sys.executable, "-m", "attrjax.main", f"--workdir={workdir}", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **pipes)


def test_two_processes_leave_the_files_of_one(smallest_base, tmp_path):
    """One of three pictures is there already: two are left, and each process makes one of them."""
    flags = [
        "--config=configs/sample.py",
        f"--config.base={smallest_base}",
        f"--config.cache_dir={tmp_path / 'cache'}",
        '--config.prompts=("a cat",)',
        "--config.seeds=(0, 1, 2)",
        "--config.steps=2",
    ]
    alone = start(tmp_path / "one", *flags)
    output, _ = alone.communicate(timeout=600)
    assert alone.returncode == 0, output
    (tmp_path / "two/samples").mkdir(parents=True)
    shutil.copy(tmp_path / "one/samples/a-cat-1.png", tmp_path / "two/samples")
    with socket.socket() as server:
        server.bind(("localhost", 0))
        pod = [f"--coordinator=localhost:{server.getsockname()[1]}", "--processes=2"]
    processes = [start(tmp_path / "two", *flags, *pod, f"--process={i}") for i in range(2)]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "".join(outputs)
    files = sorted(str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one").rglob("*.png"))
    assert len(files) == 4
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two")]
    assert [record["config"] for record in records] == [records[0]["config"]] * 2
    assert [record["chosen"] for record in records] == [records[0]["chosen"]] * 2
    assert sum("wrote 2 pictures" in output for output in outputs) == 1
