"""The task ``judges``: segmenter, shape judge and appearance judge, trained on fresh renders."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jaxtyping import Array, Bool, Float, Int, Key

from attrjax.attrworld import looks, shapes
from attrjax.attrworld.batches import DATA, INIT, NOISE, check_rows, rendered
from attrjax.attrworld.judges import (
    SIZE,
    Segmenter,
    ShapeJudge,
    abstract_params,
    appearance_judge,
    centred,
    init_params,
    mask_of,
)
from attrjax.attrworld.render import Scene
from attrjax.attrworld.scenes import UNNAMED_MATERIALS, UNNAMED_SHAPES, draw_names, draw_scenes, generator_of
from attrjax.checkpoints.attribute import OTHER
from attrjax.checkpoints.files import write_json
from attrjax.checkpoints.params import load_params, save_params
from attrjax.fit import begin, fit
from attrjax.parallel.mesh import own_rows
from attrjax.parallel.start import together
from attrjax.runs import plain, write_record

REPLAY = 1 + max(DATA, NOISE, INIT)  # what the key of the choice of chunks is folded with
REDUCED_ON = 24  # chunks by which the appearance judge's directions are chosen
PARTS = ("segmenter", "shape", "appearance")
FAMILIES = {"segmenter": (), "shape": tuple(shapes.FAMILIES), "appearance": tuple(looks.FAMILIES)}
WITHHELD = 4  # one family in so many is left out of a training that settings are chosen by


def judges(config: Mapping[str, Any], workdir: str, *, resume: bool = False) -> None:
    """Train the judges and write them to ``workdir/judges``, float16 safetensors and a list of names.

    Parts are trained one after the other, each from its own seed. Shape and appearance see through the
    segmenter that was trained before them, and nothing else of each other.

    Args:
        config: ``part`` is one of ``PARTS`` or "all"; ``segmenter``, ``shape`` and ``appearance`` say how
            each is trained. ``segmenter_from`` is a directory with a segmenter for a part that is trained
            alone; "" is ``workdir/judges``. ``withhold`` leaves the families of ``withheld`` out.

    Raises:
        ValueError, FileExistsError: the config does not fit itself, or the run that the directory holds.
        FileNotFoundError: a part is trained alone and there is no segmenter.
    """
    if config["part"] not in (*PARTS, "all"):
        raise ValueError(f"part={config['part']!r} must be one of {', '.join(PARTS)} or all")
    directory, root = begin(config, workdir, resume)
    made, first = directory / "judges", jax.process_index() == 0
    names = {"shapes": list(FAMILIES["shape"]), "materials": list(FAMILIES["appearance"]), "size": SIZE}
    if first:
        made.mkdir(exist_ok=True)
        write_json(made / "judges.json", names)
    results = {}
    for index, part in enumerate(PARTS):
        if config["part"] not in (part, "all"):
            continue
        segmenter = None
        if part != "segmenter":
            source = Path(config["segmenter_from"] or made)
            segmenter = load_params(source, "segmenter", abstract_params("segmenter", 0))
        key = jax.random.fold_in(root, index)
        settings = {**plain(config), **plain(config[part])}
        features = {"features": settings["features"]} if part == "appearance" else {}
        params = init_params(part, len(FAMILIES[part]), jax.random.fold_in(key, INIT), **features)
        chunk = chunks_of(part, settings, key, segmenter)
        batch_at = replayed(chunk, key, settings["replay"], settings["window"])
        loss_fn: Callable = _segmenter_loss
        if part != "segmenter":
            loss_fn = functools.partial(_judge_loss, part, settings["leak_weight"], settings.get("cut", 0.0))
        params = fit(settings, directory / part, key, params, loss_fn, batch_at)
        if params is None:
            return
        if part == "appearance":
            # Chunks after the last one that it was trained on.
            behind = range(settings["steps"], settings["steps"] + REDUCED_ON)
            params = reduced(params, [chunk(i) for i in behind], settings["kept"])
        if first:
            save_params(made, part, params, dtype=np.float16)
        together("written")  # before the next part's judge sees through this one
        results[part] = sum(leaf.size for leaf in jax.tree.leaves(params))
        logging.info("wrote %s, %.2f million parameters", made / part, results[part] / 1e6)
    if first:
        write_record(directory, config, {"results": {"parameters": results}})


def withheld(names: Sequence[str]) -> tuple[str, ...]:
    """The families of a list that a training with ``withhold`` does not see."""
    return tuple(names[WITHHELD - 1 :: WITHHELD])


def chunks_of(
    part: str, settings: Mapping[str, Any], key: Key[Array, ""], segmenter: Any
) -> Callable[[int], dict[str, np.ndarray]]:
    """From a number to new renders: what a step brings that no step before it had, on all processes alike.

    Returns:
        a function to ``picture`` and ``mask`` in 0..255, and where ``part`` is not the segmenter to the
        ``family`` of what is judged (-1 for an unnamed one), its ``instance``, and that of the ``other``
        attribute. The mask is then the segmenter's; the shape judge's chunks have no picture.
    """
    rows, columns = settings["rows"], settings["columns"]
    check_rows(rows)

    @jax.jit
    def look(scenes: Scene) -> tuple[Array, Array]:
        seen = rendered(scenes, SIZE)
        mask = seen.mask
        if segmenter is not None:
            mask = mask_of(segmenter, seen.picture)
        as_bytes = [
            jnp.round(255 * jnp.clip(x, 0, 1)).astype(jnp.uint8) for x in (seen.picture / 2 + 0.5, mask)
        ]
        return as_bytes[0], as_bytes[1]

    def chunk(number: int) -> dict[str, np.ndarray]:
        generator = generator_of(jax.random.fold_in(jax.random.fold_in(key, DATA), number))
        if part == "segmenter":
            scene = draw_scenes(generator, rows * columns).scene
            picture, mask = look(scene)
            return {"picture": np.asarray(picture), "mask": np.asarray(mask)}
        names, of_columns = None, None
        if settings["withhold"]:
            unnamed = {"shape": UNNAMED_MATERIALS, "appearance": UNNAMED_SHAPES}[part]
            known = {of: [n for n in FAMILIES[of] if n not in withheld(FAMILIES[of])] for of in OTHER}
            names = draw_names(generator, rows, known[part], settings["unnamed"])
            of_columns = draw_names(generator, columns, known[OTHER[part]], unnamed)
        scene, names = grid_of_scenes(
            generator, rows, columns, part, settings["unnamed"], row_names=names, column_names=of_columns
        )
        picture, mask = look(scene)
        first = number * rows
        numbers = {name: i for i, name in enumerate(FAMILIES[part])}
        labels = {
            "mask": np.asarray(mask),
            "family": np.repeat(np.array([numbers.get(name, -1) for name in names], np.int32), columns),
            "instance": np.repeat(np.arange(first, first + rows, dtype=np.int32), columns),
            "other": np.tile(np.arange(columns, dtype=np.int32) + number * columns, rows),
        }
        return labels if part == "shape" else {**labels, "picture": np.asarray(picture)}

    return chunk


def grid_of_scenes(
    generator: np.random.Generator,
    rows: int,
    columns: int,
    part: str,
    unnamed: float,
    *,
    row_names: Sequence[str] | None = None,
    column_names: Sequence[str] | None = None,
) -> tuple[Scene, list[str]]:
    """Scenes of every row's attribute with every column's, each in its own view, light and backdrop.

    What is in a row has one ``part`` in common, what is in a column the other. So pictures that a judge must
    tell apart often agree in what it must not see.

    Args:
        generator: of all that is drawn.
        rows, columns: how many.
        part: "shape" or "appearance", what a row has in common.
        unnamed: share of rows whose attribute is of no family; that of columns is ``scenes``'.
        row_names, column_names: families, "" for an unnamed one; None draws from those of training.

    Returns:
        [rows * columns] scenes, row by row, and the rows' families.
    """
    if row_names is None:
        row_names = draw_names(generator, rows, FAMILIES[part], unnamed)
    blank = [""] * rows
    if part == "shape":
        of_rows, of_columns = "shape", "material"
        drawn = draw_scenes(generator, rows, shape_names=row_names, material_names=blank)
        others = draw_scenes(generator, columns, material_names=column_names)
    else:
        of_rows, of_columns = "material", "shape"
        drawn = draw_scenes(generator, rows, shape_names=blank, material_names=row_names)
        others = draw_scenes(generator, columns, shape_names=column_names)
    row, column = getattr(drawn.scene, of_rows), getattr(others.scene, of_columns)
    views = draw_scenes(generator, rows * columns).scene
    attributes = {
        of_rows: jax.tree.map(lambda leaf: np.repeat(leaf, columns, 0), row),
        of_columns: jax.tree.map(lambda leaf: np.concatenate([leaf] * rows), column),
    }
    return views._replace(**attributes), list(row_names)


def replayed(
    chunk: Callable[[int], dict[str, np.ndarray]], key: Key[Array, ""], replay: int, window: int
) -> Callable[[int], dict[str, np.ndarray]]:
    """``batch_at`` of a new chunk and some of the newest ``window`` ones again.

    Rendering costs several times what training on a picture does, so each is used ``replay`` times or so. A
    batch is still a function of its number alone: chunks that are not at hand are rendered again.

    Args:
        chunk: of ``chunks_of``.
        key: of the choice.
        replay: chunks of a batch.
        window: chunks that are kept.
    """
    kept = functools.lru_cache(maxsize=window)(chunk)

    def batch_at(step: int) -> dict[str, np.ndarray]:
        generator = generator_of(jax.random.fold_in(jax.random.fold_in(key, REPLAY), step))
        again = generator.integers(max(0, step + 1 - window), step + 1, replay - 1)
        parts = [kept(step), *(kept(int(i)) for i in again)]
        return own_rows({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    return batch_at


def _segmenter_loss(
    params: Any, batch: Mapping[str, Array], key: Key[Array, ""]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Cross-entropy of the mask, on pictures whose colours are changed."""
    picture, mask = batch["picture"] / 127.5 - 1, batch["mask"] / 255.0
    orders, gains, noise, strength = jax.random.split(key, 4)
    n = len(picture)
    order = jnp.argsort(jax.random.uniform(orders, (n, 3)), -1)
    picture = jnp.take_along_axis(picture, order[:, None, None], -1)
    gain = jax.random.uniform(gains, (2, n, 1, 1, 3), minval=-0.08, maxval=0.08)
    picture = jnp.clip(picture * (1 + gain[0]) + gain[1], -1, 1)
    rough = 0.08 * jax.random.uniform(strength, (n, 1, 1, 1)) ** 2
    picture = picture + rough * jax.random.normal(noise, picture.shape)
    logits = in_groups(lambda some: Segmenter().apply({"params": params}, some), 8, picture)
    loss = optax.sigmoid_binary_cross_entropy(logits, mask).mean()
    found, there = logits > 0, mask > 0.5
    union = jnp.maximum((found | there).sum((1, 2)), 1)
    return loss, {"iou": jnp.mean((found & there).sum((1, 2)) / union)}


def _judge_loss(
    part: str,
    leak_weight: float,
    cut: float,
    params: Any,
    batch: Mapping[str, Array],
    key: Key[Array, ""],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Contrast of instances, cross-entropy of families where there is one, and what of the other shows."""
    mask, family, n = batch["mask"] / 255.0, batch["family"], len(batch["mask"])
    first, second, third = jax.random.split(key, 3)
    if part == "shape":
        offset = 0.04 * jax.random.normal(first, (n, 2))
        zoom = 1 + 0.04 * jax.random.normal(second, (n,))
        network = ShapeJudge(len(FAMILIES[part]))
        canvas = centred(mask, offset, zoom)
        embedding, logits = in_groups(lambda some: network.apply({"params": params}, some), 32, canvas)
    else:
        noise = 0.04 * jax.random.uniform(first, (n, 1, 1, 1)) ** 2
        picture = batch["picture"] / 127.5 - 1
        picture = picture + noise * jax.random.normal(second, picture.shape)
        mask = cut_masks(mask, third, cut)
        judge = appearance_judge(params)
        embedding, logits = in_groups(lambda *some: judge.apply({"params": params}, *some), 32, picture, mask)
    named = family >= 0
    labels = jnp.maximum(family, 0)
    count = jnp.maximum(named.sum(), 1)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    entropy = jnp.sum(entropy * named) / count
    accuracy = jnp.sum((logits.argmax(-1) == labels) * named) / count
    alike = named[:, None] & (family[:, None] == family[None])
    contrast, found = contrast_of(embedding, batch["instance"], alike)
    leak = leak_of(embedding, batch["instance"], batch["other"])
    metrics = {"contrast": contrast, "accuracy": accuracy, "nearest": found, "leak": leak}
    return contrast + entropy + leak_weight * leak, metrics


def cut_masks(mask: Float[Array, "b h w"], key: Key[Array, ""], share: float) -> Float[Array, "b h w"]:
    """Masks of which a share has random holes, so that how broad the object's parts are tells nothing.

    Args:
        mask: in [0, 1].
        key: of the holes.
        share: of masks that are cut.
    """
    coarse, fine, levels, chosen = jax.random.split(key, 4)
    n = len(mask)
    field = sum(
        jax.image.resize(jax.random.normal(k, (n, side, side)), mask.shape, "cubic")
        for k, side in ((coarse, 4), (fine, 8))
    )
    level = jax.random.uniform(levels, (n, 1, 1), minval=-0.7, maxval=1.2)
    kept = jax.nn.sigmoid(8 * (field + level))
    return mask * jnp.where(jax.random.uniform(chosen, (n, 1, 1)) < share, kept, 1)


def reduced(params: Any, chunks: Sequence[Mapping[str, np.ndarray]], kept: int) -> Any:
    """An appearance judge with the directions of its embedding alone in which materials differ most.

    In the others materials differ little, and it is there that a linear probe finds the shape. They are found
    by principal components of the means of instances, and folded into the last layer.

    Args:
        params: of the judge.
        chunks: of ``chunks_of``.
        kept: how many directions.
    """
    judge = appearance_judge(params)
    embed = jax.jit(lambda picture, mask: judge.apply({"params": params}, picture, mask)[0])
    means = []
    for chunk in chunks:
        found = np.asarray(embed(chunk["picture"] / 127.5 - 1, chunk["mask"] / 255.0))
        means += [found[chunk["instance"] == one].mean(0) for one in np.unique(chunk["instance"])]
    spread = np.cov(np.stack(means), rowvar=False)
    directions = np.linalg.eigh(spread)[1][:, ::-1][:, :kept]
    last = {name: np.asarray(leaf) @ directions for name, leaf in params["embed"].items()}
    return {**params, "embed": last}


def in_groups(function: Callable, group: int, *arrays: Array) -> Any:
    """``function`` of arrays with a leading axis, on a CPU in groups of rows that stay in its cache.

    There 3x3 convolutions of a group run as Winograd products, several times as fast as those of a batch.
    """
    n = len(arrays[0])
    if jax.default_backend() != "cpu" or n % group:
        return function(*arrays)
    grouped = [x.reshape(n // group, group, *x.shape[1:]) for x in arrays]
    results = jax.lax.map(lambda some: function(*some), tuple(grouped))
    return jax.tree.map(lambda leaf: leaf.reshape(n, *leaf.shape[2:]), results)


def contrast_of(
    embedding: Float[Array, "b d"],
    instance: Int[Array, " b"],
    alike: Bool[Array, "b b"],
    temperature: float = 0.1,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Supervised contrast (Khosla et al. 2020, equation 2) of instances.

    Args:
        embedding: of length 1.
        instance: pictures of one instance attract each other, those of others repel each other.
        alike: pairs of one family, which do neither unless they are of one instance.
        temperature: of the softmax.

    Returns:
        the loss, and how often the nearest other picture is of the same instance.
    """
    same = instance[:, None] == instance[None]
    own = jnp.eye(len(instance), dtype=bool)
    positive = same & ~own
    logits = jnp.where(own | (alike & ~same), -1e9, embedding @ embedding.T / temperature)
    log_share = logits - jax.nn.logsumexp(logits, -1, keepdims=True)
    loss = -jnp.sum(jnp.where(positive, log_share, 0), -1) / jnp.maximum(positive.sum(-1), 1)
    nearest = jnp.take_along_axis(same, logits.argmax(-1)[:, None], -1)
    return loss.mean(), nearest.mean()


def leak_of(
    embedding: Float[Array, "b d"], instance: Int[Array, " b"], other: Int[Array, " b"]
) -> Float[Array, ""]:
    """How much of what an instance's embeddings vary by is an effect of the other attribute.

    It is the mean product of residuals around the instances' means, of pairs that share the other attribute
    and not the instance, over the mean square of a residual: near 0 where the other attribute shifts nothing.

    Args:
        embedding: of length 1.
        instance, other: numbers of the attribute that is judged, and of the one that must not be seen.
    """
    same = instance[:, None] == instance[None]
    residual = embedding - same @ embedding / same.sum(-1, keepdims=True)
    pair = (other[:, None] == other[None]) & ~same
    shared = jnp.sum(jnp.where(pair, residual @ residual.T, 0)) / jnp.maximum(pair.sum(), 1)
    return shared / jax.lax.stop_gradient(jnp.mean(jnp.sum(residual**2, -1)) + 1e-6)
