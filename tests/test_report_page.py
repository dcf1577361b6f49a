"""The report page: one file, well formed, that says what it was given and fetches nothing."""

import re
import shlex
from html.parser import HTMLParser

import numpy as np
import pytest
from ml_collections import ConfigDict

from attrjax.report import page, plot
from attrjax.report.tiles import Section, tile_sheet

NASTY = """<script>alert("1")</script> & 'it' </table>"""
EMPTY = {"meta", "img", "link", "br", "hr"}
GREY = np.full((8, 6, 3), 90, np.uint8)


class Reader(HTMLParser):
    """Reads a page; tags that are not closed in the order in which they were opened are an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(attrs) == len(dict(attrs)), f"{tag} has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def text():
    """Everything that there is, with text that would break the page if it were markup."""
    points = [(0, 1.0), (10, 0.5), (20, float("nan")), (30, 0.25)]
    return page.page(
        NASTY,
        [
            page.paragraph(NASTY),
            page.section(
                NASTY,
                page.heading(NASTY),
                page.figure(GREY, NASTY, NASTY),
                page.picture_table([[GREY, GREY]], [NASTY], [NASTY, "b"], caption=NASTY, marked=[(0, 1)]),
                page.facts_table({NASTY: NASTY, "steps": 20, "on": True}, NASTY),
                page.data_table((NASTY, "n"), [(NASTY, 1234567), ("b", "")], NASTY),
                plot.line_plot({NASTY: points, "b": [(5, 0.7)]}, NASTY, NASTY, NASTY),
                page.code_block(NASTY),
            ),
        ],
        footer=NASTY,
    )


@pytest.fixture(scope="module")
def read(text):
    return Reader(text)


def test_all_text_is_escaped(text, read):
    assert "alert" in text and "<script>alert" not in text and 'alert("' not in text
    assert [s for s in read.text if s == NASTY].count(NASTY) == 21
    assert len(read.all("script")) == 1 and len(read.all("table")) == 3


def test_nothing_is_fetched(text, read):
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    for tag, attributes in read.tags:
        assert tag not in ("link", "iframe", "object", "base")
        for name in ("src", "href", "srcset", "data", "action", "xlink:href"):
            assert attributes.get(name, "data:").startswith("data:")
    policy = next(meta for meta in read.all("meta") if "http-equiv" in meta)
    assert "default-src 'none'" in policy["content"]


def test_every_picture_says_what_it_shows(read):
    pictures = read.all("img")
    assert len(pictures) == 3 and all(picture["alt"] for picture in pictures)
    assert pictures[0]["alt"] == NASTY and (pictures[0]["width"], pictures[0]["height"]) == ("6", "8")
    assert pictures[1]["alt"] == f"{NASTY}, {NASTY}"
    assert all("aria-label" in svg or svg.get("aria-hidden") == "true" for svg in read.all("svg"))


def test_tables_have_captions_and_headings(read):
    assert len(read.all("caption")) == 3
    assert {heading["scope"] for heading in read.all("th")} == {"row", "col"}
    assert [cell["class"] for cell in read.all("td") if "class" in cell] == ["marked", "number", "number"]
    assert "1,234,567" in read.text and "yes" in read.text


def test_headings_go_down_one_by_one(read):
    assert [tag for tag, _ in read.tags if re.fullmatch("h[1-6]", tag)] == ["h1", "h2", "h3"]


def test_a_plot_leaves_out_what_is_not_finite(read):
    (line,) = read.all("polyline")
    assert len(line["points"].split()) == 3
    assert len(read.all("circle")) == 1
    for x, y in (pair.split(",") for pair in line["points"].split()):
        assert 0 < float(x) < plot.PLOT_WIDTH and 0 < float(y) < plot.PLOT_HEIGHT
    with pytest.raises(ValueError, match="finite point"):
        plot.line_plot({"a": [(0, float("inf"))]}, "x", "y")


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.25, 1), (-3, 17), (0, 5000), (1e-6, 3e-6), (4, 4), (0, 0), (1e6, 9e6)]
)
def test_ticks_hold_the_values_and_differ(low, high):
    values = plot.ticks(low, high)
    assert values[0] <= low and values[-1] >= high and 2 <= len(values) <= 8
    labels = plot.tick_labels(values)
    assert len(set(labels)) == len(labels)
    np.testing.assert_allclose([float(label.replace(",", "")) for label in labels], values, rtol=1e-2, atol=0)


def test_the_command_says_all_that_the_config_says():
    config = {"task": "x", "names": ("a", "it's"), "base": "", "steps": 20, "words": ("b", "c")}
    text = page.command("configs/x.py", "runs/my run", config, ".venv/bin/python")
    assert shlex.split(text.replace("\\\n", " ")) == [
        *(".venv/bin/python", "-m", "attrjax.main", "--config=configs/x.py", "--workdir=runs/my run"),
        *("--config.base=", """--config.names=('a', "it's")""", "--config.steps=20"),
        '--config.words=("b", "c")',
    ]


def test_labels_must_fit():
    with pytest.raises(ValueError, match="1 row and 1 column labels"):
        page.picture_table([[GREY, GREY]], ["a"], ["b"], caption="")
    with pytest.raises(ValueError, match="2 columns"):
        page.data_table(("a", "b"), [("c",)], "")


def test_tiles_keep_their_pictures_and_their_order():
    pictures = [np.full((32, 40, 3), (200, 20 * i, 0), np.uint8) for i in range(5)]
    sections = [Section("Three", pictures[:3], ["a", "b", "a much longer label"]), Section("", pictures[3:])]
    sheet = np.asarray(tile_sheet(sections, 2, title="All", corner=0))
    places = [np.argwhere((sheet == picture[0, 0]).all(-1)) for picture in pictures]
    corners = [tuple(place.min(0)) for place in places]
    assert all(len(place) >= 32 * 40 for place in places)
    assert corners == sorted(corners) and corners[0][0] == corners[1][0] < corners[2][0] < corners[3][0]
    bare = tile_sheet([Section("", pictures)], 5, gap=0, margin=0, corner=0)
    assert np.array_equal(np.asarray(bare), np.concatenate(pictures, axis=1))


@pytest.mark.parametrize(
    ("sections", "columns", "message"),
    [
        ([Section("a", [GREY], ["b", "c"])], 2, "'a' has 2 labels for 1 pictures"),
        ([Section("a", [])], 2, "one size"),
        ([Section("a", [GREY])], 0, "columns=0"),
        ([Section("a", [GREY, GREY[:4]])], 2, "one size"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(sections, columns, message):
    with pytest.raises(ValueError, match=message):
        tile_sheet(sections, columns)


def test_a_command_names_keys_of_configs_within_the_config_as_flags():
    config = ConfigDict({"task": "x", "steps": 3, "probe": {"every": 5, "prompts": ("a {}",)}})
    lines = page.command("configs/x.py", "runs/x", config).splitlines()
    assert any(line.strip().startswith("--config.probe.every=5") for line in lines)
    assert any("--config.probe.prompts=" in line and '"a {}"' in line for line in lines)
    assert not any("--config.probe=" in line or "task" in line for line in lines)
