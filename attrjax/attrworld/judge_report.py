"""How well the judges judge: ``python -m attrjax.attrworld.judge_report --output=runs/judge-report``.

It renders shapes and materials that no judge was trained on and writes ``judges.json`` and ``judges.md``:

* Retrieval. The gallery has one entry for each held-out family, the mean of ``REFERENCES`` renders: random
  variants in random views, the other attribute drawn as in training. A query is a render of another random
  variant in another view, with the other attribute from the held-out families or from those of training. It
  is right where the nearest entry is of its family. Beside it stands the same with one render an entry.
* Instances. A query is the same variant as its entry, which is one render, among as many variants of all
  held-out families as there are entries: this asks for proportions too.
* Probes. Logistic regression from one half of the embeddings of every held-out shape in every held-out
  material, tested on the other half: of what a judge must not see, beside chance, and of what it must.
* Segmenter. Intersection over union with the renderer's mask on those pictures.
* Classification of fresh renders of the training families.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int

from attrjax.attrworld import judges as judging
from attrjax.attrworld.judges import Judges, load_judges
from attrjax.attrworld.render import render_batch
from attrjax.attrworld.scenes import draw_scenes
from attrjax.attrworld.train_judges import grid_of_scenes, withheld
from attrjax.attrworld.words import HELD_OUT_MATERIALS, HELD_OUT_SHAPES, TRAIN_MATERIALS, TRAIN_SHAPES
from attrjax.checkpoints.files import write_json
from attrjax.runs import write_whole

REFERENCES = 8  # renders that an entry of a gallery is the mean of
EMBED = {"shape": judging.embed_shape, "appearance": judging.embed_appearance}


def main() -> None:
    """Read the command line, measure, and write."""
    parser = argparse.ArgumentParser(
        description="Measure the judges on families that they were not trained on."
    )
    parser.add_argument("--output", required=True, help="directory for judges.json and judges.md")
    parser.add_argument(
        "--judges", default=None, help="directory with judges; those of the package without it"
    )
    parser.add_argument("--families", choices=("held-out", "training", "withheld"), default="held-out")
    parser.add_argument("--each", type=int, default=12, help="renders of every shape in every material")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    names = (HELD_OUT_SHAPES, HELD_OUT_MATERIALS)
    if arguments.families == "training":
        names = (TRAIN_SHAPES, TRAIN_MATERIALS)
    elif arguments.families == "withheld":
        names = (withheld(TRAIN_SHAPES), withheld(TRAIN_MATERIALS))
    measured = measure(load_judges(arguments.judges), *names, each=arguments.each, seed=arguments.seed)
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "judges.json", measured)
    write_whole(output / "judges.md", as_markdown(measured).encode())
    print(as_markdown(measured))


def measure(
    judges: Judges, shapes: Sequence[str], materials: Sequence[str], *, each: int = 12, seed: int = 1
) -> dict[str, Any]:
    """All that the module's docstring lists, as plain values.

    Args:
        judges: of ``load_judges``.
        shapes, materials: the families that retrieval and probes are of.
        each: renders of every one of these shapes in every one of these materials, 2 or more.
        seed: of all that is drawn.
    """
    generator = np.random.default_rng(seed)
    shape = np.repeat(np.arange(len(shapes)), len(materials) * each)
    material = np.tile(np.repeat(np.arange(len(materials)), each), len(shapes))
    pictures, masks = _renders(generator, _named(shapes, shape), _named(materials, material))
    found = judging.segment(judges, pictures) > 0.5
    overlap = iou(found, masks > 0.5)
    result: dict[str, Any] = {
        "protocol": {"shapes": list(shapes), "materials": list(materials), "each": each, "seed": seed},
        "segmenter": {"iou": float(overlap.mean()), "iou_5th_percentile": float(np.percentile(overlap, 5))},
    }
    for part, names, labels, others, other_names in (
        ("shape", shapes, shape, material, materials),
        ("appearance", materials, material, shape, shapes),
    ):
        embeddings = EMBED[part](judges, pictures)
        gallery, single = _gallery(judges, generator, part, names)
        nearest = (embeddings @ gallery.T).argmax(-1)
        # The same families with the other attribute from those of training.
        seen_labels = np.repeat(np.arange(len(names)), 4 * each)
        seen = _of_family(generator, part, _named(names, seen_labels))
        seen_nearest = (EMBED[part](judges, seen) @ gallery.T).argmax(-1)
        result[part] = {
            "retrieval": float(np.mean(nearest == labels)),
            "retrieval_other_attribute_seen": float(np.mean(seen_nearest == seen_labels)),
            "retrieval_one_reference": float(np.mean((embeddings @ single.T).argmax(-1) == labels)),
            "retrieval_of_instances": _instances(judges, generator, part, names),
            "queries": [len(labels), len(seen_labels)],
            "probe_of_other": probe(embeddings, others, len(other_names), generator),
            "chance_of_other": 1 / len(other_names),
            "probe_of_own": probe(embeddings, labels, len(names), generator),
            "confusion": confusion(labels, nearest, len(names)).tolist(),
        }
    result |= {"classification": classification(judges, generator)}
    return result


def classification(judges: Judges, generator: np.random.Generator, n: int = 1024) -> dict[str, Any]:
    """How often the right family of training is found, of fresh renders of each, and the confusions."""
    shape = generator.permutation(np.arange(n) % len(judges.shapes))
    material = generator.permutation(np.arange(n) % len(judges.materials))
    pictures, _ = _renders(generator, _named(judges.shapes, shape), _named(judges.materials, material))
    result: dict[str, Any] = {"renders": n}
    for part, classify, known, labels in (
        ("shape", judging.classify_shape, judges.shapes, shape),
        ("appearance", judging.classify_appearance, judges.materials, material),
    ):
        found = classify(judges, pictures).argmax(-1)
        counts = confusion(labels, found, len(known))
        wrong = np.argwhere(counts * (1 - np.eye(len(known), dtype=int)))
        pairs = sorted(((int(counts[i, j]), known[i], known[j]) for i, j in wrong), reverse=True)
        result[part] = {"accuracy": float(np.mean(found == labels)), "most_confused": pairs[:8]}
    return result


def iou(found: Bool[np.ndarray, "n h w"], there: Bool[np.ndarray, "n h w"]) -> Float[np.ndarray, " n"]:
    """Intersection over union of each mask; 1 where both are empty."""
    union = (found | there).sum((1, 2))
    return np.where(union > 0, (found & there).sum((1, 2)) / np.maximum(union, 1), 1.0)


def probe(
    embeddings: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    count: int,
    generator: np.random.Generator,
) -> float:
    """Accuracy of logistic regression on the half of the rows that it was not fitted to."""
    order = generator.permutation(len(labels))
    train, test = order[::2], order[1::2]
    mean, deviation = embeddings[train].mean(0), embeddings[train].std(0) + 1e-6
    x = jnp.asarray((embeddings - mean) / deviation)
    y = jnp.asarray(labels)
    optimizer = optax.adam(0.03)

    def loss(weights: Any) -> jax.Array:
        logits = x[train] @ weights[0] + weights[1]
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, y[train]).mean()
        return entropy + 1e-3 * jnp.sum(weights[0] ** 2)

    def step(_: int, carry: Any) -> Any:
        weights, state = carry
        updates, state = optimizer.update(jax.grad(loss)(weights), state)
        return optax.apply_updates(weights, updates), state

    weights = (jnp.zeros((x.shape[1], count)), jnp.zeros(count))
    fit = jax.jit(lambda start: jax.lax.fori_loop(0, 500, step, start))
    weights, _ = fit((weights, optimizer.init(weights)))
    return float(jnp.mean((x[test] @ weights[0] + weights[1]).argmax(-1) == y[test]))


def confusion(
    labels: Int[np.ndarray, " n"], found: Int[np.ndarray, " n"], count: int
) -> Int[np.ndarray, "count count"]:
    """How often a label (row) was taken for another (column)."""
    table = np.zeros((count, count), int)
    np.add.at(table, (labels, found), 1)
    return table


def as_markdown(measured: dict[str, Any]) -> str:
    """The report to read."""
    protocol = measured["protocol"]
    lines = [
        "# The judges",
        "",
        f"{len(protocol['shapes'])} shapes, {len(protocol['materials'])} materials,",
        f"{protocol['each']} renders of each pair, seed {protocol['seed']}.",
        f"An entry of a gallery is the mean of {REFERENCES} renders.",
        "",
        "| | shape judge | appearance judge |",
        "|---|---|---|",
    ]
    rows = {
        "retrieval": "retrieval, top-1",
        "retrieval_other_attribute_seen": "the same, other attribute of a training family",
        "retrieval_one_reference": "the same, one render an entry",
        "retrieval_of_instances": "retrieval of instances",
        "probe_of_other": "probe of the other attribute",
        "chance_of_other": "chance",
        "probe_of_own": "probe of its own attribute",
    }
    pair = (measured["shape"], measured["appearance"])
    for key, label in rows.items():
        lines.append(f"| {label} | " + " | ".join(f"{100 * part[key]:.1f} %" for part in pair) + " |")
    classes = measured["classification"]
    accuracy = [f"{100 * classes[part]['accuracy']:.1f} %" for part in ("shape", "appearance")]
    lines += [f"| classification of training families | {accuracy[0]} | {accuracy[1]} |", ""]
    overlap = measured["segmenter"]
    lines += [f"Segmenter: IoU {overlap['iou']:.3f}, 5th percentile {overlap['iou_5th_percentile']:.3f}.", ""]
    for part, key in (("shape", "shapes"), ("appearance", "materials")):
        names = protocol[key]
        lines += [f"## What was taken for what: {part}", "", "| | " + " | ".join(names) + " |"]
        lines.append("|---" * (len(names) + 1) + "|")
        for name, counts in zip(names, measured[part]["confusion"], strict=True):
            lines.append(f"| **{name}** | " + " | ".join(str(c) if c else "" for c in counts) + " |")
        lines.append("")
        mistakes = (f"{a} for {b} {count}" for count, a, b in classes[part]["most_confused"])
        lines += ["Training families: " + (", ".join(mistakes) or "no mistakes") + ".", ""]
    return "\n".join(lines)


def _named(names: Sequence[str], numbers: Int[np.ndarray, " n"]) -> list[str]:
    return [names[int(i)] for i in numbers]


def _gallery(
    judges: Judges, generator: np.random.Generator, part: str, names: Sequence[str]
) -> tuple[Float[np.ndarray, "families d"], Float[np.ndarray, "families d"]]:
    """An entry for each family: the mean of its references, of length 1, and one of them."""
    pictures = _of_family(generator, part, np.repeat(names, REFERENCES).tolist())
    embeddings = EMBED[part](judges, pictures).reshape(len(names), REFERENCES, -1)
    mean = embeddings.mean(1)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True), embeddings[:, 0]


def _of_family(generator: np.random.Generator, part: str, names: list[str]) -> Float[np.ndarray, "n 64 64 3"]:
    """Renders of variants of the families, the other attribute drawn as in training."""
    if part == "shape":
        return _renders(generator, names, None)[0]
    return _renders(generator, None, names)[0]


def _instances(judges: Judges, generator: np.random.Generator, part: str, names: Sequence[str]) -> float:
    """How often a variant is found among two of each family, entry and query differing in all else."""
    rows = [*names, *names]
    scenes, _ = grid_of_scenes(generator, len(rows), 2, part, 0.0, row_names=rows)
    pictures = _render(scenes)[0]
    embeddings = EMBED[part](judges, pictures).reshape(len(rows), 2, -1)
    return float(np.mean((embeddings[:, 1] @ embeddings[:, 0].T).argmax(-1) == np.arange(len(rows))))


def _renders(
    generator: np.random.Generator, shapes: Sequence[str] | None, materials: Sequence[str] | None
) -> tuple[Float[np.ndarray, "n 64 64 3"], Float[np.ndarray, "n 64 64"]]:
    n = len(shapes if shapes is not None else materials or ())
    return _render(draw_scenes(generator, n, shape_names=shapes, material_names=materials).scene)


def _render(scenes: Any) -> tuple[Float[np.ndarray, "n 64 64 3"], Float[np.ndarray, "n 64 64"]]:
    """Pictures in [-1, 1] and masks, rendered some at a time."""
    n, some = len(scenes.azimuth), 32
    pictures, masks = [], []
    for first in range(0, n, some):
        rows = np.minimum(np.arange(first, first + some), n - 1)  # the last one again, to fill up
        seen = render_batch(jax.tree.map(lambda leaf, rows=rows: leaf[rows], scenes))
        pictures.append(2 * np.asarray(seen.picture) - 1)
        masks.append(np.asarray(seen.mask))
    return np.concatenate(pictures)[:n], np.concatenate(masks)[:n]


if __name__ == "__main__":
    main()
