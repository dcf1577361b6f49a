"""A report as one HTML file that needs nothing else: pictures and styles are inside, and nothing is fetched.

    loss = plot.line_plot({"loss": points}, "step", "loss")
    text = page("Title", [paragraph("What this is."), section("Results", loss)])

Functions take plain text, which they escape, or ``Html``, which others of them made.
"""

import base64
import shlex
from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Any, NewType
from urllib.parse import quote

import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from attrjax.data.pictures import png_bytes

Html = NewType("Html", str)  # what is markup already; a type of its own, so that a type checker sees a mix-up
Picture = UInt8[np.ndarray, "h w 3"] | Image.Image

# A browser that reads this refuses whatever would come from elsewhere.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fff; --ink: #22242a; --faint: #676b76; --line: #e3e4e8; --panel: #f5f5f7; --accent: #0b7285;
  --c0: #0b7285; --c1: #d9480f; --c2: #6741d9; --c3: #2b8a3e; --c4: #c2255c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16181d; --ink: #e6e7ea; --faint: #9a9ea9; --line: #31343c; --panel: #1f2229; --accent: #66d9e8;
    --c0: #3bc9db; --c1: #ff922b; --c2: #b197fc; --c3: #69db7c; --c4: #f783ac;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 68rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
h1 { font-size: clamp(1.6rem, 5vw, 2.2rem); line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 1rem; }
h2 { font-size: 1.3rem; letter-spacing: -0.01em; margin: 3rem 0 0.75rem; }
a { color: var(--accent); }
h3 { font-size: 1.05rem; margin: 2rem 0 0.5rem; }
p { max-width: 44rem; margin: 0 0 1rem; }
figure { margin: 1.25rem 0; }
figcaption, caption { color: var(--faint); font-size: 0.9rem; line-height: 1.45; }
figcaption { margin-top: 0.6rem; max-width: 44rem; }
img { display: block; max-width: 100%; height: auto; border-radius: 6px; }
.scroll { overflow-x: auto; margin: 1.25rem 0; container-type: inline-size; }
.scroll:focus-visible, button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; }
caption { caption-side: top; text-align: left; padding: 0 0 0.6rem; }
caption span { position: sticky; left: 0; display: inline-block; max-width: min(44rem, 100cqi); }
.plain th, .plain td { padding: 0.4rem 1.25rem 0.4rem 0; border-bottom: 1px solid var(--line); }
.plain th { font-weight: 600; text-align: left; vertical-align: top; }
.plain thead th, .plain tbody th { color: var(--faint); font-weight: 500; }
.plain td { overflow-wrap: anywhere; }
.plain .number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.pictures th { font-weight: 500; font-size: 0.85rem; line-height: 1.25; }
.pictures thead th { color: var(--faint); padding: 0 3px 0.4rem; vertical-align: bottom; }
.pictures tbody th {
  position: sticky; left: 0; z-index: 1; min-width: 4.5rem; max-width: 10rem; padding: 0 0.75rem 0 0;
  text-align: right; background: var(--paper);
}
.pictures td { padding: 3px; }
.pictures img { width: var(--cell); max-width: none; }
.pictures .marked img { outline: 2px solid var(--accent); outline-offset: 1px; }
.plot svg { display: block; width: 100%; max-width: 38rem; height: auto; font-size: 13px; }
.plot text { fill: var(--faint); }
.plot .grid { stroke: var(--line); }
.plot .axis { stroke: var(--faint); }
.plot .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.s0 { stroke: var(--c0); } .s1 { stroke: var(--c1); } .s2 { stroke: var(--c2); } .s3 { stroke: var(--c3); }
.s4 { stroke: var(--c4); }
.legend {
  display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; list-style: none; margin: 0 0 0.5rem; padding: 0;
}
.legend li { display: flex; align-items: center; gap: 0.5rem; font-size: 0.9rem; }
.legend svg { width: 26px; height: 8px; flex: none; }
summary { cursor: pointer; color: var(--accent); margin: 1.25rem 0 0; }
.code { position: relative; margin: 1.25rem 0; }
pre {
  margin: 0; padding: 0.9rem 1rem; overflow-x: auto; border-radius: 8px; background: var(--panel);
  border: 1px solid var(--line); white-space: pre-wrap; overflow-wrap: anywhere;
  font: 0.875rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}
button {
  position: absolute; top: 0.5rem; right: 0.5rem; padding: 0.2rem 0.7rem; border: 1px solid var(--line);
  border-radius: 6px; background: var(--paper); color: var(--ink); font: inherit; font-size: 0.8rem;
  cursor: pointer;
}
footer {
  margin-top: 4rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--faint);
  font-size: 0.85rem;
}
@media (max-width: 40rem) {
  .pictures img { width: calc(0.7 * var(--cell)); }
  pre { padding-top: 2.6rem; }
}
@media print { button { display: none; } .scroll { overflow: visible; } }
"""

# Where scripts are off there are no buttons, and the code can still be selected.
_SCRIPT = """
for (const button of document.querySelectorAll(".code button")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const code = button.parentElement.querySelector("code");
    const done = () => {
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    };
    const select = () => getSelection().selectAllChildren(code);
    if (navigator.clipboard) navigator.clipboard.writeText(code.textContent).then(done, select);
    else select();
  });
}
"""


def page(title: str, blocks: Sequence[Html], footer: str = "") -> Html:
    """A whole page.

    Args:
        title: its heading, and the name of its tab.
        blocks: what is on it, from top to bottom.
        footer: a line below all.
    """
    below = f"<footer>{escape(footer)}</footer>\n" if footer else ""
    return Html(
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{join(blocks)}</main>\n{below}<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def section(title: str, *blocks: Html) -> Html:
    """Blocks under a heading."""
    return Html(f"<section>\n<h2>{escape(title)}</h2>\n{join(blocks)}</section>\n")


def heading(title: str) -> Html:
    """A heading inside a section."""
    return Html(f"<h3>{escape(title)}</h3>\n")


def paragraph(text: str) -> Html:
    """Running text."""
    return Html(f"<p>{escape(text)}</p>\n")


def join(blocks: Sequence[Html]) -> Html:
    """Blocks, one after the other."""
    return Html("".join(blocks))


def links(targets: Mapping[str, str]) -> Html:
    """Other pages by their names, as a list: {name: path from here}."""
    items = "".join(
        f'<li><a href="{escape(quote(path))}">{escape(name)}</a></li>\n' for name, path in targets.items()
    )
    return Html(f"<ul>\n{items}</ul>\n")


def code_block(text: str) -> Html:
    """Text to be copied, such as a command, with a button that does it."""
    return Html(
        f'<div class="code"><button type="button" hidden>Copy</button>'
        f'<pre tabindex="0"><code>{escape(text)}</code></pre></div>\n'
    )


def folded(summary: str, *content: Html) -> Html:
    """Content that is shown when its summary is clicked, such as what is long and seldom read."""
    return Html(f"<details>\n<summary>{escape(summary)}</summary>\n{''.join(content)}</details>\n")


def command(config_file: str, workdir: str, config: Mapping[str, Any], python: str = "python") -> str:
    """The command that makes a run again, a flag to a line.

    It names all keys of the config, not those alone that a user set: their defaults may be others by the time
    that someone reads it.
    """
    values = {"config": config_file, "workdir": workdir}
    flat = flatten_dict(ConfigDict(config).to_dict(), sep=".")
    values |= {f"config.{key}": _flag_value(flat[key]) for key in sorted(flat) if key != "task"}
    flags = [f"--{name}={shlex.quote(value)}" for name, value in values.items()]
    return " \\\n    ".join([f"{python} -m attrjax.main", *flags])


def picture_html(picture: Picture, alt: str) -> Html:
    """A picture, inside the page.

    Args:
        picture: pixels.
        alt: what it shows, for who does not see it.
    """
    height, width = picture.shape[:2] if isinstance(picture, np.ndarray) else picture.size[::-1]
    data = base64.b64encode(png_bytes(picture)).decode()
    return Html(
        f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" width="{width}" height="{height}">'
    )


def figure(picture: Picture, alt: str, caption: str = "") -> Html:
    """A picture by itself, with a caption below."""
    return framed(picture_html(picture, alt), caption)


def picture_table(
    pictures: Sequence[Sequence[Picture]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    caption: str,
    alts: Sequence[Sequence[str]] | None = None,
    marked: Collection[tuple[int, int]] = (),
    cell: int = 96,
) -> Html:
    """Pictures in rows and columns with labels; where it is wider than the screen it scrolls under them.

    Args:
        pictures: [row][column].
        rows, columns: labels.
        caption: above the table.
        alts: [row][column], what each picture shows; its labels where absent.
        marked: places (row, column) with a line around the picture; the caption should say why.
        cell: width of a picture on the screen.

    Raises:
        ValueError: the labels do not fit the pictures.
    """
    if len(rows) != len(pictures) or any(len(row) != len(columns) for row in pictures):
        shape = [len(row) for row in pictures]
        raise ValueError(f"{len(rows)} row and {len(columns)} column labels for {shape} pictures")

    def cell_html(r: int, c: int) -> str:
        alt = alts[r][c] if alts else f"{rows[r]}, {columns[c]}"
        kind = ' class="marked"' if (r, c) in marked else ""
        return f"<td{kind}>{picture_html(pictures[r][c], alt)}</td>"

    head = "".join(f'<th scope="col">{escape(label)}</th>' for label in columns)
    body = ""
    for r, label in enumerate(rows):
        cells = "".join(cell_html(r, c) for c in range(len(columns)))
        body += f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>\n'
    return _table(
        f"<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n{body}</tbody>",
        caption,
        f'class="pictures" style="--cell: {cell}px"',
    )


def facts_table(facts: Mapping[str, Any], caption: str) -> Html:
    """Names and their values, a row each."""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(shown(value))}</td></tr>\n'
        for name, value in facts.items()
    )
    return _table(f"<tbody>\n{rows}</tbody>", caption, 'class="plain"')


def data_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str) -> Html:
    """A table with a heading above each column; a row's first entry is its name. Numbers stand to the
    right, and "" may be among them.

    Raises:
        ValueError: a row does not have as many entries as there are columns.
    """
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"rows of {[len(row) for row in rows]} entries for {len(columns)} columns")
    numeric = [
        bool(rows) and all(row[i] == "" or _is_number(row[i]) for row in rows) for i in range(len(columns))
    ]
    kinds = [' class="number"' if right else "" for right in numeric]
    head = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(columns, kinds, strict=True)
    )
    body = ""
    for first, *others in rows:
        cells = "".join(
            f"<td{kind}>{escape(shown(value))}</td>" for value, kind in zip(others, kinds[1:], strict=True)
        )
        body += f'<tr><th scope="row">{escape(shown(first))}</th>{cells}</tr>\n'
    return _table(f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>", caption, 'class="plain"')


def shown(value: Any) -> str:
    """A value as a reader likes to see it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    return str(value)


def _flag_value(value: Any) -> str:
    """A value as the command line reads it, with the quotes that need no others in a shell."""
    text = str(value)
    return text if isinstance(value, str) or '"' in text else text.replace("'", '"')


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def framed(content: Html, caption: str, kind: str = "") -> Html:
    """Content with a caption below; ``kind`` is a class of the style sheet."""
    below = f"<figcaption>{escape(caption)}</figcaption>\n" if caption else ""
    opening = f'<figure class="{kind}">' if kind else "<figure>"
    return Html(f"{opening}\n{content}\n{below}</figure>\n")


def _table(content: str, caption: str, attributes: str) -> Html:
    """A table that scrolls sideways where it has to, also with the keys."""
    return Html(
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0">\n'
        f"<table {attributes}>\n<caption><span>{escape(caption)}</span></caption>\n"
        f"{content}\n</table>\n</div>\n"
    )
