"""The training loop: what survives a kill, what a step does to which leaf."""

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attrjax.checkpoints.training import open_checkpoints, restore_newest, save_checkpoint
from attrjax.compiling import Cost, cost_of, peak_of, told_of
from attrjax.metrics_log import METRICS
from attrjax.parallel.mesh import make_mesh
from attrjax.prefetch import in_background
from attrjax.training import EXIT_SAVED, init_state, make_optimizer, make_step, train

ROOT = Path(__file__).parent.parent
STEPS = 60


def first_params():
    rng = np.random.default_rng(0)
    return {"dense": {"kernel": rng.normal(size=(8, 4)).astype(np.float32), "bias": np.zeros(4, np.float32)}}


def batch_at(step):
    rng = np.random.default_rng((7, step))
    return {"x": rng.normal(size=(4, 8)).astype(np.float32), "y": rng.normal(size=(4, 4)).astype(np.float32)}


def loss_fn(params, batch, key):
    """A linear model's, with random noise on what it sees."""
    x = batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)
    error = x @ params["dense"]["kernel"] + params["dense"]["bias"] - batch["y"]
    return jnp.mean(error**2), {"largest": jnp.max(jnp.abs(error))}


def run(workdir, *, steps=STEPS, pause=0.0, batches=batch_at, **options):
    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer(1e-2, STEPS, warmup=5, weight_decay=0.1)
    state = init_state(first_params(), optimizer, mesh, ema=True)

    def slow_batch_at(step):
        time.sleep(pause)
        return batches(step)

    options = {"log_every": 4, "save_every": 10} | options
    return train(
        state,
        make_step(loss_fn, optimizer, mesh, ema_decay=0.9),
        slow_batch_at,
        root_key=jax.random.key(3),
        steps=steps,
        workdir=workdir,
        mesh=mesh,
        **options,
    )


def digest(state):
    leaves = jax.tree_util.tree_leaves_with_path(state)
    parts = [jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes() for path, leaf in leaves]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def lines(workdir):
    """The lines of metrics without timings."""
    read = [json.loads(line) for line in (workdir / METRICS).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds" and "per_second" not in k} for line in read]


def start_elsewhere(workdir, pause):
    """A run in another process, which can be killed."""
    program = f"from tests.test_training import run; run({str(workdir)!r}, pause={pause})"
    return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE)


def wait_for_step(workdir, step, process):
    deadline = time.monotonic() + 60
    while not ((workdir / METRICS).exists() and (got := lines(workdir)) and got[-1]["step"] >= step):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts: its directory and its last state."""
    workdir = tmp_path_factory.mktemp("whole")
    result = run(workdir)
    assert result.finished and int(result.state.step) == STEPS
    return workdir, digest(result.state)


def test_killed_at_any_step_it_ends_with_the_same_bytes(whole, tmp_path):
    process = start_elsewhere(tmp_path, pause=0.02)
    wait_for_step(tmp_path, step=random.randint(12, 44), process=process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert lines(tmp_path)[-1]["step"] < STEPS
    result = run(tmp_path)
    assert digest(result.state) == whole[1]
    assert lines(tmp_path) == lines(whole[0])


def test_sigterm_saves_the_current_step_and_exits_42(whole, tmp_path):
    process = start_elsewhere(tmp_path, pause=0.05)
    wait_for_step(tmp_path, step=4, process=process)
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == EXIT_SAVED == 42
    assert b"SIGTERM: saving after this step" in errors
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert 4 <= saved < STEPS and lines(tmp_path)[-1]["step"] <= saved
    assert digest(run(tmp_path).state) == whole[1]
    assert lines(tmp_path) == lines(whole[0])


def test_sigterm_at_the_last_step_is_not_lost(tmp_path):
    """What follows it, another training or pictures, would go on as if there had been none."""
    with pytest.raises(SystemExit) as end:
        run(tmp_path, steps=10, every=(10, lambda *_: signal.raise_signal(signal.SIGTERM)))
    assert end.value.code == EXIT_SAVED
    assert run(tmp_path, steps=10).finished


def test_each_logged_step_has_one_line(whole):
    got = lines(whole[0])
    assert [line["step"] for line in got] == [1, *range(4, STEPS + 1, 4)]
    assert got[0].keys() == {"step", "loss", "grad_norm", "largest"}
    assert list((whole[0] / "tensorboard").glob("events*"))


def test_time_is_up(whole, tmp_path):
    result = run(tmp_path, max_seconds=0)
    assert not result.finished and int(result.state.step) == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    assert digest(run(tmp_path).state) == whole[1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # tensorstore's, at damage
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_is_used(whole, tmp_path, damage, caplog):
    run(tmp_path, steps=30)
    newest = tmp_path / "checkpoints" / "30"
    file = next((newest / "default" / "d").iterdir())  # where the arrays are
    data = file.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(data[:middle] if damage == "truncated" else flipped)
    assert digest(run(tmp_path).state) == whole[1]
    assert (tmp_path / "checkpoints" / "30.corrupt").is_dir()
    assert "checkpoint 30 is damaged and is now" in caplog.text
    assert lines(tmp_path) == lines(whole[0])


def test_an_array_that_was_cut_off_is_damage(tmp_path):
    """Large enough to lie in a file of its own, where Orbax raises an error of no class of its own."""
    states = [{"x": np.random.default_rng(i).normal(size=(128, 128)).astype(np.float32)} for i in range(2)]
    manager = open_checkpoints(tmp_path)
    for step, state in enumerate(states):
        save_checkpoint(manager, step, state)
    manager.wait_until_finished()
    file = max((tmp_path / "1/default/d").iterdir(), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    found, step = restore_newest(manager, states[1])
    manager.close()
    assert step == 0 and (tmp_path / "1.corrupt").is_dir()
    np.testing.assert_array_equal(found["x"], states[0]["x"])


def test_no_readable_checkpoint_is_an_error_every_time(tmp_path):
    run(tmp_path, steps=10)
    for file in (tmp_path / "checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"no checkpoint in .* can be read \(10.corrupt\)"):
            run(tmp_path)


def test_a_checkpoint_of_something_else_is_left_alone(tmp_path):
    run(tmp_path, steps=10)
    mesh, optimizer = make_mesh(devices=jax.devices()[:1]), optax.sgd(0.1)
    state = init_state({"other": np.zeros(3, np.float32)}, optimizer, mesh)
    with pytest.raises(ValueError, match="another network or optimizer"):
        train(state, None, batch_at, root_key=None, steps=20, workdir=tmp_path, mesh=mesh)
    assert (tmp_path / "checkpoints" / "10").is_dir()


def test_a_loss_that_is_not_finite_stops_it_and_what_was_saved_stays(tmp_path):
    def batches(step):
        batch = batch_at(step)
        return {**batch, "y": batch["y"] * np.nan} if step == 19 else batch

    with pytest.raises(
        ValueError, match="loss is nan at step 20: .* newest checkpoint is of step 10"
    ) as error:
        run(tmp_path, batches=batches)
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["10"]
    assert lines(tmp_path)[-1]["step"] == 16


def test_an_error_in_the_batches_is_raised(tmp_path):
    def batches(step):
        if step == 5:
            raise OSError("the disk is gone")
        return batch_at(step)

    with pytest.raises(OSError, match="the disk is gone"):
        run(tmp_path, batches=batches)


def test_batches_come_in_order_and_few_wait():
    made = []
    results = in_background(lambda item: made.append(item) or item, range(20), 2)
    assert next(results) == 0
    time.sleep(0.2)
    assert len(made) <= 4  # one was taken, two wait, one is in the thread's hand
    assert list(results) == list(range(1, 20))


def test_intervals_out_of_range(tmp_path):
    with pytest.raises(ValueError, match="log_every=0"):
        run(tmp_path, log_every=0)


def test_callbacks(tmp_path):
    saved, seen = [], []
    every = (4, lambda step, state: seen.append((step, int(state.step))))
    run(tmp_path, steps=10, save_every=5, on_save=lambda step, state: saved.append(step), every=every)
    assert saved == [5, 10] and seen == [(4, 4), (8, 8)]
    assert open_checkpoints(tmp_path / "checkpoints").all_steps() == [5, 10]


def test_what_is_found_may_end_it(tmp_path):
    result = run(tmp_path, steps=20, every=(4, lambda step, state: step == 8))
    assert result.finished and (result.step, int(result.state.step)) == (8, 8)
    assert open_checkpoints(tmp_path / "checkpoints").latest_step() == 8


def test_what_a_step_takes_is_said_before_the_first(tmp_path, caplog):
    with caplog.at_level("INFO"):
        run(tmp_path, steps=4)
    (said,) = [record.getMessage() for record in caplog.records if "TFLOP" in record.getMessage()]
    assert said.startswith("a step, on each device: ") and "GiB of workspace" in said
    rates = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert all("mfu" not in line and line["tflops_per_second"] > 0 for line in rates)  # a CPU's peak varies


def test_a_program_s_operations_and_bytes_are_its_compiler_s():
    a, b = np.zeros((64, 128), np.float32), np.zeros((128, 32), np.float32)
    cost = cost_of(jax.jit(lambda a, b: a @ b).lower(a, b).compile())
    assert cost.operations == 2 * 64 * 128 * 32
    assert cost.arguments == a.nbytes + b.nbytes and cost.workspace >= 64 * 32 * 4
    # What a program gives takes no memory where it takes the place of an argument.
    used_up = jax.jit(lambda a: a + 1, donate_argnums=0).lower(a).compile()
    assert cost_of(used_up).workspace < a.nbytes


@pytest.mark.parametrize(
    ("kind", "peak"), [("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("NVIDIA H100 80GB HBM3", 989e12)]
)
def test_the_share_of_the_peak_is_known_of_accelerators(kind, peak, monkeypatch):
    device = SimpleNamespace(device_kind=kind)
    assert peak_of(device) == peak
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert told_of(Cost(peak / 4, 0, 0))["mfu"] == 0.25
    assert peak_of(jax.devices()[0]) is None


def test_steps_are_traced_where_it_is_asked_for(whole, tmp_path):
    run(tmp_path / "run", profile=(3, 4))
    (trace,) = (tmp_path / "run/profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000
    assert lines(tmp_path / "run") == lines(whole[0])
    assert not (whole[0] / "profile").exists()
    # A run that stops between the two leaves what it has, and another can be traced behind it.
    run(tmp_path / "shorter", steps=4, profile=(3, 9))
    assert len(list((tmp_path / "shorter/profile").rglob("*.xplane.pb"))) == 1
    for wrong in ((4, 3), (0, 3)):
        with pytest.raises(ValueError, match="must be a first and a last step from 1"):
            run(tmp_path / "wrong", profile=wrong)


def one_device_step(loss, optimizer, params, **options):
    mesh = make_mesh(devices=jax.devices()[:1])
    return init_state(params, optimizer, mesh, ema=True), make_step(loss, optimizer, mesh, **options)


def test_ema_is_the_moving_average():
    state, step = one_device_step(loss_fn, optax.sgd(0.1), first_params(), ema_decay=0.5)
    mean = first_params()["dense"]["kernel"].astype(np.float64)
    for i in range(12):
        state, _ = step(state, batch_at(i), jax.random.key(0))
        decay = min(0.5, (1 + i) / (10 + i))
        mean = decay * mean + (1 - decay) * np.asarray(state.params["dense"]["kernel"], np.float64)
    np.testing.assert_allclose(state.ema["dense"]["kernel"], mean, rtol=1e-6, atol=1e-7)


def test_weight_decay_is_of_matrices_alone():
    params = {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3), "scale": jnp.ones(())}
    optimizer = make_optimizer(0.5, 10, decay="constant", weight_decay=0.2)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1, rtol=1e-6)
    assert not np.any(updates["bias"]) and not np.any(updates["scale"])


def test_the_learning_rate_rises_and_falls():
    params = {"a": jnp.zeros(())}
    optimizer = make_optimizer(1.0, 8, warmup=4, clip=0, eps=1e-30)
    opt_state, rates = optimizer.init(params), []
    for _ in range(8):  # Adam's update of a constant gradient is the rate
        update, opt_state = optimizer.update({"a": jnp.ones(())}, opt_state, params)
        rates.append(-float(update["a"]))
    falling = 0.5 * (1 + np.cos(np.pi * np.arange(4) / 4))
    np.testing.assert_allclose(rates, [0.25, 0.5, 0.75, 1.0, *falling], rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{"warmup": 10}, {"decay": "linear"}, {"weight_decay": -1}, {"learning_rate": 0}]
)
def test_optimizer_options_out_of_range(options):
    with pytest.raises(ValueError):
        make_optimizer(**{"learning_rate": 1e-3, "steps": 10, **options})


def test_frozen_weights_are_neither_changed_nor_counted():
    frozen = {"kernel": jnp.full((8, 4), 100.0)}
    before = np.array(frozen["kernel"])

    def loss(params, batch, key, frozen):
        return jnp.mean((batch["x"] @ frozen["kernel"] * params["scale"] - batch["y"]) ** 2), {}

    params = {"scale": np.ones(4, np.float32)}
    state, step = one_device_step(loss, make_optimizer(0.1, 10, weight_decay=1.0, clip=0), params)
    batch = batch_at(0)
    expected = optax.tree.norm(jax.grad(lambda p: loss(p, batch, None, frozen)[0])(params))
    for i in range(3):
        state, metrics = step(state, batch_at(i), jax.random.key(0), frozen)
        if i == 0:
            np.testing.assert_allclose(metrics["grad_norm"], expected, rtol=1e-6)
    assert np.array_equal(frozen["kernel"], before)
    assert not np.array_equal(state.params["scale"], params["scale"])
    assert {leaf.shape for leaf in jax.tree.leaves(state)} == {(), (4,)}  # nothing of it is in the state


def test_the_step_is_compiled_once_and_takes_its_state():
    state, step = one_device_step(loss_fn, make_optimizer(0.1, 10), first_params())
    first = state
    for i in range(3):
        state, _ = step(state, batch_at(i), jax.random.key(0))
    assert step._cache_size() == 1
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((first.params, first.ema)))
