"""What the text towers promise, beyond parity with transformers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attrjax.models.clip_text import token_embeddings
from tests import cases, full_size, towers


@pytest.mark.parametrize(
    "name, count", [("vit_l", 123_060_480), ("openclip_h", 340_387_840), ("openclip_bigg", 694_659_840)]
)
def test_full_size_has_the_published_number_of_parameters(name, count):
    assert sum(math.prod(shape) for shape in full_size.shapes("text", name).values()) == count


def test_rows_of_the_table_in_place_of_tokens_change_nothing():
    module, params = towers.module_and_params("text", "sdxl_2")
    ids = towers.text_inputs("sdxl_2")["input_ids"]
    rows = token_embeddings(params, ids)
    assert rows.shape == (2, 11, 16)
    plain = towers.named(towers.apply(module, params, ids))
    given = towers.named(towers.apply(module, params, ids, inputs_embeds=rows))
    for key, value in plain.items():
        np.testing.assert_array_equal(given[key], value)


def test_a_learned_word_acts_at_its_position_and_after_it_and_gets_a_gradient():
    module, params = towers.module_and_params("text", "sd15")
    ids = towers.text_inputs("sd15")["input_ids"]
    rows = token_embeddings(params, ids)

    def last(word):
        embeds = rows.at[:, 3].set(word)
        return towers.apply(module, params, ids, inputs_embeds=embeds).last_hidden_state

    before, after = last(towers.normal(1, 24)), last(towers.normal(2, 24))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.all(np.abs(before[:, 3:] - after[:, 3:]).max(-1) > 1e-4)
    assert np.abs(jax.grad(lambda word: (last(word)[:, -1] ** 3).sum())(jnp.arange(24.0))).min() > 0


def test_the_first_end_token_is_pooled_and_a_legacy_config_means_the_largest_id():
    module, params = towers.module_and_params("text", "sdxl")
    ids = jnp.array([[998, 7, 999, 999, 0], [998, 7, 8, 999, 0]])
    for eos, expected in ((2, [2, 3]), (999, [2, 3]), (7, [1, 1])):
        out = towers.apply(module.clone(eos_token_id=eos), params, ids)
        np.testing.assert_array_equal(out.pooled, out.last_hidden_state[jnp.arange(2), jnp.array(expected)])


def test_a_token_outside_the_table_has_no_embedding():
    _, params = towers.module_and_params("text", "sd15")
    rows = token_embeddings(params, jnp.array([999, 1000]))
    assert np.isfinite(rows[0]).all() and np.isnan(rows[1]).all()


def test_bfloat16_is_close_and_keeps_float32_parameters():
    module, params = towers.module_and_params("text", "sdxl_2")
    low, ids = module.clone(dtype=jnp.bfloat16), towers.text_inputs("sdxl_2")["input_ids"]
    initialized = jax.eval_shape(low.init, jax.random.key(0), ids)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(initialized)} == {jnp.dtype("float32")}
    exact, rough = towers.apply(module, params, ids), towers.apply(low, params, ids)
    for a, b in zip(jax.tree.leaves(rough), jax.tree.leaves(exact), strict=True):
        assert a.dtype == jnp.bfloat16
        assert 1e-5 < cases.relative_error(a, b) < 0.05


def test_remat_changes_no_gradient_and_recomputes():
    module, params = towers.module_and_params("text", "sd15")
    module = module.clone(num_hidden_layers=1)
    ids = towers.text_inputs("sd15")["input_ids"]

    def gradient(module):
        return jax.jit(jax.grad(lambda p: jnp.square(towers.apply(module, p, ids).pooled).mean()))

    plain, remat = gradient(module), gradient(module.clone(remat=True))
    for a, b in zip(jax.tree.leaves(remat(params)), jax.tree.leaves(plain(params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    work = [str(jax.make_jaxpr(f)(params)).count("= dot_general") for f in (plain, remat)]
    assert work[1] > work[0]


def test_a_low_rank_adapter_on_a_projection_is_the_sum_of_weights():
    module, params = towers.module_and_params("text", "sd15")
    ids = towers.text_inputs("sd15")["input_ids"]
    down, up = towers.normal(1, 24, 2), towers.normal(2, 2, 24)
    layer = {"self_attn": {"q_proj": {"lora_down": down, "lora_up": up}}}
    adapters = {"text_model": {"encoder": {"layers_1": layer}}}
    adapted = towers.apply(module, params, ids, adapters=adapters).last_hidden_state
    merged = jax.tree.map(lambda x: x, params)
    q_proj = merged["text_model"]["encoder"]["layers_1"]["self_attn"]["q_proj"]
    q_proj["kernel"] = q_proj["kernel"] + down @ up
    expected = towers.apply(module, merged, ids).last_hidden_state
    assert cases.relative_error(adapted, expected) < 1e-5
    assert cases.relative_error(adapted, towers.apply(module, params, ids).last_hidden_state) > 1e-3


def test_a_prompt_that_is_too_long_and_embeddings_that_do_not_fit_are_refused():
    module, params = towers.module_and_params("text", "sd15")
    with pytest.raises(ValueError, match="78 tokens, but the text tower has 77 positions"):
        towers.apply(module, params, jnp.zeros((1, 78), jnp.int32))
    with pytest.raises(ValueError, match=r"must have shape \(1, 5, 24\)"):
        towers.apply(module, params, jnp.zeros((1, 5), jnp.int32), inputs_embeds=jnp.zeros((1, 4, 24)))


def test_an_unknown_activation_is_refused_by_name():
    module, params = towers.module_and_params("text", "sd15")
    with pytest.raises(ValueError, match="'relu' is not supported"):
        towers.apply(module.clone(hidden_act="relu"), params, jnp.zeros((1, 5), jnp.int32))
