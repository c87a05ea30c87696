"""The reproduction report: published numbers, measured ones beside them, and their pictures.

Tables have the form of the reference's own. The text of the report is here; its tables are made in
`train/reproduce/tables.py`, its drawings in `train/reproduce/figures.py`, its two file forms in `train/page/forms.py`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from train.page.content import Block, Cell, Page, Section, Table, code, plain
from train.reproduce import figures, tables
from train.reproduce.rows import AnyRow, Row, TimmRow, timed

FULL_VALIDATION_SET = 50_000


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """On what the measured numbers rest.

    Attributes:
        data: The directory of photos, for people.
        images: How many photos.
        fingerprint: Identifies the photos and their labels.
        protocol: The consistency protocol with its settings, for people.
        device: What ran the networks.
        timing: How the time was taken, for people.
    """

    data: str
    images: int
    fingerprint: str
    protocol: str
    device: str
    timing: str


def build(
    rows: Sequence[Row],
    timm: Sequence[TimmRow] = (),
    *,
    conditions: Conditions | None = None,
    missing: Sequence[tuple[str, str]] = (),
) -> Page:
    """The report as a page.

    Args:
        rows: Every row of the reference's tables, in their order.
        timm: Every network of timm at every size.
        conditions: How the measured numbers came about; None for published numbers alone.
        missing: What could not be measured, and why: (name, reason).
    """
    sections = [_how_to_read(conditions)]
    if conditions:
        sections.append(_what_was_measured([*rows, *timm], conditions, missing))
    sections += _filter_sections(rows)
    sections.append(_network_section(rows))
    if timm:
        sections.append(_timm_section(timm))
    if conditions:
        sections.append(_cost_section(rows, conditions))
    title = (
        "Anti-aliased networks: published and measured"
        if conditions
        else ("Anti-aliased networks: the published numbers")
    )
    return Page(title=title, lead=_lead(rows, timm, conditions), sections=tuple(sections))


def _lead(rows: Sequence[Row], timm: Sequence[TimmRow], conditions: Conditions | None) -> tuple[str, ...]:
    source = (
        "Accuracy and shift consistency of convolutional networks with and without BlurPool "
        "(Zhang, *Making Convolutional Networks Shift-Invariant Again*, ICML 2019), "
        f"as published for {len({row.model for row in rows})} networks in {len(rows)} rows."
    )
    if timm:
        source += f" Then {len({row.name for row in timm})} anti-aliased networks of timm at {len(timm)} sizes."
    if conditions is None:
        return (source, "Every number here is a published one; nothing was measured.")
    everything = [*rows, *timm]
    done = sum(row.measured is not None for row in everything)
    lead = [
        source,
        f"{done} of the {len(everything)} rows were measured here, beside their published values.",
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
            f"{tables.OTHER_WEIGHTS} marks weights that are not known to be the published file: their "
            "difference is no test of a reproduction."
        )
    return Section(title="How to read this report", blocks=tuple(blocks))


def _what_was_measured(rows: Sequence[AnyRow], conditions: Conditions, missing: Sequence[tuple[str, str]]) -> Section:
    blocks: list[Block] = [
        f"Photos: {conditions.images:,} in {code(conditions.data)}, fingerprint "
        f"`{conditions.fingerprint[:16]}`. Consistency: {plain(conditions.protocol)}. "
        f"Ran on {plain(conditions.device)}.",
        tables.measured_networks(rows) or "No checkpoint was found, so nothing was measured.",
    ]
    if missing:
        lines = tuple((Cell(text=name), Cell(text=reason)) for name, reason in missing)
        caption = f"Not measured: {len(missing)} checkpoint{'s' * (len(missing) != 1)}"
        columns = ("Checkpoint", "Why")
        words = frozenset({0, 1})
        blocks.append(Table(caption=caption, columns=columns, rows=lines, words=words))
    return Section(title="What was measured", blocks=tuple(blocks))


def _filter_sections(rows: Sequence[Row]) -> list[Section]:
    """One part per network that was published with several filters, all trained from scratch."""
    found = families(rows)
    intro = f"The {len(found)} networks that were trained from scratch with every filter size."
    return [
        Section(title="Filter sizes", blocks=(intro,)),
        *(_family(model, family) for model, family in found.items()),
    ]


def families(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The reference's filter tables: by network, the baseline and the filters, all from scratch."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.training != "finetuned":
            found.setdefault(row.model, []).append(row)
    return {model: family for model, family in found.items() if len(family) > 1}


def plain_and_finetuned(rows: Iterable[Row]) -> list[tuple[Row, Row]]:
    """The reference's main table: every network plain and anti-aliased, the latter fine-tuned."""
    plain_rows, tuned = {}, {}
    for row in rows:
        if row.training == "torchvision":
            plain_rows[row.model] = row
        elif row.training == "finetuned":
            tuned[row.model] = row
    return [(row, tuned[model]) for model, row in plain_rows.items() if model in tuned]


def _family(model: str, rows: Sequence[Row]) -> Section:
    table = tables.comparison(f"{model}, in percent", "Filter", [(row.filter_name, row) for row in rows])
    caption = "Up and to the right is better; hollow points are off the Pareto front." + _origin(rows)
    picture = figures.scatter(model, rows, caption=caption)
    return Section(title=model, level=3, blocks=(table, picture))


def _origin(rows: Iterable[Row]) -> str:
    """What to add to a caption where measured points are of other weights than their series says."""
    other = any(row.measured and not row.measured.published for row in rows)
    return f" {tables.OTHER_WEIGHTS} Some measured points are of weights that were not published." if other else ""


def _network_section(rows: Sequence[Row]) -> Section:
    pairs = plain_and_finetuned(rows)
    blocks: list[Block] = [
        "Every network plain (torchvision's weights) and anti-aliased with four taps, fine-tuned "
        "from the plain weights.",
        tables.gains("Published: plain and anti-aliased", pairs),
    ]
    measured = [(row.spec, row) for pair in pairs for row in pair if row.measured]
    if measured:
        blocks.append(tables.comparison("Measured beside published", "Network", measured))
    caption = "Published. An arrow leads from the plain network to the anti-aliased one."
    blocks.append(figures.overview(pairs, caption=caption))
    for field, quantity in figures.QUANTITIES.items():
        caption = f"{quantity}: bars are published, the number is what anti-aliasing adds."
        blocks.append(figures.bars(field, pairs, caption=caption))
    return Section(title=f"All {len(pairs)} networks", blocks=tuple(blocks))


def _timm_section(rows: Sequence[TimmRow]) -> Section:
    blocks: list[Block] = [
        "Anti-aliased networks that timm publishes under Apache-2.0, with accuracies and without consistency, at the "
        "size of their training and mostly at a larger one. *288 of 303 pixels* means that the shorter side is resized "
        "to 303 pixels, bicubic, and the network sees the 288 in the middle.",
        "**Consistency** is measured by the protocol of the other tables in a frame as much larger than the crop as "
        "theirs is, 256/224: crops of 224 pixels in 256, of 288 in 329, at any whole offset. So a crop of 288 moves as "
        "far in the photo as one of 224. Networks of other classes than the photos' (`in12k` without `ft`) have a "
        "consistency and no accuracy.",
        tables.timm("timm's networks, in percent", rows),
    ]
    return Section(title="timm's networks", blocks=tuple(blocks))


def _cost_section(rows: Sequence[Row], conditions: Conditions) -> Section:
    title = "Cost against gain"
    if not timed(rows):
        return Section(title=title, blocks=("Nothing was timed.",))
    caption = (
        "Measured here. Lines lead from a plain network to its anti-aliased variants; the digit is the number of taps."
        + _origin(rows)
    )
    return Section(
        title=title,
        blocks=(
            f"Anti-aliasing adds computation but no parameters. {plain(conditions.timing)}",
            tables.costs(rows),
            figures.cost(rows, device=conditions.device, caption=caption),
        ),
    )
