"""The reproduction report: marks, differences, both file forms."""

import dataclasses
import html.parser
import itertools
import math
import re
from pathlib import Path

import matplotlib
import pytest
from markdown_it import MarkdownIt
from matplotlib.text import Annotation

from aa_flax.consistency import Estimate
from aa_flax.weights import catalog
from train.page.content import Cell, Figure, Page, Section, Table, plain
from train.page.drawing import STYLE, Drawn
from train.page.forms import to_html, to_markdown, write_page
from train.page.numbers import front
from train.reproduce import report, tables
from train.reproduce.report import Conditions
from train.reproduce.rows import Measured, Row, TimmRow, published_rows, timm_rows

# What the reference's own tables set in bold type (on the front), by network; all other rows of
# these tables are in italics. Their rows: the plain network and filters 2 to 5, from scratch.
REFERENCE_FRONT = {
    "alexnet": {"Rect-2", "Tri-3", "Tri-4"},
    "vgg16": {"Tri-4", "Bin-5"},
    "vgg16_bn": {"Tri-4", "Bin-5"},
    "resnet18": {"Tri-3", "Tri-4", "Bin-5"},
    "resnet34": {"Rect-2", "Tri-4"},
    "resnet50": {"Tri-4", "Bin-5"},
    "resnet101": {"Tri-4"},
    "densenet121": {"Tri-4", "Bin-5"},
    "mobilenet_v2": {"Tri-4", "Bin-5"},
}
# The best of each column there: accuracy, consistency.
REFERENCE_BEST = {
    "alexnet": ("57.24", "82.54"),
    "vgg16": ("72.43", "90.19"),
    "vgg16_bn": ("74.12", "91.35"),
    "resnet18": ("71.69", "88.25"),
    "resnet34": ("74.46", "89.53"),
    "resnet50": ("77.23", "91.31"),
    "resnet101": ("78.22", "91.85"),
    "densenet121": ("75.29", "90.39"),
    "mobilenet_v2": ("72.72", "87.79"),
}


def measured(top1: float, consistency: float, **changes) -> Measured:
    values = {
        "identity": {},
        "images": 250,
        "unreadable": 0,
        "timing": {},
        "top1": Estimate(top1, 0.5),
        "top5": Estimate(90.0, 0.4),
        "consistency": Estimate(consistency, 0.3),
        "milliseconds": 2.0,
        "weights": "resnet18.pth",
        "published": True,
    }
    return Measured(**{**values, **changes})


def with_measured(rows, model="resnet18", **changes):
    return [
        dataclasses.replace(e, measured=measured(e.top1 + 0.2, e.consistency - 0.7, **changes))
        if e.model == model and e.training != "finetuned"
        else e
        for e in rows
    ]


CONDITIONS = Conditions(
    data="photos/val",
    images=250,
    fingerprint="0123456789abcdef" * 4,
    protocol="five pairs of crops",
    device="one CPU",
    timing="Median of ten.",
)


@pytest.fixture(scope="module")
def published():
    return published_rows()


def test_published_rows_are_complete(published):
    trainings = [row.training for row in published]
    assert len(published) == 82
    assert [trainings.count(t) for t in ("torchvision", "scratch", "finetuned")] == [23, 36, 23]
    assert len({(e.spec, e.training) for e in published}) == 82


def test_front_equals_the_reference(published):
    families = report.families(published)
    assert set(families) == set(REFERENCE_FRONT)
    for model, rows in families.items():
        table = tables.comparison(model, "Filter", [(r.filter_name, r) for r in rows])
        assert [row[0].text for row in table.rows] == ["Baseline", "Rect-2", "Tri-3", "Tri-4", "Bin-5"]
        bold = {row[0].text for row in table.rows if row[0].bold}
        assert bold == REFERENCE_FRONT[model], model
        for name, accuracy, consistency in table.rows:
            assert name.italic == accuracy.italic == consistency.italic == (name.text not in bold), model
        best = tuple(next(row[c].text for row in table.rows if row[c].bold) for c in (1, 2))
        assert best == REFERENCE_BEST[model]
        assert sum(cell.bold for row in table.rows for cell in row[1:]) == 2


def test_front_by_its_definition():
    values = [(x, y) for x, y in itertools.product(range(4), repeat=2)]
    for points in itertools.combinations_with_replacement(values, 3):
        for point, ahead in zip(points, front(points), strict=True):
            beaten = any(a >= point[0] and b >= point[1] and (a > point[0] or b > point[1]) for a, b in points)
            assert ahead == (not beaten), points


def test_equal_rows_are_both_on_the_front():
    assert front([(1.0, 2.0), (1.0, 2.0), (1.0, 1.0)]) == [True, True, False]


@pytest.mark.parametrize(
    ("value", "stderr", "expected"),
    [
        (70.5, 0.5, "+0.50 within"),
        (69.5, 0.5, "\u22120.50 within"),
        (70.0, 0.0, "+0.00 within"),
        (69.999, 0.5, "+0.00 within"),
        (71.0, 0.4, "+1.00 beyond (2.5\u00d7)"),
        (70.1, 0.0, "+0.10 beyond"),
        (70.1, math.nan, "+0.10 ?"),
    ],
)
def test_verdict(value, stderr, expected):
    assert tables.verdict(Estimate(value, stderr), 70.0)[0] == expected


def test_measured_numbers_have_marks_of_their_own(published):
    rows = report.families(with_measured(published))["resnet18"]
    rows[0] = dataclasses.replace(rows[0], measured=measured(99.0, 99.0))
    rows[1] = dataclasses.replace(rows[1], measured=None)
    table = tables.comparison("resnet18", "Filter", [(r.filter_name, r) for r in rows])
    baseline, unmeasured, tri3 = table.rows[:3]
    # Published: off the front. Measured: it alone is on it, and the best of both columns.
    assert baseline[0].italic
    assert baseline[1].italic
    assert baseline[2].bold
    assert not baseline[2].italic
    assert baseline[5].bold
    assert [cell.text for cell in unmeasured[2:4]] == ["\u2013", "\u2013"]
    assert tri3[2].italic
    assert tri3[2].text == "71.89 \u00b1 0.50"
    assert tri3[3].text == "+0.20 within"
    assert tri3[6].text == "\u22120.70 beyond (2.3\u00d7)"


def test_weights_that_were_not_published_are_marked(published):
    page = report.build(with_measured(published, published=False), conditions=CONDITIONS)
    text = to_markdown(page)
    assert "71.69 \u00b1 0.50 \u2020" not in text
    assert "71.89 \u00b1 0.50 \u2020" in text
    assert "resnet18.pth\u00a0\u2020" in text
    assert "\u2020" not in to_markdown(report.build(published))


def test_cost_compares_with_the_plain_network(published):
    rows = with_measured(published)
    plain_row = next(e for e in rows if e.spec == "resnet18_plain")
    index = rows.index(plain_row)
    rows[index] = dataclasses.replace(plain_row, measured=measured(69.0, 85.0, milliseconds=1.0))
    table = tables.costs(rows)
    texts = {row[0].text: [cell.text for cell in row[2:]] for row in table.rows}
    assert texts["resnet18_plain"] == ["1.00", "", "", ""]
    assert texts["resnet18_lpf2"] == ["2.00", "2.00\u00d7", "+2.59", "+1.20"]


def test_networks_without_a_time_are_left_out_of_the_cost(published):
    rows = with_measured(published, milliseconds=None)
    assert tables.costs(rows).rows == ()
    assert "Nothing was timed." in to_markdown(report.build(rows, conditions=CONDITIONS))


def test_gains_equal_the_reference(published):
    rows = {r[0].text: [c.text for c in r[1:]] for r in tables.gains("", report.plain_and_finetuned(published)).rows}
    assert len(rows) == 23
    assert rows["vgg11_bn"] == ["70.38", "72.63", "+2.25", "87.16", "90.67", "+3.51"]
    assert rows["resnext101_32x8d"] == ["79.31", "79.33", "+0.02", "91.33", "92.67", "+1.34"]


# timm's networks.


def with_place(row: TimmRow, top1: float | None, consistency: float, **changes) -> TimmRow:
    found = measured(top1 or 0, consistency, **changes)
    if top1 is None:
        found = dataclasses.replace(found, top1=None, top5=None)
    return dataclasses.replace(row, measured=found)


def timm_row(name: str, crop: int) -> TimmRow:
    return next(row for row in timm_rows() if (row.name, row.preprocessing.crop) == (name, crop))


def test_timm_s_networks_are_published_at_both_sizes():
    rows = timm_rows()
    assert {row.name for row in rows} == {entry.name for entry in catalog.published() if entry.repository}
    assert len({row.name for row in rows}) >= 14
    assert len({row.stem for row in rows}) == len(rows)
    assert not any("tresnet" in row.name for row in rows)
    smaller, larger = timm_row("resnetaa50.a1h_in1k", 224), timm_row("resnetaa50.a1h_in1k", 288)
    assert (smaller.top1, smaller.top5, smaller.preprocessing.resize) == (80.614, 95.212, 235)
    assert (larger.top1, larger.top5, larger.preprocessing.resize) == (81.618, 95.794, 288)
    assert larger.title == "resnetaa50.a1h_in1k at 288"
    table = tables.timm("", rows)
    assert table.columns == ("Network", "Pixels", "Top-1", "Top-5")
    lines = {(line[0].text, line[1].text): line for line in table.rows}
    best = lines["seresnextaa201d_32x8d.sw_in12k_ft_in1k_384", "384\u00a0of\u00a0384"]
    assert [(cell.text, cell.bold) for cell in best[2:]] == [("87.30", True), ("98.33", True)]
    assert sum(cell.bold for line in table.rows for cell in line) == 2
    other = lines["resnetaa50d.d_in12k", "224\u00a0of\u00a0235"]
    assert [(cell.text, cell.spoken) for cell in other[2:]] == [("\u2013", "not published")] * 2


def test_the_frame_of_shifts_grows_with_the_crop():
    """As 256 pixels around 224; never what the preparation for accuracy leaves, which may be nothing."""
    frames = {row.preprocessing.crop: row.frame.resize for row in timm_rows()}
    known = {224: 256, 288: 329, 320: 366, 384: 439}
    assert {crop: frames[crop] for crop in known} == known
    row = timm_row("resnetaa50.a1h_in1k", 288)
    assert row.frame == dataclasses.replace(row.preprocessing, resize=329)


def test_marks_of_timm_s_measured_networks():
    best = with_place(timm_row("resnetaa50.a1h_in1k", 288), 81.4, 91.0)
    beaten = with_place(timm_row("resnetaa50.a1h_in1k", 224), 80.0, 90.0, published=False)
    steady = with_place(timm_row("resnetblur50.bt_in1k", 224), 79.3, 92.0, top5=Estimate(95.0, 0.4))
    other = with_place(timm_row("resnetaa50d.d_in12k", 224), None, 95.0)
    table = tables.timm("", [best, beaten, steady, other, timm_row("resnetblur50.bt_in1k", 288)])
    lines = [[cell.text for cell in line] for line in table.rows]
    dash, dagger = "\u2013", tables.OTHER_WEIGHTS
    assert table.columns[2:5] == ("Consistency, measured", "Top-1, published", "Top-1, measured")
    assert lines[0][2:6] == ["91.00 \u00b1 0.30", "81.62", "81.40 \u00b1 0.50", "\u22120.22 within"]
    assert lines[0][6:] == ["95.79", "90.00 \u00b1 0.40", "\u22125.79 beyond (14.5\u00d7)"]
    assert lines[1][2:5] == [f"90.00 \u00b1 0.30 {dagger}", "80.61", f"80.00 \u00b1 0.50 {dagger}"]
    assert lines[3][2:] == ["95.00 \u00b1 0.30", *[dash] * 6]
    assert lines[4][2:] == [dash, "80.25", dash, dash, "95.20", dash, dash]
    assert [table.rows[3][4].spoken, table.rows[4][2].spoken] == [tables.OTHER_CLASSES.spoken, "not measured"]
    # On the front, off it, on it, and two that have no place in the plane.
    names = [line[0] for line in table.rows]
    assert [(name.bold, name.italic) for name in names] == [(1, 0), (0, 1), (1, 0), (0, 0), (0, 0)]
    assert [line[4].bold for line in table.rows] == [True, False, False, False, False]
    assert [line[2].bold for line in table.rows] == [False, False, True, False, False]
    assert [line[2].italic for line in table.rows] == [False, True, False, False, False]
    assert table.rows[2][7].bold


def test_the_report_of_timm_s_networks(published):
    rows = [with_place(timm_row("resnetaa50d.d_in12k", 224), None, 95.0), timm_row("resnetaa50.a1h_in1k", 224)]
    text = to_markdown(report.build(published, rows, conditions=CONDITIONS))
    assert "23 networks in 82 rows. Then 2 anti-aliased networks of timm at 2 sizes." in text
    assert "1 of the 84 rows were measured" in text
    assert "## timm's networks" in text
    assert "| resnetaa50d | d\\_in12k at 224 | \u2013 | \u2013 | 95.00" in text
    assert "timm" not in to_markdown(report.build(published))


class Reader(html.parser.HTMLParser):
    """Collects what a page holds, and checks that its tags close in order."""

    VOID = ("meta", "link", "br", "img")

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.ids, self.attributes, self.words = [], [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def published_html(published):
    return to_html(report.build(published))


def test_html_is_whole_and_fetches_nothing(published_html):
    page = Reader(published_html)
    assert len(page.ids) == len(set(page.ids))
    assert "script" not in page.tags
    assert "img" not in page.tags
    # 9 scatter plots, the overview, two bar charts.
    assert page.tags.count("svg") == 12
    targets = [value for name, value in page.attributes if name in ("href", "src", "xlink:href")]
    assert {target[0] for target in targets if not target.startswith("data:")} == {"#"}
    inside = set(page.ids)
    assert all(target[1:] in inside for target in targets if target.startswith("#"))
    assert set(re.findall(r"url\((.)", published_html)) <= {"#"}
    assert "@import" not in published_html


def test_html_speaks_to_screen_readers(published_html):
    page = Reader(published_html)
    attributes = [name for name, _ in page.attributes]
    assert page.tags.count("caption") == page.tags.count("table")
    assert (
        page.attributes.count(("role", "img"))
        == page.tags.count("svg")
        == attributes.count("aria-label") - (page.tags.count("table") + page.tags.count("nav"))
    )
    assert page.attributes.count(("scope", "row")) == sum(map(len, report.families(published_rows()).values())) + 23
    assert ", off the Pareto front" in page.words
    assert ", on the Pareto front" in page.words
    assert ("lang", "en") in page.attributes


def test_figures_follow_the_page(published_html):
    svgs = re.findall(r"<svg.*?</svg>", published_html, re.DOTALL)
    for svg in svgs:
        fixed = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]+)", svg))
        assert not fixed, fixed
        assert "var(--ink)" in svg


def test_every_published_number_is_in_both_forms(published, published_html):
    text = to_markdown(report.build(published))
    words = " ".join(Reader(published_html).words)
    for row in published:
        for number in (f"{row.top1:.2f}", f"{row.consistency:.2f}"):
            assert number in text, (row.spec, number)
            assert number in words, (row.spec, number)


def test_markdown_is_in_the_form_of_the_paper(published):
    text = to_markdown(report.build(published))
    assert "| *Baseline* | *56.55* | *78.18* |" in text
    assert "| **Rect-2** | **57.24** | 81.33 |" in text
    assert "| **Tri-4** | 56.72 | **82.54** |" in text
    assert "| *Bin-5* | *56.58* | *82.51* |" in text


def test_strange_names_stay_text(published):
    name = "a|b<script>alert(1)</script>*`_$&"
    conditions = dataclasses.replace(CONDITIONS, data=name, device=name)
    rows = with_measured(published, weights=name)
    page = report.build(rows, conditions=conditions, missing=[(name, name)])
    read = Reader(to_html(page))
    assert "script" not in read.tags
    assert "".join(read.words).count(name) >= 2 + 5 + 2
    for line in to_markdown(page).splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (4, 8, 7, 3, 6), line


def test_rows_must_fit_the_heading():
    with pytest.raises(ValueError, match="row 0 has 1 cells, the heading has 2"):
        Table(caption="c", columns=("a", "b"), rows=((Cell(text="1"),),))


STRANGE = ["a*b_c", "`x`", r"back\slash", "<b>", "[x](y)", "**bold**", "a|b", "&lt;", "~~x~~", "a\\"]


@pytest.mark.parametrize("text", STRANGE)
def test_plain_text_survives_both_forms(text):
    page = Page(title="t", lead=(f"before {plain(text)} *after*",), sections=())
    github = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for document in (to_html(page), github.render(to_markdown(page))):
        read = Reader(document)
        assert f"before {text} after" in "".join(read.words)
        assert "em" in read.tags
        assert not {"strong", "code", "s", "b"} & set(read.tags)


def test_equal_headings_get_different_anchors():
    sections = tuple(Section(title="Same", blocks=("x",)) for _ in range(3))
    read = Reader(to_html(Page(title="t", lead=(), sections=sections)))
    assert read.ids == ["same", "same-2", "same-3"]


class Dot:
    def svg(self) -> str:
        return "<svg ></svg>"

    def png(self) -> bytes:
        return b"png"


def test_names_in_pictures_do_not_meet(published):
    rows = with_measured(published, "resnet34")
    for figure in report.build(rows, conditions=CONDITIONS).figures():
        assert isinstance(figure.picture, Drawn)
        with matplotlib.rc_context(STYLE):
            drawing = figure.picture.draw()
        drawing.draw_without_rendering()
        for axis in drawing.axes:
            notes = [child for child in axis.get_children() if isinstance(child, Annotation)]
            # Digits stand on their marks.
            names = [note for note in notes if note.get_text() and not note.get_text().isdigit()]
            for one, other in itertools.combinations(names, 2):
                pair = f"{one.get_text()} and {other.get_text()} in {figure.name}"
                assert not one.get_window_extent().overlaps(other.get_window_extent()), pair


def test_pictures_do_not_shrink_beyond_reading(published):
    overview = next(figure for figure in report.build(published).figures() if figure.name == "overview")
    sizes = re.search(r'<svg style="min-width:(\d+)pt".*?width="([\d.]+)pt"', overview.picture.svg())
    assert sizes
    least, natural = (float(size) for size in sizes.groups())
    assert 0.6 * natural < least < natural


def test_write_page_leaves_only_whole_files(tmp_path):
    figure = Figure(name="dot", caption="c", alt="a dot", picture=Dot())
    page = Page(title="t", lead=(), sections=(Section(title="s", blocks=(figure,)),))
    markdown, document = write_page(page, tmp_path / "new")
    found = sorted(path.relative_to(tmp_path / "new").as_posix() for path in (tmp_path / "new").rglob("*"))
    assert found == ["figures", "figures/dot.png", "report.html", "report.md"]
    assert "![a dot](figures/dot.png)" in markdown.read_text()
    assert 'aria-label="a dot"' in document.read_text()


def test_nothing_measured_is_said(published):
    page = report.build(published, conditions=CONDITIONS, missing=[("resnet18_lpf2", "no such file")])
    text = to_markdown(page)
    assert "No checkpoint was found, so nothing was measured." in text
    assert "0 of the 82 rows were measured" in text


@pytest.mark.parametrize(("images", "warned"), [(250, True), (50_000, False)])
def test_a_smaller_set_is_warned_of(published, images, warned):
    conditions = dataclasses.replace(CONDITIONS, images=images)
    text = to_markdown(report.build(with_measured(published), conditions=conditions))
    assert ("Read the differences with care" in text) == warned


def test_row_of_an_unusual_filter_has_a_name():
    row = Row(model="resnet18", filter_size=7, training="scratch", top1=1.0, consistency=2.0)
    assert (row.spec, row.filter_name) == ("resnet18_lpf7", "Bin-7")


def without_figures(page: Page) -> Page:
    sections = [
        dataclasses.replace(section, blocks=tuple(block for block in section.blocks if not isinstance(block, Figure)))
        for section in page.sections
    ]
    return dataclasses.replace(page, sections=tuple(sections))


def test_the_published_page_of_the_documents_is_current(published):
    page = Path(__file__).parents[1] / "docs/published.md"
    made = to_markdown(without_figures(report.build(published, timm_rows())))
    assert page.read_text("utf-8") == made, "write to docs/published.md what this test expects"
    assert "![" not in made
