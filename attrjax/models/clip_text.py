"""CLIP text towers: the prompt encoders of SD 1.x, SD 2.x and SDXL.

SD 1.x conditions on ``last_hidden_state`` of CLIP ViT-L/14. SD 2.x does so on that of OpenCLIP ViT-H, whose
checkpoints leave the 24th layer out. SDXL joins ``hidden_states[-2]`` of CLIP ViT-L/14 and OpenCLIP bigG, and
adds the latter's ``text_embeds`` to the time embedding. None masks padding, so there is no attention mask.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from attrjax.models.clip_layers import CLIPEncoder
from attrjax.models.layers import LayerNorm, Linear

LEGACY_EOS_TOKEN_ID = 2  # what older configs say, although the end token is the last of the vocabulary


class CLIPTextOutput(NamedTuple):
    """What a text tower computes, in its compute dtype.

    Attributes:
        hidden_states: the embeddings and each layer's output, L + 1 arrays [B, T, D], before the final norm.
        last_hidden_state: the last of them after the final norm, [B, T, D].
        pooled: ``last_hidden_state`` at the end token, [B, D].
        text_embeds: ``pooled`` after the projection, [B, P]; None for a tower without one.
    """

    hidden_states: tuple[Float[Array, "b t d"], ...]
    last_hidden_state: Float[Array, "b t d"]
    pooled: Float[Array, "b d"]
    text_embeds: Float[Array, "b p"] | None


class CLIPTextModel(nn.Module):
    """Causal transformer over tokens; argument names are those of ``text_encoder/config.json``.

    Attributes:
        vocab_size, max_position_embeddings: rows of the two embedding tables.
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads: the transformer's shape.
        hidden_act: "quick_gelu" or "gelu".
        layer_norm_eps: epsilon of the norms.
        projection_dim: size of ``text_embeds``; None for a tower without a projection (the class
            ``CLIPTextModel`` of transformers ignores the number that stands in its config).
        eos_token_id: the end token. 2 means the largest id of each prompt, as transformers reads old configs.
        dtype, param_dtype, attention_implementation, remat: as in ``vae.AutoencoderKL``.
    """

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int | None = None
    eos_token_id: int = 49407
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    attention_implementation: str | None = None
    remat: bool = False

    def setup(self):
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.text_model = TextTransformer(
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.max_position_embeddings,
            self.hidden_act,
            self.layer_norm_eps,
            self.attention_implementation,
            self.remat,
            **types,
        )
        if self.projection_dim is not None:
            self.text_projection = Linear(self.projection_dim, use_bias=False, **types)

    def __call__(
        self, input_ids: Int[Array, "b t"], *, inputs_embeds: Float[Array, "b t d"] | None = None
    ) -> CLIPTextOutput:
        """Encode prompts.

        Args:
            input_ids: tokens, at most ``max_position_embeddings`` of them, padded as the tokenizer does.
            inputs_embeds: takes the place of the token table's rows (positions are still added), so that
                words can have embeddings that no table holds. ``input_ids`` then only finds the end token:
                ids of such words must not be ``eos_token_id``, nor exceed the end token's where that is 2.

        Raises:
            ValueError: the prompt is too long, or ``inputs_embeds`` does not fit ``input_ids``.
        """
        if input_ids.shape[1] > self.max_position_embeddings:
            raise ValueError(
                f"{input_ids.shape[1]} tokens, but the text tower has {self.max_position_embeddings} "
                "positions; truncate the prompt"
            )
        expected = (*input_ids.shape, self.hidden_size)
        if inputs_embeds is not None and inputs_embeds.shape != expected:
            raise ValueError(f"inputs_embeds must have shape {expected}, got {inputs_embeds.shape}")
        states, last = self.text_model(input_ids, inputs_embeds)
        if self.eos_token_id == LEGACY_EOS_TOKEN_ID:
            end = jnp.argmax(input_ids, axis=-1)
        else:
            end = jnp.argmax(input_ids == self.eos_token_id, axis=-1)  # the first, for padding may repeat it
        pooled = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]
        embeds = None if self.projection_dim is None else self.text_projection(pooled)
        return CLIPTextOutput(states, last, pooled, embeds)


class TextTransformer(nn.Module):
    """Embeddings, causal encoder and final norm."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    hidden_act: str
    layer_norm_eps: float
    attention_implementation: str | None
    remat: bool
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, input_ids: Int[Array, "b t"], inputs_embeds: Float[Array, "b t d"] | None
    ) -> tuple[tuple[Float[Array, "b t d"], ...], Float[Array, "b t d"]]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = TextEmbeddings(
            self.vocab_size, self.hidden_size, self.max_position_embeddings, name="embeddings", **types
        )(input_ids, inputs_embeds)
        states = CLIPEncoder(
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            hidden_act=self.hidden_act,
            layer_norm_eps=self.layer_norm_eps,
            causal=True,
            attention_implementation=self.attention_implementation,
            remat=self.remat,
            name="encoder",
            **types,
        )(x)
        return states, LayerNorm(self.layer_norm_eps, name="final_layer_norm", **types)(states[-1])


class TextEmbeddings(nn.Module):
    """Rows of the token table, or given vectors in their place, plus learned positions."""

    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, input_ids: Int[Array, "b t"], inputs_embeds: Float[Array, "b t d"] | None
    ) -> Float[Array, "b t d"]:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if inputs_embeds is None:
            inputs_embeds = nn.Embed(self.vocab_size, self.hidden_size, name="token_embedding", **types)(
                input_ids
            )
        positions = nn.Embed(
            self.max_position_embeddings, self.hidden_size, name="position_embedding", **types
        )(jnp.arange(input_ids.shape[1]))
        return inputs_embeds.astype(self.dtype) + positions


def token_embeddings(params: dict[str, Any], input_ids: Int[Array, "..."]) -> Float[Array, "... d"]:
    """Rows of a text tower's token table, to fill ``inputs_embeds`` with outside the learned words.

    Args:
        params: the parameters of a ``CLIPTextModel``.
        input_ids: tokens; one outside the table gives a row of NaN.
    """
    table = params["text_model"]["embeddings"]["token_embedding"]["embedding"]
    return jnp.take(table, input_ids, axis=0, mode="fill", fill_value=jnp.nan)
