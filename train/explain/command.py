"""`python -m train explain`: what a network says of one photo as it shifts, in pictures and to be tried by hand.

`probabilities.png` has the probability of the top classes along the diagonal, `shifts.png` the
prediction at every shift, and `shift.gif` moves the photo through both; in `explain.html` one moves
it oneself. Others may stand beside the first network, as the anti-aliased one beside the plain one
in the paper's figures.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro
from rich.table import Table

from aa_flax.files import write_atomically
from aa_flax.weights.class_names import readable_names
from train.console import open_console, progress
from train.errors import CommandError
from train.explain import pictures
from train.explain.interactive import Explained, interactive_page
from train.explain.record import describe
from train.explain.shift_views import Photo, View, choose_classes, look, read_photo
from train.networks import OpenedNetwork, as_function, open_network

FILES = ("probabilities.png", "shifts.png", "shift.gif", "explain.json", "explain.html")
MOST_NETWORKS = 4


@dataclass(frozen=True, kw_only=True)
class Config:
    """Show what a network predicts for one photo under every small shift."""

    weights: str
    """Weights of a network: a directory of convert_weights.py or `python -m train export`, a published name such as
    resnet50_plain, a .pth or .safetensors, hf://owner/name, or an https address."""
    model: str | None = None
    """Which network, e.g. mobilenet_v2_plain; needed for files that do not say so."""
    image: Path
    """The photo."""
    output: Path
    """Where the pictures go: probabilities.png, shifts.png, shift.gif, explain.json and explain.html, a page on which
    the photo is moved by hand."""
    compare: Annotated[tuple[tuple[str, str], ...], tyro.conf.UseAppendAction] = ()
    """Another network and its weights, shown beside the first; may be given up to three times."""
    classes: int = 4
    """How many classes are drawn, from 1 to 6."""
    batch: int = 32
    """Shifts that go through the network at once."""
    milliseconds: int = 120
    """How long the animation shows each shift."""

    def __post_init__(self) -> None:
        limits = {"classes": (1, len(pictures.COLOURS)), "batch": (1, 4096), "milliseconds": (20, 10_000)}
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise CommandError(f"--{name} is {value}; it must be from {least} to {most}")
        if len(self.compare) >= MOST_NETWORKS:
            raise CommandError(f"--compare is given {len(self.compare)} times; at most {MOST_NETWORKS - 1} fit beside")


def run(config: Config) -> int:
    """Writes the pictures and the page, prints a summary and returns 0.

    Raises:
        CommandError: weights or a photo that cannot be used, networks that do not compare.
    """
    networks = [open_network(config.weights, config.model)]
    networks += [open_network(name, spec, option="--compare") for spec, name in config.compare]
    names = _shared_names(networks)
    preprocessing = networks[0].config.preprocessing
    photo = read_photo(config.image, preprocessing)
    try:
        config.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--output {config.output} cannot be made: {error.strerror}") from error
    with progress(open_console(stderr=True)) as bars, jax.default_matmul_precision("highest"):
        views = []
        for network in networks:
            name = network.config.model
            task = bars.add_task(name, total=photo.last**2 + 1)
            views.append(
                look(
                    name,
                    as_function(network.model),
                    photo,
                    preprocessing,
                    batch=config.batch,
                    progress=lambda count, task=task: bars.advance(task, count),
                )
            )
        task = bars.add_task("drawing", total=photo.last + 3)
        _write(config, views, names, photo, lambda: bars.advance(task))
    _summarise(views, names, config.output)
    return 0


def _shared_names(networks: Sequence[OpenedNetwork]) -> tuple[str, ...]:
    """Class names of all networks, which must agree on them and on how photos are prepared."""
    first, *others = networks
    names = readable_names(first.config.class_names, first.config.num_classes)
    for other in others:
        pair = f"{first.config.model} and {other.config.model}"
        if readable_names(other.config.class_names, other.config.num_classes) != names:
            raise CommandError(f"{pair} have different classes: they cannot be compared")
        if other.config.preprocessing != first.config.preprocessing:
            raise CommandError(f"{pair} prepare photos differently: their shifts are not the same")
    return names


def _write(config: Config, views: Sequence[View], names: Sequence[str], photo: Photo, step: Callable[[], None]) -> None:
    shown = {index: names[index] for index in choose_classes(views, config.classes)}
    curves = pictures.probabilities(views, shown)
    step()
    maps = pictures.shift_maps(views, shown)
    step()
    film = pictures.animation(views, shown, photo, milliseconds=config.milliseconds, step=step)
    record = describe(str(config.image), views, list(shown), names)
    page = interactive_page(
        f"{config.image.name}, moved pixel by pixel", [Explained(photo, record)], milliseconds=config.milliseconds
    )
    contents = (curves, maps, film, json.dumps(record, separators=(",", ":")).encode() + b"\n", page.encode())
    try:
        for name, content in zip(FILES, contents, strict=True):
            write_atomically(config.output / name, content)
    except OSError as error:
        raise CommandError(f"--output {config.output}: {error.strerror}: {error.filename}") from error


def _summarise(views: Sequence[View], names: Sequence[str], output: Path) -> None:
    table = Table(title=f"Predictions and their share of {views[0].predictions.size} shifts", title_justify="left")
    table.add_column("network", no_wrap=True)
    table.add_column("predictions", no_wrap=True)
    table.add_column("two shifts\nagree", justify="right")
    table.add_column("flips along\nthe diagonal", justify="right", no_wrap=True)
    for view in views:
        counts = Counter(view.predictions.ravel().tolist()).most_common()
        shares = [f"{names[index]} {100 * count / view.predictions.size:.1f} %" for index, count in counts[:4]]
        if len(counts) > 4:
            shares.append(f"{len(counts) - 4} more")
        table.add_row(
            view.name,
            "\n".join(shares),
            f"{view.consistency:.1f} %",
            f"{view.flips} of {len(view.diagonal) - 1}",
        )
    console = open_console()
    console.print(table)
    console.print(f"wrote {', '.join(FILES)} to {output}", soft_wrap=True)
