"""Solids as data: a shape is a list of parts, and a part is one primitive that most others are cases of.

A part is a frustum: its radius runs from ``bottom`` to ``top`` over the height, with a ``bulge`` between,
rounded, and hollow where it has a ``ring``. Its cross-section is a disc (a solid of revolution), a square, or
a strip of half-width radius and some ``depth`` (an extruded outline). That makes balls, cones, boxes, tubes,
wedges, tori, bottles and beams. Parts are joined or cut in order, with smooth seams, mirrored, and repeated
around an axis. Because a shape is arrays and no code, a batch of different shapes is one program under
``vmap``.

Distances are those of Quilez's primitives (iquilezles.org/articles/distfunctions) where sides are straight,
and bounds of them where they bulge.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

ROUND, EXTRUDED, SQUARE = 0.0, 1.0, 2.0
# Parts of every shape; those that a shape does not need are absent.
MAX_PARTS = 9
FAR = 1e3


class Parts(NamedTuple):
    """The parts of a shape, or of many; every field has the leading axes [..., P].

    Lengths are in units of the world, where a shape stands on y = -1 and lies in about [-1, 1]^3, seen from
    +z.

    Attributes:
        center: [..., 3], the part's middle.
        turn: [..., 3, 3], from the world's axes to the part's.
        scale: [..., 3], stretch of the part along its own axes.
        section: ROUND, EXTRUDED or SQUARE.
        bottom, top: radius at the lower and the upper end; half-width where extruded.
        height: half of it, along the part's y.
        bulge: what the radius gains half-way up.
        ring: radius of the hollow axis, 0 for a solid part: a part of radius r with a ring R fills
            |rho - R| < r.
        depth: half the thickness of an extruded part.
        rounding: what is added all around.
        sign: 1 joins, -1 cuts.
        blend: width of the smooth seam.
        mirror_x, mirror_z: 1 where the part is there twice, mirrored.
        repeat: 1 where it is repeated around the shape's axis.
    """

    center: Any
    turn: Any
    scale: Any
    section: Any
    bottom: Any
    top: Any
    height: Any
    bulge: Any
    ring: Any
    depth: Any
    rounding: Any
    sign: Any
    blend: Any
    mirror_x: Any
    mirror_z: Any
    repeat: Any


class Shape(NamedTuple):
    """Parts, and what repeats those that ask for it.

    Attributes:
        parts: [P] or [n, P].
        count: how often parts are repeated around the axis.
        axis: 0 for the upright axis, 1 for the one that points at the camera.
    """

    parts: Parts
    count: Any
    axis: Any


def part(
    center=(0.0, 0.0, 0.0),
    turn=(0.0, 0.0, 0.0),
    scale=(1.0, 1.0, 1.0),
    section=ROUND,
    radius=None,
    bottom=0.0,
    top=0.0,
    height=0.0,
    bulge=0.0,
    ring=0.0,
    depth=0.0,
    rounding=0.0,
    cut=False,
    blend=0.0,
    mirror_x=False,
    mirror_z=False,
    repeat=False,
) -> dict[str, Any]:
    """One part, for ``make_shape``; all numbers may be arrays [n], for n variants of it.

    Args:
        turn: angles in degrees around x, y and z; the part is turned around z first.
        radius: sets ``bottom`` and ``top`` both.
        cut: whether the part is taken away from what was before.
        The others: as in ``Parts``.
    """
    if radius is not None:
        bottom = top = radius
    return {
        "center": center,
        "turn": turn,
        "scale": scale,
        "section": section,
        "bottom": bottom,
        "top": top,
        "height": height,
        "bulge": bulge,
        "ring": ring,
        "depth": depth,
        "rounding": rounding,
        "sign": -1.0 if cut else 1.0,
        "blend": blend,
        "mirror_x": float(mirror_x),
        "mirror_z": float(mirror_z),
        "repeat": float(repeat),
    }


ABSENT = part(rounding=-FAR)


def make_shape(parts: Sequence[dict[str, Any]], count: Any = 1, axis: Any = 0, n: int | None = None) -> Shape:
    """Parts as arrays.

    Args:
        parts: as ``part`` makes them, at most ``MAX_PARTS``.
        count, axis: as in ``Shape``.
        n: number of variants; None for one shape without that axis.

    Raises:
        ValueError: there is no part, or there are too many.
    """
    if not 0 < len(parts) <= MAX_PARTS:
        raise ValueError(f"a shape has 1 to {MAX_PARTS} parts, not {len(parts)}")
    lead = () if n is None else (n,)
    filled = [*parts, *[ABSENT] * (MAX_PARTS - len(parts))]

    def numbers(value: Any) -> Float[np.ndarray, "*n"]:
        return np.broadcast_to(np.asarray(value, np.float32), lead)

    def column(name: str) -> Float[np.ndarray, "*n p"]:
        return np.stack([numbers(entry[name]) for entry in filled], -1)

    def vectors(name: str) -> Float[np.ndarray, "*n p 3"]:
        return np.stack([np.stack([numbers(v) for v in entry[name]], -1) for entry in filled], -2)

    fields = {name: column(name) for name in Parts._fields if name not in ("center", "turn", "scale")}
    turn = np.swapaxes(rotation(np.radians(vectors("turn"))), -1, -2)
    stacked = Parts(center=vectors("center"), turn=turn, scale=vectors("scale"), **fields)
    return Shape(stacked, numbers(count), numbers(axis))


def rotation(angles: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3 3"]:
    """Rotation matrices Rx Ry Rz of angles in radians."""
    (cx, cy, cz), (sx, sy, sz) = np.moveaxis(np.cos(angles), -1, 0), np.moveaxis(np.sin(angles), -1, 0)
    rows = [
        [cy * cz, -cy * sz, sy],
        [cx * sz + sx * sy * cz, cx * cz - sx * sy * sz, -sx * cy],
        [sx * sz - cx * sy * cz, sx * cz + cx * sy * sz, cx * cy],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2).astype(np.float32)


def distance(
    shape: Shape, x: Float[Array, "*s"], y: Float[Array, "*s"], z: Float[Array, "*s"]
) -> Float[Array, "*s"]:
    """Signed distance of points to one shape's surface, negative inside; a lower bound where parts bulge."""
    parts = shape.parts
    folded = _repeated(shape, x, y, z)
    total = jnp.full(x.shape, FAR, x.dtype)
    for i in range(parts.height.shape[-1]):
        one = Parts(*[field[i] for field in parts])
        d = _part_distance(
            one, *[jnp.where(one.repeat > 0, f, p) for f, p in zip(folded, (x, y, z), strict=True)]
        )
        total = one.sign * _smooth_minimum(one.sign * total, d, one.blend)
    return total


def _repeated(shape: Shape, x, y, z):
    """The points turned back into the first of ``count`` sectors around the axis."""
    upright = shape.axis < 0.5
    a, b = jnp.where(upright, x, y), jnp.where(upright, z, x)
    sector = 2 * jnp.pi / shape.count
    angle = jnp.round(_arctan2(b, a) * (1 / sector)) * sector
    cos, sin = _cos_sin(angle)
    a, b = a * cos + b * sin, b * cos - a * sin
    return jnp.where(upright, a, b), jnp.where(upright, y, a), jnp.where(upright, b, z)


def _arctan2(b, a):
    """The angle of (a, b) to within 0.005, which is enough to tell the sector, at a tenth of the cost."""
    absolute_a, absolute_b = jnp.abs(a), jnp.abs(b)
    ratio = jnp.minimum(absolute_a, absolute_b) / (jnp.maximum(absolute_a, absolute_b) + 1e-9)
    angle = ratio * (jnp.pi / 4 + 0.273 * (1 - ratio))
    angle = jnp.where(absolute_b > absolute_a, jnp.pi / 2 - angle, angle)
    angle = jnp.where(a < 0, jnp.pi - angle, angle)
    return jnp.where(b < 0, -angle, angle)


def _cos_sin(angle):
    """Cosine and sine of angles in [-pi, pi], to 1e-6, from series of half the angle."""
    t = angle / 2
    u = t * t
    sin = t * (1 + u * (-1 / 6 + u * (1 / 120 + u * (-1 / 5040 + u / 362880))))
    cos = 1 + u * (-1 / 2 + u * (1 / 24 + u * (-1 / 720 + u * (1 / 40320 - u / 3628800))))
    return cos * cos - sin * sin, 2 * sin * cos


def _part_distance(one: Parts, x, y, z):
    x = jnp.where(one.mirror_x > 0, jnp.abs(x), x) - one.center[0]
    z = jnp.where(one.mirror_z > 0, jnp.abs(z), z) - one.center[2]
    y = y - one.center[1]
    axes = one.turn / one.scale[:, None]
    x, y, z = (axes[i, 0] * x + axes[i, 1] * y + axes[i, 2] * z for i in range(3))
    ax, az = jnp.abs(x), jnp.abs(z)
    extruded, square = one.section == EXTRUDED, one.section == SQUARE
    # The offset keeps the root's derivative finite on the axis.
    across = jnp.where(square, jnp.maximum(ax, az), jnp.sqrt(x * x + z * z + 1e-12))
    across = jnp.where(extruded, ax, across)
    across = jnp.where(one.ring > 0, jnp.abs(across - one.ring), across)
    inverse_height = 1 / jnp.maximum(one.height, 1e-3)
    s = jnp.clip(y * inverse_height, -1, 1)
    slope = (one.top - one.bottom) / 2
    radius = (one.top + one.bottom) / 2 + slope * s + one.bulge * (1 - s * s)
    inverse_height = jnp.where(one.height > 0, inverse_height, 0)
    steepness = slope * inverse_height - 2 * one.bulge * inverse_height * s
    side = (across - radius) * lax.rsqrt(1 + steepness * steepness)
    end = jnp.abs(y) - one.height
    face = jnp.where(extruded, az - one.depth, -FAR)
    outside = jnp.sqrt(
        jnp.maximum(side, 0) ** 2 + jnp.maximum(end, 0) ** 2 + jnp.maximum(face, 0) ** 2 + 1e-12
    )
    inside = jnp.minimum(jnp.maximum(side, jnp.maximum(end, face)), 0)
    shortest = jnp.minimum(one.scale[0], jnp.minimum(one.scale[1], one.scale[2]))
    return (outside + inside - one.rounding) * shortest


def _smooth_minimum(a, b, width):
    """Quadratic polynomial blend (Quilez, smooth minimum): exact where a and b differ by more than width."""
    h = jnp.maximum(width - jnp.abs(a - b), 0)
    return jnp.minimum(a, b) - h * h / (4 * jnp.maximum(width, 1e-6))
