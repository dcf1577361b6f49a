"""The train steps that ``scale_plan`` compiles: the package's own, on shapes instead of arrays."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from attrjax.attributes.conditioning import init_conditioning, make_filter
from attrjax.attributes.learner import Learner, loss_of
from attrjax.attributes.partition import Partition, rules_of, split
from attrjax.attributes.stack import CONCEPTS, make_stacked_step
from attrjax.attrworld.train_unet import loss_of as base_loss_of
from attrjax.checkpoints.pipeline import Component, Pipeline, build_network
from attrjax.diffusion.losses import denoising_losses
from attrjax.diffusion.schedule import sampler_for, schedule_from_config
from attrjax.parallel.mesh import batch_sharding, make_mesh, shard_state
from attrjax.training import LossFn, first_state, make_optimizer, make_step
from benchmark import families
from benchmark.scale_table import Plan, collectives_of
from configs import shape

# Two of SD 1.5's four levels, to try a plan in seconds.
SMALL = {
    "unet": (
        "UNet2DConditionModel",
        families.UNET["small"]
        | {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]}
        | {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
        | {"block_out_channels": [64, 256], "layers_per_block": 1},
    ),
    "text_encoder": (
        "CLIPTextModel",
        families.CLIP_TEXT["clip-l"]
        | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
        | {"num_attention_heads": 4},
    ),
    "image_encoder": ("CLIPVisionModelWithProjection", families.CLIP_VISION["clip-l"]),
}
COMPONENTS = families.COMPONENTS | {"small": SMALL}
TOKENS = 77
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}


class Step(NamedTuple):
    """A step and what it is called with.

    Attributes:
        function: jitted.
        arguments: shapes, with where they lie.
        kinds: the trees of the arguments by what they are, for the table.
    """

    function: Any
    arguments: tuple[Any, ...]
    kinds: dict[str, Any]


def compiled(step: Step, compiler: str) -> Plan:
    """Compile a step and read what the compiler says of it."""
    program = step.function.lower(*step.arguments).compile()
    memory = program.memory_analysis()
    flops = float(program.cost_analysis()["flops"])
    held = {name: bytes_on_a_device(tree) for name, tree in step.kinds.items()}
    return Plan(held, int(memory.temp_size_in_bytes), collectives_of(program.as_text()), flops, compiler)


def bytes_on_a_device(tree: PyTree) -> int:
    """Bytes of a tree of shapes that lie on one device."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def base_step(given: Any, devices: list[Any]) -> Step:
    """All of a UNet is trained, divided over ``fsdp``; text encoders are frozen, in bfloat16."""
    mesh = make_mesh(data=-1, fsdp=given.fsdp, devices=devices)
    pipeline, side = abstract_pipeline(given)
    towers = [one for one in (pipeline.text_encoder, pipeline.text_encoder_2) if one is not None]
    optimizer = make_optimizer(1e-4, 100_000, warmup=1000, weight_decay=0.01)
    state = jax.eval_shape(
        functools.partial(first_state, optimizer=optimizer, ema=True), pipeline.unet.params
    )
    state = laid(state, shard_state(mesh, state))
    two = len(towers) == 2
    frozen = in_bfloat16([one.params for one in towers] if two else towers[0].params)
    frozen = laid(frozen, shard_state(mesh, frozen))
    rows, everywhere = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    count = given.batch * mesh.size
    batch = {
        "latents": jax.ShapeDtypeStruct((count, side, side, 4), jnp.float32, sharding=rows),
        "tokens": jax.ShapeDtypeStruct((count, TOKENS), jnp.int32, sharding=rows),
    }
    networks = [one.module for one in towers]
    loss_fn = (
        _xl_loss_of(pipeline.unet.module, networks, 8 * side)
        if two
        else base_loss_of(pipeline.unet.module, networks[0], SCHEDULER, snr_gamma=None)
    )
    step = make_step(loss_fn, optimizer, mesh)
    kinds = {
        "parameters": state.params,
        "moments": state.opt_state,
        "moving average": state.ema,
        "frozen text encoders": frozen,
        "batch": batch,
    }
    return Step(step, (state, batch, root_key(everywhere), frozen), kinds)


def _xl_loss_of(unet: Any, texts: list[Any], pixels: int) -> LossFn:
    """As ``train_unet.loss_of``, with what SDXL's UNet reads: two encoders' states before the last layer, the
    second one's embedding, and sizes (Podell et al. 2023, sections 2.1 and 2.2).
    """
    schedule = schedule_from_config(SCHEDULER, sampler_for(SCHEDULER))

    def loss_fn(params: Any, batch: dict[str, Any], key: Any, frozen: list[Any]) -> tuple[Any, dict]:
        encoded = [
            text.apply({"params": one}, batch["tokens"]) for text, one in zip(texts, frozen, strict=True)
        ]
        context = jnp.concatenate([one.hidden_states[-2] for one in encoded], axis=-1)
        sizes = jnp.asarray([pixels, pixels, 0, 0, pixels, pixels], jnp.float32)
        added = {"text_embeds": encoded[1].text_embeds, "time_ids": jnp.tile(sizes, (len(context), 1))}

        def network(noisy: Any, t: Any) -> Any:
            return unet.apply({"params": params}, noisy, t, context, added_cond=added)

        return jnp.mean(denoising_losses(schedule, network, batch["latents"], key)), {}

    return loss_fn


def concepts_step(given: Any, devices: list[Any]) -> Step:
    """References are learned side by side, each on one device; the base is frozen, in bfloat16."""
    mesh = make_mesh(concept=-1, data=1, fsdp=1, devices=devices)
    pipeline, side = abstract_pipeline(given)
    config = shape.get_config()
    config.batch_size = given.batch
    prior = config.prior.rows
    vision = COMPONENTS[given.family]["image_encoder"][1]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    filter_ = make_filter(config.filter, pipeline, config.num_tokens)
    states = jax.ShapeDtypeStruct((1, patches, vision["hidden_size"]), jnp.float32)
    weight = jax.ShapeDtypeStruct((1, patches), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    init = functools.partial(init_conditioning, filter_=filter_, fusion=config.fusion)
    begun = jax.eval_shape(lambda k, s, w: init(k, states=s, weight=w), key, states, weight)
    rules = rules_of(given.partition, given.rule)
    parts = jax.eval_shape(lambda params, key: tuple(split(params, rules, key)), pipeline.unet.params, key)
    partition = Partition(*parts)
    width = pipeline.text_encoder.config["hidden_size"]
    learner = Learner(
        pipeline=pipeline,
        digest="",
        reference=None,
        word=None,
        filter=filter_,
        fusion=config.fusion,
        partition=partition,
        states=states,
        weight=weight,
        begun=begun,
        recognizes=False,
        other=None,
    )
    params = {**begun, "unet": partition.trainable, "adapter": partition.adapter}
    options = config.optimizer.to_dict()
    rule = make_optimizer(steps=given.steps, **options)
    state = jax.eval_shape(functools.partial(first_state, optimizer=rule, ema=False), params)
    count = given.stack * mesh.size
    state = stacked(state, count, mesh)
    rows, of_text = given.batch + prior, jnp.int32
    one = {
        "pairs": {
            "latents": jax.ShapeDtypeStruct((rows, side, side, 4), jnp.float32),
            "mask": jax.ShapeDtypeStruct((given.batch, side, side), jnp.float32),
            "states": jax.ShapeDtypeStruct((given.batch, *states.shape[1:]), jnp.float32),
            "weight": jax.ShapeDtypeStruct((given.batch, *weight.shape[1:]), jnp.float32),
            "ids": jax.ShapeDtypeStruct((rows, TOKENS), of_text),
            "places": jax.ShapeDtypeStruct((rows, TOKENS), of_text),
        },
        "begun": jax.ShapeDtypeStruct((width,), jnp.float32),
        "root": jax.ShapeDtypeStruct((2,), jnp.uint32),
        "steps": jax.ShapeDtypeStruct((), jnp.int32),
    }
    batch = stacked(one, count, mesh)
    frozen = {
        "unet": in_bfloat16(partition.frozen),
        "text": in_bfloat16(pipeline.text_encoder.params),
        "origin": jax.ShapeDtypeStruct((width,), jnp.float32),
    }
    everywhere = NamedSharding(mesh, PartitionSpec())
    frozen = jax.tree.map(lambda leaf: placed(leaf, everywhere), frozen)
    step = make_stacked_step(loss_of(config, learner), options, mesh, ema_decay=0.0)
    kinds = {
        "tuned parameters": state.params,
        "moments": state.opt_state,
        "frozen UNet": frozen["unet"],
        "frozen text encoder": frozen["text"],
        "batch": batch,
    }
    return Step(step, (state, batch, None, frozen), kinds)


def abstract_pipeline(given: Any) -> tuple[Pipeline, int]:
    """A base of a published family, of shapes alone, computing in bfloat16; and the side of its latents."""
    parts = COMPONENTS[given.family]

    def network(name: str, **options: Any) -> Component:
        torch_class, config = parts[name]
        module, params = build_network(name, config, torch_class, dtype=jnp.bfloat16, **options)
        return Component(module, params, config)

    unet = network("unet", remat=given.remat)
    side = given.size // 8
    pipeline = Pipeline(
        path=Path(),
        unet=unet,
        vae=None,
        text_encoder=network("text_encoder"),
        text_encoder_2=network("text_encoder_2") if "text_encoder_2" in parts else None,
        image_encoder=None,
        tokenizer=None,
        tokenizer_2=None,
        scheduler=SCHEDULER,
        model_index={},
        preprocessor=None,
    )
    return pipeline, side


def stacked(tree: PyTree, count: int, mesh: Mesh) -> PyTree:
    """Shapes with a leading axis of concepts, which is divided over the mesh."""
    sharding = NamedSharding(mesh, CONCEPTS)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype, sharding=sharding), tree
    )


def in_bfloat16(tree: PyTree) -> PyTree:
    """Shapes in the type that the networks compute in."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), tree)


def laid(tree: PyTree, shardings: PyTree) -> PyTree:
    """Shapes with where they lie."""
    return jax.tree.map(placed, tree, shardings)


def placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """A shape with where it lies."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def root_key(sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """The shape of a typed key."""
    return placed(jax.eval_shape(lambda: jax.random.key(0)), sharding)
