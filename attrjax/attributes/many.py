"""A list of references, learned at once: what ``customize`` does with ``config.references``.

The list is dealt out to the devices in turns of ``stack_of`` pictures each, all of one attribute: the two
have filters, pairs and timesteps of their own, so each has its own step. The concepts of a turn are learned
side by side (``stack``, ``phases``), and each leaves what a run of its own would.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from jax.sharding import Mesh

from attrjax.attributes import stack
from attrjax.attributes.base import Base, load_base
from attrjax.attributes.batches import Tools, make_tools, prior, source_of, stacked_batches
from attrjax.attributes.concepts import STACKS, Concept, check_references, read_list, recipe_for
from attrjax.attributes.learner import Learner, begun_of, first_params, frozen_of, loss_of, make_learner
from attrjax.attributes.list_report import save_card, write_list_report
from attrjax.attributes.partition import describe
from attrjax.attributes.phases import Turn, train_phases
from attrjax.attributes.probing import (
    Run,
    ended,
    finish,
    is_made,
    last_probe,
    look_first,
    open_run,
    pictures_before,
    read_probes,
)
from attrjax.checkpoints.training import CHECKPOINTS, drop_checkpoints
from attrjax.fit import STEPS, begin
from attrjax.parallel.mesh import local_mesh, make_mesh
from attrjax.parallel.start import together
from attrjax.runs import check_run, plain, timed, write_record
from attrjax.training import StepFn

# What may differ in a list's run that goes on. Other devices, or other steps, would be other stacks.
MAY_CHANGE = ("max_seconds", "log_every", "save_every", "cache_dir", "profile", "keep_checkpoints")


class Workshop(NamedTuple):
    """What all turns of an attribute share.

    Attributes:
        config: of the list, for this attribute.
        base: that is tuned.
        mesh: of the devices.
        most: rows of a device in the largest stack.
        tools: of ``make_tools``.
        step_of: from any learner to the train step, which is the same for all.
        prior_of, before_of: from a concept's config to the base's own pictures. Like ``step_of``, they make
            nothing twice.
    """

    config: Mapping[str, Any]
    base: Base
    mesh: Mesh
    most: int
    tools: Tools
    step_of: Callable[[Learner], StepFn]
    prior_of: Callable[[Mapping[str, Any]], Any]
    before_of: Callable[[Mapping[str, Any]], Any]


def customize_list(config: Mapping[str, Any], workdir: str, *, resume: bool = False) -> None:
    """Learn an attribute of every reference in ``config.references``, a JSON object in each line.

    Args:
        config: of ``configs/shape.py``; what a line says of its own is ``concepts.read_list``'s. Lines of
            the other attribute take ``config.other``.
        workdir: gets a directory for each reference with what a run of its own would leave, and
            ``index.html``, which shows all. Of several processes each writes those of its devices.
        resume: go on with what is there.

    Raises:
        ValueError, FileNotFoundError: the list or the base cannot be used; nothing was learned then.
        FileExistsError: the run directory holds a run and ``resume`` is false.
    """
    started = time.monotonic()
    mesh = make_mesh(**config["mesh"])
    if mesh.shape["data"] * mesh.shape["fsdp"] > 1 or config["stack"] < 0:
        raise ValueError(
            "of a list each device learns pictures of its own: --config.mesh.concept=-1 --config.mesh.data=1 "
            "--config.mesh.fsdp=1, and --config.stack, how many at once, from 1 on, or 0 to choose it"
        )
    at_once, concepts = stack_of(config), read_list(config)
    base = load_base(config)
    check_references(concepts, base)
    # Like with like, so that the rows of a stack end together.
    concepts.sort(key=lambda concept: -last_probe(concept.config))
    told = {
        **plain(config),
        "concepts": f"{len(concepts)} references with the digest {digest_of(concepts)}",
        "devices": mesh.size,
        "stack": at_once,
    }
    check_run(workdir, told, resume=resume, may_change=MAY_CHANGE)
    directory, _ = begin(told, workdir, resume=True)
    places = [directory / concept.name for concept in concepts]
    made = {concept.name for concept, place in zip(concepts, places, strict=True) if is_made(place)}
    together("made")  # before one of the processes makes more

    def open_for(attribute: str) -> Workshop:
        count = sum(concept.config["attribute"] == attribute for concept in concepts)
        most = min(at_once, -(-count // mesh.size))
        return open_shop(recipe_for(config, attribute), base, mesh, most)

    shop_of = once(open_for, lambda attribute: attribute)
    for number, turn in enumerate(turns_of(concepts, at_once * mesh.size)):
        if not made.issuperset(concept.name for concept in turn):
            attribute = turn[0].config["attribute"]
            logging.info("learning the %s of %s", attribute, ", ".join(concept.name for concept in turn))
            if not learn(shop_of(attribute), turn, directory, f"{STACKS}/{number}", started):
                logging.info("the time is up: go on with --resume")
                return
            together(f"made {number}")
        # Also of turns that were made before, for it may have been killed between the two.
        if jax.process_index() == 0 and not config["keep_checkpoints"]:
            for phase in list((directory / STACKS / str(number)).glob(f"*/{CHECKPOINTS}")):
                drop_checkpoints(phase)
    together("learned")
    if jax.process_index() == 0:
        seconds = round(time.monotonic() - started, 3)
        results = write_list_report(directory, told, places, seconds)
        write_record(directory, told, {"results": results})
        logging.info("wrote %d attributes and %s", len(places), directory / "index.html")


def stack_of(config: Mapping[str, Any]) -> int:
    """How many pictures a device learns at once: ``config.stack``, or where that is 0 one on a CPU, which one
    fills (docs/performance.md), and 8 on an accelerator.
    """
    return config["stack"] or (1 if jax.default_backend() == "cpu" else 8)


def turns_of(concepts: Sequence[Concept], at_once: int) -> list[list[Concept]]:
    """The concepts that are learned side by side, at most ``at_once`` of one attribute."""
    turns: list[list[Concept]] = []
    for attribute in dict.fromkeys(concept.config["attribute"] for concept in concepts):
        own = [concept for concept in concepts if concept.config["attribute"] == attribute]
        turns += [own[first : first + at_once] for first in range(0, len(own), at_once)]
    return turns


def open_shop(config: Mapping[str, Any], base: Base, mesh: Mesh, most: int) -> Workshop:
    """What all turns of an attribute share, made as it is needed."""
    tools = make_tools(config, base.pipeline, local_mesh(mesh))

    def step_of(learner: Learner) -> Callable:
        return stack.make_stacked_step(
            loss_of(config, learner), config["optimizer"], mesh, ema_decay=config["ema_decay"]
        )

    def prior_of(config: Mapping[str, Any]) -> Any:
        return prior(config, base, tools, jax.random.key(config["seed"]))

    def before_of(config: Mapping[str, Any]) -> Any:
        return pictures_before(config, base.pipeline)

    return Workshop(
        config,
        base,
        mesh,
        most,
        tools,
        once(step_of, lambda learner: ""),
        once(prior_of, lambda config: config["seed"]),
        once(before_of, lambda config: config["probe"]["prompts"]),
    )


def learn(shop: Workshop, concepts: list[Concept], directory: Path, where: str, started: float) -> bool:
    """Learn a turn's concepts; false where the time was up before the end.

    Args:
        shop: what all turns of their attribute share.
        concepts: at most ``most`` for each device.
        directory: of the list's run.
        where: the turn's directory in it, for checkpoints.
        started: when the run did, by ``time.monotonic``.
    """
    config, mesh = shop.config, shop.mesh
    places = stack.local_places(mesh)
    # A device that is dealt none repeats another's, to have something to do.
    held = [list(range(place, len(concepts), mesh.size)) or [0] for place in range(mesh.size)]
    local = sorted({i for place in places for i in held[place]})
    learners = {i: make_learner(concepts[i].config, shop.base) for i in local}
    runs: dict[int, Run] = {}
    for i in (i for i in local if i % mesh.size in places):
        own, place = concepts[i].config, directory / concepts[i].name
        check_run(place, own, resume=True, may_change=MAY_CHANGE)
        write_record(place, own)
        timings: dict[str, float] = {}
        with timed(timings, "before and after"):
            before = shop.before_of(own)
        runs[i] = open_run(own, shop.base, learners[i], place, before, timings)
        look_first(runs[i], first_params(learners[i]))

    together("looked")
    probes = [read_probes(directory / concept.name) for concept in concepts]
    ends = {i: ended(concepts[i].config, found) for i, found in enumerate(probes)}
    together("read")  # before one of the processes measures more
    rows = stack.rows_of(held, {i for i, end in ends.items() if end == 0}, shop.most)
    if rows[0]:
        sources, constants = {}, {}
        for i, learner in learners.items():
            own, root = concepts[i].config, jax.random.key(concepts[i].config.seed)
            sources[i] = source_of(own, learner, root, shop.prior_of(own))
            key = jax.random.fold_in(root, STEPS)
            constants[i] = stack.own_of(begun_of(learner), key, own.steps)

        def batches_of(rows: list[int]) -> Callable[[int], Any]:
            each = [sources[i] for i in rows], [constants[i] for i in rows]
            return stacked_batches(*each, shop.tools, local_mesh(mesh))

        turn = Turn(
            config=config,
            mesh=mesh,
            most=shop.most,
            concepts=concepts,
            runs=runs,
            batches_of=batches_of,
            ends=ends,
            step_fn=shop.step_of(learners[local[0]]),
            frozen=frozen_of(config, learners[local[0]]),
            directory=directory / where,
            deadline=started + config["max_seconds"] if config["max_seconds"] else None,
        )
        one = learners[local[0]]
        logging.info("each of %s", "\n".join(describe(one.partition, one.begun)))
        first = [first_params(learners[i]) for place in places for i in rows[place]]
        if not train_phases(turn, rows, first):
            return False
    for run in runs.values():
        _, after = finish(run, started)
        save_card(run.directory, run.learner.reference, after)
    return True


def digest_of(concepts: Sequence[Concept]) -> str:
    """A short digest of all that the lines of a list say, and what else may not change."""
    said = [
        (concept.name, {key: value for key, value in plain(concept.config).items() if key not in MAY_CHANGE})
        for concept in concepts
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]


def once(make: Callable[[Any], Any], key: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function that makes what it gives once for each key."""
    made: dict[Any, Any] = {}

    def give(of: Any) -> Any:
        if key(of) not in made:
            made[key(of)] = make(of)
        return made[key(of)]

    return give
