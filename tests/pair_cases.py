"""References to make training pairs from, drawn with a few lines of arithmetic."""

import functools

import numpy as np

SIZE = 64


@functools.cache
def references(size=SIZE):
    """Four pictures [4, size, size, 3] and masks: a mug, a bar, a frame and a disc, in patterns."""
    y, x = np.mgrid[:size, :size] / size - 0.5 + 0.5 / size

    def soft(distance):  # from inside to outside over one pixel
        return np.clip(0.5 - distance * size, 0, 1)

    def box(cx, cy, w, h):
        return np.maximum(abs(x - cx) - w, abs(y - cy) - h)

    handle = abs(np.hypot(x - 0.18, y) - 0.13) - 0.04
    masks = np.stack(
        [
            np.maximum(soft(box(-0.06, 0, 0.2, 0.25)), soft(handle)),
            soft(box(0.05, 0, 0.07, 0.4)),
            soft(box(0, 0.05, 0.35, 0.3)) - soft(box(0, 0.05, 0.2, 0.15)),
            soft(np.hypot(x, y) - 0.4),
        ]
    )
    fields = [np.sin(40 * x), np.sin(30 * (x + y)), np.sin(35 * x) * np.sin(35 * y), y]
    paints = [((220, 40, 30), (250, 240, 220)), ((20, 60, 200), (10, 20, 40))]
    paints += [((30, 150, 60), (230, 220, 40)), ((130, 60, 170), (240, 150, 190))]
    pictures = []
    for mask, field, (a, b) in zip(masks, fields, paints, strict=True):
        material = np.where(field[..., None] > 0, a, b) * (0.9 - 0.5 * x[..., None])
        pictures.append(mask[..., None] * material + (1 - mask[..., None]) * (90, 160, 165))
    return np.float32(np.stack(pictures) / 127.5 - 1), np.float32(masks)


def box_of(mask):
    rows, columns = (np.flatnonzero(mask.max(axis) > 0.5) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
