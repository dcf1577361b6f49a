"""The renderer: one scene of arrays to a picture, its foreground mask and its depth.

Sphere tracing (Hart 1996) with a fixed number of steps, so that a picture is one program without branches:
``vmap`` makes a batch of it, ``jit`` runs it on whatever device there is. Edges are smoothed by how near a
ray that misses comes to the surface, in pixels. Shadows and ambient occlusion come from a few more distances
(Quilez, "soft shadows in raymarched SDFs", "ambient occlusion").

Compilers for CPUs compute an expression anew for every array that it goes into. So each distance is the
result of one round of a loop, and is used in the next.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from attrjax.attrworld.materials import Material, surface
from attrjax.attrworld.sdf import Shape, distance

TRACE_STEPS, SHADOW_STEPS = 22, 8
HIT = 0.05  # of a pixel: a ray that comes as near as this to a surface has hit it
DISTANCE = 6.0  # of the camera from the middle of the world
# A ball around every shape; rays begin where they enter it.
BOUND, BOUND_CENTER = 1.55, -0.1
FLOOR = -1.0


class Scene(NamedTuple):
    """All that is in one picture; with a leading axis on every leaf, in many.

    Attributes:
        shape, material: the object.
        azimuth, elevation: of the camera, in radians; 0 is in front of the object, at its level.
        zoom: 1 shows 2.9 units of height.
        shift: [2], of the picture to the right and up, in halves of its side.
        light: [3], direction to the light in the camera's axes (right, up, towards the viewer); any length.
        warmth: of the light, -1 is cold, 1 is warm.
        softness: in [0, 1], how soft its shadow is.
        backdrop: [3], colour in sRGB, in [0, 1].
    """

    shape: Shape
    material: Material
    azimuth: Any
    elevation: Any
    zoom: Any
    shift: Any
    light: Any
    warmth: Any
    softness: Any
    backdrop: Any


class Rendered(NamedTuple):
    """What is seen.

    Attributes:
        picture: [H, W, 3] in sRGB, in [0, 1].
        mask: [H, W], how much of a pixel the object covers.
        depth: [H, W], distance along the ray to the object or the floor; at most 20.
    """

    picture: Float[Array, "*n h w 3"]
    mask: Float[Array, "*n h w"]
    depth: Float[Array, "*n h w"]


@functools.partial(jax.jit, static_argnames=("size", "samples"))
def render_batch(scenes: Scene, *, size: int = 64, samples: int = 1) -> Rendered:
    """``render`` of scenes with a leading axis on every leaf."""
    return jax.vmap(functools.partial(render, size=size, samples=samples))(scenes)


def render(scene: Scene, *, size: int = 64, samples: int = 1) -> Rendered:
    """One scene, seen.

    Args:
        scene: without leading axes.
        size: side of the picture in pixels.
        samples: rays for a pixel in each direction; 2 also smooths edges and textures inside the object.

    Returns:
        picture, mask and depth, [size, size].
    """
    side = size * samples
    eye, (right, up, forward) = _camera(scene)
    # Half the picture is 1.45 units high at the middle of the world.
    half = 1.45 / (DISTANCE * scene.zoom)
    line = (jnp.arange(side, dtype=jnp.float32) + 0.5) / side * 2 - 1
    px, py = jnp.meshgrid(line - scene.shift[0], -line - scene.shift[1])
    ray = [forward[i] + half * (px * right[i] + py * up[i]) for i in range(3)]
    length = jnp.sqrt(ray[0] ** 2 + ray[1] ** 2 + ray[2] ** 2)
    ray = [r / length for r in ray]
    pixel = 2 * half / side  # a pixel's width at distance 1

    along, coverage = _trace(scene.shape, eye, ray, pixel)
    floor = jnp.where(ray[1] < -1e-3, (FLOOR - eye[1]) / jnp.minimum(ray[1], -1e-3), 20.0)
    floor = jnp.clip(floor, 0, 20.0)
    seen = coverage > 0
    t = jnp.where(seen, along, floor)
    point = [eye[i] + t * ray[i] for i in range(3)]
    normal = _normal(scene.shape, point, pixel * t)
    normal = [jnp.where(seen, n, up_) for n, up_ in zip(normal, (0.0, 1.0, 0.0), strict=True)]

    light = scene.light / jnp.sqrt(jnp.sum(scene.light**2))
    light = [light[0] * right[i] + light[1] * up[i] - light[2] * forward[i] for i in range(3)]
    occlusion = _occlusion(scene.shape, point, normal)
    shadow = _shadow(scene.shape, point, normal, light, scene.softness)

    tint = jnp.array([1.0, 0.98, 0.95]) + scene.warmth * jnp.array([0.06, 0.0, -0.1])
    object_colour = _shade(scene.material, point, normal, ray, light, shadow, occlusion, pixel * t, tint)
    backdrop = _backdrop(scene.backdrop, line, shadow, occlusion, point, floor, tint)
    linear = coverage[..., None] * object_colour + (1 - coverage[..., None]) * backdrop
    picture = to_srgb(linear)
    depth = jnp.where(coverage > 0.5, along, floor)
    return Rendered(
        _pool(picture, samples), _pool(coverage[..., None], samples)[..., 0], depth[::samples, ::samples]
    )


def to_srgb(linear: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Linear light to sRGB's numbers, both in [0, 1], by the power law near it."""
    return jnp.clip(linear, 1e-5, 1) ** (1 / 2.2)


def from_srgb(colour: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The inverse of ``to_srgb``."""
    return jnp.maximum(colour, 1e-5) ** 2.2


def _camera(scene: Scene):
    """Position of the eye, and the camera's axes in the world."""
    ca, sa = jnp.cos(scene.azimuth), jnp.sin(scene.azimuth)
    ce, se = jnp.cos(scene.elevation), jnp.sin(scene.elevation)
    forward = [-sa * ce, -se, -ca * ce]
    right = [ca, jnp.zeros_like(ca), -sa]
    up = [-sa * se, ce, -ca * se]
    middle = (0.0, BOUND_CENTER, 0.0)
    return [middle[i] - DISTANCE * forward[i] for i in range(3)], (right, up, forward)


def _trace(shape: Shape, eye, ray, pixel):
    """Distance along each ray to the surface, or to where it comes nearest, and how much of it is covered."""
    to_center = [(0.0, BOUND_CENTER, 0.0)[i] - eye[i] for i in range(3)]
    middle = sum(c * r for c, r in zip(to_center, ray, strict=True))
    gap = sum(c * c for c in to_center) - middle * middle
    inside = jnp.sqrt(jnp.maximum(BOUND**2 - gap, 0))
    last = middle + inside

    def step(_, carry):
        t, d, best, best_t = carry
        width = d / (pixel * t)
        best, best_t = jnp.minimum(width, best), jnp.where(width < best, t, best_t)
        t = jnp.minimum(t + 0.95 * d, last)
        return t, distance(shape, *[eye[i] + t * ray[i] for i in range(3)]), best, best_t

    start = jnp.maximum(middle - inside, 0.1)
    far = jnp.full_like(start, 1e3)
    carry = (start, jnp.zeros_like(start), far, start)
    # The first round moves by nothing and measures where the ray begins; its zero distance is not counted.
    t, d, _, _ = step(0, carry)
    _, _, best, best_t = lax.fori_loop(0, TRACE_STEPS, step, (t, d, far, start))
    # Rays that hit stop a little above the surface, and are covered in whole all the same.
    return best_t, jnp.where(gap < BOUND**2, jnp.clip(1 + HIT - best, 0, 1), 0)


def _normal(shape: Shape, point, width):
    """Gradient of the distance from the four corners of a tetrahedron."""
    corners = jnp.array([(1.0, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)])
    width = 0.5 * jnp.clip(width, 0.004, 0.05)
    d = lax.map(lambda c: distance(shape, *[p + c[i] * width for i, p in enumerate(point)]), corners)
    total = [(corners[:, i, None, None] * d).sum(0) for i in range(3)]
    length = jnp.sqrt(sum(n * n for n in total) + 1e-12)
    return [n / length for n in total]


def _occlusion(shape: Shape, point, normal):
    """In [0, 1], how open the space over each point is."""
    reach = jnp.array([0.1, 0.32])
    distances = lax.map(
        lambda r: distance(shape, *[p + r * n for p, n in zip(point, normal, strict=True)]), reach
    )
    near, far = distances / reach[:, None, None]
    return jnp.clip(0.5 * jnp.clip(near, 0, 1) + 0.5 * jnp.clip(far, 0, 1), 0, 1)


def _shadow(shape: Shape, point, normal, light, softness):
    """In [0, 1], how much of the light reaches each point."""
    sharpness = 4 + 10 * (1 - softness)
    origin = [p + 0.03 * n for p, n in zip(point, normal, strict=True)]

    def step(_, carry):
        t, d, open_ = carry
        open_ = jnp.minimum(open_, sharpness * d / t)
        t = t + jnp.clip(d, 0.06, 0.5)
        return t, distance(shape, *[o + t * v for o, v in zip(origin, light, strict=True)]), open_

    start = jnp.full_like(point[0], 1e-3)
    carry = (start, jnp.full_like(start, 0.06), jnp.ones_like(start))
    _, d, open_ = lax.fori_loop(0, SHADOW_STEPS, step, carry)
    del d
    open_ = jnp.clip(open_, 0, 1)
    return open_ * open_ * (3 - 2 * open_)


def _shade(material: Material, point, normal, ray, light, shadow, occlusion, width, tint):
    """Linear colour of the object: wrapped diffuse light, sky light, highlight, and reflection of a room."""
    albedo, gloss, metal, glow = surface(material, point, normal, width)
    facing = sum(n * v for n, v in zip(normal, light, strict=True))
    diffuse = jnp.clip(facing, 0, 1) * shadow
    sky = (0.42 + 0.16 * normal[1]) * (0.35 + 0.65 * occlusion)
    view = [-r for r in ray]
    half = [v + e for v, e in zip(light, view, strict=True)]
    half_length = jnp.sqrt(sum(h * h for h in half) + 1e-9)
    alignment = jnp.clip(sum(n * h for n, h in zip(normal, half, strict=True)) / half_length, 0, 1)
    highlight = gloss * (0.75 * alignment**60 + 0.15 * alignment**12) * shadow
    towards = jnp.clip(sum(n * v for n, v in zip(normal, view, strict=True)), 0, 1)
    mirrored = [r + 2 * towards * n for r, n in zip(ray, normal, strict=True)]
    # A room near the object, so that flat faces reflect more than one tone: a bright ceiling over a dark
    # horizon, a window on the side of the light, and two strips of light at the sides.
    room_x, room_y = mirrored[0] + 0.3 * point[0], mirrored[1] + 0.3 * point[1]
    window = jnp.clip(sum(m * v for m, v in zip(mirrored, light, strict=True)), 0, 1) ** 8
    room = 0.1 + 0.62 * jax.nn.sigmoid(10 * (room_y - 0.1)) + 0.22 * jax.nn.sigmoid(-9 * (room_y + 0.25))
    room = room + 0.45 * jnp.exp(-(((jnp.abs(room_x) - 0.62) / 0.14) ** 2))
    room = (room + 1.1 * window) * (0.4 + 0.6 * occlusion)
    fresnel = (1 - towards) ** 5
    lit = tint * (0.8 * diffuse)[..., None] + sky[..., None] * jnp.array([0.97, 1.0, 1.04])
    matte = albedo * lit + (gloss * (0.03 + 0.25 * fresnel) * room)[..., None]
    mirror = (
        albedo * ((1.15 - 0.4 * fresnel) * room + 0.25 * diffuse)[..., None]
        + 0.3 * (fresnel * room)[..., None]
    )
    colour = matte + metal * (mirror - matte)
    return colour + (highlight * (0.6 + 0.4 * metal))[..., None] * tint + glow * albedo


def _backdrop(colour, line, shadow, occlusion, point, floor, tint):
    """Linear colour of a seamless studio backdrop with the object's shadow on it."""
    linear = from_srgb(colour) * (1 + 0.5 * (tint - 1))
    height = -line[:, None]
    gradient = 1.0 - 0.1 * jnp.clip(height, -1, 1) - 0.1 * (line[None, :] ** 2)
    near = jax.nn.sigmoid(6 * (2.6 - jnp.sqrt(point[0] ** 2 + point[2] ** 2))) * (floor < 19)
    dark = near * (1 - (0.45 + 0.55 * shadow) * (0.4 + 0.6 * occlusion))
    return linear * (gradient * (1 - 0.75 * dark))[..., None]


def _pool(x: Float[Array, "H W c"], samples: int) -> Float[Array, "h w c"]:
    side = x.shape[0] // samples
    return x.reshape(side, samples, side, samples, -1).mean((1, 3))
