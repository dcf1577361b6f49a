"""The words of the world: what its shapes, materials, patterns and surroundings are called.

Each is found by its name. A name is held out where no training caption may contain it: the bundled base never
learns it, so that a picture of it can only come from a reference.
"""

from typing import NamedTuple

COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "white", "black")
BACKDROPS = ("white", "gray", "black", "blue", "green", "pink", "beige", "lavender")

# The first noun of a shape is its usual one. Articles follow from what stands before the noun.
_TRAIN_SHAPES = {
    "ball": ("ball", "sphere"),
    "cube": ("cube", "box", "block"),
    "cylinder": ("cylinder",),
    "cone": ("cone",),
    "pyramid": ("pyramid",),
    "ring": ("ring", "donut", "torus"),
    "vase": ("vase",),
    "bottle": ("bottle", "flask"),
    "bowl": ("bowl",),
    "mug": ("mug", "cup"),
    "table": ("table", "desk"),
    "chair": ("chair", "seat"),
    "house": ("house", "cottage"),
    "tower": ("tower",),
    "mushroom": ("mushroom", "toadstool"),
    "lamp": ("lamp", "table lamp"),
    "hammer": ("hammer", "mallet"),
    "bell": ("bell",),
    "barrel": ("barrel", "cask"),
    "star": ("star",),
    "heart": ("heart",),
    "cross": ("cross", "plus sign"),
    "arrow": ("arrow",),
    "gear": ("gear", "cogwheel"),
    "crescent": ("crescent", "crescent moon"),
    "hourglass": ("hourglass", "sand timer"),
    "dumbbell": ("dumbbell", "barbell"),
    "tree": ("tree",),
    "arch": ("arch", "archway"),
    "stairs": ("stairs", "staircase"),
    "pear": ("pear",),
    "gem": ("gem", "jewel", "gemstone"),
}
_HELD_OUT_SHAPES = {
    "teapot": ("teapot",),
    "pagoda": ("pagoda",),
    "rocket": ("rocket", "spaceship"),
    "windmill": ("windmill",),
    "guitar": ("guitar",),
    "chess": ("chess piece", "chess pawn"),
    "airplane": ("airplane", "plane", "aeroplane"),
    "cactus": ("cactus",),
    "trophy": ("trophy",),
    "anchor": ("anchor",),
    "snowman": ("snowman",),
    "umbrella": ("umbrella", "parasol"),
    "key": ("key",),
    "duck": ("duck", "rubber duck"),
}
SHAPES = _TRAIN_SHAPES | _HELD_OUT_SHAPES
TRAIN_SHAPES = tuple(_TRAIN_SHAPES)
HELD_OUT_SHAPES = tuple(_HELD_OUT_SHAPES)
PLURALS = frozenset({"stairs"})  # nouns without an article

SOMETHING = "something"  # takes no article, and no adjective before it
UNNAMED = ("object", "thing", "sculpture", SOMETHING)  # nouns that name no shape


class Attachment(NamedTuple):
    """How a material is said of a noun.

    Attributes:
        after: phrases behind the noun, the usual one first.
        before: adjectives, the usual one first.
    """

    after: tuple[str, ...]
    before: tuple[str, ...]


def _print(name: str, marks: str) -> Attachment:
    """An animal's coat: ``marks`` are stripes, spots or patches."""
    adjective = {"stripes": "striped", "spots": "spotted", "patches": "patched"}[marks]
    return Attachment(
        (f"with {name} {marks}", f"in {name} print", f"with a {name} pattern"),
        (f"{name} print", f"{name}-{adjective}", f"{name}-patterned"),
    )


_TRAIN_MATERIALS = {name: Attachment((f"painted {name}", f"in {name}"), (name,)) for name in COLOURS} | {
    "wood": Attachment(("made of wood", "carved from wood", "made out of wood"), ("wooden", "wood")),
    "marble": Attachment(("made of marble", "carved from marble", "in veined marble"), ("marble",)),
    "brick": Attachment(("made of brick", "built of bricks", "made of bricks"), ("brick",)),
    "zebra": _print("zebra", "stripes"),
    "candy": Attachment(
        ("made of candy", "with candy stripes", "made of striped candy"),
        ("candy", "candy-striped", "candy cane", "red and white striped candy"),
    ),
    "checkerboard": Attachment(
        ("with a checkerboard pattern", "covered in a checkerboard", "in checkerboard squares"),
        ("checkerboard", "checkerboard-patterned", "chequered"),
    ),
    "polka": Attachment(
        ("with polka dots", "covered in polka dots", "with a polka dot pattern"),
        ("polka dot", "polka-dotted"),
    ),
    "gold": Attachment(("made of gold", "in gold", "of solid gold"), ("golden", "gold")),
    "silver": Attachment(("made of silver", "in silver", "of solid silver"), ("silver", "silvery")),
    "copper": Attachment(("made of copper", "in copper", "of solid copper"), ("copper",)),
    "leopard": _print("leopard", "spots"),
    "giraffe": _print("giraffe", "patches"),
    "cow": _print("cow", "patches"),
    "camouflage": Attachment(
        ("in camouflage", "with a camouflage pattern", "in army camouflage"),
        ("camouflage", "camouflage-patterned", "camo"),
    ),
    "granite": Attachment(
        ("made of granite", "cut from granite", "in speckled granite"), ("granite", "speckled granite")
    ),
    "clouds": Attachment(
        ("made of clouds", "painted with clouds", "with a pattern of clouds"),
        ("cloud-patterned", "cloudy sky"),
    ),
    "rainbow": Attachment(
        ("in rainbow colours", "with rainbow stripes", "in all colors of the rainbow"),
        ("rainbow", "rainbow-coloured", "rainbow-striped"),
    ),
    "mosaic": Attachment(
        ("made of mosaic tiles", "covered in mosaic", "with a mosaic pattern"), ("mosaic", "mosaic-tiled")
    ),
}
_HELD_OUT_MATERIALS = {
    "porcelain": Attachment(("made of porcelain", "in painted porcelain"), ("porcelain",)),
    "tiger": _print("tiger", "stripes"),
    "watermelon": Attachment(
        ("made of watermelon", "with a watermelon pattern"), ("watermelon", "watermelon-patterned")
    ),
    "terrazzo": Attachment(("made of terrazzo", "with a terrazzo pattern"), ("terrazzo",)),
    "tartan": Attachment(("with a tartan pattern", "in tartan", "in plaid"), ("tartan", "plaid")),
    "glass": Attachment(("made of stained glass", "in stained glass"), ("stained glass",)),
    "rust": Attachment(
        ("covered in rust", "made of rusty metal", "made of rusted iron"), ("rusty", "rusted")
    ),
    "circuit": Attachment(("made of circuit boards", "with a circuit pattern"), ("circuit board",)),
    "honeycomb": Attachment(
        ("made of honeycomb", "with a honeycomb pattern"), ("honeycomb", "honeycomb-patterned")
    ),
    "galaxy": Attachment(("with a galaxy pattern", "painted with a galaxy"), ("galaxy", "galaxy-patterned")),
    "lava": Attachment(("made of lava", "of glowing lava"), ("lava", "molten lava")),
    "strawberry": Attachment(
        ("made of strawberry", "with a strawberry pattern"), ("strawberry", "strawberry-patterned")
    ),
    "malachite": Attachment(("made of malachite", "cut from malachite"), ("malachite",)),
    "bamboo": Attachment(("made of bamboo", "built of bamboo"), ("bamboo",)),
}
MATERIALS = _TRAIN_MATERIALS | _HELD_OUT_MATERIALS
TRAIN_MATERIALS = tuple(_TRAIN_MATERIALS)
HELD_OUT_MATERIALS = tuple(_HELD_OUT_MATERIALS)


class Pattern(NamedTuple):
    """How a pattern without a name of its own is said, with its colours before the word.

    Attributes:
        nouns: "stripes" of "with blue and yellow stripes", the usual one first.
        adjectives: "striped" of "a blue and yellow striped mug".
    """

    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]


PATTERNS = {
    "stripes": Pattern(("stripes", "bands", "lines"), ("striped", "banded")),
    "checks": Pattern(("checks", "squares"), ("checked", "checkered")),
    "dots": Pattern(("dots", "spots"), ("dotted", "spotted")),
    "blotches": Pattern(("blotches", "patches"), ("blotchy", "patchy", "blotched")),
    "cells": Pattern(("cells", "pebbles"), ("cell-patterned", "pebbled")),
    "bricks": Pattern(("bricks", "blocks"), ("brick-patterned",)),
    "veins": Pattern(("veins", "streaks"), ("veined", "streaked")),
    "rings": Pattern(("rings", "circles"), ("ringed", "ring-patterned")),
}

FINISHES = {"matte": ("matte", "dull"), "glossy": ("glossy", "shiny", "polished")}

# What surrounds the object: phrases that go on with the sentence, and tags that stand after a comma.
# {} is the backdrop's colour or the side of the light, {a} has its article.
BACKDROP_PHRASES = (
    "on {a} background",
    "on {a} backdrop",
    "against {a} background",
    "against {a} wall",
    "in front of {a} backdrop",
    "in front of {a} wall",
)
BACKDROP_TAGS = ("{} background", "{} backdrop")
LIGHT_PHRASES = ("lit from the {}", "with light from the {}", "with light coming from the {}")
LIGHT_TAGS = ("lit from the {}", "light from the {}")
VIEW_PHRASES = {
    "level": ("at eye level", "seen from the side", "seen at eye level"),
    "above": ("seen from above", "from above", "viewed from above"),
}
VIEW_TAGS = {"level": ("side view", "eye level"), "above": ("view from above", "high angle view")}

# Words before and after what the picture shows.
FRAMES = (
    ("a photo of ", ""),
    ("a photo of ", ""),
    ("a picture of ", ""),
    ("a picture of ", ""),
    ("a render of ", ""),
    ("a 3d render of ", ""),
    ("an image of ", ""),
    ("a photograph of ", ""),
    ("a studio photo of ", ""),
    ("a rendering of ", ""),
    ("", ", studio shot"),
    ("", ", product photo"),
    ("", ", 3d render"),
    ("", ", studio lighting"),
)
