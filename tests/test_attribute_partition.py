"""The partition: what is tuned, what is not, and what is refused."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from attrjax.attributes.partition import PARTS, describe, join, match, rules_of, split
from attrjax.attrworld.bundled import BASE
from attrjax.checkpoints.attribute import OTHER
from attrjax.checkpoints.pipeline import load_component
from attrjax.models.adapters import bind, parameter_count
from configs import faithful


@pytest.fixture(scope="module")
def unet():
    return load_component(BASE / "unet", "unet")


def test_the_parts_of_a_unet_are_disjoint_and_leave_time_and_output_alone(unet):
    trees = {
        part: split(unet.params, rules_of(part), jax.random.key(0)).trainable
        for part in ("encoder", "mid", "decoder", "full")
    }
    paths = {part: set(flatten_dict(tree, sep="/")) for part, tree in trees.items()}
    assert sum(len(paths[part]) for part in ("encoder", "mid", "decoder")) == len(paths["full"])
    assert paths["encoder"] | paths["mid"] | paths["decoder"] == paths["full"]
    rest = set(flatten_dict(unet.params, sep="/")) - paths["full"]
    assert {path.split("/")[0] for path in rest} == {"conv_in", "conv_norm_out", "conv_out", "time_embedding"}


@pytest.mark.parametrize("part", sorted(PARTS))
def test_every_part_splits_and_joins_to_the_same_network(unet, part):
    partition = split(unet.params, rules_of(part), jax.random.key(0))
    joined = join(partition.trainable, partition.frozen)
    jax.tree.map(np.testing.assert_array_equal, joined, unet.params)
    assert jax.tree.leaves(partition.trainable) and jax.tree.leaves(partition.frozen)


def test_low_rank_rules_change_nothing_yet_and_freeze_every_weight(unet):
    rules = [(r".*attn2/to_[kv]/.*", "lora:2"), (r"mid_block/.*", "offset:1"), (".*", "freeze")]
    partition = split(unet.params, rules, jax.random.key(0))
    assert not partition.trainable
    jax.tree.map(np.testing.assert_array_equal, partition.frozen, unet.params)
    names = {path.rsplit("/")[-1] for path in flatten_dict(partition.adapter, sep="/")}
    assert names == {"lora_down", "lora_up", "offset_u", "offset_v"}
    module, config = unet.module, unet.config
    x = np.ones((1, 8, 8, config["in_channels"]), np.float32)
    context = np.ones((1, 3, config["cross_attention_dim"]), np.float32)
    plain = module.apply({"params": unet.params}, x, np.array([5]), context)
    changed = module.apply(
        {"params": unet.params, "adapters": bind(partition.adapter)}, x, np.array([5]), context
    )
    np.testing.assert_allclose(plain, changed, atol=1e-5)


def test_the_first_rule_that_matches_decides():
    chosen = match(["a/b", "a/c", "d"], [("a/b", "freeze"), ("a/.*", "train"), (".*", "lora:3")])
    assert chosen == {"a/b": "freeze", "a/c": "train", "d": "lora:3"}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("a/b", "train")], "no rule matches a/c"),
        ([("x.*", "train"), (".*", "freeze")], "matches no weight"),
        ([("a/.*", "tune"), (".*", "freeze")], "must be train, freeze"),
        ([("a/.*", "lora:0"), (".*", "freeze")], "must be train, freeze"),
        ([("(", "train"), (".*", "freeze")], "no regular expression"),
        ([(".*", "freeze")], "nothing would be learned"),
        ([(".*", "train")], "freezes no weight"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rules, message):
    params = {"a": {"b": np.zeros(2), "c": np.zeros(2)}, "d": np.zeros(1)}
    with pytest.raises(ValueError, match=message):
        split(params, rules, jax.random.key(0))


def test_an_unknown_part_names_the_known_ones():
    with pytest.raises(ValueError, match="did you mean 'encoder'.*decoder"):
        rules_of("encode")
    with pytest.raises(ValueError, match="must be REGEX RULE, two words"):
        rules_of("down_blocks_.* train; freeze")


def test_rules_can_be_written_out():
    written = rules_of(r"down_blocks_\d+/.*/attn2/.* lora:4; .* freeze")
    assert written == [(r"down_blocks_\d+/.*/attn2/.*", "lora:4"), (".*", "freeze")]


@pytest.mark.parametrize(
    ("attribute", "blocks"),
    [
        ("shape", {"down_blocks_0", "down_blocks_1", "down_blocks_2"}),
        ("appearance", {"up_blocks_1", "up_blocks_2"}),  # the first has no attention in Stable Diffusion
    ],
)
def test_the_faithful_recipe_tunes_the_blocks_that_its_source_does(unet, attribute, blocks):
    config = faithful.get_config(f"attribute={attribute}")
    for recipe, own in ((config, attribute), (config.other, OTHER[attribute])):
        assert recipe.attribute == recipe.initial == own
    chosen = match(list(flatten_dict(unet.params, sep="/")), rules_of(config.partition))
    assert {path.split("/")[0] for path, rule in chosen.items() if rule != "freeze"} == blocks
    offsets = {path.rsplit("/", 2)[1] for path, rule in chosen.items() if rule == "offset:3"}
    assert offsets == {"to_q", "to_k", "to_v"}


def test_what_is_tuned_is_told_with_its_share(unet):
    partition = split(unet.params, rules_of("mid", "lora:4"), jax.random.key(0))
    low = parameter_count(partition.adapter)
    total = sum(leaf.size for leaf in jax.tree.leaves(unet.params)) + 1241
    filter_ = {"out": {"kernel": np.zeros((30, 40)), "bias": np.zeros(40)}}
    lines = describe(partition, {"filter": filter_, "fusion": {"gate": np.zeros(())}})
    assert f"{low + 1241:,} parameters" in lines[0] and f"of {total:,}" in lines[0] and "%" in lines[0]
    assert lines[1].startswith("  filter: 2 leaves, 1,240 parameters, ")
    assert lines[2].startswith("  fusion: 1 leaves, 1 parameters, ")
    assert lines[3].startswith("  mid_block: ") and f"{low:,} parameters" in lines[3] and len(lines) == 4
