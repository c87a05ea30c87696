"""What a comparison has found as a page: prose around tables and pictures."""

import numpy as np

from train.compare import figures
from train.compare.comparison import RISK, Comparison
from train.compare.figures import Point
from train.compare.tables import MARK, matrix, networks, preparations
from train.data.balance import is_unbalanced
from train.measurable.network import Measurable
from train.page.content import Block, Page, Section, code, plain

SMALL_SET = 5000


def build(found: Comparison) -> Page:
    """The report as a page."""
    sections = [
        Section(title="Networks", blocks=(networks(found), *_scatter(found))),
        Section(title="Differences", blocks=_differences(found)),
        Section(title="Cost", blocks=_cost(found)),
        Section(title="What was measured", blocks=_conditions(found)),
    ]
    return Page(
        title=f"{len(found.rows)} networks on {found.images:,} photos", lead=_lead(found), sections=tuple(sections)
    )


def _lead(found: Comparison) -> tuple[str, ...]:
    lead = [
        "Every network was shown the same photos under the same shifts. Numbers are percent ± their standard error "
        "over photos; **bold** names are on the Pareto front, where no other network is at least as good in accuracy "
        "and consistency and better in one."
    ]
    if found.images < SMALL_SET:
        lead.append(
            f"{found.images:,} photos are few: networks whose standard errors overlap may still differ, and others may "
            "not. The differences below are those of the same photos, and say which are more than chance."
        )
    lead += [f"{plain(row.name)}: {row.network.notice}." for row in found.rows if row.network.notice]
    labels = found.rows[0].results["accuracy"].arrays["labels"]
    if is_unbalanced(np.unique(labels, return_counts=True)[1].tolist()):
        lead.append("One class has far more photos than the others: accuracy is mostly its accuracy.")
    return tuple(lead)


def _points(found: Comparison, consistency: str) -> list[Point]:
    return [
        Point(
            name=row.name,
            kind=_kind(row.network),
            accuracy=row.results["accuracy"],
            consistency=row.results[consistency],
            milliseconds=row.milliseconds,
            ahead=ahead,
        )
        for row, ahead in zip(found.rows, found.ahead, strict=True)
    ]


def _kind(network: Measurable) -> str:
    if network.described.get("kind") != "aa_flax":
        return "other"
    return "plain" if str(network.described["spec"]).endswith("_plain") else "anti-aliased"


def _scatter(found: Comparison) -> tuple[Block, ...]:
    if found.consistency is None:
        return ()
    caption = "Up and to the right is better. Lines are standard errors; hollow points are off the Pareto front."
    return (figures.scatter(_points(found, found.consistency), found.title(found.consistency), caption=caption),)


def _differences(found: Comparison) -> tuple[Block, ...]:
    explained = (
        "Row minus column, in points, ± the standard error of the differences, photo by photo. "
        f"**{MARK}** marks what is more than chance: the sign-flip test on the pairs of answers (for accuracy it is "
        "McNemar's exact test: if neither network were better, each photo's two results could as well be exchanged), "
        f"adjusted by Holm's method for all {len(found.adjusted)} tests of this page together, at {RISK:.0%}."
    )
    blocks: list[Block] = [explained]
    blocks += [matrix(found, name) for name in found.protocols]
    if found.consistency is not None and len(found.rows) > 1:
        first = found.rows[0].name
        caption = f"Differences from {plain(first)}, with 95% intervals; filled points are more than chance."
        series = {
            found.title(name): [
                (row.name, found.minus(name, number, 0), found.beyond(name, number, 0))
                for number, row in enumerate(found.rows)
                if number
            ]
            for name in ("accuracy", found.consistency)
        }
        blocks.append(figures.intervals(series, first, caption=caption))
    return tuple(blocks)


def _cost(found: Comparison) -> tuple[Block, ...]:
    batch, repeats = found.options["timing_batch"], found.options["timing_repeats"]
    said = (
        f"The median of {repeats} forward passes over {batch} images on {plain(found.device)}, the networks taking "
        "turns. Each is run by what it came with: JAX compiles networks of this package, onnxruntime runs ONNX files, "
        "PyTorch its own. So times of different kinds compare their makers too."
    )
    if found.consistency is None:
        return (said,)
    caption = "Up and to the left is better."
    return (said, figures.cost(_points(found, found.consistency), found.title(found.consistency), caption=caption))


def _conditions(found: Comparison) -> tuple[Block, ...]:
    blocks: list[Block] = [
        f"{found.images:,} photos of {code(found.data)}, seed {found.options['seed']}; `compare.json` has the answers "
        "for each photo and what repeats the run.",
        preparations(found),
    ]
    if found.unreadable:
        names = "; ".join(f"{name} ({reason})" for name, reason in list(found.unreadable.items())[:10])
        more = f" and {len(found.unreadable) - 10} more" if len(found.unreadable) > 10 else ""
        blocks.append(f"Unreadable, not counted ({len(found.unreadable)}): {plain(names)}{more}.")
    return tuple(blocks)
