"""LoRA, textual-inversion and IP-Adapter files exchanged with torch diffusers, to the same effect."""

from functools import cache

import diffusers
import jax
import numpy as np
import peft
import pytest
import torch
from diffusers.utils import convert_state_dict_to_diffusers
from flax.traverse_util import unflatten_dict
from peft.utils import get_peft_model_state_dict
from safetensors.numpy import load_file, save_file

from attrjax.checkpoints.ip_adapter import add_to_unet, image_scales, load_ip_adapter
from attrjax.checkpoints.lora import ldm_module_names, load_lora, module_name, save_lora
from attrjax.checkpoints.pipeline import Pipeline, load_pipeline
from attrjax.checkpoints.textual_inversion import (
    add_tokens,
    expand_prompt,
    load_textual_inversion,
    save_textual_inversion,
    vocabulary_size,
)
from attrjax.models import adapters
from attrjax.models.unet import cross_attention_names
from tests import cases, tiny, unets
from tests.exchange_cases import ip_adapter_tensors, random_lora, vectors

TOWERS = {"sd15": ("text_encoder",), "sdxl": ("text_encoder", "text_encoder_2")}
# Every kind of layer of blocks with attention; diffusers' dict of strengths says nothing about other blocks.
IN_ATTENTION_BLOCKS = r"(down_blocks_[012]|up_blocks_[123])/.*"
RULES = [
    (".*(to_q|to_v|to_out_0|net_2)", 2),
    (IN_ATTENTION_BLOCKS + "(conv1|time_emb_proj|proj_in|samplers_0/conv)", 3),
]
IDS = np.array([[998, 5, 17, 801, 2, 9, 999, 999], [998, 330, 12, 44, 999, 999, 999, 999]])


@pytest.fixture(scope="module")
def pair(request, tmp_path_factory) -> tuple[str, Pipeline, diffusers.DiffusionPipeline]:
    """One small base, loaded on both sides."""
    base = tiny.make_tiny_pipeline(tmp_path_factory.mktemp("base") / request.param, request.param)
    kinds = {"sd15": diffusers.StableDiffusionPipeline, "sdxl": diffusers.StableDiffusionXLPipeline}
    theirs = kinds[request.param].from_pretrained(base, torch_dtype=torch.float32)
    return request.param, load_pipeline(base), theirs


@cache
def our_unet(family: str):
    """Compiled once for all adapters of one shape."""
    unet, inputs = unets.small_unet(family), cases.unet_inputs(family, 8, 8)
    call = (inputs["sample"], inputs["timesteps"], inputs["context"])
    return jax.jit(lambda variables: unet.apply(variables, *call, **unets.extras(inputs)))


def torch_unet(family: str, net: diffusers.UNet2DConditionModel, **added) -> np.ndarray:
    tensors = {k: torch.tensor(v) for k, v in cases.unet_inputs(family, 8, 8).items()}
    added |= {k: tensors[k] for k in ("text_embeds", "time_ids") if k in tensors}
    with torch.no_grad():
        sample = tensors["sample"].permute(0, 3, 1, 2)
        out = net(sample, tensors["timesteps"], tensors["context"], added_cond_kwargs=added).sample
    return out.permute(0, 2, 3, 1).numpy()


def our_text(component, adapter: dict | None = None) -> np.ndarray:
    variables = {"params": component.params} | (
        {} if adapter is None else {"adapters": adapters.bind(adapter)}
    )
    return np.asarray(component.module.apply(variables, IDS).last_hidden_state)


def torch_text(net: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return net(torch.tensor(IDS), output_hidden_states=True).last_hidden_state.numpy()


def random_adapters(family: str, ours: Pipeline, alpha: float | None = None) -> dict[str, dict]:
    """Changes of the UNet and of all text towers, large enough to be seen."""
    made = {"unet": random_lora(ours.unet.params, RULES, alpha)}
    for i, tower in enumerate(TOWERS[family]):
        made[tower] = random_lora(
            getattr(ours, tower).params, [(".*(q_proj|out_proj|fc1)", 2)], alpha, seed=i + 1
        )
    return made


def assert_same_effect(family, ours, theirs, saved, strength: adapters.Strength = 1.0) -> None:
    variables = {
        "params": ours.unet.params,
        "adapters": adapters.bind(saved["unet"], strength, network=ours.unet.params),
    }
    changed = np.asarray(our_unet(family)(variables))
    assert cases.relative_error(changed, torch_unet(family, theirs.unet)) < 2e-5
    for tower in set(saved) - {"unet"}:
        reference = torch_text(getattr(theirs, tower))
        assert cases.relative_error(our_text(getattr(ours, tower), saved[tower]), reference) < 2e-5
        assert cases.relative_error(our_text(getattr(ours, tower)), reference) > 1e-2
    silent = adapters.bind(saved["unet"], 0.0)
    plain = np.asarray(our_unet(family)({"params": ours.unet.params, "adapters": silent}))
    assert cases.relative_error(changed, plain) > 1e-2


@pytest.mark.parametrize("pair", ["sd15", "sdxl"], indirect=True)
def test_torch_reads_the_lora_files_written_here(pair, tmp_path):
    family, ours, theirs = pair
    saved = random_adapters(family, ours, alpha=1.5)
    # One weight with an alpha of its own; in kohya's files diffusers overlooks those of attentions.
    modules = adapters.modules_of(saved["unet"])
    own = next(path for path in modules if path.endswith("conv1"))
    saved["unet"] = unflatten_dict(
        {
            f"{path}/{name}": np.float32(3.0) if (path, name) == (own, "alpha") else leaf
            for path, leaves in modules.items()
            for name, leaf in leaves.items()
        },
        sep="/",
    )
    for names in ("diffusers", "peft", "kohya"):
        theirs.load_lora_weights(save_lora(tmp_path / names, saved, names=names).parent)
        assert_same_effect(family, ours, theirs, saved)
        theirs.unload_lora_weights()


@pytest.mark.parametrize("pair", ["sdxl"], indirect=True)
def test_original_block_names_mean_the_same_to_torch(pair, tmp_path):
    family, ours, theirs = pair
    saved = {"unet": random_adapters(family, ours, alpha=1.0)["unet"]}
    original = ldm_module_names(list(adapters.kernel_shapes(ours.unet.params)))
    kohya = {module_name(m).replace(".", "_"): name.replace(".", "_") for m, name in original.items()}
    file = save_lora(tmp_path / "sdxl.safetensors", saved, names="kohya")
    tensors = {}
    for key, tensor in load_file(file).items():
        name, _, rest = key.removeprefix("lora_unet_").partition(".")
        tensors[f"lora_unet_{kohya[name]}.{rest}"] = tensor
    save_file(tensors, file)
    theirs.load_lora_weights(file)
    loaded = load_lora(file, {"unet": ours.unet.params})["unet"]
    changed = our_unet(family)({"params": ours.unet.params, "adapters": adapters.bind(loaded)})
    assert cases.relative_error(np.asarray(changed), torch_unet(family, theirs.unet)) < 2e-5
    theirs.unload_lora_weights()
    assert cases.relative_error(np.asarray(changed), torch_unet(family, theirs.unet)) > 1e-2


@pytest.mark.parametrize("pair", ["sd15"], indirect=True)
@pytest.mark.parametrize(
    "strength",
    [
        0.3,
        {"down": 0.0},
        {"down": {"block_1": 0.0}, "mid": 0.5, "up": {"block_1": [0.2, 2.0], "block_3": [0.7]}},
        {"mid": 0.0, "up": 0.0},
    ],
    ids=["all", "down", "nested", "decoder"],
)
def test_strengths_mean_the_same_to_torch(pair, tmp_path, strength):
    family, ours, theirs = pair
    saved = {"unet": random_adapters(family, ours)["unet"]}
    theirs.load_lora_weights(save_lora(tmp_path / "a.safetensors", saved), adapter_name="a")
    theirs.set_adapters("a", {"unet": strength} if isinstance(strength, dict) else strength)
    assert_same_effect(family, ours, theirs, saved, strength)
    theirs.unload_lora_weights()


@pytest.mark.parametrize("pair", ["sd15"], indirect=True)
def test_lora_files_written_by_torch_are_read_here(pair, tmp_path):
    family, ours, theirs = pair
    wanted = [module_name(path) for path in adapters.select(ours.unet.params, RULES)]
    convs = [n for n in wanted if n.endswith(("conv1", "time_emb_proj", "proj_in", "conv"))]
    patterns = {"rank_pattern": dict.fromkeys(convs, 3), "alpha_pattern": {convs[0]: 7}}
    config = peft.LoraConfig(r=2, lora_alpha=5, target_modules=wanted, **patterns)
    text_config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "fc1"])
    torch.manual_seed(0)
    for net, lora in ((theirs.unet, config), (theirs.text_encoder, text_config)):
        net.add_adapter(lora, adapter_name="trained")
        for name, parameter in net.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    trees = {"unet": ours.unet.params, "text_encoder": ours.text_encoder.params}
    states = {
        name: get_peft_model_state_dict(getattr(theirs, name), adapter_name="trained") for name in trees
    }
    diffusers.StableDiffusionPipeline.save_lora_weights(
        tmp_path / "both",
        unet_lora_layers=states["unet"],
        text_encoder_lora_layers=states["text_encoder"],
        unet_lora_adapter_metadata=config.to_dict(),
        text_encoder_lora_adapter_metadata=text_config.to_dict(),
    )
    assert_same_effect(family, ours, theirs, load_lora(tmp_path / "both", trees))
    theirs.unet.save_lora_adapter(tmp_path / "unet", adapter_name="trained")
    assert_same_effect(family, ours, theirs, load_lora(tmp_path / "unet", trees))
    theirs.unload_lora_weights()
    # diffusers' own names, of attention only, carry no alpha: what is read is the change at alpha = rank.
    state = {key: tensor for key, tensor in states["unet"].items() if ".attn" in key}
    diffusers.StableDiffusionPipeline.save_lora_weights(
        tmp_path / "named", unet_lora_layers=convert_state_dict_to_diffusers(state)
    )
    keys = load_file(tmp_path / "named" / "pytorch_lora_weights.safetensors")
    assert all(".lora.down" in key or ".lora.up" in key for key in keys)
    theirs.load_lora_weights(tmp_path / "named")
    named = adapters.merge(ours.unet.params, adapters.bind(load_lora(tmp_path / "named", trees)["unet"]))
    silent = adapters.bind(random_adapters(family, ours)["unet"], 0.0)
    changed = our_unet(family)({"params": named, "adapters": silent})
    assert cases.relative_error(np.asarray(changed), torch_unet(family, theirs.unet)) < 2e-5
    theirs.unload_lora_weights()
    assert cases.relative_error(np.asarray(changed), torch_unet(family, theirs.unet)) > 1e-2


@pytest.mark.parametrize("rows", [1, 3])
def test_torch_reads_the_learned_words_written_here(tmp_path, rows):
    base = tiny.make_tiny_pipeline(tmp_path / "base")
    ours = load_pipeline(base, components=("text_encoder", "tokenizer"))
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32)
    save_textual_inversion(tmp_path / "word", "<toy>", {"text_encoder": vectors(rows, 24)})
    theirs.load_textual_inversion(tmp_path / "word")
    words = load_textual_inversion(tmp_path / "word")["text_encoder"]
    tokenizer, params, _ = add_tokens(ours.tokenizer, ours.text_encoder.params, words)
    prompt = "a photo of <toy>, next to the <toy>"
    expanded = expand_prompt(prompt, tokenizer)
    assert expanded == theirs.maybe_convert_prompt(prompt, theirs.tokenizer)
    ids = tokenizer(expanded, padding="max_length", max_length=40).input_ids
    assert ids == theirs.tokenizer(expanded, padding="max_length", max_length=40).input_ids
    assert sum(i >= 1000 for i in ids) == 2 * rows
    module = ours.text_encoder.module.clone(vocab_size=vocabulary_size(params))
    encoded = module.apply({"params": params}, np.array([ids])).last_hidden_state
    with torch.no_grad():
        reference = theirs.text_encoder(torch.tensor([ids])).last_hidden_state.numpy()
    assert cases.relative_error(encoded, reference) < 2e-5


@pytest.mark.parametrize("plus", [False, True], ids=["basic", "plus"])
@pytest.mark.parametrize("pair", ["sd15"], indirect=True)
def test_ip_adapters_have_the_same_effect(pair, tmp_path, plus):
    family, ours, theirs = pair
    layers = cross_attention_names(ours.unet.module)
    channels = [adapters.kernel_shapes(ours.unet.params)[f"{layer}/to_k"][1] for layer in layers]
    tensors = ip_adapter_tensors(plus, len(layers), channels)
    file = tmp_path / "ip-adapter.safetensors"
    save_file(tensors, file)
    adapter = load_ip_adapter(file, layers, ours.unet.params)
    params = add_to_unet(ours.unet.params, adapter)
    theirs.load_ip_adapter(tmp_path, subfolder="", weight_name=file.name, image_encoder_folder=None)
    picture = vectors(2, 10) if not plus else vectors(14, 10).reshape(2, 7, 10)
    tokens = adapter.projection.apply({"params": adapter.projection_params}, picture)
    inputs = cases.unet_inputs(family, 8, 8)
    call = (inputs["sample"], inputs["timesteps"], inputs["context"])

    @jax.jit
    def predict(scales):
        return ours.unet.module.apply({"params": params}, *call, image_context=tokens, image_scale=scales)

    outputs = []
    for scale in (1.0, 0.0, {"down": {"block_2": 0.6}, "up": {"block_1": [0.0, 1.0]}}):
        theirs.set_ip_adapter_scale(scale)
        reference = torch_unet(family, theirs.unet, image_embeds=[torch.tensor(picture)[:, None]])
        outputs.append(np.asarray(predict(image_scales(scale, layers))))
        assert cases.relative_error(outputs[-1], reference) < 2e-5
    assert all(cases.relative_error(outputs[1], outputs[i]) > 1e-2 for i in (0, 2))
    theirs.unload_ip_adapter()
