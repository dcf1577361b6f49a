"""Low-rank adapters: identity at the start, what a strength reaches, merging against applying."""

from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from attrjax.models import adapters
from attrjax.models.layers import Conv, Linear
from attrjax.models.unet import UNet2DCondition, abstract_params
from tests import cases


class Small(nn.Module):
    """One of each kind of layer."""

    @nn.compact
    def __call__(self, x):
        x = Conv(6, name="conv")(x)
        x = Conv(5, strides=2, name="strided")(jnp.tanh(x))
        return Linear(4, name="linear")(jnp.tanh(x))


def small() -> tuple[nn.Module, dict, jax.Array]:
    x = jax.random.normal(jax.random.key(0), (2, 8, 6, 3))
    return Small(), Small().init(jax.random.key(1), x)["params"], x


def randomize(tree: dict, seed: int = 0) -> dict:
    """The same shapes with no zero in them."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return structure.unflatten(
        [
            jax.random.normal(k, x.shape) / x.shape[-1] if x.ndim else x
            for k, x in zip(keys, leaves, strict=True)
        ]
    )


@cache
def unet_shapes() -> dict:
    """SD 1.5's parameters, abstract."""
    return abstract_params(UNet2DCondition(), cross_attention_dim=768)


def both_kinds(params: dict) -> dict[str, dict]:
    rules = [(".*", 2)]
    return {
        "lora": adapters.init_lora(jax.random.key(2), params, rules, alpha=5.0),
        "offset": adapters.init_offsets(jax.random.key(3), params, rules),
    }


@pytest.mark.parametrize("kind", ["lora", "offset"])
def test_a_new_adapter_changes_nothing_and_a_trained_one_does(kind):
    net, params, x = small()
    adapter = both_kinds(params)[kind]
    plain = net.apply({"params": params}, x)
    assert set(adapters.modules_of(adapter)) == {"conv", "strided", "linear"}
    np.testing.assert_array_equal(net.apply({"params": params, "adapters": adapters.bind(adapter)}, x), plain)
    trained = adapters.bind(randomize(adapter))
    for name in ("conv", "strided", "linear"):
        changed = net.apply({"params": params, "adapters": {name: trained[name]}}, x)
        assert cases.relative_error(changed, plain) > 1e-2, name


@pytest.mark.parametrize("kind", ["lora", "offset"])
def test_merging_is_applying(kind):
    net, params, x = small()
    bound = adapters.bind(randomize(both_kinds(params)[kind]), 0.7)
    merged = adapters.merge(params, bound)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, params)
    applied = net.apply({"params": params, "adapters": bound}, x)
    assert cases.relative_error(net.apply({"params": merged}, x), applied) < 1e-5


def test_merging_is_applying_in_a_unet_with_three_adapters_combined():
    unet = UNet2DCondition(
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    inputs = cases.unet_inputs("sd15", 8, 8)
    call = (inputs["sample"], inputs["timesteps"], inputs["context"])
    params = cases.deterministic_params(unet, *call)
    rules = [("mid_block/.*", None), (".*attn2.*", 2), (".*(conv1|proj_in)", 3)]
    lora = randomize(adapters.init_lora(jax.random.key(0), params, rules, alpha=1.0), 1)
    offsets = randomize(adapters.init_offsets(jax.random.key(1), params, [("(up|mid).*", 3)]), 2)
    three = [adapters.bind(lora), adapters.bind(offsets, {"up": 0.5}), adapters.bind(lora, -0.3)]
    bound = adapters.combine(three)
    predict = jax.jit(lambda variables: unet.apply(variables, *call))
    plain = predict({"params": params})
    applied = predict({"params": params, "adapters": bound})
    merged = predict({"params": adapters.merge(params, bound)})
    assert cases.relative_error(applied, plain) > 0.1
    assert cases.relative_error(merged, applied) < 2e-5


def test_the_change_has_at_most_the_chosen_rank():
    _, params, _ = small()
    for kind, adapter in both_kinds(params).items():
        merged = adapters.merge(params, adapters.bind(randomize(adapter)))
        for name in params:
            before, after = (np.asarray(p[name]["kernel"], np.float64) for p in (params, merged))
            change = after - before if kind == "lora" else after / before - 1
            values = np.linalg.svd(change.reshape(-1, change.shape[-1]), compute_uv=False)
            assert values[1] > 1e-3 and values[2] < 1e-4 * values[0], (kind, name)


def test_alpha_over_rank_scales_the_change():
    _, params, _ = small()
    lora = randomize(adapters.init_lora(jax.random.key(0), params, [("linear", 2)]))
    change = adapters.bind(lora)["linear"]["lora_up"]
    lora["linear"]["alpha"] = jnp.float32(5.0)
    np.testing.assert_allclose(adapters.bind(lora)["linear"]["lora_up"], change * 2.5, rtol=1e-6)


def test_two_adapters_add_up():
    _, params, _ = small()
    for adapter in both_kinds(params).values():
        one, two = adapters.bind(randomize(adapter, 1)), adapters.bind(randomize(adapter, 2), 0.5)
        together = adapters.merge(params, adapters.combine([one, two]))
        apart = [adapters.merge(params, bound) for bound in (one, two)]
        expected = jax.tree.map(lambda base, a, b: a + b - base, params, *apart)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), together, expected)


def test_gradients_reach_the_factors_and_nothing_else():
    net, params, x = small()
    for kind, adapter in both_kinds(params).items():

        def loss(adapter):
            return jnp.square(net.apply({"params": params, "adapters": adapters.bind(adapter)}, x)).mean()

        largest = jax.tree.map(lambda g: float(abs(g).max()), jax.grad(loss)(adapter))
        # What is zero at the start learns first; its partner follows once it is not.
        first, second = ("lora_up", "lora_down") if kind == "lora" else ("offset_v", "offset_u")
        assert all(leaves[first] > 0 and leaves[second] == 0 for leaves in largest.values())
        largest = jax.tree.map(lambda g: float(abs(g).max()), jax.grad(loss)(randomize(adapter)))
        assert all(leaves[first] > 0 and leaves[second] > 0 for leaves in largest.values())
        assert all(leaves.get("alpha", 0) == 0 for leaves in largest.values())


def factors(strength: adapters.Strength) -> dict[str, float]:
    """{path: factor} that a strength has on every weight of SD 1.5's UNet, read off the bound collection."""
    shapes = unet_shapes()
    adapter = jax.eval_shape(lambda: adapters.init_offsets(jax.random.key(0), shapes, [(".*", 1)]))
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), adapter)
    bound = adapters.modules_of(adapters.bind(ones, strength, network=shapes))
    return {path: float(leaves["offset_v"].max()) for path, leaves in bound.items()}


def test_a_strength_reaches_exactly_the_blocks_that_it_names():
    strength = {"down": 2.0, "mid": 0.5, "up": {"block_0": 3.0, "block_2": [4.0, 5.0, 6.0], "block_3": [7.0]}}
    prefixes = {
        "down_blocks_": 2.0,
        "mid_block/": 0.5,
        "up_blocks_0/": 3.0,
        "up_blocks_1/": 1.0,
        "up_blocks_2/attentions_0/": 4.0,
        "up_blocks_2/attentions_1/": 5.0,
        "up_blocks_2/attentions_2/": 6.0,
        "up_blocks_2/resnets_0/": 4.0,
        "up_blocks_2/resnets_1/": 5.0,
        "up_blocks_2/resnets_2/": 6.0,
        "up_blocks_2/upsamplers_0/": 4.0,
        "up_blocks_3/": 7.0,
        "conv_": 1.0,
        "time_embedding/": 1.0,
    }
    found = factors(strength)
    assert len(found) == 282
    for path, factor in found.items():
        expected = [value for prefix, value in prefixes.items() if path.startswith(prefix)]
        assert [factor] == expected, path
    assert set(factors({}).values()) == {1.0}
    assert set(factors(0.25).values()) == {0.25}


@pytest.mark.parametrize(
    ("strength", "message"),
    [
        ({"dwon": 1.0}, "'dwon': known are down, mid, up"),
        ({"up": {"block_9": 1.0}}, "block_9 under 'up': there is block_0, block_1, block_2, block_3"),
        ({"up": {"block_1": [1.0, 2.0]}}, "2 numbers for up/block_1 of 3 layers"),
        ({"mid": [1.0, 2.0]}, "2 numbers for mid of 1 layers"),
        ({"mid": {"block_0": 1.0}}, "one middle block"),
        ({"down": {"block_0": {"attentions": 1.0}}}, "must be a number or a list"),
        ([1.0, 2.0], "must be a number, or a dict"),
    ],
)
def test_a_strength_that_fits_no_block_is_refused(strength, message):
    with pytest.raises(ValueError, match=message):
        factors(strength)


def test_without_the_network_names_are_checked_against_the_adapter():
    adapter = adapters.init_lora(jax.random.key(0), unet_shapes(), [("up_blocks_1/.*attn.*", 1)])
    adapters.bind(adapter, {"down": 0.0, "up": {"block_1": [0.0, 1.0, 0.0]}})
    with pytest.raises(ValueError, match="block_2 under 'up': there is block_1"):
        adapters.bind(adapter, {"up": {"block_2": 1.0}})


def test_another_strength_does_not_recompile():
    net, params, x = small()
    adapter = randomize(both_kinds(params)["lora"])
    traces = []

    @jax.jit
    def apply(strength):
        traces.append(1)
        return net.apply({"params": params, "adapters": adapters.bind(adapter, strength)}, x)

    outputs = [apply(s) for s in (0.0, 0.5, 1.0)]
    assert len(traces) == 1
    np.testing.assert_allclose(outputs[0], net.apply({"params": params}, x), atol=1e-6)
    assert cases.relative_error(outputs[1], outputs[2]) > 1e-3

    blocks = adapters.init_offsets(jax.random.key(0), unet_shapes(), [("up_blocks_1/.*to_q", 1)])
    blocks = randomize(blocks)

    @jax.jit
    def total(strength):
        traces.append(1)
        return sum(jax.tree.leaves(jax.tree.map(jnp.sum, adapters.bind(blocks, strength))))

    dicts = [{"up": {"block_1": [a, 0.0, 1.0]}, "mid": b} for a, b in ((0.0, 1.0), (1.0, 0.5))]
    assert total(dicts[0]) != total(dicts[1])
    assert len(traces) == 2


def test_rules_are_read_in_order_and_a_rule_that_matches_nothing_is_refused():
    shapes = unet_shapes()
    chosen = adapters.select(
        shapes, [("mid_block/.*", None), (".*attn1/to_q/kernel", 8), (".*attn1/to_.", 4)]
    )
    assert {rank for path, rank in chosen.items() if path.endswith("to_q")} == {8}
    assert {rank for path, rank in chosen.items() if path.endswith("to_v")} == {4}
    assert not any(path.startswith("mid_block") or path.endswith("to_out_0") for path in chosen)
    with pytest.raises(ValueError, match=r"'.*to_query' matches no weight.*its paths look like .*/"):
        adapters.init_lora(jax.random.key(0), shapes, [(".*to_q", 4), (".*to_query", 4)])
    with pytest.raises(ValueError, match="leave every weight"):
        adapters.init_lora(jax.random.key(0), shapes, [(".*", None)])
    with pytest.raises(ValueError, match="rank 0"):
        adapters.init_lora(jax.random.key(0), shapes, [(".*", 0)])


def test_a_weights_start_does_not_depend_on_what_else_is_adapted():
    shapes = unet_shapes()
    few = adapters.init_lora(jax.random.key(0), shapes, [("mid_block/.*to_q", 4)])
    rules = [("(mid_block|up_blocks_1)/.*(to_q|proj_in)", 4)]
    many = flatten_dict(adapters.init_lora(jax.random.key(0), shapes, rules), sep="/")
    for path, leaf in flatten_dict(few, sep="/").items():
        np.testing.assert_array_equal(leaf, many[path])
    starts = [np.asarray(many[f"up_blocks_1/attentions_{i}/proj_in/lora_down"]) for i in (0, 1)]
    assert cases.relative_error(*starts) > 0.1


def test_an_adapter_of_another_network_is_refused():
    _, params, _ = small()
    adapter = adapters.init_lora(jax.random.key(0), params, [("linear", 1)])
    with pytest.raises(ValueError, match="no weight at linear"):
        adapters.bind(adapter, network=unet_shapes())
    with pytest.raises(ValueError, match="no weight at linear"):
        adapters.merge({"conv": params["conv"]}, adapters.bind(adapter))
    with pytest.raises(ValueError, match="linear/kernel is no leaf"):
        adapters.bind({"linear": {"kernel": params["linear"]["kernel"]}})
    with pytest.raises(ValueError, match="only one of lora_down and lora_up at linear"):
        adapters.bind({"linear": {"lora_down": jnp.ones((6, 1))}})


def test_parameter_count_leaves_alpha_out():
    _, params, _ = small()
    adapter = adapters.init_lora(jax.random.key(0), params, [("conv|linear", 2)], alpha=1.0)
    assert adapters.parameter_count(adapter) == 2 * (27 + 6) + 2 * (5 + 4)
