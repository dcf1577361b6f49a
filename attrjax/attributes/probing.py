"""Looking at what is being learned: pictures with it and without, their score, and the best step's file."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jaxtyping import Float, UInt8

from attrjax.attributes import measure
from attrjax.attributes.apply import apply_attributes, guidance_of
from attrjax.attributes.base import Base, settings_of
from attrjax.attributes.learner import HERE, Learner, paint_strength, to_attribute
from attrjax.attributes.measure import Probe
from attrjax.attributes.painting import make_with, painted
from attrjax.attributes.partition import describe
from attrjax.attributes.report import write_report
from attrjax.attrworld.judges import foreground
from attrjax.checkpoints.attribute import FILE_NAME, Attribute, as_stored, load_attribute, save_attribute
from attrjax.checkpoints.pipeline import Pipeline
from attrjax.data.pictures import to_floats, to_uint8
from attrjax.generate import Job, Settings, make_jobs, make_pictures
from attrjax.runs import RECORD, peak_memory, timed, write_record, write_whole

PROBES = "probes.jsonl"
Pictures = UInt8[np.ndarray, "n h w 3"]


class Run(NamedTuple):
    """An attribute that is being learned, and what its pictures are compared with.

    Attributes:
        config: of the run.
        learner: what does not change.
        directory: of the run.
        before: pictures of the untuned base, of ``pictures_before``.
        similarity: of pictures to the reference.
        unmoved: that of ``before``.
        timings: seconds that parts took, {name: seconds}; more are added.
        kept: pictures of the best step so far, {step: pictures}; it changes, and is empty where another
            process made them.
    """

    config: Mapping[str, Any]
    learner: Learner
    directory: Path
    before: Pictures
    similarity: measure.Similarity
    unmoved: dict[str, Float[np.ndarray, " n"]]
    timings: dict[str, float]
    kept: dict[int, Pictures]


def open_run(
    config: Mapping[str, Any],
    base: Base,
    learner: Learner,
    directory: Path,
    before: Pictures,
    timings: dict[str, float],
) -> Run:
    """A run that is compared by the judges, or on other bases than the bundled one by the image encoder."""
    if config["base"]:
        assert base.pipeline.image_encoder is not None
        similarity = measure.encoded(
            base.pipeline.image_encoder, learner.reference, lambda picture: foreground(base.judges, picture)
        )
    else:
        similarity = measure.judged(base.judges, learner.reference)
    return Run(config, learner, directory, before, similarity, similarity(before), timings, {})


def pictures_before(config: Mapping[str, Any], pipeline: Pipeline) -> Pictures:
    """Pictures of the untuned base, with the initial word in the place of the placeholder."""
    settings = _settings(config, pipeline)
    if paint_strength(config):
        # They are the forms that are painted: made as without an appearance.
        settings = settings._replace(**guidance_of([]))
    return np.stack(list(make_pictures(pipeline, _jobs(config, config["initial"]), settings)))


def pictures_with(run: Run, attribute: Attribute) -> Pictures:
    """The same with what was learned, from the same noise."""
    learner = run.learner
    applied = apply_attributes(learner.pipeline, [(attribute, 1.0)], digest=learner.digest)
    jobs, settings = _jobs(run.config, learner.word.text), _settings(run.config, learner.pipeline)
    return np.stack(list(make_with(applied, jobs, settings, layouts=run.before)))


def look(run: Run, step: int, params: Any) -> bool:
    """Measure a step, keep it if none so far is better, and say whether it is the last (``ended``).

    Args:
        run: that is looked at.
        step: how many updates were made.
        params: after them.
    """
    config, directory = run.config, run.directory
    with timed(run.timings, "probe, of that"):
        # What is measured is what the file will hold, in fewer bits.
        attribute = as_stored(to_attribute(jax.device_get(params), run.learner, config, tuned=step > 0))
        pictures = pictures_with(run, attribute)
        moved = run.similarity(pictures)
        found = measure.probe(config["attribute"], step, run.unmoved, moved)
        # A run that goes on measures again what was measured after its checkpoint.
        others = [one for one in read_probes(directory) if one.step != step]
        if measure.best_of([*others, found]).step == step:
            save_attribute(directory, attribute)
            run.kept.clear()
            run.kept[step] = pictures
        lines = [*_lines(directory), json.dumps({**found._asdict(), "score": found.score}) + "\n"]
        write_whole(directory / PROBES, "".join(lines).encode())
    logging.info(
        "%s, step %d: gain %.3f, leakage %.3f, score %.3f",
        *(directory.name, step, found.gain, found.leakage, found.score),
    )
    return ended(config, [*(one for one in others if one.step < step), found]) is not None


def look_first(run: Run, params: Any) -> None:
    """What a trained filter recognizes is the first candidate."""
    if run.learner.recognizes and not any(one.step == 0 for one in read_probes(run.directory)):
        look(run, 0, params)


def read_probes(directory: Path) -> list[Probe]:
    """What a run has measured, by step; of a step that was measured twice, the last."""
    lines = [json.loads(line) for line in _lines(directory)]
    found = {line["step"]: Probe(**{name: line[name] for name in Probe._fields}) for line in lines}
    return [found[step] for step in sorted(found)]


def _lines(directory: Path) -> list[str]:
    """The lines of ``probes.jsonl``, without one that was cut off: that step is measured again."""
    path = directory / PROBES
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("}\n")]


def last_probe(config: Mapping[str, Any]) -> int:
    """The last step that is measured. None behind it can be kept, so none is made."""
    steps = config["steps"]
    return steps - steps % config["probe"]["every"] if steps else 0


def ended(config: Mapping[str, Any], probes: Sequence[Probe]) -> int | None:
    """The step at which a run ends, None where it goes on behind all that was measured.

    That is the last one that is measured, or the ``patience``-th in a row without a better score.

    Args:
        config: of the run.
        probes: what was measured, by step.
    """
    best, since = -np.inf, 0
    for one in probes:
        since = 0 if one.score > best else since + 1
        best = max(best, one.score)
        if one.step >= last_probe(config) or (config["patience"] and since >= config["patience"]):
            return one.step
    return None


def finish(run: Run, started: float) -> tuple[dict[str, Any], Pictures]:
    """Write the run's record and page, and give its results and the pictures with what was learned.

    Args:
        run: that has ended.
        started: when it did, by ``time.monotonic``.
    """
    config, learner, directory = run.config, run.learner, run.directory
    probes = read_probes(directory)
    best = measure.best_of(probes)
    after = run.kept.get(best.step)
    if after is None:
        with timed(run.timings, "before and after"):
            after = pictures_with(run, load_attribute(directory))
    run.timings["all"] = round(time.monotonic() - started, 3)
    size = (directory / FILE_NAME).stat().st_size
    results = {
        "chosen": best._asdict() | {"score": best.score},
        "bytes": size,
        "peak_memory": peak_memory(),
        "timings": run.timings,
        "mask": learner.reference.origin,
        "tuned": describe(learner.partition, learner.begun)
        if best.step
        else ["tuned: nothing, the filter recognized it"],
    }
    write_record(directory, config, {"results": results})
    jobs = [(job.prompt, job.seed) for job in _jobs(config, learner.word.text)]
    write_report(
        directory, config, learner.reference, jobs, run.before, after, probes, results, _painted(run)
    )
    logging.info(
        "the step that is kept is %d: gain %.3f, leakage %.3f; wrote %s (%.2f MB) and index.html",
        *(best.step, best.gain, best.leakage, directory / FILE_NAME, size / 1e6),
    )
    return results, after


def _painted(run: Run) -> UInt8[np.ndarray, "h w 3"] | None:
    """The first of the pictures before, painted; None where none is."""
    attribute, learner = load_attribute(run.directory), run.learner
    applied = apply_attributes(learner.pipeline, [(attribute, 1.0)], digest=learner.digest)
    if attribute.word not in applied.paintings:
        return None
    seed = run.config["probe"]["seeds"][0]
    found = painted(applied.paintings[attribute.word], seed, to_floats(run.before[0]))
    return None if found is None else to_uint8(found)


def is_made(place: Path) -> bool:
    """Whether a directory has all that ``finish`` leaves."""
    record = place / RECORD
    return record.exists() and "results" in json.loads(record.read_text()) and (place / "index.html").exists()


def _jobs(config: Mapping[str, Any], word: str) -> list[Job]:
    """The probe's prompts with a word in them, with each of its seeds."""
    prompts = [prompt.replace(HERE, word) for prompt in config["probe"]["prompts"]]
    return make_jobs(prompts, config["probe"]["seeds"])


def _settings(config: Mapping[str, Any], pipeline: Pipeline) -> Settings:
    interval, rescale = tuple(config["guidance_interval"]), config["guidance_rescale"]
    return settings_of(config, pipeline)._replace(guidance_interval=interval, guidance_rescale=rescale)
