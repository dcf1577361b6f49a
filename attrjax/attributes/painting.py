"""Pictures with learned attributes, and painted ones among them.

An untuned base lays forms out well, and what was tuned for an appearance bends them; the tuned base draws a
pattern well where it is begun, and begins a fine one badly. So a picture with an appearance is made in three
steps. Without the appearance its form is laid out. On its foreground the reference's material is laid anew,
as on the targets that were learned from (``material``). Then noise is added to that, and taken away again by
the base with all that was learned, as SDEdit (Meng et al., ICLR 2022) does with what a user has painted.

A picture of the user's own takes the place of the form that is laid out.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, UInt8

from attrjax.attributes.apply import Applied, Painting
from attrjax.attributes.material import laid_out, material_of
from attrjax.attributes.silhouettes import shaded
from attrjax.attributes.textures import Range
from attrjax.attrworld.judges import LEAST_FOREGROUND, foreground, load_judges
from attrjax.compiling import quick
from attrjax.data.pictures import to_floats
from attrjax.generate import PAINT, Job, Settings, make_pictures

AT_ONCE = 8  # forms that are laid out before they are painted, at least
BODY: Range = (0.3, 0.7)  # of the form's relief, where the recipe does not say it


def make_with(
    applied: Applied,
    jobs: Sequence[Job],
    settings: Settings,
    *,
    guidance: Mapping[str, Any] | None = None,
    init_picture: Float[np.ndarray, "H W 3"] | None = None,
    init_cover: Float[np.ndarray, "H W"] | None = None,
    layouts: UInt8[np.ndarray, "n H W 3"] | None = None,
    mesh: Mesh | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """``generate.make_pictures`` with learned attributes, a picture at a time.

    Painted are pictures whose prompts have the word of one appearance that is to be painted. One in whose
    form no foreground is found is made as it would be without painting.

    Args:
        applied: of ``apply_attributes``.
        jobs: the pictures.
        settings: how; how guidance acts beside the attributes is ``applied``'s.
        guidance: fields of ``settings`` that go before the attributes' own.
        init_picture: in [-1, 1], to begin from; painted, and then made anew by ``settings.strength``.
        init_cover: in [0, 1], what of it is painted; where it is not given, what the segmenter finds.
        layouts: pictures of the jobs without their appearances, where there are some already.
        mesh, on_step: as in ``make_pictures``.

    Raises:
        ValueError: as ``make_pictures``.
    """

    def made(one: Applied, places: Sequence[int], how: Settings, begun: np.ndarray | None) -> Iterator[Any]:
        how = how._replace(**{**one.guidance, **(guidance or {})})
        return make_pictures(
            one.pipeline,
            [jobs[i] for i in places],
            how,
            init_picture=begun,
            adapters=one.adapters,
            stages=one.stages,
            mesh=mesh,
            on_step=on_step,
        )

    def forms_of(places: Sequence[int], painting: Painting) -> list[Float[np.ndarray, "H W 3"]]:
        if init_picture is not None:
            return [init_picture] * len(places)
        if layouts is not None:
            return [to_floats(layouts[i]) for i in places]
        return [to_floats(picture) for picture in made(painting.layout(), places, settings, None)]

    at_once = settings.batch_size * (mesh.size if mesh else 1)
    chunk = at_once * max(1, AT_ONCE // at_once)
    for word, part in itertools.groupby(range(len(jobs)), lambda i: painted_word(applied, jobs[i].prompt)):
        places = list(part)
        if word is None:
            yield from made(applied, places, settings, init_picture)
            continue
        painting = applied.paintings[word]
        again = (
            settings
            if init_picture is not None
            else settings._replace(strength=share_of(painting, settings.steps))
        )
        for own in (places[i : i + chunk] for i in range(0, len(places), chunk)):
            forms = zip(own, forms_of(own, painting), strict=True)
            begun = {i: painted(painting, jobs[i].seed, form, init_cover) for i, form in forms}
            there = {i: picture for i, picture in begun.items() if picture is not None}
            bare = [i for i in own if i not in there]
            some: Iterator[Any] = iter(())
            if there:
                some = made(applied, list(there), again, np.stack(list(there.values())))
            others = made(applied, bare, settings, init_picture) if bare else iter(())
            yield from (next(some if i in there else others) for i in own)


def painted_word(applied: Applied, prompt: str) -> str | None:
    """The word of the appearance that a prompt's picture is painted with; None where there is not one."""
    there = [word for word in applied.paintings if word in prompt]
    return there[0] if len(there) == 1 else None


def share_of(painting: Painting, steps: int) -> float:
    """How much of a painted picture is made anew: what was asked for, but one of the steps at least."""
    return min(1.0, max(painting.strength, 1.5 / steps))


def painted(
    painting: Painting,
    seed: int,
    form: Float[np.ndarray, "H W 3"],
    cover: Float[np.ndarray, "H W"] | None = None,
) -> Float[np.ndarray, "H W 3"] | None:
    """A picture in [-1, 1] whose foreground has the material; None where it has no foreground.

    Args:
        painting: what with.
        seed: the picture's.
        form: what is painted, in [-1, 1].
        cover: its foreground, in [0, 1], where that is known.
    """
    mask = foreground(_judges(), form) if cover is None else cover
    if cover is None and mask.mean() < LEAST_FOREGROUND:
        return None
    material = painting.attribute.material
    assert material is not None
    side = max(mask.shape)
    rgba = material.astype(np.float32) / 255
    if len(rgba) != side:
        rgba = np.asarray(jax.image.resize(rgba, (side, side, 4), "linear", antialias=True))
    key = jax.random.fold_in(jax.random.key(seed), PAINT)
    # No longer form than the square that the material is laid out on.
    square = np.pad(mask, [(0, side - n) for n in mask.shape])
    draw = painting.attribute.recipe["draw"]
    surface = np.asarray(_compiled()(key, 2 * rgba[..., :3] - 1, rgba[..., 3], square, **draw))
    surface = surface[: mask.shape[0], : mask.shape[1]]
    return form + painting.opacity * mask[..., None] * (2 * surface - 1 - form)


def _surface(
    key: Key[Array, ""],
    picture: Float[Array, "s s 3"],
    mask: Float[Array, "s s"],
    form: Float[Array, "s s"],
    body: Range = BODY,
    **draw: Any,
) -> Float[Array, "s s 3"]:
    """The material of what a mask covers in a picture, laid anew over a form, in [0, 1]."""
    *keys, light = jax.random.split(key, 5)
    colours = laid_out(keys, material_of(picture, mask), **draw)
    return jnp.clip(colours * shaded(light, form, body)[..., None], 0, 1)


@functools.cache
def _compiled() -> Callable[..., Float[Array, "s s 3"]]:
    # Not where the module is read: it asks for the devices, which several processes have to be started for.
    return jax.jit(_surface, compiler_options=quick())


_judges = functools.cache(load_judges)
