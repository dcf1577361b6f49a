"""Scaled dot-product attention: one function, the fastest correct implementation for each shape and device.

* ``xla``: the plain form; its logits are all in memory at once.
* ``chunked``: exact softmax over blocks of queries, recomputed in the backward pass: memory grows with T and
  with S, not with their product (Rabe & Staats 2021, arXiv:2112.05682).
* ``cudnn``: fused attention on NVIDIA GPUs, in 16 bits.
* ``splash``: fused attention on TPUs.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from attrjax.models.abstract import shapes_alone

IMPLEMENTATIONS = ("xla", "chunked", "cudnn", "splash")
# Logits of one head in a block. At 2 MiB they stay in a CPU's shared cache, and the products around them are
# large enough for several cores.
BLOCK_LOGITS = 2**19
# Logits of one head from which blocks are faster on a CPU, measured on two Zen 4 cores.
CPU_LOGITS = 2**18
# Plain logits of one call, in bytes, from which an accelerator takes them block by block.
LARGE_LOGITS = 2**29


class Choice(NamedTuple):
    """An implementation's name and why it was taken."""

    name: str
    reason: str


def dot_product_attention(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    *,
    implementation: str | None = None,
    causal: bool = False,
) -> Float[Array, "b t n h"]:
    """softmax(q k^T / sqrt(h)) v, with the softmax in float32.

    ``implementation`` forces one of ``IMPLEMENTATIONS``; ``None`` chooses (``choose_attention``), and each
    distinct choice is logged once. ``causal`` lets position t see keys up to t.

    Raises:
        ValueError: the forced implementation does not exist or cannot compute this call.
    """
    choice = choose_attention(q.shape, k.shape, q.dtype, implementation=implementation)
    (_, t, n, h), s = q.shape, k.shape[1]
    if shapes_alone():
        return q
    _log_once(
        f"attention {t}x{s} heads {n}x{h} {q.dtype.name} on {jax.default_backend()}: {choice.name}",
        choice.reason,
    )
    attend = {"xla": _plain, "chunked": _chunked, "cudnn": _cudnn, "splash": _splash}[choice.name]
    if choice.name == "splash" and (axes := _free_axes()):
        # The compiler cannot divide a custom kernel, so that each device is given its own rows here.
        rows = PartitionSpec(axes)
        attend = jax.shard_map(
            functools.partial(attend, causal=causal), in_specs=rows, out_specs=rows, check_vma=False
        )
        return attend(q, k, v)
    return attend(q, k, v, causal)


def choose_attention(q_shape, k_shape, dtype, *, implementation: str | None = None) -> Choice:
    """The implementation for queries [b, t, n, h] and keys [b, s, n, h] on the default backend."""
    backend = jax.default_backend()
    if implementation is not None:
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(f"no attention {implementation!r}; there are {', '.join(IMPLEMENTATIONS)}")
        obstacle = _obstacle(implementation, q_shape, k_shape, dtype)
        if obstacle:
            raise ValueError(f"attention {implementation!r} cannot run here: {obstacle}")
        return Choice(implementation, "forced")
    (b, t, n, h), s = q_shape, k_shape[1]
    if backend == "gpu" and not _obstacle("cudnn", q_shape, k_shape, dtype):
        return Choice("cudnn", "fused kernel")
    if backend == "tpu" and min(t, s) >= (4096 if h <= 64 else 1024) and _rows_of_own(b):
        if not _obstacle("splash", q_shape, k_shape, dtype):
            return Choice("splash", "fused kernel, long enough to pay for its padding")
    if backend == "cpu":
        if t * s >= CPU_LOGITS:
            return Choice("chunked", "a block's logits stay in cache")
    elif 4 * b * n * t * s >= LARGE_LOGITS:
        return Choice("chunked", "the logits would not leave room for much else")
    return Choice("xla", "small")


def _obstacle(name: str, q_shape, k_shape, dtype) -> str | None:
    """Why an implementation cannot compute a call on the default backend, or None if it can."""
    (_, t, _, h), s = q_shape, k_shape[1]
    backend = jax.default_backend()
    if name == "cudnn":
        if backend != "gpu":
            return f"it needs an NVIDIA GPU and the backend is {backend}"
        if dtype not in (jnp.bfloat16, jnp.float16):
            return f"it needs bfloat16 or float16 and the inputs are {jnp.dtype(dtype).name}"
        generation = float(getattr(jax.devices()[0], "compute_capability", 0))
        if generation < 8.0:
            return f"it needs compute capability 8.0 and the device has {generation}"
        largest = 256 if generation >= 9.0 else 128
        if h % 8 or h > largest:
            return f"it needs a head size that is a multiple of 8 up to {largest}, not {h}"
    if name == "splash":
        if backend != "tpu":
            return f"it needs a TPU and the backend is {backend}"
        if t % 128 or s % 128:
            return f"it needs lengths that are multiples of 128, not {t} and {s}"
    return None


def _free_axes() -> tuple[str, ...]:
    """Axes of the mesh that a program is traced for (``parallel.mesh.traced_for``) that the compiler divides
    arrays over; none inside of ``shard_map``, where a program is that of one device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(name for name in mesh.axis_names if name not in mesh.manual_axes)


def _rows_of_own(rows: int) -> bool:
    """Whether a custom kernel can be given rows of one device alone: otherwise all are gathered on each."""
    mesh = jax.sharding.get_abstract_mesh()
    if jax.device_count() == 1 or (mesh.axis_names and not _free_axes()):
        return True
    return bool(mesh.axis_names) and rows % mesh.size == 0


@functools.cache
def _log_once(choice: str, reason: str) -> None:
    logging.info("%s (%s)", choice, reason)


def _plain(q, k, v, causal):
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="xla")


def _cudnn(q, k, v, causal):
    # JAX differentiates it at even lengths alone; a prompt has 77 tokens, and a tower sees 257 patches.
    t, s = q.shape[1], k.shape[1]
    lengths: dict[str, Any] = {}
    if t % 2 or s % 2:
        # Of the queries, so that a stack of calls has a stack of lengths: JAX 0.10 batches no others.
        row = jnp.isnan(q[:, 0, 0, 0])
        lengths = {
            "query_seq_lengths": jnp.where(row, jnp.int32(t), jnp.int32(t)),
            "key_value_seq_lengths": jnp.where(row, jnp.int32(s), jnp.int32(s)),
        }
        q, k, v = (jnp.pad(a, ((0, 0), (0, a.shape[1] % 2), (0, 0), (0, 0))) for a in (q, k, v))
    out = jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn", **lengths)
    return out[:, :t]


def _chunked(q, k, v, causal):
    batch, t, heads, size = q.shape
    s = k.shape[1]
    blocks = -(-t // max(1, min(t, BLOCK_LOGITS // s)))
    block = -(-t // blocks)
    q = jnp.pad(q * jnp.asarray(size**-0.5, q.dtype), ((0, 0), (0, blocks * block - t), (0, 0), (0, 0)))
    # A column of ones in v makes the product return the softmax's denominator as well: one pass over the
    # logits less.
    v = jnp.concatenate([v, jnp.ones((*v.shape[:-1], 1), v.dtype)], -1)
    q, k, v = q.transpose(0, 2, 1, 3), k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)

    @jax.checkpoint
    def one_block(q, start, k, v):
        logits = jnp.matmul(q, k, preferred_element_type=jnp.float32)
        if causal:
            seen = start + jnp.arange(block)[:, None] >= jnp.arange(s)
            logits = jnp.where(seen, logits, -jnp.inf)
        weights = jnp.exp(logits - lax.stop_gradient(logits.max(-1, keepdims=True)))
        out = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return out[..., :size] / out[..., size:]

    def all_blocks(q, k, v):
        starts = jnp.arange(blocks) * block
        q = jnp.moveaxis(q.reshape(*q.shape[:-2], blocks, block, size), -3, 0)
        out = jnp.moveaxis(lax.map(lambda a: one_block(*a, k, v), (q, starts)), 0, -3)
        return out.reshape(*out.shape[:-3], blocks * block, size)

    if jax.default_backend() == "cpu":  # head by head, for the cache's sake
        q, k, v = (a.reshape(batch * heads, *a.shape[2:]) for a in (q, k, v))
        out = lax.map(lambda a: all_blocks(*a), (q, k, v)).reshape(batch, heads, blocks * block, size)
    else:
        out = all_blocks(q, k, v)
    return out.transpose(0, 2, 1, 3)[:, :t].astype(q.dtype)


def _splash(q, k, v, causal, interpret=False):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (_, t, heads, size), s = q.shape, k.shape[1]
    mask = masks.CausalMask((t, s)) if causal else masks.FullMask((t, s))
    attend = kernel.make_splash_mha(
        masks.MultiHeadMask([mask] * heads), head_shards=1, q_seq_shards=1, interpret=interpret
    )
    lanes = ((0, 0), (0, 0), (0, 0), (0, -size % 128))
    q, k, v = (jnp.pad(a, lanes).transpose(0, 2, 1, 3) for a in (q * jnp.asarray(size**-0.5, q.dtype), k, v))
    return jax.vmap(attend)(q, k, v).transpose(0, 2, 1, 3)[..., :size]
