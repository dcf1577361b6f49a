"""The judges: networks that see one attribute of a picture each, and tell how alike two pictures are in it.

* The segmenter finds the object.
* The shape judge sees the segmenter's mask and nothing else of the picture, centred and scaled by its
  moments. So colours, patterns and backdrops reach it only where they make the segmenter err.
* The appearance judge sees the object in patches of 20 pixels, and their features' mean and spread over the
  object and nothing of where they were. Around the object there is its mean colour, so that its outline is
  faint. Norms are over the channels of one place: a norm over places would tell how many there are.

They are trained apart from the base and from each other (``train_judges.py``), and ship with the package.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from attrjax.checkpoints.files import read_json
from attrjax.checkpoints.params import load_params
from attrjax.models.layers import Conv, GroupNorm, LayerNorm, Linear

SIZE = 64  # pixels of a side of the pictures that are judged
CANVAS = 48  # of the centred mask
WINDOW = 2.3  # half the canvas in deviations of the object's pixels from their middle
KEPT = 12  # features of the appearance judge that ships, of those that it was trained with
LEAST_FOREGROUND = 0.01  # of a picture, that a foreground must cover to be one
MOST = 32  # pictures that are judged at once; more fall out of a CPU's cache
Pictures = Float[Array | np.ndarray, "n 64 64 3"]  # in [-1, 1]
SHIPPED = Path(__file__).parent / "judge_weights"


class Residual(nn.Module):
    """x + two 3x3 convolutions of it, with group norms before each."""

    groups: int = 8

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        y = Conv(x.shape[-1], name="conv1")(nn.silu(GroupNorm(self.groups, name="norm1")(x)))
        return x + Conv(x.shape[-1], name="conv2")(nn.silu(GroupNorm(self.groups, name="norm2")(y)))


class Segmenter(nn.Module):
    """From pictures in [-1, 1] to logits of how much of each pixel the object covers: a small U-Net.

    Attributes:
        widths: channels at a half, a quarter and an eighth of the picture's side.
    """

    widths: tuple[int, int, int] = (32, 48, 64)

    @nn.compact
    def __call__(self, pictures: Float[Array, "b h w 3"]) -> Float[Array, "b h w"]:
        fine = nn.silu(Linear(self.widths[0], name="patches")(_reduce(pictures, 2)))
        middle = Residual(name="down0")(Linear(self.widths[1], name="shrink0")(_reduce(fine, 2)))
        coarse = Residual(name="down1")(Linear(self.widths[2], name="shrink1")(_reduce(nn.silu(middle), 2)))
        # The whole picture's mean, for what a backdrop is shows only from afar.
        coarse = coarse + Linear(self.widths[2], name="whole")(coarse.mean((1, 2), keepdims=True))
        coarse = Residual(name="up1")(coarse)
        middle = Residual(name="up0")(middle + _enlarge(Linear(4 * self.widths[1], name="grow1")(coarse)))
        fine = fine + _enlarge(Linear(4 * self.widths[0], name="grow0")(middle))
        fine = Conv(self.widths[0], name="conv_fine")(nn.silu(GroupNorm(8, name="norm_fine")(fine)))
        return _enlarge(Linear(4, name="conv_out")(nn.silu(GroupNorm(8, name="norm_out")(fine))))[..., 0]


class ShapeJudge(nn.Module):
    """From centred masks to embeddings of length 1, and logits over the families that it was trained on.

    Attributes:
        families: how many.
        features: of an embedding.
        widths: channels at 12x12 and at 6x6 places.
    """

    families: int
    features: int = 64
    widths: tuple[int, int] = (64, 128)

    @nn.compact
    def __call__(
        self, canvas: Float[Array, "b 48 48"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b families"]]:
        x = Linear(self.widths[0], name="patches")(_reduce(2 * canvas[..., None] - 1, 4))
        x = Residual(name="block0")(x)
        x = nn.silu(GroupNorm(8, name="norm_shrink")(x))
        x = Linear(self.widths[1], name="shrink")(_reduce(x, 2))
        x = Residual(name="block2")(Residual(name="block1")(x))
        # Places are kept: after the centring they say which part of the object it is.
        x = Linear(32, name="reduce")(nn.silu(GroupNorm(8, name="norm_out")(x)))
        embedding = _unit(Linear(self.features, name="embed")(x.reshape(x.shape[0], -1)))
        return embedding, 16 * Linear(self.families, name="head")(embedding)


class AppearanceJudge(nn.Module):
    """From pictures and masks to embeddings of length 1, and logits over the trained families of materials.

    Attributes:
        families: how many.
        features: of an embedding.
        width: channels of a patch's features.
    """

    families: int
    features: int = KEPT
    width: int = 64

    @nn.compact
    def __call__(
        self, pictures: Float[Array, "b 64 64 3"], mask: Float[Array, "b 64 64"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b families"]]:
        x, weight = patches_of(pictures, mask)
        x = nn.silu(Linear(self.width, name="patches")(_reduce(x, 4)))
        x = Linear(self.width, name="embed_patches")(x)
        for i in range(2):
            y = Conv(self.width, name=f"conv{i}")(nn.silu(LayerNorm(name=f"norm{i}")(x)))
            x = x + Linear(self.width, name=f"mix{i}")(nn.silu(y))
        x = nn.silu(LayerNorm(name="norm_out")(x))
        x = nn.silu(Linear(2 * self.width, name="expand")(x))
        mean = (weight * x).sum((1, 2))
        spread = jnp.sqrt((weight * (x - mean[:, None, None]) ** 2).sum((1, 2)) + 1e-4)
        y = nn.silu(Linear(2 * self.width, name="pool")(jnp.concatenate([mean, spread], -1)))
        # Families are told by more than what an embedding keeps.
        return _unit(Linear(self.features, name="embed")(y)), Linear(self.families, name="head")(y)


class Judges(NamedTuple):
    """The judges' parameters, and what their logits are of.

    Attributes:
        segmenter, shape, appearance: parameters of the networks of those names.
        shapes, materials: families that the judges classify, in the order of their logits.
    """

    segmenter: Mapping[str, Any]
    shape: Mapping[str, Any]
    appearance: Mapping[str, Any]
    shapes: tuple[str, ...]
    materials: tuple[str, ...]


def abstract_params(part: str, families: int) -> Any:
    """The tree of shapes of a network's parameters, ``part`` being a field of ``Judges``."""
    return jax.eval_shape(functools.partial(init_params, part, families), jax.random.key(0))


def init_params(part: str, families: int, key: Array, *, features: int = KEPT) -> Any:
    """Parameters to begin with; ``features`` are the appearance judge's."""
    pictures, mask = jnp.zeros((1, SIZE, SIZE, 3)), jnp.ones((1, SIZE, SIZE))
    if part == "segmenter":
        return Segmenter().init(key, pictures)["params"]
    if part == "shape":
        return ShapeJudge(families).init(key, centred(mask))["params"]
    return AppearanceJudge(families, features).init(key, pictures, mask)["params"]


def appearance_judge(params: Any) -> AppearanceJudge:
    """The network that parameters are of."""
    features, families = (params[name]["kernel"].shape[1] for name in ("embed", "head"))
    return AppearanceJudge(families, features)


def load_judges(directory: str | Path | None = None) -> Judges:
    """The judges of a directory, or those that ship with the package.

    Raises:
        FileNotFoundError, ValueError: as ``checkpoints.params.load_params``.
    """
    directory = SHIPPED if directory is None else Path(directory)
    names = read_json(directory / "judges.json")
    count = {"segmenter": 0, "shape": len(names["shapes"]), "appearance": len(names["materials"])}
    params = {part: load_params(directory, part, abstract_params(part, n)) for part, n in count.items()}
    return Judges(**params, shapes=tuple(names["shapes"]), materials=tuple(names["materials"]))


def segment(judges: Judges, pictures: Pictures) -> Float[np.ndarray, "n 64 64"]:
    """In [0, 1], how much of each pixel the object covers. Pictures as in ``embed_shape``."""
    return _in_batches(mask_of, (judges.segmenter,), pictures)


def foreground(judges: Judges, picture: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
    """The segmenter's mask of a picture of any size in [-1, 1], in that size."""
    height, width = picture.shape[:2]
    small = np.asarray(jax.image.resize(picture, (64, 64, 3), "cubic", antialias=True))
    mask = segment(judges, np.clip(small, -1, 1)[None])[0]
    return np.clip(np.asarray(jax.image.resize(mask, (height, width), "linear")), 0, 1)


def embed_shape(judges: Judges, pictures: Pictures) -> Float[np.ndarray, "n d"]:
    """Embeddings of length 1 whose products say how alike two pictures are in shape.

    Args:
        judges: of ``load_judges``.
        pictures: in [-1, 1].

    Raises:
        ValueError: the pictures have another size.
    """
    return _in_batches(_shape, (judges.segmenter, judges.shape), pictures)[0]


def embed_appearance(judges: Judges, pictures: Pictures) -> Float[np.ndarray, "n d"]:
    """As ``embed_shape``, of how alike they are in material."""
    return _in_batches(_appearance, (judges.segmenter, judges.appearance), pictures)[0]


def classify_shape(judges: Judges, pictures: Pictures) -> Float[np.ndarray, "n families"]:
    """Logits over ``judges.shapes``. Pictures as in ``embed_shape``."""
    return _in_batches(_shape, (judges.segmenter, judges.shape), pictures)[1]


def classify_appearance(judges: Judges, pictures: Pictures) -> Float[np.ndarray, "n families"]:
    """Logits over ``judges.materials``. Pictures as in ``embed_shape``."""
    return _in_batches(_appearance, (judges.segmenter, judges.appearance), pictures)[1]


@jax.jit
def mask_of(segmenter: Any, pictures: Pictures) -> Float[Array, "n 64 64"]:
    """What ``segment`` computes, for programs that it is a part of."""
    logits: Any = Segmenter().apply({"params": segmenter}, pictures)
    return jax.nn.sigmoid(logits)


@jax.jit
def _shape(segmenter, shape, pictures):
    families = shape["head"]["bias"].shape[0]
    return ShapeJudge(families).apply({"params": shape}, centred(mask_of(segmenter, pictures)))


@jax.jit
def _appearance(segmenter, appearance, pictures):
    mask = mask_of(segmenter, pictures)
    return appearance_judge(appearance).apply({"params": appearance}, pictures, mask)


def _in_batches(function: Callable, params: tuple, pictures: Any) -> Any:
    """A function of a batch, applied to any number of pictures in batches of a few sizes."""
    pictures = np.asarray(pictures, np.float32)
    if pictures.ndim != 4 or pictures.shape[1:] != (SIZE, SIZE, 3) or not len(pictures):
        raise ValueError(
            f"the judges see pictures [n, {SIZE}, {SIZE}, 3] in [-1, 1], not {list(pictures.shape)}:"
            f" resize them to {SIZE} pixels"
        )
    results = []
    for first in range(0, len(pictures), MOST):
        some = pictures[first : first + MOST]
        # Filled up to a power of two, so that only a few programs are compiled.
        room = min(MOST, 1 << (len(some) - 1).bit_length())
        filled = np.concatenate([some, np.zeros((room - len(some), *some.shape[1:]), np.float32)])
        result, n = function(*params, filled), len(some)
        results.append(jax.tree.map(lambda leaf, n=n: np.asarray(leaf[:n]), result))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *results)


def centred(
    mask: Float[Array, "b 64 64"],
    offset: Float[Array, "b 2"] | float = 0.0,
    zoom: Float[Array, " b"] | float = 1.0,
) -> Float[Array, "b 48 48"]:
    """Masks moved to the middle of the canvas and scaled to one spread around it.

    Args:
        mask: in [0, 1].
        offset: of the middle, to the right and down, in deviations; to train with.
        zoom: of the canvas; to train with.
    """
    mask = mask * mask * (3 - 2 * mask)  # what the segmenter hardly believes is left out
    place = jnp.arange(mask.shape[-1]) + 0.5
    mass = mask.sum((1, 2)) + 1e-3
    columns, rows = mask.sum(1) / mass[:, None], mask.sum(2) / mass[:, None]
    middles = jnp.stack([columns @ place, rows @ place], -1)
    squares = jnp.stack([columns @ place**2, rows @ place**2], -1)
    spread = jnp.sqrt(jnp.maximum((squares - middles**2).sum(-1), 4.0))
    middles = middles + spread[:, None] * jnp.broadcast_to(jnp.asarray(offset), middles.shape)
    pitch = 2 * WINDOW * spread / (CANVAS * zoom)  # of the canvas's pixels, in pixels of the mask
    grid = jnp.arange(CANVAS) + 0.5 - CANVAS / 2
    source = middles[:, :, None] + pitch[:, None, None] * grid
    # Linear interpolation, over the area of a pixel of the canvas where that is larger.
    width = jnp.maximum(pitch, 1.0)[:, None, None, None]
    weights = jnp.maximum(1 - jnp.abs(source[..., None] - place) / width, 0) / width
    across, down = weights[:, 0], weights[:, 1]
    return jnp.einsum("byh,bhw,bxw->byx", down, mask, across)


def patches_of(
    pictures: Float[Array, "b 64 64 3"], mask: Float[Array, "b 64 64"]
) -> tuple[Float[Array, "b 64 64 3"], Float[Array, "b 16 16 1"]]:
    """The object on its own mean colour, and what part in the pool each place of its features has.

    Places whose surroundings the object fills count most, so that outlines count little.
    """
    # The outermost pixels, in which object and backdrop mix, are left out.
    eroded = -nn.max_pool(-mask[..., None], (3, 3), padding="SAME")
    eroded = jnp.clip(2 * eroded - 0.8, 0, 1) + 1e-4
    colour = (eroded * pictures).sum((1, 2), keepdims=True) / eroded.sum((1, 2), keepdims=True)
    filled = colour + eroded * (pictures - colour)
    inside = nn.avg_pool(eroded, (12, 12), (4, 4), padding=((4, 4), (4, 4)))
    weight = inside**3 + 1e-6
    return filled, weight / weight.sum((1, 2), keepdims=True)


def _enlarge(x: Float[Array, "b h w c4"]) -> Float[Array, "b h2 w2 c"]:
    """Every place's channels as 2x2 places with a quarter of them."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, 2 * h, 2 * w, c // 4)


def _reduce(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b h2 w2 c2"]:
    """Squares of ``side`` places as one place with all their channels: what a strided convolution sees."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // side, side, w // side, side, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // side, w // side, side * side * c)


def _unit(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
    return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-8)
