"""A labelled grid of pictures as one picture."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

LARGEST_CELL = 512
INK, FAINT, PAPER = (34, 34, 34), (120, 120, 120), (255, 255, 255)


def labelled_grid(
    pictures: Sequence[Sequence[UInt8[np.ndarray, "h w 3"]]],
    rows: Sequence[str],
    columns: Sequence[str],
    caption: str = "",
) -> Image.Image:
    """Lay pictures out in rows and columns, with a label left of each row and above each column.

    Args:
        pictures: [row][column], all of one size; pictures over ``LARGEST_CELL`` pixels are shown smaller.
        rows: labels, wrapped to the width that they have.
        columns: labels, one line each.
        caption: a line below, such as how the pictures were made.

    Raises:
        ValueError: the labels do not fit the pictures, or the pictures have several sizes.
    """
    if len(rows) != len(pictures) or any(len(row) != len(columns) for row in pictures):
        raise ValueError(
            f"{len(rows)} row and {len(columns)} column labels for {[len(row) for row in pictures]} pictures"
        )
    sizes = {picture.shape for row in pictures for picture in row}
    if len(sizes) != 1:
        raise ValueError(f"pictures of a grid must have one size, not {sorted(sizes)}")
    height, width = sizes.pop()[:2]
    shrink = min(1.0, LARGEST_CELL / max(height, width))
    # Small pictures get cells that a label is legible beside.
    enlarge = max(1, 160 // max(height, width))
    cell = (max(1, round(width * shrink * enlarge)), max(1, round(height * shrink * enlarge)))

    text = min(22, max(13, cell[1] // 16))
    font, small = ImageFont.load_default(text), ImageFont.load_default(max(12, text - 4))
    gap, margin, line = text // 2, 2 * text, round(1.35 * text)
    label_width = round(min(14 * text, max(font.getlength(label) for label in rows) + 1))
    left, top = margin + label_width + 2 * gap, margin + line + gap
    total_width = left + len(columns) * (cell[0] + gap) - gap + margin
    caption_lines = wrap(caption, small, total_width - 2 * margin) if caption else []
    total_height = top + len(rows) * (cell[1] + gap) - gap + margin + len(caption_lines) * line

    page = Image.new("RGB", (total_width, total_height), PAPER)
    draw = ImageDraw.Draw(page)
    for c, label in enumerate(columns):
        centre = left + c * (cell[0] + gap) + cell[0] / 2
        draw.text((centre, top - gap), label, FAINT, small, anchor="mb")
    for r, label in enumerate(rows):
        y = top + r * (cell[1] + gap)
        lines = fitted(wrap(label, font, label_width), max(1, cell[1] // line))
        middle = y + cell[1] / 2 - (len(lines) - 1) * line / 2
        for i, words in enumerate(lines):
            draw.text((margin + label_width, middle + i * line), words, INK, font, anchor="rm")
        for c, picture in enumerate(pictures[r]):
            image = Image.fromarray(picture)
            if image.size != cell:
                image = image.resize(
                    cell, Image.Resampling.LANCZOS if shrink < 1 else Image.Resampling.NEAREST
                )
            page.paste(image, (left + c * (cell[0] + gap), y))
    for i, words in enumerate(caption_lines):
        draw.text(
            (margin, total_height - margin - (len(caption_lines) - 1 - i) * line),
            words,
            FAINT,
            small,
            anchor="lm",
        )
    return page


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """Break a text into lines of at most ``width`` pixels, between words where it can be and inside them
    where not.
    """
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def fitted(lines: list[str], most: int) -> list[str]:
    """At most so many lines, the last of which shows that there were more."""
    return lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1].rstrip() + "…"]
