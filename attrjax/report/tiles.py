"""A sheet of pictures, a label under each, in sections with headings."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from attrjax.report.grid import FAINT, INK, PAPER, fitted, wrap

_SMOOTH = 4  # a corner's edge is drawn at so many times its size


class Section(NamedTuple):
    """Pictures that belong together.

    Attributes:
        heading: above them; "" for none.
        pictures: all of one size.
        labels: one for each, or none at all.
        note: behind the heading, in grey.
    """

    heading: str
    pictures: Sequence[UInt8[np.ndarray, "h w 3"]]
    labels: Sequence[str] = ()
    note: str = ""


def tile_sheet(
    sections: Sequence[Section],
    columns: int,
    *,
    title: str = "",
    gap: int | None = None,
    margin: int | None = None,
    corner: int | None = None,
) -> Image.Image:
    """Lay sections out below each other, each in rows of as many pictures.

    Args:
        sections: one or more; all pictures have one size.
        columns: pictures in a row; the last row of a section may have fewer.
        title: above all.
        gap: between pictures, in pixels; None, here and below, for what suits their size.
        margin: around all.
        corner: radius of the pictures' corners.

    Raises:
        ValueError: there is no picture or no column, pictures have several sizes, or labels do not fit them.
    """
    if columns < 1:
        raise ValueError(f"columns={columns} must be 1 or more")
    sizes = {picture.shape for section in sections for picture in section.pictures}
    if len(sizes) != 1:
        raise ValueError(f"a sheet's pictures must be there and have one size, not {sorted(sizes)}")
    for section in sections:
        if section.labels and len(section.labels) != len(section.pictures):
            raise ValueError(
                f"{section.heading!r} has {len(section.labels)} labels for {len(section.pictures)} pictures"
            )
    height, width = sizes.pop()[:2]
    gap = max(4, width // 8) if gap is None else gap
    margin = max(12, 3 * width // 8) if margin is None else margin
    corner = width // 12 if corner is None else corner
    text, heading, headline = (max(10, round(width * share)) for share in (0.13, 0.2, 0.32))
    label_font, heading_font, title_font = map(ImageFont.load_default, (text, heading, headline))
    label_line, heading_line, title_line = (round(1.35 * size) for size in (text, heading, headline))
    total_width = 2 * margin + columns * (width + gap) - gap

    # Every label has two lines where any of a section needs them, so that its rows stay even.
    labels = [[fitted(wrap(label, label_font, width), 2) for label in section.labels] for section in sections]
    under = [label_line * max(map(len, lines)) + label_line // 2 if lines else 0 for lines in labels]
    row_heights = [height + space + gap for space in under]
    heights = [
        (heading_line + gap if section.heading else 0) + -(-len(section.pictures) // columns) * row
        for section, row in zip(sections, row_heights, strict=True)
    ]
    top = margin + (title_line + gap if title else 0)
    between = margin - gap if len(sections) > 1 else 0
    total_height = top + sum(heights) + between * (len(sections) - 1) - gap + margin

    page = Image.new("RGB", (total_width, total_height), PAPER)
    draw = ImageDraw.Draw(page)
    corners = _rounded(width, height, corner)
    if title:
        draw.text((margin, margin), title, INK, title_font)
    for section, lines, row, whole in zip(sections, labels, row_heights, heights, strict=True):
        y = top
        if section.heading:
            baseline = (margin, y + heading)
            draw.text(baseline, section.heading, INK, heading_font, anchor="ls")
            after = margin + heading_font.getlength(section.heading) + 0.6 * heading
            draw.text((after, baseline[1]), section.note, FAINT, label_font, anchor="ls")
            y += heading_line + gap
        for i, picture in enumerate(section.pictures):
            x, place = margin + i % columns * (width + gap), y + i // columns * row
            page.paste(Image.fromarray(picture), (x, place), corners)
            for k, words in enumerate(lines[i] if lines else ()):
                middle = (x + width / 2, place + height + (k + 1) * label_line)
                draw.text(middle, words, INK, label_font, anchor="ms")
        top += whole + between
    return page


def _rounded(width: int, height: int, corner: int) -> Image.Image:
    """Where a picture is seen: everywhere but in its corners."""
    mask = Image.new("L", (width * _SMOOTH, height * _SMOOTH), 0)
    edge = (0, 0, width * _SMOOTH - 1, height * _SMOOTH - 1)
    ImageDraw.Draw(mask).rounded_rectangle(edge, corner * _SMOOTH, 255)
    return mask.resize((width, height), Image.Resampling.LANCZOS)
