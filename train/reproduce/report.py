"""The reproduction report: published numbers, measured ones beside them, and their pictures.

Tables have the form of the reference's own. The text of the report is here; its tables are made in
`train/reproduce/tables.py`, its drawings in `train/reproduce/figures.py`, its two file forms in `train/page/forms.py`.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from aa_flax.consistency import Estimate
from train.page.content import Block, Cell, Page, Section, Table, code, plain
from train.reproduce import charts, figures, tables
from train.reproduce.standings import Conditions, Entry, front

FULL_VALIDATION_SET = 50_000

# The overview's panels: few enough networks in each that their names do not meet.
PANELS = {
    "VGG": r"vgg\d+$",
    "VGG with batch norm": r"vgg\d+_bn$",
    "ResNet": r"resnet",
    "ResNeXt and Wide ResNet": r"resnext|wide_resnet",
    "DenseNet": r"densenet",
    "AlexNet, MobileNetV2 and others": r"",
}


def build(
    entries: Sequence[Entry],
    *,
    conditions: Conditions | None = None,
    missing: Sequence[tuple[str, str]] = (),
) -> Page:
    """The report as a page.

    Args:
        entries: Every published row, in the order of the tables.
        conditions: How the measured numbers came about; None for published numbers alone.
        missing: What could not be measured, and why: (name, reason).
    """
    sections = [_how_to_read(conditions)]
    if conditions:
        sections.append(_what_was_measured(entries, conditions, missing))
    sections += _filter_sections(entries)
    sections.append(_network_section(entries))
    if conditions:
        sections.append(_cost_section(entries, conditions))
    title = (
        "Anti-aliased networks: published and measured"
        if conditions
        else ("Anti-aliased networks: the published numbers")
    )
    return Page(title=title, lead=_lead(entries, conditions), sections=tuple(sections))


def _lead(entries: Sequence[Entry], conditions: Conditions | None) -> tuple[str, ...]:
    source = (
        "Accuracy and shift consistency of convolutional networks with and without BlurPool "
        "(Zhang, *Making Convolutional Networks Shift-Invariant Again*, ICML 2019), "
        f"as published for {len({e.model for e in entries})} networks in {len(entries)} rows."
    )
    if conditions is None:
        return (source, "Every number here is a published one; nothing was measured.")
    done = sum(entry.measured is not None for entry in entries)
    lead = [
        source,
        f"{done} of the {len(entries)} rows were measured here, beside their published values.",
    ]
    if conditions.images < FULL_VALIDATION_SET:
        lead.append(
            f"**Read the differences with care:** published numbers are over ImageNet's 50,000 "
            f"validation photos, these are over {conditions.images:,}. A difference also says "
            "which photos were chosen."
        )
    return tuple(lead)


def _how_to_read(conditions: Conditions | None) -> Section:
    blocks: list[Block] = [
        "**Accuracy** is top-1 on the centre crop, in percent. **Consistency** is how often two "
        "random 224-pixel crops of one 256-pixel photo get the same prediction, in percent, right "
        "or wrong. For both, more is better.",
        "A variant is on the **Pareto front** of its table when no other variant is at least as "
        "good in both numbers and better in one. The name of a variant on the front is **bold**; "
        "the name and numbers of one off the front are *italic*. The best number of each column "
        "is bold.",
        "Baseline is the plain network with torchvision's weights. Rect-2, Tri-3 and Bin-5 are "
        "BlurPool with 2, 3 and 5 taps; Tri-4 is the reference's name for the four taps 1 3 3 1. "
        "In code they are `resnet50_plain`, `resnet50_lpf2` and so on.",
    ]
    if conditions:
        blocks.append(
            "Measured numbers stand beside their standard error over photos (±). *Within* means "
            "no further from the published number than one standard error; *beyond (2.1\u00d7)* means "
            "2.1 standard errors away. Measured numbers have a Pareto front of their own: italic "
            "and bold compare measured with measured. "
            f"{tables.OTHER_WEIGHTS} marks weights that are not the published file: their "
            "difference is no test of a reproduction."
        )
    return Section(title="How to read this report", blocks=tuple(blocks))


def _what_was_measured(entries: Sequence[Entry], conditions: Conditions, missing: Sequence[tuple[str, str]]) -> Section:
    blocks: list[Block] = [
        f"Photos: {conditions.images:,} in {code(conditions.data)}, fingerprint "
        f"`{conditions.fingerprint[:16]}`. Consistency: {plain(conditions.protocol)}. "
        f"Ran on {plain(conditions.device)}.",
        tables.measured_networks(entries) or "No checkpoint was found, so nothing was measured.",
    ]
    if missing:
        rows = tuple((Cell(text=name), Cell(text=reason)) for name, reason in missing)
        caption = f"Not measured: {len(missing)} checkpoint{'s' * (len(missing) != 1)}"
        columns = ("Checkpoint", "Why")
        words = frozenset({0, 1})
        blocks.append(Table(caption=caption, columns=columns, rows=rows, words=words))
    return Section(title="What was measured", blocks=tuple(blocks))


def _filter_sections(entries: Sequence[Entry]) -> list[Section]:
    """One part per network that was published with several filters, all trained from scratch."""
    rows = families(entries)
    intro = f"The {len(rows)} networks that were trained from scratch with every filter size."
    return [
        Section(title="Filter sizes", blocks=(intro,)),
        *(_family(model, family) for model, family in rows.items()),
    ]


def families(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """The reference's filter tables: by network, the baseline and the filters, all from scratch."""
    rows: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.training != "finetuned":
            rows.setdefault(entry.model, []).append(entry)
    return {model: family for model, family in rows.items() if len(family) > 1}


def plain_and_finetuned(entries: Iterable[Entry]) -> list[tuple[Entry, Entry]]:
    """The reference's main table: every network plain and anti-aliased, the latter fine-tuned."""
    plain_rows, tuned = {}, {}
    for entry in entries:
        if entry.training == "torchvision":
            plain_rows[entry.model] = entry
        elif entry.training == "finetuned":
            tuned[entry.model] = entry
    return [(row, tuned[model]) for model, row in plain_rows.items() if model in tuned]


def _family(model: str, rows: Sequence[Entry]) -> Section:
    caption = f"{model}, in percent"
    table = tables.comparison(caption, "Filter", [(r.filter_name, r) for r in rows])
    published = [(r.top1, r.consistency) for r in rows]
    panels = [("Published", _points(rows, published))]
    measured = [row for row in rows if row.measured]
    if measured:
        panels.append(("Measured here", _measured_points(measured)))
    caption = "Up and to the right is better; hollow points are off the Pareto front." + _origin(rows)
    picture = figures.scatter(f"scatter-{model}", model, panels, caption=caption)
    return Section(title=model, level=3, blocks=(table, picture))


def _origin(entries: Iterable[Entry]) -> str:
    """What to add to a caption where measured points are of other weights than their series says."""
    other = any(entry.measured and not entry.measured.published_file for entry in entries)
    return f" {tables.OTHER_WEIGHTS} Some measured points are of weights that were not published." if other else ""


def _points(rows: Sequence[Entry], numbers: Sequence[tuple[float, float]]) -> list[figures.Point]:
    return [
        figures.Point(
            label=row.filter_name,
            training=row.training,
            top1=top1,
            consistency=consistency,
            front=ahead,
        )
        for row, (top1, consistency), ahead in zip(rows, numbers, front(numbers), strict=True)
    ]


def _measured_points(rows: Sequence[Entry]) -> list[figures.Point]:
    found = [row.measured for row in rows if row.measured]
    numbers = [(m.top1.value, m.consistency.value) for m in found]
    return [
        replace(
            point,
            top1_error=_error(m.top1),
            consistency_error=_error(m.consistency),
        )
        for point, m in zip(_points(rows, numbers), found, strict=True)
    ]


def _error(estimate: Estimate) -> float:
    return 0.0 if math.isnan(estimate.stderr) else estimate.stderr


def _network_section(entries: Sequence[Entry]) -> Section:
    pairs = plain_and_finetuned(entries)
    blocks: list[Block] = [
        "Every network plain (torchvision's weights) and anti-aliased with four taps, fine-tuned "
        "from the plain weights.",
        tables.gains("Published: plain and anti-aliased", pairs),
    ]
    measured = [e for pair in pairs for e in pair if e.measured]
    if measured:
        rows = [(e.spec, e) for e in measured]
        blocks.append(tables.comparison("Measured beside published", "Network", rows))
    caption = "Published. An arrow leads from the plain network to the anti-aliased one."
    blocks.append(figures.overview("overview", _overview_panels(pairs), caption=caption))
    for field, quantity in (("top1", "Top-1 accuracy"), ("consistency", "Crop consistency")):
        caption = f"{quantity}: bars are published, the number is what anti-aliasing adds."
        rows = [_bar(p, a, field) for p, a in pairs]
        blocks.append(charts.bars(f"bars-{field}", rows, quantity=quantity, caption=caption))
    return Section(title=f"All {len(pairs)} networks", blocks=tuple(blocks))


def _overview_panels(
    pairs: Sequence[tuple[Entry, Entry]],
) -> list[tuple[str, list[tuple[figures.Point, figures.Point]]]]:
    panels: dict[str, list[tuple[figures.Point, figures.Point]]] = {}
    for plain_row, tuned in pairs:
        panel = next(name for name, test in PANELS.items() if re.match(test, plain_row.model))
        ends = (_overview_point(plain_row), _overview_point(tuned))
        panels.setdefault(panel, []).append(ends)
    return list(panels.items())


def _overview_point(entry: Entry) -> figures.Point:
    return figures.Point(
        label=entry.model,
        training=entry.training,
        top1=entry.top1,
        consistency=entry.consistency,
    )


def _bar(plain_row: Entry, tuned: Entry, field: str) -> charts.Bar:
    def measured(entry: Entry) -> Estimate | None:
        return getattr(entry.measured, field) if entry.measured else None

    return charts.Bar(
        label=plain_row.model,
        plain=getattr(plain_row, field),
        antialiased=getattr(tuned, field),
        measured_plain=measured(plain_row),
        measured_antialiased=measured(tuned),
    )


def _cost_section(entries: Sequence[Entry], conditions: Conditions) -> Section:
    timed = tables.timed(entries)
    title = "Cost against gain"
    if not timed:
        return Section(title=title, blocks=("Nothing was timed.",))
    rows = [
        charts.Cost(
            model=entry.model,
            filter_size=entry.filter_size,
            training=entry.training,
            milliseconds=time,
            top1=found.top1.value,
            consistency=found.consistency.value,
        )
        for entry, found, time in timed
    ]
    caption = (
        "Measured here. Lines lead from a plain network to its anti-aliased variants; the digit is the number of taps."
        + _origin(entries)
    )
    return Section(
        title=title,
        blocks=(
            f"Anti-aliasing adds computation but no parameters. {plain(conditions.timing)}",
            tables.costs(entries),
            charts.cost("cost", rows, device=conditions.device, caption=caption),
        ),
    )
