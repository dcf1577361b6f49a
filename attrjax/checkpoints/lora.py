"""LoRA files in and out, by the names of diffusers, PEFT and kohya's sd-scripts.

One change of one weight is spelt in three ways::

    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight        diffusers
    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight           PEFT
    lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight   kohya

and kohya's SDXL files call the blocks ``input_blocks``, ``middle_block`` and ``output_blocks`` as the
original code did. kohya flattens dots to underscores, which nobody can undo by looking at a name; so names
are never parsed here: every spelling of every weight of the given networks is put in one table, and a file's
names are looked up in it.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import Array
from numpy.typing import DTypeLike

from attrjax.checkpoints.exchange import read_exchange_file, write_exchange_file
from attrjax.checkpoints.names import path_to_key
from attrjax.models.adapters import kernel_shapes, modules_of

Tree = dict
Place = tuple[str, str]  # component, module path

FILE_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
KOHYA_PREFIXES = {
    "unet": ("lora_unet_",),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}
OTHER_METHODS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_w": "LoHa",
    "lokr_w": "LoKr",
    "lora_mid": "LoCon in its Tucker form",
    "oft_": "OFT",
    "lora_B.bias": "LoRA with biases",
}
METADATA_KEY = "lora_adapter_metadata"
_PROCESSOR_SLOTS = (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out"))
_FACTOR = re.compile(r"(.+?)[._]lora(?:_linear_layer)?[._](down|up|A|B)(?:\.[^.]+)?\.weight")
_ALPHA = re.compile(r"(.+?)(?:[._]lora(?:_linear_layer)?)?\.alpha")


def load_lora(path: str | Path, trees: Mapping[str, Tree]) -> dict[str, Tree]:
    """Read a LoRA file by diffusers', PEFT's or kohya's names.

    Args:
        path: a ``.safetensors`` file, or a directory that holds ``pytorch_lora_weights.safetensors`` or
            ``adapter_model.safetensors``.
        trees: parameters or shapes of the networks that the file may change, under diffusers' component names
            (``unet``, ``text_encoder``, ``text_encoder_2``). Names without a component are looked up in all
            of them.

    Returns:
        {component: adapter} for the components that the file changes, in float32, with an ``alpha`` leaf
        where alpha is not the rank. Alpha is read from the file's tensors (kohya), its
        ``lora_adapter_metadata`` (diffusers) or an ``adapter_config.json`` next to it (PEFT).

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for keys that match no weight, factors that do not fit their weight or lack their partner
            (each listed in full), and for methods other than LoRA, by name.
    """
    file, tensors, metadata = read_exchange_file(path, FILE_NAMES)
    for marker, method in OTHER_METHODS.items():
        if found := [key for key in tensors if marker in key]:
            raise ValueError(f"{file} holds {method} ({found[0]}), not LoRA: merge it with its own tool")
    settings = _peft_settings(file, metadata)
    names = _name_table(trees)
    factors: dict[Place, dict[str, np.ndarray]] = {}
    unmatched = []
    for key, tensor in tensors.items():
        factor, alpha_of = _FACTOR.fullmatch(key), _ALPHA.fullmatch(key)
        spelt = factor or alpha_of
        places = names.get(_plain_name(spelt[1]), set()) if spelt else set()
        if len(places) > 1:
            components = ", ".join(sorted(component for component, _ in places))
            raise ValueError(f"{file}: {key} could be of {components}; load it with one of their trees only")
        if not places:
            unmatched.append(key)
            continue
        kind = "alpha" if factor is None else "down" if factor[2] in ("down", "A") else "up"
        factors.setdefault(next(iter(places)), {})[kind] = tensor
    if unmatched:
        listed = "\n  ".join(unmatched)
        raise ValueError(f"{file}: {len(unmatched)} keys match no weight of {', '.join(trees)}:\n  {listed}")
    shapes = {component: kernel_shapes(tree) for component, tree in trees.items()}
    flat: dict[str, dict] = {}
    wrong = []
    for (component, module), parts in factors.items():
        dotted = module_name(module)
        rank = parts["down"].shape[0] if "down" in parts else 0
        alpha = parts["alpha"].item() if "alpha" in parts else _peft_alpha(settings, component, dotted, rank)
        leaves, problem = _leaves(parts, shapes[component][module], alpha)
        if problem:
            wrong.append(f"{component}.{dotted}: {problem}")
        for name, leaf in leaves.items():
            flat.setdefault(component, {})[f"{module}/{name}"] = leaf
    if wrong:
        listed = "\n  ".join(wrong)
        raise ValueError(f"{file}: {len(wrong)} changes do not fit their weights:\n  {listed}")
    return {component: unflatten_dict(leaves, sep="/") for component, leaves in flat.items()}


def save_lora(
    path: str | Path,
    adapters: Mapping[str, Tree],
    *,
    names: str = "diffusers",
    metadata: Mapping[str, str] | None = None,
    dtype: DTypeLike | None = None,
) -> Path:
    """Write LoRA adapters to one file that diffusers, PEFT or kohya's tools and the user interfaces read.

    Alpha is folded into the up factors with ``names="diffusers"``, whose readers have no place for it;
    becomes ``lora_adapter_metadata`` with "peft", as diffusers writes it; and a tensor of its own with
    "kohya".

    Args:
        path: a ``.safetensors`` file, or a directory for ``pytorch_lora_weights.safetensors``.
        adapters: {component: adapter}, components as in ``load_lora``.
        names: "diffusers", "peft" or "kohya".
        metadata: further text for the file's header.
        dtype: of the stored factors; None keeps theirs.

    Returns:
        the file's path.

    Raises:
        ValueError: for an adapter with multiplicative offsets, an unknown component or unknown ``names``.
    """
    if names not in ("diffusers", "peft", "kohya"):
        raise ValueError(f"names must be diffusers, peft or kohya, not {names!r}")
    if unknown := sorted(set(adapters) - set(KOHYA_PREFIXES)):
        known = ", ".join(KOHYA_PREFIXES)
        raise ValueError(f"LoRA files know the components {known}, not {', '.join(unknown)}")
    tensors: dict[str, np.ndarray] = {}
    header = dict(metadata or {})
    configs: dict[str, object] = {}
    for component, adapter in adapters.items():
        ranks, alphas = {}, {}
        for module, leaves in modules_of(adapter).items():
            if "lora_down" not in leaves:
                raise ValueError(
                    f"{component} has multiplicative offsets at {module}, for which LoRA files have no name: "
                    "save them as they are, or merge them into the network's weights"
                )
            dotted = module_name(module)
            down, up = _torch_factor(leaves["lora_down"], dtype), _torch_factor(leaves["lora_up"], dtype)
            ranks[dotted] = down.shape[0]
            alphas[dotted] = float(leaves["alpha"]) if "alpha" in leaves else float(ranks[dotted])
            if names == "diffusers":
                middle = "lora" if component == "unet" else "lora_linear_layer"
                scale = np.float32(alphas[dotted] / ranks[dotted])
                tensors[f"{component}.{dotted}.{middle}.down.weight"] = down
                tensors[f"{component}.{dotted}.{middle}.up.weight"] = (up * scale).astype(up.dtype)
            elif names == "peft":
                tensors[f"{component}.{dotted}.lora_A.weight"] = down
                tensors[f"{component}.{dotted}.lora_B.weight"] = up
            else:
                prefixes = KOHYA_PREFIXES[component]
                name = prefixes[-1 if "text_encoder_2" in adapters else 0] + dotted.replace(".", "_")
                tensors[f"{name}.lora_down.weight"] = down
                tensors[f"{name}.lora_up.weight"] = up
                tensors[f"{name}.alpha"] = np.array(alphas[dotted], np.float32)
        configs |= {f"{component}.{k}": v for k, v in _peft_config(ranks, alphas).items()}
    if names == "peft":
        header[METADATA_KEY] = json.dumps(configs, indent=2, sort_keys=True)
    return write_exchange_file(path, FILE_NAMES[0], tensors, header)


def ldm_module_names(modules: list[str]) -> dict[str, str]:
    """{module path: name} of a UNet in the original code (CompVis, Stability), as kohya's SDXL files have it.

    There, ``input_blocks`` counts ResNets and downsamplers through all levels, ``output_blocks`` counts
    ResNets, and the layers of each entry (ResNet, transformer, resampler) are numbered.
    """

    def layers(block: str) -> int:
        return len({m.split("/")[1] for m in modules if m.startswith(f"{block}/resnets_")})

    bases = {
        "conv_in": "input_blocks.0.0",
        "conv_out": "out.2",
        "time_embedding/linear_1": "time_embed.0",
        "time_embedding/linear_2": "time_embed.2",
        "add_embedding/linear_1": "label_emb.0.0",
        "add_embedding/linear_2": "label_emb.0.2",
        "mid_block/resnets_0": "middle_block.0",
        "mid_block/attentions_0": "middle_block.1",
        "mid_block/resnets_1": "middle_block.2",
    }
    entry = 1
    for i in range(sum(layers(f"down_blocks_{n}") > 0 for n in range(len(modules)))):
        for j in range(layers(f"down_blocks_{i}")):
            bases[f"down_blocks_{i}/resnets_{j}"] = f"input_blocks.{entry}.0"
            bases[f"down_blocks_{i}/attentions_{j}"] = f"input_blocks.{entry}.1"
            entry += 1
        bases[f"down_blocks_{i}/downsamplers_0/conv"] = f"input_blocks.{entry}.0.op"
        entry += 1
    entry = 0
    for i in range(sum(layers(f"up_blocks_{n}") > 0 for n in range(len(modules)))):
        for j in range(layers(f"up_blocks_{i}")):
            bases[f"up_blocks_{i}/resnets_{j}"] = f"output_blocks.{entry}.0"
            bases[f"up_blocks_{i}/attentions_{j}"] = f"output_blocks.{entry}.1"
            entry += 1
        third = 2 if any(m.startswith(f"up_blocks_{i}/attentions_") for m in modules) else 1
        bases[f"up_blocks_{i}/upsamplers_0/conv"] = f"output_blocks.{entry - 1}.{third}.conv"
    inside = {
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    names = {}
    for module in modules:
        head, rest = module, list[str]()
        while head and head not in bases:
            head, _, last = head.rpartition("/")
            rest.insert(0, inside.get(last, last))
        if head:
            names[module] = ".".join([bases[head], *map(module_name, rest)])
    return names


def module_name(module: str) -> str:
    """torch's name of a module path: ``attn1/to_out_0`` is ``attn1.to_out.0``."""
    return path_to_key(f"{module}/kernel").removesuffix(".weight")


def _name_table(trees: Mapping[str, Tree]) -> dict[str, set[Place]]:
    """Every spelling of every weight's module -> the places that it can mean."""
    table: dict[str, set[Place]] = {}
    for component, tree in trees.items():
        modules = list(kernel_shapes(tree))
        original = ldm_module_names(modules) if component == "unet" else {}
        for module in modules:
            dotted = module_name(module)
            spellings = {dotted, dotted.removeprefix("text_model.")}
            # Files from before 2023-10 name what was trained by the attention processor's slots.
            for ending, slot in (*_PROCESSOR_SLOTS, ("to_out.0", "to_out")):
                if dotted.endswith(f".{ending}"):
                    spellings |= {name.removesuffix(ending) + slot for name in list(spellings)}
            flat = {name.replace(".", "_") for name in (*spellings, original.get(module, dotted))}
            kohya = {prefix + name for prefix in KOHYA_PREFIXES.get(component, ()) for name in flat}
            for name in (*spellings, *(f"{component}.{name}" for name in spellings), *kohya):
                table.setdefault(name, set()).add((component, module))
    return table


def _plain_name(name: str) -> str:
    """A module's name as it stands in a file, without the wrappers of PEFT and of attention processors."""
    return name.replace("base_model.model.", "").replace(".processor.", ".")


def _peft_settings(file: Path, metadata: Mapping[str, str]) -> dict[str, dict]:
    """{component: PEFT's LoraConfig as a dict}; "" holds for all components that have none of their own."""
    settings: dict[str, dict] = {}
    beside = file.with_name("adapter_config.json")
    if METADATA_KEY in metadata:
        for key, value in json.loads(metadata[METADATA_KEY]).items():
            component, _, name = key.rpartition(".")
            settings.setdefault(component, {})[name] = value
    elif beside.is_file():
        settings[""] = json.loads(beside.read_text())
    for config in settings.values():
        if config.get("use_dora"):
            raise ValueError(f"{file} holds DoRA, not LoRA: merge it with its own tool")
    return settings


def _peft_alpha(settings: Mapping[str, dict], component: str, dotted: str, rank: int) -> float:
    """The alpha that makes alpha/rank the scale at which PEFT applies a module's change."""
    config = settings.get(component, settings.get("", {}))
    if "lora_alpha" not in config:
        return float(rank)
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", dotted):
            alpha = value
            break
    return float(alpha * rank**0.5 if config.get("use_rslora") else alpha)


def _peft_config(ranks: Mapping[str, int], alphas: Mapping[str, float]) -> dict[str, object]:
    """The entries of PEFT's LoraConfig that decide how its change is applied.

    Modules are named without ``text_model.``: PEFT matches the ends of names, and transformers 5 dropped that
    level.
    """
    ranks = {name.removeprefix("text_model."): rank for name, rank in ranks.items()}
    alphas = {name.removeprefix("text_model."): alpha for name, alpha in alphas.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(k): v for k, v in ranks.items() if v != rank},
        "alpha_pattern": {re.escape(k): v for k, v in alphas.items() if v != alpha},
        "target_modules": sorted(ranks),
    }


def _leaves(
    parts: Mapping[str, np.ndarray], kernel: tuple[int, ...], alpha: float
) -> tuple[dict[str, np.ndarray], str | None]:
    """One weight's adapter leaves from its torch factors, or what is wrong with them."""
    if missing := [kind for kind in ("down", "up") if kind not in parts]:
        return {}, f"the {missing[0]} factor is missing"
    down, up = (_our_factor(parts[kind], len(kernel)) for kind in ("down", "up"))
    rank = down.shape[-1]
    if down.shape != (*kernel[:-1], rank) or up.shape != (*(1,) * (len(kernel) - 2), rank, kernel[-1]):
        shapes = " and ".join(str(list(parts[kind].shape)) for kind in ("down", "up"))
        return {}, f"factors {shapes} do not make a change of the kernel {list(kernel)}"
    leaves = {"lora_down": down, "lora_up": up}
    return leaves | ({} if alpha == rank else {"alpha": np.array(alpha, np.float32)}), None


def _our_factor(tensor: np.ndarray, ndim: int) -> np.ndarray:
    """[out, in] or [out, in, h, w] of torch as [in, out] or [h, w, in, out]; 1x1 convolutions are matrices
    too.
    """
    tensor = tensor.astype(np.float32)
    if tensor.ndim == 2 and ndim == 4:
        tensor = tensor[..., None, None]
    if tensor.ndim == 4 and ndim == 2 and tensor.shape[2:] == (1, 1):
        tensor = tensor[..., 0, 0]
    return tensor.T if tensor.ndim != 4 else tensor.transpose(2, 3, 1, 0)


def _torch_factor(leaf: Array, dtype: DTypeLike | None) -> np.ndarray:
    tensor = np.asarray(leaf)
    tensor = tensor.T if tensor.ndim == 2 else tensor.transpose(3, 2, 0, 1)
    return tensor if dtype is None else tensor.astype(dtype)
