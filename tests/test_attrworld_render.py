"""The renderer: its distances against closed forms, and what a picture may and may not depend on."""

import re
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attrjax.attrworld import concepts, held_out_looks, held_out_shapes, looks, scenes, shapes, words
from attrjax.attrworld.concepts import render_concept
from attrjax.attrworld.materials import PATTERNS, layer, make_material, surface
from attrjax.attrworld.render import BOUND_CENTER, DISTANCE, FLOOR, from_srgb, render, render_batch
from attrjax.attrworld.scenes import LOOKS, SHAPES, draw_materials, draw_scenes, draw_shapes
from attrjax.attrworld.sdf import EXTRUDED, MAX_PARTS, SQUARE, distance, make_shape, part

# All pictures of this file are of two programs: many scenes at once, and one.
SIZE, MANY = 64, 16
RED = make_material([(0.8, 0.2, 0.2)], gloss=0.0)
BALL = make_shape([part((0, -0.3, 0), rounding=0.7)])

_distances = jax.jit(jax.vmap(distance, (0, None, None, None)))


def points(n, seed=0, radius=1.5):
    """Random points [n, 3] in a ball, as many near its middle as near its border."""
    generator = np.random.default_rng(seed)
    p = generator.normal(size=(n, 3))
    p *= radius * generator.random((n, 1)) ** (1 / 3) / np.linalg.norm(p, axis=1, keepdims=True)
    return p.astype(np.float32)


def distances(shape, p):
    """Distances [n, P] of points [P, 3], or [P] for a shape without leading axis.

    Few points are filled up to 500, so that all single shapes are one program.
    """
    single = np.ndim(shape.count) == 0
    many = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32)[None], shape) if single else shape
    filled = np.concatenate([p, np.zeros((max(0, 500 - len(p)), 3), np.float32)])
    d = np.asarray(_distances(many, *filled.T))[:, : len(p)]
    return d[0] if single else d


def of_parts(*parts, p, **around):
    return distances(make_shape(list(parts), **around), p)


def many(scene):
    """Scenes seen, some at a time; the last ones are repeated to fill the program's batch."""
    n = len(scene.azimuth)
    seen = []
    for start in range(0, n, MANY):
        rows = np.minimum(np.arange(start, start + MANY), n - 1)
        seen.append(render_batch(jax.tree.map(lambda leaf, rows=rows: leaf[rows], scene), size=SIZE))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n], *seen)


def stacked(*items):
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf, np.float32) for leaf in leaves]), *items)


@pytest.fixture(scope="module")
def all_families():
    """Two variants of every family of shapes, and every look on one of them. One camera, one light."""
    names = [name for name in SHAPES for _ in range(2)]
    materials = [list(LOOKS)[i % len(LOOKS)] for i in range(len(names))]
    drawn = draw_scenes(
        np.random.default_rng(0), len(names), shape_names=names, material_names=materials, views=False
    )
    u = np.stack([np.full(6, 0.1), np.full(6, 0.9)])
    pairs = [SHAPES[name](u) for name in SHAPES]
    shape = jax.tree.map(lambda *leaves: np.concatenate(leaves).astype(np.float32), *pairs)
    scene = drawn.scene._replace(shape=shape)
    return names, scene, many(scene)


# Distances.


def test_a_ball_is_as_far_as_its_middle_less_its_radius():
    p = points(500)
    expected = np.linalg.norm(p - (0.1, -0.3, 0.2), axis=1) - 0.6
    np.testing.assert_allclose(of_parts(part((0.1, -0.3, 0.2), rounding=0.6), p=p), expected, atol=1e-5)


def test_an_extruded_part_is_a_box():
    p = points(500)
    q = np.abs(p - (0.1, 0.0, -0.1)) - (0.5, 0.3, 0.2)
    expected = np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(1), 0) - 0.05
    box = part((0.1, 0, -0.1), section=EXTRUDED, radius=0.5, height=0.3, depth=0.2, rounding=0.05)
    np.testing.assert_allclose(of_parts(box, p=p), expected, atol=1e-5)


def test_a_square_part_has_the_box_s_surface_and_no_larger_distance():
    p = points(500)
    q = np.abs(p) - (0.5, 0.3, 0.5)
    expected = np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(1), 0)
    d = of_parts(part(section=SQUARE, radius=0.5, height=0.3), p=p)
    assert (np.sign(d) == np.sign(expected)).all() and (d < expected + 1e-5).all()
    before_a_face = np.minimum(q[:, 0], q[:, 2]) < 0
    np.testing.assert_allclose(d[before_a_face], expected[before_a_face], atol=1e-5)


def test_a_round_part_is_a_cylinder_also_when_it_is_turned():
    p = points(500)
    for turn, (x, y, z) in (((0, 0, 0), (0, 1, 2)), ((90, 0, 0), (0, 2, 1)), ((0, 0, 90), (1, 0, 2))):
        q = np.stack([np.hypot(p[:, x], p[:, z]) - 0.4, np.abs(p[:, y]) - 0.6], 1)
        expected = np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(1), 0)
        np.testing.assert_allclose(
            of_parts(part(turn=turn, radius=0.4, height=0.6), p=p), expected, atol=1e-5
        )


def test_a_turn_is_around_z_first_then_y_then_x():
    # A rod along y that is turned a quarter around z lies along x, and another around y points along z.
    rod = part(turn=(0, 90, 90), radius=0.1, height=0.8)
    p = np.array([[0, 0, 0.7], [0.7, 0, 0], [0, 0.7, 0]], np.float32)
    np.testing.assert_allclose(of_parts(rod, p=p), [-0.1, 0.6, 0.6], atol=1e-5)


def test_a_ring_is_a_torus():
    p = points(500)
    expected = np.hypot(np.hypot(p[:, 0], p[:, 2]) - 0.7, p[:, 1]) - 0.2
    np.testing.assert_allclose(of_parts(part(ring=0.7, rounding=0.2), p=p), expected, atol=1e-5)


def test_a_cone_is_exact_where_its_side_is_nearest():
    slope = 0.5  # radius 0.6 to 0.1 over a height of 1
    p = np.array([[0.8, 0.0, 0.0], [0.0, 0.1, 0.9]], np.float32)
    expected = (np.hypot(p[:, 0], p[:, 2]) - (0.35 - slope * p[:, 1])) / np.hypot(1, slope)
    np.testing.assert_allclose(of_parts(part(bottom=0.6, top=0.1, height=0.5), p=p), expected, atol=1e-5)


def test_a_bulge_widens_the_middle_and_not_the_ends():
    barrel = part(radius=0.4, height=0.5, bulge=0.2)
    p = np.array([[0.6, 0, 0], [0.4, 0.5, 0], [0, 0.5, 0]], np.float32)
    np.testing.assert_allclose(of_parts(barrel, p=p), 0, atol=1e-5)


def test_parts_are_joined_or_cut_in_their_order():
    a, b = part((-0.2, 0, 0), rounding=0.5), part((0.3, 0, 0), rounding=0.4)
    hole = part((0.3, 0, 0), rounding=0.4, cut=True)
    p = points(500)
    da, db = of_parts(a, p=p), of_parts(b, p=p)
    np.testing.assert_allclose(of_parts(a, b, p=p), np.minimum(da, db), atol=1e-6)
    np.testing.assert_allclose(of_parts(a, hole, p=p), np.maximum(da, -db), atol=1e-6)
    # What comes after a cut is not cut.
    np.testing.assert_allclose(of_parts(hole, a, p=p), da, atol=1e-6)


def test_a_blend_adds_to_a_seam_and_leaves_the_rest():
    a, b = part((-0.4, 0, 0), rounding=0.5), part((0.4, 0, 0), rounding=0.4)
    p = points(500)
    da, db = of_parts(a, p=p), of_parts(b, p=p)
    d = of_parts(a, b | {"blend": 0.2}, p=p)
    near = np.abs(da - db) < 0.2
    assert 50 < near.sum() < 450
    np.testing.assert_allclose(d[~near], np.minimum(da, db)[~near], atol=1e-6)
    assert (d[near] < np.minimum(da, db)[near] + 1e-6).all() and d[near].min() > min(
        da.min(), db.min()
    ) - 0.05


def test_a_mirrored_part_is_there_twice():
    p = points(500)
    left, right = (part((x, 0.1, 0.4), rounding=0.2) for x in (-0.5, 0.5))
    np.testing.assert_allclose(
        of_parts(right | {"mirror_x": 1.0}, p=p), of_parts(left, right, p=p), atol=1e-6
    )
    four = [part((x, 0.1, z), rounding=0.2) for x in (-0.5, 0.5) for z in (-0.4, 0.4)]
    twice = right | {"mirror_x": 1.0, "mirror_z": 1.0}
    np.testing.assert_allclose(of_parts(twice, p=p), of_parts(*four, p=p), atol=1e-6)


def test_a_repeated_part_is_there_count_times_around_the_axis():
    p = points(500)
    angles = 2 * np.pi * np.arange(5) / 5
    around_y = [part((0.7 * np.cos(a), 0.1, 0.7 * np.sin(a)), rounding=0.2) for a in angles]
    around_z = [part((0.7 * np.sin(a), 0.7 * np.cos(a), 0.1), rounding=0.2) for a in angles]
    for axis, one, all_of_them in (
        (0, part((0.7, 0.1, 0), rounding=0.2, repeat=True), around_y),
        (1, part((0, 0.7, 0.1), rounding=0.2, repeat=True), around_z),
    ):
        # The sector is told to within half a hundredth of a radian.
        np.testing.assert_allclose(
            of_parts(one, p=p, count=5, axis=axis), of_parts(*all_of_them, p=p), atol=0.01
        )


def test_a_shape_has_some_parts_and_not_too_many():
    for parts in ([], [part(rounding=0.1)] * (MAX_PARTS + 1)):
        with pytest.raises(ValueError, match=f"1 to {MAX_PARTS} parts"):
            make_shape(parts)


# The pagoda's roofs are flat and hollowed: far from them its distance is too long.
LOOSE = {"pagoda"}


def test_a_distance_is_never_much_longer_than_the_way_to_the_shape():
    names = [*SHAPES, *[""] * 12]
    shape = draw_shapes(np.random.default_rng(0), names)
    p = points(4000)
    d = distances(shape, p)
    for name, of in zip(names, d, strict=True):
        inside, outside = p[of < 0], p[of > 0.02][:800]
        assert len(inside) > 20, name
        way = np.linalg.norm(outside[:, None] - inside[None, :800], axis=2).min(1)
        longer = (of[of > 0.02][:800] / way).max()
        # Parts at random meet at any angle and bulge at will.
        assert longer < (2 if name in LOOSE else 1.01 if name else 1.15), (name, longer)


def test_distances_change_no_faster_than_one_moves():
    names = [*SHAPES, *[""] * 12]
    shape = draw_shapes(np.random.default_rng(1), names)
    p = points(4000)
    moved = (p + 0.02 * np.random.default_rng(2).normal(size=p.shape)).astype(np.float32)
    ratio = np.abs(distances(shape, p) - distances(shape, moved)) / np.linalg.norm(p - moved, axis=1)
    for name, of in zip(names, ratio, strict=True):
        # A seam between repeated sectors is a small step; bulging sides are bounds and not distances.
        if name not in LOOSE:
            assert np.quantile(of, 0.99) < 1.1 and of.max() < 1.4, (name, np.quantile(of, 0.99), of.max())


# Pictures.


def view(shape=BALL, material=RED, elevation=0.0, azimuth=0.0, **options):
    """One scene from the front at its level, seen alone."""
    return jax.tree.map(
        np.asarray, render_concept(shape, material, elevation=elevation, azimuth=azimuth, zoom=1.0, **options)
    )


def rays(zoom=1.0):
    """Unit directions [SIZE, SIZE, 3] of a camera that looks along -z, and where it stands."""
    line = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
    half = 1.45 / (DISTANCE * zoom)
    x, y = np.meshgrid(half * line, -half * line)
    ray = np.stack([x, y, -np.ones_like(x)], -1)
    return ray / np.linalg.norm(ray, axis=-1, keepdims=True), np.array([0, BOUND_CENTER, DISTANCE])


def test_the_depth_is_that_of_the_ball_and_of_the_floor():
    ray, eye = rays()
    seen = view()
    to_middle = np.array([0, -0.3, 0]) - eye
    along = ray @ to_middle
    gap = to_middle @ to_middle - along**2
    inside = gap < 0.7**2 - 0.02
    expected = along - np.sqrt(np.maximum(0.7**2 - gap, 0))
    assert inside.sum() > 300
    np.testing.assert_allclose(seen.depth[inside], expected[inside], atol=0.01)
    outside = gap > 0.8**2
    floor = np.where(ray[..., 1] < -1e-3, (FLOOR - eye[1]) / np.minimum(ray[..., 1], -1e-3), 20)
    np.testing.assert_allclose(seen.depth[outside], np.minimum(floor, 20)[outside], rtol=1e-3)


def test_the_mask_is_one_inside_none_outside_and_soft_between():
    ray, eye = rays()
    mask = view().mask
    to_middle = np.array([0, -0.3, 0]) - eye
    nearest = np.sqrt(to_middle @ to_middle - (ray @ to_middle) ** 2)
    pixel = 2 * 1.45 / SIZE
    assert (mask[nearest < 0.7 - pixel] == 1).all() and (mask[nearest > 0.7 + 1.5 * pixel] == 0).all()
    soft = (mask > 0.02) & (mask < 0.98)
    # About one pixel for every one that the outline crosses.
    assert 0.3 < soft.sum() / (2 * np.pi * 0.7 / pixel) < 3
    # The soft pixels lie outside: the outline is up to a pixel too wide, never too narrow.
    assert np.pi * 0.7**2 < mask.sum() * pixel**2 < np.pi * (0.7 + pixel) ** 2


def test_the_camera_goes_around_the_object():
    shape = make_shape([part((0.5, -0.3, 0), rounding=0.3)])
    middles, nearest = [], []
    for azimuth in (0.0, np.pi / 2, np.pi):
        seen = view(shape, azimuth=azimuth)
        middles.append((seen.mask * np.arange(SIZE)).sum() / seen.mask.sum() - (SIZE - 1) / 2)
        nearest.append(seen.depth[seen.mask == 1].min())
    # A camera that goes to the object's right sees what is there come to the middle, and nearer.
    assert middles[0] > 5 and abs(middles[1]) < 0.5 and middles[2] < -5
    assert nearest[1] < nearest[0] - 0.3
    above = view(shape, elevation=0.5)
    assert above.depth[0, 0] < 20 and view(shape).depth[0, 0] == 20  # from above there is floor all over


def test_every_family_and_every_look_is_seen_whole_and_finite(all_families):
    names, _, seen = all_families
    assert all(np.isfinite(leaf).all() for leaf in seen)
    assert seen.picture.min() >= 0 and seen.picture.max() <= 1
    for name, mask, picture in zip(names, seen.mask, seen.picture, strict=True):
        assert mask.min() == 0 and mask.max() == 1 and 0.03 < mask.mean() < 0.6, (name, mask.mean())
        # At most a corner of it is out of the picture.
        border = mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum()
        assert border < 0.5 * SIZE, (name, border)
        assert picture[mask == 1].std() > 0.01, name


def test_every_family_has_variants_that_differ(all_families):
    names, _, seen = all_families
    for name, first, second in zip(names[::2], seen.mask[::2], seen.mask[1::2], strict=True):
        assert np.abs(first - second).sum() > 0.03 * first.sum(), name


def test_families_differ_from_each_other(all_families):
    names, _, seen = all_families
    masks = seen.mask[::2].reshape(len(SHAPES), -1)
    overlap = np.minimum(masks[:, None], masks[None]).sum(-1) / np.maximum(masks[:, None], masks[None]).sum(
        -1
    )
    np.fill_diagonal(overlap, 0)
    i, j = np.unravel_index(overlap.argmax(), overlap.shape)
    assert overlap.max() < 0.95, (names[2 * i], names[2 * j], overlap.max())


def test_a_scene_is_the_same_alone_and_in_a_batch(all_families):
    _, scene, seen = all_families
    rows = np.arange(len(scene.azimuth))[::-1][:MANY]
    mixed = many(jax.tree.map(lambda leaf: leaf[rows], scene))
    np.testing.assert_allclose(mixed.picture, seen.picture[rows], atol=1e-5)
    alone = render_batch(jax.tree.map(lambda leaf: leaf[5:6], scene), size=SIZE, samples=1)
    for name in ("picture", "mask", "depth"):
        here, there = np.asarray(getattr(alone, name))[0], getattr(seen, name)[5]
        # Two programs round differently, and where a ray only just misses a few pixels show it.
        assert np.mean(np.abs(here - there) > 1e-3) < 0.002, name


def test_another_material_leaves_mask_and_depth_as_they_are(all_families):
    _, scene, seen = all_families
    first = jax.tree.map(lambda leaf: leaf[:MANY], scene)
    names = ["gold", "lava", "zebra", "glass"] * (MANY // 4)
    material, _, _ = draw_materials(np.random.default_rng(1), names)
    other = many(first._replace(material=jax.tree.map(np.float32, material)))
    np.testing.assert_array_equal(other.mask, seen.mask[:MANY])
    np.testing.assert_array_equal(other.depth, seen.depth[:MANY])
    assert np.abs(other.picture - seen.picture[:MANY]).mean((1, 2, 3)).min() > 0.005


def test_another_shape_leaves_the_colours_of_the_surface_that_both_have():
    # A glow adds its share of the surface's own colour to whatever light falls on it, so that the difference
    # between two pictures is that colour, on a ball and on the same ball under a hat that shades it.
    hat = make_shape([part((0, -0.3, 0), rounding=0.7), part((0, 0.4, 0), radius=0.9, height=0.05)])
    for name in ("zebra", "leopard", "giraffe", "marble"):
        material = LOOKS[name](np.full((1, 6), 0.4))
        material = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32)[0], material)
        albedos, depths, shades = [], [], []
        both = view().mask == 1
        for shape in (BALL, hat):
            dark, glowing = (view(shape, material._replace(gloss=0.0, glow=g)) for g in (0.0, 0.3))
            albedos.append((from_srgb(glowing.picture) - from_srgb(dark.picture)) / 0.3)
            shades.append(dark.picture)
            depths.append(dark.depth)
            both &= (glowing.picture < 0.99).all(-1)
        both &= np.abs(depths[0] - depths[1]) < 1e-5
        assert both.sum() > 200
        assert np.abs(shades[0] - shades[1])[both].mean() > 0.01  # the hat's shade is seen
        assert np.mean(np.abs(albedos[0] - albedos[1])[both] > 0.02) < 0.01, name


def test_a_texture_is_solid():
    generator = np.random.default_rng(0)
    material, _, _ = draw_materials(generator, [*LOOKS, *[""] * 14])
    n = len(material.gloss)
    p = generator.uniform(-1, 1, (3, 1, 64)).astype(np.float32)
    normals = generator.normal(size=(2, 3, 1, 64)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    paint = jax.jit(
        jax.vmap(lambda m, normal: surface(m, list(p), list(normal), jnp.full((1, 64), 0.01))[0], (0, None))
    )
    colours = [np.asarray(paint(material, jnp.asarray(normal))) for normal in normals]
    assert np.isfinite(colours[0]).all() and min(c.min() for c in colours) >= 0
    # Bricks, hexagons and lines lie within the surface, so they ask which way it faces; no other pattern may.
    flat = [PATTERNS.index(name) for name in ("bricks", "hexagons", "steps")]
    faces = np.isin(material.first.pattern, flat) | np.isin(material.second.pattern, flat)
    assert 4 <= faces.sum() < n / 3
    np.testing.assert_array_equal(colours[0][~faces], colours[1][~faces])
    assert (np.abs(colours[0] - colours[1])[faces].max((1, 2, 3)) > 0.01).all()


def test_a_picture_can_be_differentiated():
    scene = jax.tree.map(
        jnp.float32, stacked(draw_scenes(np.random.default_rng(1), 1, shape_names=["mug"]).scene)
    )
    scene = jax.tree.map(lambda leaf: leaf[0, 0], scene)

    def picture(backdrop, light, colours, azimuth):
        changed = scene._replace(
            backdrop=backdrop,
            light=light,
            azimuth=azimuth,
            material=scene.material._replace(colours=colours),
        )
        return render(changed, size=16).picture

    at = (scene.backdrop, scene.light, scene.material.colours, scene.azimuth)
    direction = (jnp.full(3, 0.1), jnp.array([0.2, -0.1, 0.1]), jnp.full((4, 3), 0.1), jnp.float32(0.1))
    seen, slope = jax.jit(lambda *of: jax.jvp(picture, of, direction))(*at)
    assert np.isfinite(seen).all() and np.isfinite(slope).all()
    # The sky grows brighter with the backdrop's colour, in proportion to its power.
    corner = 0.1 * seen[0, 0] / scene.backdrop
    np.testing.assert_allclose(slope[0, 0], corner, rtol=0.15)


# Scenes.


def test_scenes_are_those_of_their_generator():
    first, second = (draw_scenes(np.random.default_rng(3), 20) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first.scene, second.scene)
    assert first.facts == second.facts
    assert draw_scenes(np.random.default_rng(4), 20).facts != first.facts


def test_scenes_draw_what_is_trained_on_and_the_stated_share_without_a_name():
    n = 3000
    facts = draw_scenes(np.random.default_rng(0), n).facts
    drawn_shapes, materials = [f.shape for f in facts], [f.material for f in facts]
    assert set(drawn_shapes) == {"", *words.TRAIN_SHAPES} and set(materials) == {"", *words.TRAIN_MATERIALS}
    for names, share in ((drawn_shapes, scenes.UNNAMED_SHAPES), (materials, scenes.UNNAMED_MATERIALS)):
        spread = 4 * (share * (1 - share) / n) ** 0.5
        assert abs(names.count("") / n - share) < spread
    assert {f.backdrop for f in facts} == set(words.BACKDROPS)
    assert {f.light for f in facts} == set(scenes.LIGHTS) and {f.view for f in facts} == {"level", "above"}
    for fact in facts:
        assert (fact.pattern in words.PATTERNS and len(fact.colours) in (2, 3)) == (fact.material == "")


def test_an_unknown_name_is_an_error():
    generator = np.random.default_rng(0)
    for what in ("shape", "material"):
        with pytest.raises(ValueError, match=f"no {what} 'unicorn'"):
            draw_scenes(generator, 1, **{f"{what}_names": ["unicorn"]})


def test_named_variants_are_in_the_order_of_their_names():
    names = ["tree", "ball", "tree", "cube"]
    scene = draw_scenes(np.random.default_rng(0), 4, shape_names=names, material_names=["red"] * 4).scene
    # A ball is a single rounded point; trees have the same parts as each other, and not the same sizes.
    height = scene.shape.parts.height
    assert height[1, 0] == 0 and (height[[0, 2, 3], 0] > 0).all()
    assert (scene.shape.parts.bottom[0] != scene.shape.parts.bottom[2]).any()
    assert scene.shape.parts.section[3, 0] == SQUARE


def test_families_are_the_words_families():
    assert tuple(shapes.FAMILIES) == words.TRAIN_SHAPES and len(words.TRAIN_SHAPES) >= 24
    assert tuple(held_out_shapes.FAMILIES) == words.HELD_OUT_SHAPES and len(words.HELD_OUT_SHAPES) >= 12
    assert tuple(looks.FAMILIES) == words.TRAIN_MATERIALS and len(words.TRAIN_MATERIALS) >= 24
    assert tuple(held_out_looks.FAMILIES) == words.HELD_OUT_MATERIALS and len(words.HELD_OUT_MATERIALS) >= 12
    assert tuple(looks.COLOURS) == words.COLOURS
    assert set(looks.UNNAMED) == set(words.PATTERNS)
    assert tuple(scenes.BACKDROPS) == words.BACKDROPS
    assert not set(words.TRAIN_SHAPES) & set(words.HELD_OUT_SHAPES)
    assert not set(words.TRAIN_MATERIALS) & set(words.HELD_OUT_MATERIALS)


# Shapes and materials that users make.


def test_the_example_of_concepts_runs():
    example = re.search(r"\n\n((?:    .*\n|\n)+)", concepts.__doc__).group(1)
    names = {}
    exec(textwrap.dedent(example), names)
    seen = names["seen"]
    assert seen.picture.shape == (64, 64, 3) and seen.mask.shape == seen.depth.shape == (64, 64)
    mask = np.asarray(seen.mask)
    # A wide disc above a thin stick, with both colours of the candy and more than one ring of each.
    assert mask[22].sum() > 20 and 1 < mask[44].sum() < 5
    disc = np.asarray(seen.picture)[8:40][mask[8:40] == 1]
    assert np.ptp(disc[:, 1]) > 0.4
    middle = int((mask[8:40] * np.arange(64)).sum() / mask[8:40].sum())
    column = np.asarray(seen.picture)[:40, middle, 1][mask[:40, middle] == 1]
    assert np.sum(np.diff(column > 0.5) != 0) >= 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": "teapot"}, "shape must be what sdf.make_shape makes, not 'teapot'.*draw_shapes"),
        ({"material": "gold"}, "material must be what materials.make_material makes.*draw_materials"),
        ({"shape": make_shape([part(rounding=0.5)], n=3)}, "shape must be a single one, and there are 3"),
        ({"material": make_material([(1, 0, 0)], layer("dots"), n=2)}, "material must be a single one"),
        ({"backdrop": "lavendar"}, "no backdrop 'lavendar'.*lavender"),
        ({"backdrop": (1.0, 0.5)}, "backdrop=.* must be 3 finite numbers"),
        ({"backdrop": (255, 0, 0)}, "must be in"),
        ({"light": (0, 0, 0)}, "light must point"),
        ({"light": (0, np.nan, 1)}, "light=.* must be 3 finite numbers"),
        ({"size": 0}, "size=0"),
        ({"zoom": 0.0}, "zoom=0.0"),
        ({"softness": 2.0}, "softness=2.0"),
    ],
)
def test_a_concept_that_cannot_be_rendered_is_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        render_concept(**({"shape": BALL, "material": RED} | change))


def test_a_concept_has_the_backdrop_it_is_given():
    by_name, by_colour = view(backdrop="blue"), view(backdrop=scenes.BACKDROPS["blue"])
    np.testing.assert_array_equal(by_name.picture, by_colour.picture)
    corner = view(backdrop=(0.2, 0.5, 0.3)).picture[0, SIZE // 2]
    assert corner[1] > corner[2] > corner[0]
