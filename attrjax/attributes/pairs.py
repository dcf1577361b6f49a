"""Training pairs from one picture: what is shown keeps one of its attributes, and the other one is destroyed.

A pair is what the frozen visual encoder sees and what the UNet is to denoise. They are drawn independently
of each other, so that all they have in common is the attribute: what targets kept of the other attribute
would be copied, and what views kept of it would tell which target is meant. (DreamBooth and B-LoRA learn from
the picture itself, and copy what they should not; U-VAP, CVPR 2024, lets the model that is tuned make
counterparts of it. Here nothing but arithmetic is needed.)

``shape_pair`` and ``appearance_pair`` are functions of a key and one reference, in fixed shapes: ``vmap``
them over keys, and over references too. Pixels that the mask does not cover never have any influence.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Bool, Float, Int, Key

from attrjax.attributes.material import Material, laid_out, material_of
from attrjax.attributes.silhouettes import blur, draw_silhouette, shaded
from attrjax.attributes.sources import pure
from attrjax.attributes.textures import (
    Range,
    between,
    draw_backdrop,
    draw_texture,
)


class Painted(NamedTuple):
    """What was drawn for a target of a shape.

    Attributes:
        pattern: index into ``textures.PATTERNS``.
        colours: [2] into ``textures.COLOUR_NAMES``, the ground first; a plain one has no second.
        backdrop: into ``textures.BACKDROP_NAMES``.
    """

    pattern: Int[Array, "*b"]
    colours: Int[Array, "*b 2"]
    backdrop: Int[Array, "*b"]


class Cut(NamedTuple):
    """What was drawn for a target of an appearance.

    Attributes:
        silhouette: index into ``silhouettes.SILHOUETTES``.
        backdrop: into ``textures.BACKDROP_NAMES``.
    """

    silhouette: Int[Array, "*b"]
    backdrop: Int[Array, "*b"]


class Pair(NamedTuple):
    """One training example.

    Attributes:
        view: [H, W, 3] in [-1, 1], what the visual encoder sees.
        view_mask: [H, W] in [0, 1], where the object is in it.
        target: [H, W, 3] in [-1, 1], what the UNet is to denoise.
        target_mask: [H, W] in [0, 1].
        drawn: what there is to ``pair_prompts.say`` of the target.
    """

    view: Float[Array, "h w 3"]
    view_mask: Float[Array, "h w"]
    target: Float[Array, "h w 3"]
    target_mask: Float[Array, "h w"]
    drawn: Any


@jax.jit
def shape_pair(
    key: Key[Array, ""],
    picture: Float[Array, "h w 3"],
    mask: Float[Array, "h w"],
    surface: Float[Array, "h w 3"] | None = None,
    *,
    zoom: Range = (0.8, 1.2),
    shift: float = 0.1,
    flip: float = 0.0,
    shading: Range = (-0.4, 0.6),
    body: Range = (0.2, 1.0),
) -> Pair:
    """The reference's outline in other colours and textures, before other backdrops.

    Of the picture inside the mask there remains how its light falls: its brightness without detail, so that
    neither a pattern nor a colour is seen in it. The part of it that is kept is random, and sometimes
    negative, so that it hardly tells what is light or dark. The outline's own relief (``silhouettes.relief``)
    gives the object a body.

    Args:
        key: of all that is drawn.
        picture: the reference in [-1, 1].
        mask: of its foreground, in [0, 1], not empty.
        surface: in [0, 1], what the target is made of in place of a texture (``batches.prior``).
        zoom: of the object; less where it would not fit.
        shift: of the object in each direction, in sides of the picture, at most; less where it would not fit.
        flip: probability of a mirrored object. To be mirrored is to be another shape, for letters and hands.
        shading: of the reference's that is kept.
        body: of the relief's that is added.
    """
    inside = pure(mask)
    # As the object is, without detail, relative to its mean.
    light = ((picture + 1) / 2).mean(-1)
    sigma = 0.08 * min(mask.shape)
    even = blur(light * inside, sigma) / (blur(inside.astype(jnp.float32), sigma) + 1e-3)
    lit = even / ((even * inside).sum() / (inside.sum() + 1e-3) + 1e-3)

    draw = functools.partial(
        _painted, mask=mask, lit=lit, zoom=zoom, shift=shift, flip=flip, shading=shading, body=body
    )
    return _both(key, draw, surface)


@jax.jit
def appearance_pair(
    key: Key[Array, ""],
    picture: Float[Array, "h w 3"],
    mask: Float[Array, "h w"],
    form: Float[Array, "h w"] | None = None,
    *,
    body: Range = (0.1, 0.9),
    **laying: Any,
) -> Pair:
    """The reference's material on other outlines, before other backdrops.

    The material is laid out anew from patches that are cropped deep inside the mask, bent and turned a
    little, and faded into their neighbours (as in Efros & Freeman's quilting, 2001, without their search for
    seams). A patch is as large as the reference is thick, so that it holds as much of a pattern as there is
    and little of the outline; what of a patch lies outside the mask is filled in from inside.

    Args:
        key: of all that is drawn.
        picture: the reference in [-1, 1].
        mask: of its foreground, in [0, 1], not empty.
        form: in [0, 1], the target's outline in place of a silhouette (``batches.prior``).
        body: of the new silhouette's relief that is added.
        laying: how the material is laid out, arguments of ``material.laid_out``.
    """
    draw = functools.partial(_cut, material=material_of(picture, mask), body=body, laying=laying)
    return _both(key, draw, form)


def _both(key: Key[Array, ""], draw: Callable, given: Array | None) -> Pair:
    """View and target of two keys, in one program of two rather than two programs where both are alike.

    Of what is given the target is drawn, and not the view.
    """
    if given is not None:
        first, second = jax.random.split(key)
        view, view_mask, _ = draw(first)
        return Pair(view, view_mask, *draw(second, given))
    (view, target), (view_mask, target_mask), drawn = jax.vmap(draw)(jax.random.split(key))
    return Pair(view, view_mask, target, target_mask, jax.tree.map(lambda leaf: leaf[1], drawn))


@jax.jit
def whole_pair(key: Key[Array, ""], picture: Float[Array, "h w 3"], mask: Float[Array, "h w"]) -> Pair:
    """The reference itself as view and target, mirrored half of the time: nothing of it is destroyed.

    What OSTAF's code trains on (github.com/wangyePHD/SigStyle, its data set's augmentation), for comparison.

    Args:
        key: of all that is drawn.
        picture: the reference in [-1, 1].
        mask: of its foreground, in [0, 1].
    """
    mirrored = jax.random.bernoulli(key)
    picture = jnp.where(mirrored, picture[:, ::-1], picture)
    mask = jnp.where(mirrored, mask[:, ::-1], mask)
    return Pair(picture, mask, picture, mask, ())


def _painted(
    key: Key[Array, ""],
    surface: Float[Array, "h w 3"] | None = None,
    *,
    mask: Float[Array, "h w"],
    lit: Float[Array, "h w"],
    zoom: Range,
    shift: float,
    flip: float,
    shading: Range,
    body: Range,
) -> tuple[Float[Array, "h w 3"], Float[Array, "h w"], Painted]:
    """A picture in [-1, 1] of the object that ``mask`` encloses, painted anew; its mask; and what was drawn.

    ``lit`` is the light on it, 1 in the mean.
    """
    numbers, textures, bodies, backdrops = jax.random.split(key, 4)
    u = jax.random.uniform(numbers, (5,))
    height, width = mask.shape
    (low, high), limit = _box(mask), jnp.array([height, width], jnp.float32)
    middle, extent = (low + high) / 2, high - low
    scale = jnp.minimum(between(u[0], zoom), (limit / extent).min())
    moved = middle + shift * min(height, width) * between(u[1:3], (-1, 1))
    moved = jnp.clip(moved, scale * extent / 2, limit - scale * extent / 2)
    mirror = jnp.stack([1.0, jnp.where(u[3] < flip, -1.0, 1.0)])
    grid = jnp.stack(jnp.mgrid[:height, :width], -1) + 0.5
    at = middle + mirror * (grid - moved) / scale - 0.5
    mask = map_coordinates(mask, (at[..., 0], at[..., 1]), 1)
    lit = map_coordinates(lit, (at[..., 0], at[..., 1]), 1, mode="nearest")

    paint, pattern, colours = draw_texture(textures, height, width)
    light = (1 + between(u[4], shading) * (lit - 1)) * shaded(bodies, mask, body)
    if surface is not None:
        paint, light = surface, (1 + light) / 2  # light falls on it already
    paint = paint * jnp.clip(light, 0.5, 1.4)[..., None]
    picture, backdrop = _before_backdrop(backdrops, paint, mask)
    return picture, mask, Painted(pattern, colours, backdrop)


def _cut(
    key: Key[Array, ""],
    form: Float[Array, "h w"] | None = None,
    *,
    material: Material,
    body: Range,
    laying: dict[str, Any],
) -> tuple[Float[Array, "h w 3"], Float[Array, "h w"], Cut]:
    """A picture in [-1, 1] of a new silhouette made of the material; its mask; and what was drawn."""
    keys = jax.random.split(key, 7)
    colour = laid_out(list(keys[:4]), material, **laying)
    height, width = material.deep.shape
    mask, silhouette = draw_silhouette(keys[4], height, width)
    mask = mask if form is None else form
    colour = colour * shaded(keys[5], mask, body)[..., None]
    picture, backdrop = _before_backdrop(keys[6], colour, mask)
    return picture, mask, Cut(silhouette, backdrop)


def _before_backdrop(
    key: Key[Array, ""], colour: Float[Array, "h w 3"], mask: Float[Array, "h w"]
) -> tuple[Float[Array, "h w 3"], Int[Array, ""]]:
    """A picture in [-1, 1] of a colour in [0, 1] where the mask is, and a backdrop elsewhere; and which."""
    height, width = mask.shape
    colour = jnp.clip(colour, 0, 1)
    mean = (colour * mask[..., None]).sum((0, 1)) / (mask.sum() + 1e-3)
    backdrop, index = draw_backdrop(key, height, width, mean)
    return 2 * (backdrop + mask[..., None] * (colour - backdrop)) - 1, index


def _box(mask: Float[Array, "h w"]) -> tuple[Float[Array, " 2"], Float[Array, " 2"]]:
    """Top and left, and bottom and right, of what a mask covers; all of it where it is empty."""
    low, high = [], []
    for axis, n in ((1, mask.shape[0]), (0, mask.shape[1])):
        there: Bool[Array, " n"] = mask.max(axis) > 0.02
        low.append(jnp.argmax(there))
        high.append(n - jnp.argmax(there[::-1]))
    return jnp.stack(low).astype(jnp.float32), jnp.stack(high).astype(jnp.float32)
