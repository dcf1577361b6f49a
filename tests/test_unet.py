"""The UNet: recorded parity with torch diffusers, contexts per layer, remat, types, and what it refuses."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from attrjax.models.unet import UNet2DCondition, abstract_params, cross_attention_names
from tests import cases, unets

RECORDED = Path(__file__).parent / "recorded"


def layer_contexts(family: str) -> np.ndarray:
    """A different context for every layer, drawn as ``unet_reference`` draws it."""
    shape = (len(cross_attention_names(unets.small_unet(family))), 2, 7, 24)
    return np.random.RandomState(11).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("family", cases.UNET)
def test_recorded_prediction_and_gradients(family):
    recorded = np.load(RECORDED / f"unet_{family}.npz")
    ours = unets.answers(family)
    assert cases.relative_error(ours["out"], recorded["out"]) < 2e-5
    gradients = [k for k in recorded if k.startswith(("down_blocks", "up_blocks"))]
    assert len(gradients) > 15
    worst = max((cases.relative_error(ours[k], recorded[k]), k) for k in gradients)
    assert worst[0] < 1e-4, worst


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_recorded_contexts_per_layer(family):
    recorded = np.load(RECORDED / f"unet_{family}.npz")
    ours = unets.predict(
        family, unets.small_unet(family), unets.params_of(family), context=layer_contexts(family)
    )
    assert cases.relative_error(ours, recorded["layers"]) < 2e-5


@pytest.fixture(scope="module")
def shallow() -> dict:
    """A network of two levels that reads an image context, its parameters and what it is called with."""
    unet, inputs = unets.small_unet("sd15", **unets.SHALLOW), cases.unet_inputs("sd15")
    call = (inputs["sample"], inputs["timesteps"], inputs["context"])
    params = cases.deterministic_params(unet, *call, image_context=inputs["image_context"])
    plain = jax.jit(unet.apply)({"params": params}, *call)
    return {"unet": unet, "params": params, "call": call, "image": inputs["image_context"], "plain": plain}


def test_one_context_for_all_equals_the_same_for_each(shallow):
    sample, timesteps, context = shallow["call"]
    each = jax.jit(shallow["unet"].apply)(
        {"params": shallow["params"]}, sample, timesteps, np.stack([context] * 4)
    )
    assert cases.relative_error(each, shallow["plain"]) < 1e-6


def test_remat_changes_memory_not_results(shallow):
    trained = {"down_blocks_0": shallow["params"]["down_blocks_0"]}

    def loss(trained: dict, remat: bool) -> jax.Array:
        unet = shallow["unet"].clone(remat=remat)
        return jnp.square(unet.apply({"params": shallow["params"] | trained}, *shallow["call"])).mean()

    def stored_bytes(remat: bool) -> int:
        """What the forward pass hands to the backward pass."""
        _, pullback = jax.eval_shape(lambda p: jax.vjp(lambda q: loss(q, remat), p), trained)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))

    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(trained))
    assert stored_bytes(True) - weights < 0.5 * (stored_bytes(False) - weights)
    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    plain, again = (cases.to_torch(gradient(trained, remat)) for remat in (False, True))
    largest = max(np.abs(v).max() for v in plain.values())
    assert max(np.abs(again[k] - v).max() for k, v in plain.items()) < 1e-5 * largest


def test_bfloat16_computes_near_float32_from_float32_parameters(shallow):
    assert {leaf.dtype for leaf in jax.tree.leaves(shallow["params"])} == {np.dtype(np.float32)}
    unet = shallow["unet"].clone(dtype=jnp.bfloat16, upcast_attention=True)
    short = jax.jit(unet.apply)({"params": shallow["params"]}, *shallow["call"])
    assert short.dtype == jnp.float32
    assert 1e-4 < cases.relative_error(short, shallow["plain"]) < 0.05


def test_image_context_has_weights_of_its_own_and_a_scale_for_each_layer(shallow):
    names = cross_attention_names(shallow["unet"])
    own = {path for path in flatten_dict(shallow["params"], sep="/") if "_ip/" in path}
    assert own == {f"{name}/{leaf}/kernel" for name in names for leaf in ("to_k_ip", "to_v_ip")}

    @jax.jit
    def run(scale: jax.Array) -> jax.Array:
        extra = {"image_context": shallow["image"], "image_scale": scale}
        return shallow["unet"].apply({"params": shallow["params"]}, *shallow["call"], **extra)

    full = np.ones(len(names), np.float32)
    assert cases.relative_error(run(0 * full), shallow["plain"]) < 1e-6
    assert cases.relative_error(run(full), shallow["plain"]) > 1e-3
    assert cases.relative_error(run(0.7 * full), run(np.float32(0.7))) < 1e-6
    only_middle = 0 * full
    only_middle[names.index("mid_block/attentions_0/transformer_blocks_0/attn2")] = 1
    assert cases.relative_error(run(only_middle), shallow["plain"]) > 1e-4
    assert cases.relative_error(run(only_middle), run(full)) > 1e-4


def test_full_size_parameter_counts():
    def count(unet: UNet2DCondition, **named) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(unet, **named)))

    xl = UNet2DCondition(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        use_linear_projection=True,
        addition_embed_type="text_time",
    )
    sd21 = UNet2DCondition(attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)
    assert count(UNet2DCondition(), cross_attention_dim=768) == 859_520_964
    assert count(sd21, cross_attention_dim=1024) == 865_910_724
    assert count(xl, cross_attention_dim=2048, added_cond_dim=2816) == 2_567_463_684
    assert len(cross_attention_names(UNet2DCondition())) == 16
    assert len(cross_attention_names(xl)) == 70


def test_what_it_refuses():
    def run(unet: UNet2DCondition, context_shape: tuple[int, ...] = (1, 7, 24), **named):
        inputs = (jax.ShapeDtypeStruct((1, 16, 16, 4), jnp.float32), 0.0)
        context = jax.ShapeDtypeStruct(context_shape, jnp.float32)
        return jax.eval_shape(
            lambda x, t, c: unet.init(jax.random.key(0), x, t, c, **named), *inputs, context
        )

    with pytest.raises(ValueError, match="9 entries for 10 cross-attention layers"):
        run(unets.small_unet("sd15"), (9, 1, 7, 24))
    with pytest.raises(ValueError, match="image_scale has 3 entries"):
        run(unets.small_unet("sd15"), image_scale=jnp.ones(3))
    with pytest.raises(ValueError, match="'AttnDownBlock2D' is not supported"):
        run(unets.small_unet("sd15", down_block_types=("AttnDownBlock2D",) * 4))
    with pytest.raises(ValueError, match="added_cond"):
        run(unets.small_unet("sdxl"))
    with pytest.raises(ValueError, match="class_labels"):
        run(unets.small_unet("upscaler", in_channels=4))
    with pytest.raises(ValueError, match="3 entries for 4 UNet blocks"):
        run(unets.small_unet("sd15", attention_head_dim=(2, 2, 2)))
