"""torch diffusers' side of ``benchmark.speed``: python -m benchmark.peers.torch_unet SPEC.

Peer "torch" is eager, "torch_compile" is ``torch.compile`` in its default mode. Both run with contiguous
(NCHW) and with channels-last memory, since which of the two is faster differs between machines.

With "flops" for the peer nothing runs: the operations of each task are counted on the meta device.
"""

import contextlib
import gc
import sys
from collections.abc import Callable

from benchmark.peers import measure

SPEC = measure.begin(sys.argv[1])  # before torch starts its threads

import diffusers  # noqa: E402
import peft  # noqa: E402
import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from benchmark import families  # noqa: E402

CONFIG = families.UNET[SPEC.family]
DEVICE = "cuda" if SPEC.device == "gpu" else "cpu"
DTYPE = getattr(torch, SPEC.dtype)
# What parts of the network are called in torch.
PREFIXES = {
    "encoder": ("down_blocks.",),
    "decoder": ("up_blocks.",),
    "full": ("down_blocks.", "mid_block.", "up_blocks."),
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def wait() -> None:
    """Return when the device's work is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak_bytes() -> int:
    """The most memory held so far: the GPU's, or this process's on a CPU."""
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else measure.host_peak_bytes()


def peak() -> None:
    """Speed of a large matrix product in the compute type."""
    side = 16384 if SPEC.device == "gpu" else 4096
    x = torch.full((side, side), 0.5, device=DEVICE, dtype=DTYPE)

    def call() -> None:
        torch.mm(x, x)
        wait()

    measure.measure_peak(call, 2 * side**3)


def make_unet(device: str, dtype: torch.dtype) -> torch.nn.Module:
    """A UNet with its class's random initialization."""
    with torch.device(device):
        return diffusers.UNet2DConditionModel.from_config(CONFIG).to(dtype)


def inputs(batch: int, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, timesteps and context of a batch."""
    side = SPEC.size // 8
    return (
        torch.randn(batch, CONFIG["in_channels"], side, side, device=device, dtype=dtype),
        torch.full((batch,), 501, device=device),
        torch.randn(batch, 77, CONFIG["cross_attention_dim"], device=device, dtype=dtype),
    )


def compiled(module: Callable) -> Callable:
    """The module as this peer runs it.

    Compiled anew for each layout: a second layout seen by one compilation would turn strides into variables.
    """
    torch.compiler.reset()
    return torch.compile(module) if SPEC.peer == "torch_compile" else module


def inference(unet: torch.nn.Module, layout: str) -> None:
    """Time a forward pass of two pictures, as guidance makes it, and a whole sampling run of one."""
    unet.eval().to(memory_format=LAYOUTS[layout])
    run = compiled(unet)
    latents, timesteps, context = inputs(2, DEVICE, DTYPE)
    latents = latents.to(memory_format=LAYOUTS[layout])

    @torch.inference_mode()
    def forward() -> torch.Tensor:
        y = run(latents, timesteps, context, return_dict=False)[0]
        wait()
        return y

    @torch.inference_mode()
    def sample(steps: int) -> torch.Tensor:
        scheduler = diffusers.DDIMScheduler(**measure.SCHEDULER, clip_sample=False)
        scheduler.set_timesteps(steps, device=DEVICE)
        x = latents[:1] * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([x, x]), t).contiguous(memory_format=LAYOUTS[layout])
            without, given = run(both, t.repeat(2), context, return_dict=False)[0].chunk(2)
            x = scheduler.step(without + measure.GUIDANCE * (given - without), t, x, return_dict=False)[0]
        wait()
        return x

    if "forward" in SPEC.what:
        measure.measure(SPEC, "forward", forward, forward, layout, peak_bytes)
    if "sample" in SPEC.what:
        measure.measure(SPEC, "sample", lambda: sample(2), lambda: sample(SPEC.steps), layout, peak_bytes)


def tune(unet: torch.nn.Module, task: str) -> torch.nn.Module:
    """The network with the part that a task tunes in float32, and what it only reads in the compute type."""
    part, _ = measure.TUNED[task]
    if part in PREFIXES:
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(name.startswith(PREFIXES[part]))
    else:
        unet.requires_grad_(False)
        modules = ["to_q", "to_k", "to_v", "to_out.0"]
        unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=modules))
    for parameter in unet.parameters():
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else DTYPE)
    return unet


def train(layout: str, task: str) -> None:
    """Time a step of AdamW on the squared error of one picture, float32 masters."""
    state: dict[str, Callable] = {}

    def warm_up() -> None:
        unet = make_unet(DEVICE, torch.float32).train()
        unet = (tune(unet, task) if task in measure.TUNED else unet).to(memory_format=LAYOUTS[layout])
        optimizer = torch.optim.AdamW(
            [parameter for parameter in unet.parameters() if parameter.requires_grad],
            lr=measure.LEARNING_RATE,
            weight_decay=measure.WEIGHT_DECAY,
            fused=True,
        )
        run = compiled(unet)
        latents, timesteps, context = inputs(1, DEVICE, torch.float32)
        latents = latents.to(memory_format=LAYOUTS[layout])
        mixed = torch.autocast(DEVICE, DTYPE) if DTYPE != torch.float32 else contextlib.nullcontext()

        def step() -> None:
            with mixed:
                prediction = run(latents, timesteps, context, return_dict=False)[0]
            loss = torch.nn.functional.mse_loss(prediction.float(), latents * 0.5)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if not loss.isfinite().item():
                raise ValueError(f"the loss of {SPEC.peer} is {loss.item()}")
            wait()

        state["step"] = step
        step()

    measure.measure(SPEC, task, warm_up, lambda: state["step"](), layout, peak_bytes)
    state.clear()
    gc.collect()


def make_vae(device: str, dtype: torch.dtype) -> torch.nn.Module:
    """A VAE with its class's random initialization."""
    with torch.device(device):
        return diffusers.AutoencoderKL.from_config(families.VAE[SPEC.family]).to(dtype).eval()


def decode(layout: str) -> None:
    """Time the VAE's decoding of one picture's latents."""
    vae = make_vae(DEVICE, DTYPE).to(memory_format=LAYOUTS[layout])
    run = compiled(vae.decode)
    latents, _, _ = inputs(1, DEVICE, DTYPE)

    @torch.inference_mode()
    def call() -> None:
        run(latents.to(memory_format=LAYOUTS[layout]), return_dict=False)
        wait()

    measure.measure(SPEC, "decode", call, call, layout, peak_bytes)


def count() -> None:
    """Emit each task's floating point operations: products and sums of matrix products and convolutions."""
    unet = make_unet("meta", torch.float32)

    def counted(call: Callable) -> int:
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    forward = counted(lambda: unet(*inputs(2, "meta", torch.float32)))
    measure.emit("forward", flops=forward)
    measure.emit("sample", flops=SPEC.steps * forward)
    measure.emit(
        "train", flops=counted(lambda: unet(*inputs(1, "meta", torch.float32)).sample.sum().backward())
    )
    for task in measure.TUNED:
        tuned = tune(make_unet("meta", torch.float32), task)
        measure.emit(
            task, flops=counted(lambda u=tuned: u(*inputs(1, "meta", torch.float32)).sample.sum().backward())
        )
    vae, latents = make_vae("meta", torch.float32), inputs(1, "meta", torch.float32)[0]
    measure.emit("decode", flops=counted(lambda: vae.decode(latents)))


def main() -> None:
    """Run the tasks of the spec."""
    if SPEC.peer == "flops":
        count()
        return
    torch.set_num_threads(SPEC.threads)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    peak()
    if {"forward", "sample"} & set(SPEC.what):
        unet = make_unet(DEVICE, DTYPE)
        for layout in LAYOUTS:
            inference(unet, layout)
        del unet
        gc.collect()
    for layout in LAYOUTS:
        if "decode" in SPEC.what:
            decode(layout)
    for task in ("train", *measure.TUNED):
        for layout in LAYOUTS:
            if task in SPEC.what:
                train(layout, task)


if __name__ == "__main__":
    main()
