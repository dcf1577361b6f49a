"""Every implementation of attention against float64, and how one is chosen."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attrjax.models import attention
from attrjax.models.abstract import for_shapes
from attrjax.models.attention import choose_attention, dot_product_attention


def _case(batch, t, s, heads, size):
    keys = jax.random.split(jax.random.key(t + 3 * s), 3)
    lengths = (t, s, s)
    return tuple(jax.random.normal(k, (batch, n, heads, size)) for k, n in zip(keys, lengths, strict=True))


def _exact(q, k, v, causal=False):
    q, k, v = (np.float64(a) for a in (q, k, v))
    logits = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    if causal:
        logits = np.where(np.tri(*logits.shape[-2:], dtype=bool), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("implementation", ["xla", "chunked", None])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [(64, 64), (77, 77), (256, 77), (31, 530)])
def test_it_is_softmax_attention(implementation, causal, lengths, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK_LOGITS", 4000)  # several blocks, the last one ragged
    q, k, v = _case(2, *lengths, 3, 40)
    got = dot_product_attention(q, k, v, implementation=implementation, causal=causal)
    np.testing.assert_allclose(got, _exact(q, k, v, causal), atol=2e-6)


def test_large_logits_do_not_overflow():
    q, k, v = _case(1, 96, 96, 1, 64)
    got = dot_product_attention(100 * q, 100 * k, v, implementation="chunked")
    np.testing.assert_allclose(got, _exact(100 * q, 100 * k, v), atol=5e-2)


@pytest.mark.parametrize("causal", [False, True])
def test_the_fused_tpu_kernel_interpreted(causal):
    q, k, v = _case(1, 256, 128 + 128 * causal, 2, 40)
    got = attention._splash(q, k, v, causal, interpret=True)
    np.testing.assert_allclose(got, _exact(q, k, v, causal), atol=2e-6)


@pytest.mark.parametrize("lengths", [(64, 77), (77, 77), (65, 64), (64, 64)])
def test_the_fused_gpu_kernel_is_given_even_lengths(lengths, monkeypatch):
    """JAX refuses to differentiate it at others; here its plain form stands in for the kernel."""
    plain, given = jax.nn.dot_product_attention, []

    def stand_in(q, k, v, *, implementation, **options):
        assert implementation == "cudnn"
        given.append((q.shape[1], k.shape[1]))
        return plain(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    q, k, v = _case(2, *lengths, 2, 40)
    causal = lengths[0] == lengths[1]
    np.testing.assert_allclose(attention._cudnn(q, k, v, causal), _exact(q, k, v, causal), atol=2e-6)

    def loss(attend):
        return lambda *a: jnp.sum(jnp.sin(attend(*a, causal)))

    got = jax.grad(loss(attention._cudnn), (0, 1, 2))(q, k, v)
    want = jax.grad(loss(attention._chunked), (0, 1, 2))(q, k, v)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert all(t % 2 == 0 and s % 2 == 0 for t, s in given)


@pytest.mark.parametrize("length", [64, 77])
def test_a_stack_of_calls_of_the_fused_gpu_kernel_can_be_traced(length, monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91900)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    q, k = (jax.ShapeDtypeStruct((3, 2, t, 4, 40), jnp.bfloat16) for t in (64, length))

    def loss(q, k, v):
        return jnp.sum(jnp.sin(attention._cudnn(q, k, v, False).astype(jnp.float32)))

    gradients = jax.eval_shape(jax.vmap(jax.grad(loss, (0, 1, 2))), q, k, k)
    assert [leaf.shape for leaf in gradients] == [q.shape, k.shape, k.shape]


def test_sixteen_bits_in_and_out_with_the_softmax_in_float32():
    q, k, v = (a.astype(jnp.bfloat16) for a in _case(1, 128, 600, 2, 40))
    for implementation in ("xla", "chunked"):
        got = dot_product_attention(q, k, v, implementation=implementation)
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float64(got), _exact(q, k, v), atol=5e-3)


@pytest.mark.parametrize(("lengths", "causal"), [((90, 90), True), ((128, 77), False)])
def test_gradients(lengths, causal, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK_LOGITS", 2000)
    q, k, v = _case(2, *lengths, 2, 40)
    weights = jax.random.normal(jax.random.key(5), q.shape)

    def loss(q, k, v, attend):
        return jnp.sum(weights * attend(q, k, v))

    def plain(q, k, v):
        logits = jnp.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(40)
        if causal:
            logits = jnp.where(np.tri(*lengths, dtype=bool), logits, -jnp.inf)
        return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(logits), v)

    def chunked(q, k, v):
        return dot_product_attention(q, k, v, implementation="chunked", causal=causal)

    got = jax.grad(loss, (0, 1, 2))(q, k, v, chunked)
    want = jax.grad(loss, (0, 1, 2))(q, k, v, plain)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_batch_of_calls():
    q, k, v = (jnp.stack([a, 2 * a]) for a in _case(1, 300, 77, 2, 40))
    got = jax.vmap(lambda q, k, v: dot_product_attention(q, k, v, implementation="chunked"))(q, k, v)
    np.testing.assert_allclose(got[1], _exact(q[1], k[1], v[1]), atol=4e-6)


@pytest.mark.parametrize("differentiated", [False, True])
def test_chunked_never_holds_all_logits(differentiated):
    shape = jax.ShapeDtypeStruct((1, 4096, 4, 40), jnp.float32)

    def temporary(implementation):
        def attend(q, k, v):
            return jnp.sum(dot_product_attention(q, k, v, implementation=implementation))

        function = jax.grad(attend, (0, 1, 2)) if differentiated else attend
        return jax.jit(function).lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes

    logits = 4 * 4096 * 4096 * 4
    assert temporary("xla") > logits
    assert temporary("chunked") < logits / 5


@pytest.mark.parametrize(
    ("shape", "name"),
    [((2, 4096, 8, 40), "chunked"), ((2, 1024, 8, 80), "chunked"), ((2, 256, 8, 160), "xla")],
)
def test_the_choice_on_a_cpu(shape, name):
    assert choose_attention(shape, shape, jnp.float32).name == name


class _Device:
    def __init__(self, compute_capability):
        self.compute_capability = compute_capability


@pytest.mark.parametrize(
    ("size", "dtype", "capability", "name"),
    [
        (40, jnp.bfloat16, "8.0", "cudnn"),
        (160, jnp.bfloat16, "8.0", "xla"),
        (160, jnp.bfloat16, "9.0", "cudnn"),
        (36, jnp.bfloat16, "9.0", "xla"),
        (40, jnp.float32, "9.0", "xla"),
        (40, jnp.bfloat16, "7.5", "xla"),
    ],
)
def test_the_choice_on_a_gpu(size, dtype, capability, name, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [_Device(capability)])
    assert choose_attention((2, 256, 8, size), (2, 77, 8, size), dtype).name == name
    large = choose_attention((8, 4096, 8, size), (8, 4096, 8, size), dtype).name
    assert large == (name if name == "cudnn" else "chunked")


def test_the_choice_on_a_tpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    for t, s, name in ((4096, 4096, "splash"), (4096, 77, "xla"), (256, 256, "xla")):
        assert choose_attention((1, t, 8, 40), (1, s, 8, 40), jnp.bfloat16).name == name
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert choose_attention((1, 4096, 8, 40), (1, 4096, 8, 40), jnp.bfloat16).name == "chunked"
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((8,), ("data",))):
        for rows, name in ((16, "splash"), (12, "chunked")):  # rows that eight devices share, or cannot
            assert choose_attention((rows, 4096, 8, 40), (rows, 4096, 8, 40), jnp.bfloat16).name == name


@pytest.mark.parametrize(
    ("implementation", "message"),
    [
        ("flash", "no attention 'flash'; there are xla, chunked, cudnn, splash"),
        ("cudnn", "attention 'cudnn' cannot run here: it needs an NVIDIA GPU and the backend is cpu"),
        ("splash", "attention 'splash' cannot run here: it needs a TPU and the backend is cpu"),
    ],
)
def test_a_forced_implementation_that_cannot_run_says_why(implementation, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dot_product_attention(*_case(1, 8, 8, 1, 8), implementation=implementation)


def test_each_choice_is_logged_once(monkeypatch):
    lines = []
    monkeypatch.setattr(attention.logging, "info", lambda text, *args: lines.append(text % args))
    attention._log_once.cache_clear()
    for batch, t in ((1, 520), (2, 520), (1, 24)):
        dot_product_attention(*_case(batch, t, t, 1, 24))
    with for_shapes():
        jax.eval_shape(dot_product_attention, *_case(1, 32, 32, 1, 24))
    assert [line.partition(" (")[0] for line in lines] == [
        "attention 520x520 heads 1x24 float32 on cpu: chunked",
        "attention 24x24 heads 1x24 float32 on cpu: xla",
    ]
