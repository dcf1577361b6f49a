"""Batches to learn an attribute from: pairs of the reference, and the base's own pictures beside them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Key

from attrjax.attributes import pairs
from attrjax.attributes.base import Base, settings_of
from attrjax.attributes.conditioning import see
from attrjax.attributes.fusion import places_of
from attrjax.attributes.learner import DATA, HERE, PRIOR, Learner
from attrjax.attributes.pair_prompts import framed, prior_prompts, say
from attrjax.attributes.sources import continued, pure
from attrjax.attrworld.judges import LEAST_FOREGROUND, foreground
from attrjax.checkpoints.pipeline import Pipeline
from attrjax.compiling import quick
from attrjax.data.pictures import to_floats
from attrjax.data.prompts import tokenize
from attrjax.data.references import Reference
from attrjax.generate import Job, latent_scale, make_pictures, vae_factor
from attrjax.models.vae import scale_latents
from attrjax.parallel.mesh import AXES, make_mesh, place_batch, place_state
from attrjax.runs import plain

T = TypeVar("T")
# Steps whose keys are made at once. What the host reads of a device waits for the train step that runs there.
KEYS = 256
# Pixels of targets that a device encodes at once: more fill no accelerator better, and need memory.
MOST_PIXELS = 8 * 512**2


class Tools(NamedTuple):
    """Functions that are compiled once for all references.

    Attributes:
        encode: (pictures [b, H, W, 3] in [-1, 1], key) to latents.
        draw: (key, picture, mask, what the last pairs' targets are of) to a batch's rows of pairs, and what
            was drawn of them.
        draw_shapes: the same without values, and without compiling anything.
        draw_many: ``draw`` of several references side by side, each on the device of the mesh where its
            arguments lie; all have one more axis, and keys are given by their data.
    """

    encode: Callable[..., Float[Array, "b h w c"]]
    draw: functools.partial
    draw_shapes: Callable[..., tuple[dict[str, jax.ShapeDtypeStruct], Any]]
    draw_many: Callable[..., tuple[dict[str, Array], Any]]


class Asked(NamedTuple):
    """What a step's batch of one reference is drawn of.

    Attributes:
        key: data of the key of ``Tools.draw``.
        given: what the last pairs' targets are of, as the base made it; None for none.
        said: the prompts of these pairs.
        generator: of all that is drawn beside the pictures.
    """

    key: np.ndarray
    given: Any
    said: list[str]
    generator: np.random.Generator


class Source(NamedTuple):
    """Batches of one reference, in two halves, between which its pairs are drawn.

    Attributes:
        reference: that is drawn from.
        ask: from a step to what its pairs are drawn of.
        say: from that, and from what was drawn, to what else a batch has: ``ids`` and ``places`` of prompts,
            and ``own``, latents of the base's own pictures, where there are to be some.
    """

    reference: Reference
    ask: Callable[[int], Asked]
    say: Callable[[Asked, Any], dict[str, np.ndarray]]


def make_tools(config: Mapping[str, Any], pipeline: Pipeline, mesh: Mesh | None = None) -> Tools:
    """The tools of a config and a base.

    Args:
        config: of the run.
        pipeline: the base.
        mesh: of this process's devices, for ``draw_many``; by default the first of them alone.
    """
    attribute, rows = config["attribute"], config["batch_size"]
    factor = vae_factor(pipeline)
    make: Callable[..., pairs.Pair] = functools.partial(
        {"shape": pairs.shape_pair, "appearance": pairs.appearance_pair}[attribute], **plain(config["draw"])
    )
    make = pairs.whole_pair if config["pairs"] == "whole" else make
    vae, encoder = pipeline.vae, pipeline.image_encoder
    assert encoder is not None
    # Weights are arguments: as constants each program, and each compiled file of one, would hold a copy.
    weights = jax.device_put({"vae": vae.params, "encoder": encoder.params})

    def encode(weights: Any, pictures: Float[Array, "b h w 3"], key: Array) -> Float[Array, "b h2 w2 c"]:
        moments: Any = vae.module.apply({"params": weights["vae"]}, pictures, method="encode")
        return scale_latents(moments.sample(key), *latent_scale(pipeline))

    def draw(
        weights: Any,
        key: Array,
        picture: Float[Array, "h w 3"],
        mask: Float[Array, "h w"],
        given: Array | None = None,
    ) -> tuple[dict[str, Array], Any]:
        keys, noise = jax.random.split(jax.random.fold_in(key, 0), rows), jax.random.fold_in(key, 1)
        free = rows - (0 if given is None else len(given))
        parts = [jax.vmap(lambda k: make(k, picture, mask))(keys[:free])] if free else []
        if given is not None:
            parts.append(jax.vmap(lambda k, g: make(k, picture, mask, g))(keys[free:], given))
        pair = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        states, weight = see(encoder._replace(params=weights["encoder"]), pair.view, pair.view_mask)
        small = (rows, pair.target_mask.shape[1] // factor, pair.target_mask.shape[2] // factor)
        small_mask = jnp.clip(jax.image.resize(pair.target_mask, small, "linear", antialias=True), 0, 1)
        outside = config["backdrop_weight"]
        batch = {
            "latents": encode(weights, pair.target, noise),
            "mask": outside + (1 - outside) * small_mask,
            "states": states,
            "weight": weight,
        }
        return batch, pair.drawn

    def draw_many(weights: Any, keys: Any, pictures: Any, masks: Any, given: Any) -> tuple[Any, Any]:
        def one(of: tuple[Any, ...]) -> tuple[dict[str, Array], Any]:
            key, *arguments = of
            return draw(weights, jax.random.wrap_key_data(key), *arguments)

        at_once = max(1, MOST_PIXELS // (rows * masks.shape[1] * masks.shape[2]))
        of = (keys, pictures, masks, given)
        return jax.vmap(one)(of) if len(keys) <= at_once else jax.lax.map(one, of, batch_size=at_once)

    mesh = make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
    divided = PartitionSpec(AXES)
    side_by_side = jax.shard_map(
        draw_many,
        mesh=mesh,
        in_specs=(PartitionSpec(), divided, divided, divided, divided),
        out_specs=divided,
        check_vma=False,  # nothing crosses devices, so there is nothing to check
    )
    compiled = functools.partial(jax.jit, compiler_options=quick())
    everywhere = weights if mesh.size == 1 else place_state(mesh, weights)
    return Tools(
        encode=functools.partial(compiled(encode), weights),
        draw=functools.partial(compiled(draw), weights),
        draw_shapes=functools.partial(jax.eval_shape, draw, weights),
        draw_many=functools.partial(compiled(side_by_side), everywhere),
    )


def source_of(
    config: Mapping[str, Any], learner: Learner, root: Key[Array, ""], own: Mapping[str, Any] | None
) -> Source:
    """Where the batches of a reference come from.

    Args:
        config: of the run.
        learner: what is learned from.
        root: the run's root key.
        own: of ``prior``.
    """
    word, attribute, rows = learner.word, config["attribute"], config["batch_size"]
    length = learner.pipeline.text_encoder.module.max_position_embeddings
    known = own["known"] if own is not None else []
    crossed = int(config["crossed"] * rows) if len(known) and config["pairs"] != "whole" else 0

    @functools.lru_cache(maxsize=2)
    def keys_from(first: int) -> tuple[np.ndarray, np.ndarray]:
        steps = jnp.arange(first, first + KEYS)
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.fold_in(root, DATA)))(steps)
        of_host = jax.vmap(lambda key: jax.random.fold_in(key, 2))(keys)
        return jax.device_get((jax.random.key_data(keys), jax.random.key_data(of_host)))

    def ask(step: int) -> Asked:
        key, of_host = (keys[step % KEYS] for keys in keys_from(step - step % KEYS))
        generator = np.random.default_rng(of_host)
        if own is None or not crossed:
            return Asked(key, None, [], generator)
        which = generator.integers(0, len(known), crossed)
        return Asked(key, known[which], [own["crossed"][i] for i in which], generator)

    def say_of(asked: Asked, drawn: Any) -> dict[str, np.ndarray]:
        generator, more = asked.generator, {}
        if config["pairs"] == "whole":
            prompts = [f"an object in the {attribute} of {word.text}"] * rows
        else:
            free = jax.tree.map(lambda leaf: leaf[: rows - crossed], drawn)
            prompts = say(attribute, free, word.text, generator)
            for one, backdrop in zip(asked.said, drawn.backdrop[rows - crossed :], strict=True):
                prompts.append(framed(one.replace(HERE, word.text), backdrop, generator))
        if own is not None:
            chosen = generator.integers(0, len(own["latents"]), config["prior"]["rows"])
            prompts = [*prompts, *(own["prompts"][i] for i in chosen)]
            more = {"own": own["latents"][chosen]}
        ids = tokenize(word.tokenizer, prompts, length)
        return {**more, "ids": ids, "places": places_of(ids, word.ids)}

    return Source(learner.reference, ask, say_of)


def batches(
    config: Mapping[str, Any],
    learner: Learner,
    root: Key[Array, ""],
    tools: Tools,
    own: Mapping[str, Any] | None,
) -> Callable[[int], dict[str, Any]]:
    """``batch_at`` of pairs from the reference, and of pictures of the base itself.

    Each row has latents of a target, where its error counts, and tokens of a prompt; rows of pairs have what
    the filter reads of the view, rows of the base's own pictures (prior preservation, Ruiz et al. 2023,
    section 3.2) have no placeholder in their prompts.

    Args:
        config, learner, root, own: of ``source_of``.
        tools: of ``make_tools``.
    """
    source, reference = source_of(config, learner, root, own), learner.reference

    def begin(step: int) -> tuple[Asked, Any]:
        asked = source.ask(step)
        key = jax.random.wrap_key_data(jnp.asarray(asked.key))
        return asked, tools.draw(key, reference.picture, reference.mask, asked.given)

    drawn_at = one_ahead(begin, config["steps"])

    def batch_at(step: int) -> dict[str, Any]:
        asked, (batch, drawn) = drawn_at(step)
        return _with_own(batch, source.say(asked, jax.device_get(drawn)), axis=0)

    return batch_at


def compile_draw(
    config: Mapping[str, Any],
    learner: Learner,
    root: Key[Array, ""],
    tools: Tools,
    own: Mapping[str, Any] | None,
) -> None:
    """Compile what draws the pairs of ``batches`` with the same arguments, and draw none."""
    asked, reference = source_of(config, learner, root, own).ask(0), learner.reference
    key = jax.random.wrap_key_data(jnp.asarray(asked.key))
    program: Any = tools.draw.func
    weights = tools.draw.args
    program.lower(*weights, key, reference.picture, reference.mask, asked.given).compile()


def stacked_batches(
    sources: Sequence[Source], constants: Sequence[Mapping[str, Any]], tools: Tools, mesh: Mesh
) -> Callable[[int], dict[str, Any]]:
    """``batch_at`` of a stack (``stack.make_stacked_step``): ``batches`` of several references with one more
    axis, each drawn on the device that learns of it.

    Args:
        sources: of each row of the stack that this process has, in order.
        constants: what each row has in every batch, of ``stack.own_of``.
        tools: of ``make_tools`` with this mesh.
        mesh: of this process's devices.
    """

    def stacked(trees: Sequence[Any]) -> Any:
        return place_batch(mesh, jax.tree.map(lambda *leaves: np.stack(leaves), *trees))

    references = stacked([(source.reference.picture, source.reference.mask) for source in sources])
    fixed = stacked(list(constants))

    def begin(step: int) -> tuple[list[Asked], Any]:
        asked = [source.ask(step) for source in sources]
        if len({one.given is None for one in asked}) == 1:
            keys = stacked([one.key for one in asked])
            return asked, tools.draw_many(keys, *references, stacked([one.given for one in asked]))
        # Of some the base has made nothing that pairs can be crossed with: those are another program.
        alone = [
            tools.draw(
                jax.random.wrap_key_data(jnp.asarray(one.key)),
                source.reference.picture,
                source.reference.mask,
                one.given,
            )
            for one, source in zip(asked, sources, strict=True)
        ]
        return asked, stacked(jax.device_get(alone))

    drawn_at = one_ahead(begin, max(int(one["steps"]) for one in constants))

    def batch_at(step: int) -> dict[str, Any]:
        asked, (batch, drawn) = drawn_at(step)
        drawn = jax.device_get(drawn)
        said = stacked(
            [
                source.say(one, jax.tree.map(lambda leaf, row=row: leaf[row], drawn))
                for row, (one, source) in enumerate(zip(asked, sources, strict=True))
            ]
        )
        return {**fixed, "pairs": _with_own(batch, said, axis=1)}

    return batch_at


def one_ahead(begin: Callable[[int], T], end: int) -> Callable[[int], T]:
    """What ``begin`` gives of a step, that of the next one begun, too: so a device has pairs to draw while
    the host still says what is in these. From the step ``end`` on nothing is begun ahead.
    """
    begun: dict[int, T] = {}

    def give(step: int) -> T:
        now = begun.pop(step) if step in begun else begin(step)
        begun.clear()
        if step + 1 < end:
            begun[step + 1] = begin(step + 1)
        return now

    return give


def _with_own(batch: dict[str, Any], said: dict[str, Any], axis: int) -> dict[str, Any]:
    """All of a batch: what was drawn, with the base's own pictures behind it, and what is said of both."""
    rest = {name: leaf for name, leaf in said.items() if name != "own"}
    if "own" not in said:
        return {**batch, **rest}
    return {**batch, "latents": jnp.concatenate([batch["latents"], said["own"]], axis=axis), **rest}


def batch_like(config: Mapping[str, Any], learner: Learner, tools: Tools) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of what ``batches`` gives, before anything is drawn."""
    reference, word = learner.reference, learner.word
    drawn, _ = tools.draw_shapes(jax.random.key(0), reference.picture, reference.mask)
    more = config["prior"]["rows"] if config["prior"]["count"] else 0
    rows, *rest = drawn["latents"].shape
    latents = jax.ShapeDtypeStruct((rows + more, *rest), drawn["latents"].dtype)
    length = learner.pipeline.text_encoder.module.max_position_embeddings
    ids = tokenize(word.tokenizer, [word.text] * (rows + more), length)
    said = jax.eval_shape(lambda: {"ids": jnp.asarray(ids), "places": jnp.asarray(places_of(ids, word.ids))})
    return {**drawn, "latents": latents, **said}


def prior(config: Mapping[str, Any], base: Base, tools: Tools, root: Key[Array, ""]) -> dict[str, Any] | None:
    """Pictures that the base makes of the prior's prompts, encoded; None where there are to be none.

    Returns:
        ``latents`` [n, h, w, c] and their ``prompts``; and what pairs can be crossed with, of the pictures in
        which a foreground is found: what is ``known`` to the base, for a shape its surface [k, H, W, 3] in
        [0, 1], continued over all of the picture, for an appearance its form [k, H, W] in [0, 1]; and
        ``crossed``, the k prompts of pairs that have it. k is 0 where none are to be crossed.
    """
    key = jax.random.fold_in(root, PRIOR)
    count = config["prior"]["count"]
    if not count or not config["prior"]["rows"]:
        return None
    said, crossed = prior_prompts(config)
    settings = settings_of(config, base.pipeline)
    first = int(np.asarray(jax.random.randint(key, (), 0, 2**30)))
    jobs = [Job(text, first + i) for i, text in enumerate(said)]
    made = to_floats(np.stack(list(make_pictures(base.pipeline, jobs, settings))))
    size = settings.batch_size
    latents = [
        tools.encode(made[i : i + size], jax.random.fold_in(key, 1 + i)) for i in range(0, len(made), size)
    ]
    own = {"latents": np.concatenate(latents), "prompts": said, "known": [], "crossed": []}
    if not config["crossed"]:
        return own
    masks = np.stack([foreground(base.judges, picture) for picture in made])
    found = np.flatnonzero(masks.mean((1, 2)) > LEAST_FOREGROUND)
    known = np.asarray(_surfaces(made, masks)) if config["attribute"] == "shape" else masks
    return {**own, "known": known[found], "crossed": [crossed[i] for i in found]}


@jax.jit
@jax.vmap
def _surfaces(picture: Float[Array, "h w 3"], mask: Float[Array, "h w"]) -> Float[Array, "h w 3"]:
    """What a foreground is made of, everywhere; pictures in [-1, 1] to colours in [0, 1]."""
    return continued((picture + 1) / 2, pure(mask))
