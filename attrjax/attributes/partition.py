"""Which weights of a UNet are tuned, and how: one ordered list of (regex, rule).

A rule is ``"train"`` (the weight itself), ``"lora:RANK"``, ``"offset:RANK"`` (a multiplicative change,
``models.adapters``), or ``"freeze"``. The first regex that matches a leaf's "/"-path in full decides; every
leaf must be matched. Leaves that ``lora`` and ``offset`` have no use for (biases, norms) stay frozen.

The claim under test is that a UNet's encoder carries shape and its decoder appearance (OSTAF, Ye et al.
2024, arXiv:2403.11053).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key

from attrjax.arguments import did_you_mean, read_rules
from attrjax.models.adapters import init_lora, init_offsets, kernel_shapes, parameter_count

Rules = Sequence[tuple[str, str]]
Tree = dict[str, Any]

# Regexes of parts of a UNet, to be combined with a rule by ``rules_of``.
PARTS: Mapping[str, str] = {
    "encoder": r"down_blocks_\d+/.*",
    "decoder": r"up_blocks_\d+/.*",
    "mid": r"mid_block/.*",
    "full": r"(down_blocks_\d+|mid_block|up_blocks_\d+)/.*",
    "self_attention": r".*/attn1/.*",
    "cross_attention": r".*/attn2/.*",
    "resnets": r".*/resnets_\d+/.*",
    "feed_forward": r".*/ff/.*",
    "self_qk": r".*/attn1/to_[qk]/.*",
    "self_vo": r".*/attn1/to_(v|out.*)/.*",
    "cross_kv": r".*/attn2/to_[kv]/.*",
    "encoder_attention": r"down_blocks_\d+/attentions_\d+/.*",
    "decoder_attention": r"up_blocks_\d+/attentions_\d+/.*",
    "encoder_resnets": r"down_blocks_\d+/resnets_\d+/.*",
    "decoder_resnets": r"up_blocks_\d+/resnets_\d+/.*",
}
_RULE = re.compile(r"train|freeze|(lora|offset):([1-9]\d*)")


class Partition(NamedTuple):
    """A network's parameters, split.

    Attributes:
        trainable: weights that are tuned themselves, a tree of a part of the network's paths.
        adapter: low-rank changes (``models.adapters``); empty where no rule asks for them.
        frozen: the other weights.
    """

    trainable: Tree
    adapter: Tree
    frozen: Tree


def rules_of(part: str, rule: str = "train") -> list[tuple[str, str]]:
    """The rules that tune one of ``PARTS`` by one rule and freeze all else; or those that are written out.

    Args:
        part: one of ``PARTS``, or ``REGEX RULE; REGEX RULE``, as in ``mid_block/.* train; .* freeze``.
        rule: of a part.

    Raises:
        ValueError: there is no such part, or a written rule is not two words or has no regex.
    """
    if " " in part.strip():
        return read_rules(part, "partition")
    if part not in PARTS:
        raise ValueError(
            f"partition {part!r} is unknown{did_you_mean(part, PARTS)}; there are {', '.join(PARTS)}, and "
            "any list of rules, 'REGEX RULE; REGEX RULE'"
        )
    return [(PARTS[part], rule), (".*", "freeze")]


def split(params: Tree, rules: Rules, key: Key[Array, ""]) -> Partition:
    """Split a network's parameters by rules.

    Args:
        params: of the network.
        rules: ordered (regex, rule) pairs.
        key: of the low-rank factors to begin with. They change nothing yet.

    Raises:
        ValueError: a rule is malformed or matches nothing, a leaf is matched by none, or nothing would be
            tuned or nothing frozen.
    """
    flat = flatten_dict(params, sep="/")
    chosen = match(list(flat), rules)
    trainable = {path: flat[path] for path, rule in chosen.items() if rule == "train"}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trainable}
    adapter: Tree = {}
    kernels = kernel_shapes(params)
    for kind, init in (("lora", init_lora), ("offset", init_offsets)):
        ranks = {
            path.removesuffix("/kernel"): int(rule.split(":")[1])
            for path, rule in chosen.items()
            if rule.startswith(kind) and path.removesuffix("/kernel") in kernels and path.endswith("/kernel")
        }
        if ranks:
            made = init(key, params, [(re.escape(path), rank) for path, rank in ranks.items()])
            adapter |= flatten_dict(made, sep="/")
    if not trainable and not adapter:
        raise ValueError("the partition freezes every weight: nothing would be learned")
    if not frozen:
        raise ValueError(
            "the partition freezes no weight, not even those of time embedding and output; say 'full' for "
            "all blocks"
        )
    return Partition(*(unflatten_dict(tree, sep="/") for tree in (trainable, adapter, frozen)))


def match(paths: Sequence[str], rules: Rules) -> dict[str, str]:
    """The rule of every path.

    Raises:
        ValueError: as ``split``.
    """
    for pattern, rule in rules:
        if not _RULE.fullmatch(rule):
            raise ValueError(f"rule {rule!r} of {pattern!r} must be train, freeze, lora:RANK or offset:RANK")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    chosen, used = {}, set()
    for path in paths:
        for number, (pattern, rule) in enumerate(rules):
            if re.fullmatch(pattern, path):
                chosen[path] = rule
                used.add(number)
                break
        else:
            raise ValueError(f"no rule matches {path}: end the list with ('.*', 'freeze')")
    for number, (pattern, rule) in enumerate(rules):
        if number not in used and rule != "freeze":
            raise ValueError(
                f"rule {pattern!r} matches no weight that the rules before it leave; paths look like "
                + ", ".join(list(paths)[:: max(1, len(paths) // 3)][:3])
            )
    return chosen


def join(trainable: Tree, frozen: Tree) -> Tree:
    """The network's parameters from their parts, without copying."""
    return unflatten_dict(flatten_dict(frozen, sep="/") | flatten_dict(trainable, sep="/"), sep="/")


def describe(partition: Partition, begun: Tree) -> list[str]:
    """What is tuned, a line for each top-level part of the network, the filter and the fusion: leaves,
    parameters, share of all that there are.

    Args:
        partition: of the network.
        begun: parameters of filter and fusion, which are tuned beside it in full.
    """
    own = flatten_dict(partition.trainable, sep="/") | flatten_dict(begun, sep="/")
    still = flatten_dict(partition.frozen, sep="/")
    low = flatten_dict(partition.adapter, sep="/")
    total = sum(leaf.size for leaf in (*own.values(), *still.values()))
    counted: dict[str, list[int]] = {}
    for path, leaf in (*own.items(), *low.items()):
        if not path.endswith("/alpha"):
            entry = counted.setdefault(path.split("/")[0], [0, 0])
            entry[0], entry[1] = entry[0] + 1, entry[1] + leaf.size
    lines = [
        f"  {name}: {leaves} leaves, {size:,} parameters, {100 * size / total:.3g} %"
        for name, (leaves, size) in sorted(counted.items())
    ]
    size = sum(leaf.size for leaf in own.values()) + parameter_count(partition.adapter)
    share = f"{100 * size / total:.3g} % of {total:,}"
    return [f"tuned: {size:,} parameters, {share} of UNet, filter and fusion", *lines]
