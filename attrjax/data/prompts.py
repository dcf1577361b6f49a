"""From prompts to what the UNet reads: token ids, encoded text and, for SDXL, the pooled text."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float, Int

from attrjax.checkpoints.textual_inversion import expand_prompt


class Encoded(NamedTuple):
    """Prompts as conditions.

    Attributes:
        context: [B, T, D] for cross-attention.
        pooled: [B, P] text embedding that SDXL adds to time; None where the base has one text tower.
    """

    context: Float[Array, "b t d"]
    pooled: Float[Array, "b p"] | None


def tokenize(tokenizer: Any, prompts: Sequence[str], length: int = 77) -> Int[np.ndarray, "b t"]:
    """Token ids padded to a length, 77 in CLIP. A longer prompt is cut, and what is cut is
    logged.

    A learned word of several vectors is written out.

    Args:
        tokenizer: transformers' ``CLIPTokenizer``.
        prompts: any texts.
        length: of the text tower.
    """
    length = min(length, tokenizer.model_max_length)  # a tokenizer without a limit says 10^30
    ids = np.full((len(prompts), length), tokenizer.pad_token_id, np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        tokens = tokenizer(expand_prompt(prompt, tokenizer), truncation=False, verbose=False)["input_ids"]
        if len(tokens) > length:
            # The first token marks the beginning and the last the end; the end is kept.
            lost = tokenizer.decode(tokens[length - 1 : -1])
            logging.warning(
                "a prompt is cut at %d of its %d tokens; the model does not see: %r",
                length,
                len(tokens),
                lost,
            )
            tokens = [*tokens[: length - 1], tokens[-1]]
        row[: len(tokens)] = tokens
    return ids


def text_encoder(
    pipeline: Any, adapters: Mapping[str, Any] | None = None
) -> Callable[[Sequence[str]], Encoded]:
    """A function that encodes prompts with a pipeline's text towers, compiled once
    for each base.

    One tower (Stable Diffusion 1.x and 2.x): its last hidden state. Two towers (SDXL, Podell et al. 2023,
    §2.1): the hidden states before the last layer of both, side by side, and the second tower's projected
    embedding. Prompts are encoded one by one, so that what one gives does not depend on the others.

    Args:
        pipeline: see ``checkpoints.pipeline``.
        adapters: bound adapters of ``text_encoder`` and ``text_encoder_2``, if any.
    """
    towers = [("text_encoder", pipeline.text_encoder, pipeline.tokenizer)]
    if pipeline.text_encoder_2 is not None:
        towers.append(("text_encoder_2", pipeline.text_encoder_2, pipeline.tokenizer_2))

    modules = tuple(tower.module for _, tower, _ in towers)
    variables = []
    for name, tower, _ in towers:
        adapter = (adapters or {}).get(name)
        variables.append({"params": tower.params} | ({} if adapter is None else {"adapters": adapter}))

    def encode(prompts: Sequence[str]) -> Encoded:
        encoded = []
        ids = [tokenize(words, prompts, tower.module.max_position_embeddings) for _, tower, words in towers]
        for i in range(len(prompts)):
            texts = _run_towers(variables, [tower_ids[i : i + 1] for tower_ids in ids], modules=modules)
            if len(towers) == 1:
                context = texts[0].last_hidden_state
                for fuse in pipeline.fusions:
                    context = fuse(ids[0][i : i + 1], context)
                encoded.append(Encoded(context, None))
            else:
                context = jnp.concatenate([text.hidden_states[-2] for text in texts], axis=-1)
                encoded.append(Encoded(context, texts[-1].text_embeds))
        contexts, pooled = zip(*encoded, strict=True)
        return Encoded(jnp.concatenate(contexts), None if len(towers) == 1 else jnp.concatenate(pooled))

    return encode


@functools.partial(jax.jit, static_argnames=("modules",))
def _run_towers(
    variables: list[dict], ids: list[Int[Array, "1 t"]], *, modules: tuple[nn.Module, ...]
) -> list:
    return [module.apply(v, i) for module, v, i in zip(modules, variables, ids, strict=True)]


def encode_negative(
    encode: Callable[[Sequence[str]], Encoded], prompt: str, model_index: Mapping[str, Any]
) -> Encoded:
    """The condition to be guided away from, [1, T, D]: the encoded prompt.

    An empty prompt of a base whose ``model_index.json`` says ``force_zeros_for_empty_prompt`` (SDXL) is all
    zeros.
    """
    encoded = encode([prompt])
    if not prompt and model_index.get("force_zeros_for_empty_prompt"):
        return jax.tree.map(jnp.zeros_like, encoded)
    return encoded
