"""Textual-inversion and IP-Adapter files: round trips, what they change, and what is refused."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from attrjax.checkpoints.ip_adapter import add_to_unet, image_scales, load_ip_adapter
from attrjax.checkpoints.textual_inversion import (
    add_tokens,
    expand_prompt,
    load_textual_inversion,
    save_textual_inversion,
    vocabulary_size,
)
from attrjax.models.clip_text import CLIPTextModel
from attrjax.models.unet import UNet2DCondition, abstract_params, cross_attention_names
from tests import cases, unets
from tests.exchange_cases import ip_adapter_tensors, vectors
from tests.tiny import tiny_tokenizer

TABLE = "text_model/embeddings/token_embedding/embedding"


def tower() -> tuple[CLIPTextModel, dict]:
    module = CLIPTextModel(**cases.CLIP_TEXT["sdxl_2"])
    return module, cases.deterministic_params(module, np.zeros((1, 4), np.int32))


def test_textual_inversion_round_trip(tmp_path):
    for rows in (1, 3):
        save_textual_inversion(tmp_path, "<toy>", {"text_encoder": vectors(rows)})
        assert load_file(tmp_path / "learned_embeds.safetensors").keys() == {"<toy>"}
        loaded = load_textual_inversion(tmp_path)
        assert loaded.keys() == {"text_encoder"} and loaded["text_encoder"].keys() == {"<toy>"}
        np.testing.assert_array_equal(loaded["text_encoder"]["<toy>"], vectors(rows))
    assert load_textual_inversion(tmp_path, token="<other>")["text_encoder"].keys() == {"<other>"}
    both = {"text_encoder": vectors(2, 8), "text_encoder_2": vectors(2, 16)}
    file = save_textual_inversion(tmp_path / "sdxl.safetensors", "<toy>", both, dtype=np.float16)
    assert {k: v.shape for k, v in load_file(file).items()} == {"clip_l": (2, 8), "clip_g": (2, 16)}
    loaded = load_textual_inversion(file, token="<toy>")
    for component, rows in both.items():
        np.testing.assert_allclose(loaded[component]["<toy>"], rows, atol=2e-3)
    with pytest.raises(ValueError, match="names no token"):
        load_textual_inversion(file)
    save_file({"a": vectors(1), "b": vectors(1)}, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match="one word, or clip_l and clip_g, not a, b"):
        load_textual_inversion(tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match="text_encoder"):
        save_textual_inversion(tmp_path, "<toy>", {"unet": vectors(1)})


def test_learned_words_reach_the_text_tower():
    module, params = tower()
    words = {"<toy>": vectors(3), "<cup>": vectors(1, seed=1)}
    longer, grown, ids = add_tokens(tiny_tokenizer(), params, words)
    assert ids == {"<toy>": [1000, 1001, 1002], "<cup>": [1003]}
    assert len(tiny_tokenizer()) == 1000 and len(longer) == 1004 and vocabulary_size(grown) == 1004
    prompt = expand_prompt("a <toy> and a <cup>", longer)
    assert prompt == "a <toy> <toy>_1 <toy>_2 and a <cup>"
    assert expand_prompt("<toy>_1 <cup>", longer) == "<toy>_1 <cup>"
    tokens = longer(prompt, padding="max_length", max_length=20, return_tensors="np")["input_ids"]
    assert [t for t in tokens[0] if t >= 1000] == [1000, 1001, 1002, 1003]
    table = flatten_dict(grown, sep="/")[TABLE]
    np.testing.assert_array_equal(table[:1000], flatten_dict(params, sep="/")[TABLE])
    # The same as if the vectors had been given in place of some other tokens' rows.
    embeds = np.asarray(table)[tokens]
    np.testing.assert_array_equal(embeds[tokens == 1003], vectors(1, seed=1))
    longer_tower = module.clone(vocab_size=vocabulary_size(grown))
    by_id = longer_tower.apply({"params": grown}, tokens).last_hidden_state
    by_vector = module.apply(
        {"params": params}, np.minimum(tokens, 999), inputs_embeds=embeds
    ).last_hidden_state
    np.testing.assert_allclose(by_id, by_vector, atol=1e-6)


def test_words_that_cannot_be_added_are_refused():
    _, params = tower()
    longer, grown, _ = add_tokens(tiny_tokenizer(), params, {"<toy>": vectors(2)})
    for words in ({"<toy>": vectors(1)}, {"<toy>_1": vectors(1)}, {"a": vectors(1)}):
        with pytest.raises(ValueError, match=f"already has {next(iter(words))}: choose another"):
            add_tokens(longer, grown, words)
    with pytest.raises(ValueError, match="already has <cup>_1"):
        add_tokens(longer, grown, {"<cup>": vectors(2), "<cup>_1": vectors(1)})
    with pytest.raises(ValueError, match="<cup> has 8 channels, the text tower 16"):
        add_tokens(longer, grown, {"<cup>": vectors(1, 8)})
    with pytest.raises(ValueError, match="tokenizer has 1002 tokens, the text tower only 1000"):
        add_tokens(longer, params, {"<cup>": vectors(1)})


@cache
def sd15() -> tuple[list[str], dict, list[int]]:
    unet = unets.small_unet("sd15")
    layers, shapes = cross_attention_names(unet), abstract_params(unet, cross_attention_dim=24)
    flat = flatten_dict(shapes, sep="/")
    return layers, shapes, [flat[f"{layer}/to_k/kernel"].shape[1] for layer in layers]


@pytest.mark.parametrize("plus", [False, True], ids=["basic", "plus"])
def test_ip_adapter_weights_reach_their_layers(tmp_path, plus):
    layers, shapes, channels = sd15()
    tensors = ip_adapter_tensors(plus, len(layers), channels)
    file = tmp_path / "ip-adapter_sd15.safetensors"
    save_file(tensors, file)
    adapter = load_ip_adapter(tmp_path, layers, shapes)
    kernels = flatten_dict(add_to_unet(shapes, adapter), sep="/")
    assert len(kernels) == len(flatten_dict(shapes)) + 2 * len(layers)
    for i, layer in enumerate(layers):
        stored = tensors[f"ip_adapter.{2 * i + 1}.to_v_ip.weight"]
        np.testing.assert_array_equal(kernels[f"{layer}/to_v_ip/kernel"], stored.T)
    picture = vectors(2, 10) if not plus else vectors(14, 10).reshape(2, 7, 10)
    tokens = adapter.projection.apply({"params": adapter.projection_params}, picture)
    assert tokens.shape == (2, 5 if plus else 4, 24)
    abstract = jax.eval_shape(lambda: adapter.projection.init(jax.random.key(0), picture))["params"]
    assert jax.tree.map(jnp.shape, adapter.projection_params) == jax.tree.map(jnp.shape, abstract)


def test_ip_adapters_that_do_not_fit_are_refused(tmp_path):
    layers, shapes, channels = sd15()
    good = ip_adapter_tensors(False, len(layers), channels)
    last = f"ip_adapter.{2 * len(layers) - 1}.to_k_ip.weight"
    one = np.ones((1, 1), np.float32)
    wrong = {
        "missing 19.to_k_ip.weight; left over nothing": {k: v for k, v in good.items() if k != last},
        "missing nothing; left over 99.to_k_ip": good | {"ip_adapter.99.to_k_ip.weight": one},
        r"19.to_k_ip.weight \[5, 24\], the layer has 24 channels": good
        | {last: np.ones((5, 24), np.float32)},
        "Full Face": good | {"image_proj.proj.3.weight": one},
        "FaceID Plus": good | {"image_proj.perceiver_resampler.proj_in.weight": one},
        "FaceID;": good | {"image_proj.proj.0.weight": one},
        "to_q_lora": good | {"ip_adapter.0.to_q_lora.down.weight": one},
        "lacks image_proj.norm.bias": {k: v for k, v in good.items() if k != "image_proj.norm.bias"},
        "no IP-Adapter": {k: v for k, v in good.items() if k.startswith("image_proj")},
    }
    for message, tensors in wrong.items():
        save_file(tensors, tmp_path / "file.safetensors")
        with pytest.raises(ValueError, match=message):
            load_ip_adapter(tmp_path / "file.safetensors", layers, shapes)


def test_image_scales_are_zero_where_not_named():
    layers = cross_attention_names(UNet2DCondition())
    scales = image_scales({"down": {"block_2": [0.0, 1.0]}, "up": {"block_1": [0.0, 0.5, 0.0]}}, layers)
    named = {layer.split("/transformer")[0]: float(s) for layer, s in zip(layers, scales, strict=True) if s}
    assert named == {"down_blocks_2/attentions_1": 1.0, "up_blocks_1/attentions_1": 0.5}
    np.testing.assert_array_equal(image_scales(0.7, layers), np.full(16, 0.7, np.float32))
    with pytest.raises(ValueError, match="block_0 under 'up': there is block_1, block_2, block_3"):
        image_scales({"up": {"block_0": 1.0}}, layers)
