"""Plots of a report, as markup inside the page: they need no script and follow its colours."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from attrjax.report.page import Html, framed

PLOT_WIDTH, PLOT_HEIGHT = 480, 270
_RIGHT, _TOP, _BOTTOM = 24, 14, 46  # of a plot, for its axes; what is left depends on the numbers there
_LETTER = 7.5  # width of a digit
_DASHES = ("", "7 4", "2 4", "10 3 2 3")  # lines differ by more than their colour
_COLOURS = 5  # as many as the style sheet has


def line_plot(
    series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str, caption: str = ""
) -> Html:
    """Lines through points, with axes.

    Args:
        series: points (x, y) for each line, by its name; points that are not finite are left out.
        x_label, y_label: of the axes, with their units.
        caption: below.

    Raises:
        ValueError: there is no point.
    """
    lines = {
        name: [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        for name, points in series.items()
    }
    everything = [point for points in lines.values() for point in points]
    if not everything:
        raise ValueError("a plot needs at least one finite point")
    x_ticks, y_ticks = (ticks(min(values), max(values)) for values in zip(*everything, strict=True))
    x_labels, y_labels = tick_labels(x_ticks), tick_labels(y_ticks)
    left = round(36 + _LETTER * max(map(len, y_labels)))
    width, height = PLOT_WIDTH - left - _RIGHT, PLOT_HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(left + width * across, 1), round(_TOP + height * (1 - up), 1)

    parts = []
    for tick, text in zip(y_ticks, y_labels, strict=True):
        y = place(x_ticks[0], tick)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{PLOT_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{left - 8}" y="{y}" dy="0.35em" text-anchor="end">{escape(text)}</text>')
    base = PLOT_HEIGHT - _BOTTOM
    for tick, text in zip(x_ticks, x_labels, strict=True):
        x = place(tick, y_ticks[0])[0]
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{base}" y2="{base + 4}"/>')
        parts.append(f'<text x="{x}" y="{base + 17}" text-anchor="middle">{escape(text)}</text>')
    parts.append(f'<line class="axis" x1="{left}" x2="{PLOT_WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>')
    middle = (left + width / 2, _TOP + height / 2)
    parts.append(
        f'<text x="{middle[0]}" y="{PLOT_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(13 {middle[1]}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    for i, points in enumerate(lines.values()):
        at = [place(*point) for point in points]
        if len(at) == 1:  # a line through one point is not seen
            parts.append(f'<circle class="line {_stroke(i)}" cx="{at[0][0]}" cy="{at[0][1]}" r="3"/>')
            continue
        path = " ".join(f"{x},{y}" for x, y in at)
        parts.append(f'<polyline class="line {_stroke(i)}"{_dash(i)} points="{path}"/>')
    label = f"{y_label} over {x_label}: {', '.join(lines)}"
    drawn = (
        f'<svg viewBox="0 0 {PLOT_WIDTH} {PLOT_HEIGHT}" role="img" aria-label="{escape(label)}">\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
    legend = ""
    if len(lines) > 1:
        entries = "".join(
            f'<li><svg viewBox="0 0 26 8" aria-hidden="true"><line class="line {_stroke(i)}"{_dash(i)} '
            f'x1="1" x2="25" y1="4" y2="4"/></svg>{escape(name)}</li>'
            for i, name in enumerate(lines)
        )
        legend = f'<ul class="legend">{entries}</ul>\n'
    return framed(Html(legend + drawn), caption, "plot")


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers, evenly spaced, from at or below ``low`` to at or above ``high``; two or more."""
    if high <= low:  # one value: around it, by something of its own size
        half = abs(low) / 2 or 1.0
        low, high = low - half, high + half
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * s for s in (1, 2, 2.5, 5, 10, 20) if power * s >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Numbers of an axis in as many places as their spacing needs."""
    step, largest = abs(values[1] - values[0]), max(map(abs, values))
    if largest >= 1e6 or step < 1e-4:
        return [f"{value:.3g}" for value in values]
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    places += round(step * 10**places, 6) % 1 != 0  # steps of 2.5
    return [f"{value:,.{places}f}" for value in values]


def _stroke(i: int) -> str:
    return f"s{i % _COLOURS}"


def _dash(i: int) -> str:
    pattern = _DASHES[i % len(_DASHES)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""
