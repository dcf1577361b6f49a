"""Low-rank changes of a frozen network as a small tree of their own.

An *adapter* is what is trained, saved and loaded: a nested dict with a network's module paths, at each of
which lie

- ``lora_down``, ``lora_up`` and optionally ``alpha``: W + alpha/r * down up (LoRA, Hu et al. 2021; alpha is r
  where absent), or
- ``offset_u``, ``offset_v``: W * (1 + U V^T), a multiplicative change of the kernel seen as a matrix
  [everything else, out] (weight offsets: Gal et al. 2023; OSTAF).

``bind`` turns it into the ``adapters`` variable collection that ``layers.Linear`` and ``layers.Conv`` read,
with alpha and strength folded in::

    strength = {"down": 1.0, "mid": 0.5, "up": {"block_0": 0.0}}
    net.apply({"params": params, "adapters": bind(adapter, strength)}, ...)

Gradients with respect to the adapter go through ``bind``; the parameters are never copied nor written.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Key

Tree = dict
Rules = Sequence[tuple[str, int | None]]
Strength = float | Array | Mapping[str, "Strength"] | Sequence["Strength"]

LEAVES = {"lora_down", "lora_up", "alpha", "offset_u", "offset_v"}
PARTS = ("down", "mid", "up")
_PLACE = re.compile(r"(?:(down|up)_blocks_(\d+)|(mid)_block)(?:/(?:attentions|resnets)_(\d+))?(?:/.*)?")


def init_lora(
    key: Key[Array, ""],
    params: Tree,
    rules: Rules,
    *,
    alpha: float | None = None,
    dtype: jnp.dtype = jnp.float32,
) -> Tree:
    """A LoRA adapter that changes nothing yet: ``lora_up`` zero, ``lora_down`` uniform in +-1/sqrt(fan-in).

    Args:
        key: randomness; a weight's values depend on it and on the weight's path, not on what else is adapted.
        params: the network's parameters, or their shapes.
        rules: ordered (regex, rank or None) pairs, matched in full against the "/"-path of a kernel
            (``mid_block/attentions_0/proj_in/kernel``) or of its module (the same without ``/kernel``). The
            first match gives the rank; None, or no match, leaves the weight as it is.
        alpha: strength at which the change is applied, over the rank; None means the rank itself.
        dtype: type of the factors.

    Returns:
        adapter with ``lora_down`` [in, r] or [k, k, in, r] and ``lora_up`` [r, out] or [1, 1, r, out].

    Raises:
        ValueError: where a rule with a rank matches no kernel.
    """

    def leaves(key: Array, shape: tuple[int, ...], rank: int) -> Tree:
        bound = (shape[-2] * (shape[0] * shape[1] if len(shape) == 4 else 1)) ** -0.5
        down = jax.random.uniform(key, (*shape[:-1], rank), dtype, -bound, bound)
        up = jnp.zeros((*(1,) * (len(shape) - 2), rank, shape[-1]), dtype)
        return {"lora_down": down, "lora_up": up} | ({} if alpha is None else {"alpha": jnp.float32(alpha)})

    return _init(key, params, rules, leaves)


def init_offsets(key: Key[Array, ""], params: Tree, rules: Rules, *, dtype: jnp.dtype = jnp.float32) -> Tree:
    """Multiplicative offsets that change nothing yet: V is zero, U normal with variance 1/rank.

    ``params`` and ``rules`` are those of ``init_lora``. Every entry of W is scaled by 1 + (U V^T) of its own,
    so that a weight that is zero stays zero.

    Returns:
        adapter with ``offset_u`` [in, r] ([k * k * in, r] for a convolution) and ``offset_v`` [out, r].
    """

    def leaves(key: Array, shape: tuple[int, ...], rank: int) -> Tree:
        rows = shape[-2] * (shape[0] * shape[1] if len(shape) == 4 else 1)
        u = jax.random.normal(key, (rows, rank), dtype) / rank**0.5
        return {"offset_u": u, "offset_v": jnp.zeros((shape[-1], rank), dtype)}

    return _init(key, params, rules, leaves)


def bind(adapter: Tree, strength: Strength = 1.0, *, network: Tree | None = None) -> Tree:
    """The ``adapters`` collection of one adapter at a strength.

    Args:
        adapter: as ``init_lora``, ``init_offsets`` or ``checkpoints.lora.load_lora`` make it.
        strength: one factor, or diffusers' nested dict such as ``{"down": 1.0, "mid": 0.5, "up": {"block_0":
            1.0, "block_1": [0.5, 1.0, 1.0]}}``, see ``block_strengths``. Its numbers may be traced: under
            ``jit`` another strength of the same structure is no recompilation.
        network: the network's parameters or shapes. Where given, the adapter and the names in ``strength``
            are checked against it; otherwise the names are checked against the blocks that the adapter
            changes.

    Returns:
        nested dict with alpha/r and the strength folded into ``lora_up`` and ``offset_v``.

    Raises:
        ValueError: for a block that is not there, or an adapter that does not belong to the network.
    """
    modules = modules_of(adapter)
    known = None
    if network is not None:
        known = kernels = kernel_shapes(network)
        if stray := [path for path in modules if path not in kernels]:
            raise ValueError(
                f"the network has no weight at {', '.join(stray)}: this adapter is of another network"
            )
    bound = {}
    factors = block_strengths(strength, list(modules), known=known)
    for (path, leaves), factor in zip(modules.items(), factors, strict=True):
        if "lora_up" in leaves:
            down, up = leaves["lora_down"], leaves["lora_up"]
            # alpha is a constant of the parametrization, not something to learn.
            alpha = jax.lax.stop_gradient(leaves["alpha"]) if "alpha" in leaves else down.shape[-1]
            bound[f"{path}/lora_down"] = down
            bound[f"{path}/lora_up"] = (up * (alpha / down.shape[-1] * factor)).astype(up.dtype)
        if "offset_v" in leaves:
            bound[f"{path}/offset_u"] = leaves["offset_u"]
            bound[f"{path}/offset_v"] = (leaves["offset_v"] * factor).astype(leaves["offset_v"].dtype)
    return unflatten_dict(bound, sep="/")


def block_strengths(
    strength: Strength, paths: Sequence[str], *, known: Iterable[str] | None = None, default: float = 1.0
) -> list[float | Array]:
    """The factor of each module path, from one number or from diffusers' nested dict of blocks.

    ``down``, ``mid`` and ``up`` name ``down_blocks_N``, ``mid_block`` and ``up_blocks_N``; ``block_N`` one of
    them; a list addresses layer M of a block: ``attentions_M``, and ``resnets_M`` before it. A list of one
    number holds for the whole block, and a resampler takes a list's first number. What a dict does not name
    has the default, as have paths outside all blocks (``conv_in``, ``time_embedding``, text towers).

    This is ``set_adapters``' rule of diffusers for every weight of a block that has attention. Where
    diffusers leaves weights at 1 whatever the dict says (ResNets of the middle block, blocks without
    attention), the dict holds here.

    Args:
        strength: the number or dict.
        paths: "/"-paths.
        known: paths of the whole network, which say what blocks there are; ``paths`` where None.
        default: of what a dict does not name.

    Raises:
        ValueError: for a part other than down, mid and up, for a block that is not there, and for a list that
            has another length than its block has layers.
    """
    if not isinstance(strength, Mapping):
        if isinstance(strength, Sequence) or jnp.ndim(strength) != 0:
            raise ValueError("strength must be a number, or a dict with the keys down, mid and up")
        return [strength] * len(paths)
    _check_strength(strength, paths if known is None else known, exact=known is not None)
    return [_strength_at(strength, _place(path), default) for path in paths]


def combine(collections: Sequence[Tree]) -> Tree:
    """One ``adapters`` collection with the sum of several, by concatenation along the rank.

    LoRA changes add up. So do offsets: W * (1 + U1 V1^T + U2 V2^T), which does not depend on the order,
    unlike one multiplication after the other. A weight may have both kinds: W * (1 + U V^T) + down up.
    """
    joined: dict[str, Array] = {}
    for collection in collections:
        for path, leaf in flatten_dict(collection, sep="/").items():
            axis = -2 if path.endswith("/lora_up") else -1
            joined[path] = jnp.concatenate([joined[path], leaf], axis) if path in joined else leaf
    return unflatten_dict(joined, sep="/")


def merge(params: Tree, collection: Tree) -> Tree:
    """Parameters with an ``adapters`` collection folded into the kernels, in float32 and then the kernel's
    type.

    Raises:
        ValueError: where the collection changes a weight that the parameters do not have.
    """
    flat = flatten_dict(params, sep="/")
    for path, leaves in modules_of(collection).items():
        name = f"{path}/kernel"
        if name not in flat:
            raise ValueError(f"the network has no weight at {path}: this adapter is of another network")
        wide = {n: jnp.asarray(leaf, jnp.float32) for n, leaf in leaves.items()}
        kernel = jnp.asarray(flat[name], jnp.float32)
        with jax.default_matmul_precision("highest"):
            if "offset_u" in wide:
                kernel = kernel * (1 + (wide["offset_u"] @ wide["offset_v"].T).reshape(kernel.shape))
            if "lora_down" in wide:
                up = wide["lora_up"]
                kernel = kernel + wide["lora_down"] @ up.reshape(up.shape[-2:])
        flat[name] = kernel.astype(flat[name].dtype)
    return unflatten_dict(flat, sep="/")


def parameter_count(adapter: Tree) -> int:
    """How many numbers of an adapter are trained (alpha is not)."""
    return sum(
        leaf.size for leaves in modules_of(adapter).values() for n, leaf in leaves.items() if n != "alpha"
    )


def modules_of(adapter: Tree) -> dict[str, dict[str, Float[Array, "..."]]]:
    """{module path: its leaves} of an adapter or of an ``adapters`` collection, ordered by path."""
    modules: dict[str, dict] = {}
    for path, leaf in sorted(flatten_dict(adapter, sep="/").items()):
        module, _, name = path.rpartition("/")
        if name not in LEAVES:
            raise ValueError(f"{path} is no leaf of an adapter: those are {', '.join(sorted(LEAVES))}")
        modules.setdefault(module, {})[name] = leaf
    for module, leaves in modules.items():
        for one, other in (("lora_down", "lora_up"), ("offset_u", "offset_v")):
            if (one in leaves) != (other in leaves):
                raise ValueError(f"the adapter has only one of {one} and {other} at {module}")
    return modules


def kernel_shapes(params: Tree) -> dict[str, tuple[int, ...]]:
    """{module path: shape of its kernel} of every Linear and Conv, ordered by path."""
    flat = sorted(flatten_dict(params, sep="/").items())
    suffix = "/kernel"
    return {path.removesuffix(suffix): tuple(leaf.shape) for path, leaf in flat if path.endswith(suffix)}


def select(params: Tree, rules: Rules) -> dict[str, int]:
    """{module path: rank} of the kernels that ordered (regex, rank or None) rules choose, see
    ``init_lora``.
    """
    kernels = kernel_shapes(params)

    def matches(pattern: str, path: str) -> bool:
        return re.fullmatch(pattern, path) is not None or re.fullmatch(pattern, f"{path}/kernel") is not None

    for pattern, rank in rules:
        if rank is not None and rank < 1:
            raise ValueError(
                f"rule {pattern!r} asks for rank {rank}: ranks start at 1, None leaves a weight out"
            )
        if rank is not None and not any(matches(pattern, path) for path in kernels):
            examples = ", ".join(list(kernels)[:: max(1, len(kernels) // 4)][:4])
            raise ValueError(
                f"rule {pattern!r} matches no weight of the network; its paths look like {examples}"
            )
    chosen = {}
    for path in kernels:
        rank = next((rank for pattern, rank in rules if matches(pattern, path)), None)
        if rank is not None:
            chosen[path] = rank
    if not chosen:
        raise ValueError("the rules leave every weight of the network out")
    return chosen


def _init(
    key: Array, params: Tree, rules: Rules, leaves: Callable[[Array, tuple[int, ...], int], Tree]
) -> Tree:
    shapes = kernel_shapes(params)
    made: dict[str, Array] = {}
    for path, rank in select(params, rules).items():
        own_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        made |= {f"{path}/{name}": leaf for name, leaf in leaves(own_key, shapes[path], rank).items()}
    return unflatten_dict(made, sep="/")


def _place(path: str) -> tuple[str, int, int | None] | None:
    """(part, block, layer) of a path, with layer None for a resampler, or None outside all blocks."""
    found = _PLACE.fullmatch(path)
    if found is None:
        return None
    part, block, mid, layer = found.groups()
    return part or mid, int(block or 0), None if layer is None else int(layer)


def _strength_at(
    strength: Mapping, place: tuple[str, int, int | None] | None, default: float
) -> float | Array:
    if place is None:
        return default
    part, block, layer = place
    value = strength.get(part, default)
    if isinstance(value, Mapping):
        value = value.get(f"block_{block}", default)
    if isinstance(value, list | tuple):
        value = value[0] if len(value) == 1 else value[layer or 0]
    return value


def _check_strength(strength: Mapping, known: Iterable[str], *, exact: bool) -> None:
    """Refuse names of blocks that are not there, and lists that do not fit (exactly, if all layers are
    known).
    """
    layers: dict[str, dict[int, int]] = {part: {} for part in PARTS}
    for part, block, layer in filter(None, map(_place, known)):
        layers[part][block] = max(layers[part].get(block, 1), 1 if layer is None else layer + 1)
    for part, value in strength.items():
        if part not in PARTS:
            raise ValueError(f"strength names {part!r}: known are {', '.join(PARTS)}")
        counts = {f"block_{n}": count for n, count in sorted(layers[part].items())}
        blocks = dict.fromkeys(counts, value)
        if isinstance(value, Mapping):
            blocks = dict(value)
            if part == "mid":
                raise ValueError("strength 'mid' is one number: there is one middle block")
            if unknown := [name for name in blocks if name not in counts]:
                there = ", ".join(counts) or "no block"
                raise ValueError(f"strength names {', '.join(unknown)} under {part!r}: there is {there}")
        for name, entry in blocks.items():
            expected = 1 if part == "mid" else counts[name]
            place = part if part == "mid" else f"{part}/{name}"
            if isinstance(entry, list | tuple):
                given = len(entry)
                if given != 1 and (given != expected if exact or part == "mid" else given < expected):
                    raise ValueError(f"strength lists {given} numbers for {place} of {expected} layers")
            elif isinstance(entry, Mapping) or jnp.ndim(entry) != 0:
                raise ValueError(f"strength of {place} must be a number or a list of numbers")
