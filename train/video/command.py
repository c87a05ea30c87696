"""`python -m train video`: how often a network of any make changes its mind from frame to frame of a video."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.table import Table

from aa_flax.consistency import Estimate, Result, Video, over_videos
from aa_flax.files import write_atomically
from train.console import open_console, progress
from train.data import reflect_margin
from train.data.channels import network_input
from train.environment import environment
from train.errors import CommandError
from train.measurable.naming import Foreign
from train.measurable.network import Measurable
from train.networks import as_function, open_network
from train.video.frames import read_frames


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measures how often the prediction changes between neighbouring frames, and how much of that jitter explains."""

    video: tuple[Path, ...]
    """One or more videos: each a folder of frames, in the order of the numbers in their names, or an animated GIF, PNG
    or WebP. Frames of a film: `ffmpeg -i film.mp4 frames/%06d.png`."""
    weights: str | None = None
    """Weights of a network: a directory of convert_weights.py or `python -m train export`, a published name such as
    resnet50_plain, a .pth or .safetensors, hf://owner/name, or an https address."""
    model: str | None = None
    """Which network, e.g. resnet50_lpf4; needed for files that do not say so."""
    foreign: Annotated[Foreign, tyro.conf.arg(name="")] = field(default_factory=Foreign)
    jitter: int = 2
    """Pixels by which a shaking camera would move a frame, up or down and left or right."""
    pairs: int = 5
    """Pairs of jittered crops of each frame."""
    seed: int = 0
    """Of the jitter."""
    frames: int = 1000
    """How many frames of each video are measured at most, from the first."""
    batch_size: int = 64
    """Crops that go through the network at once; changes speed and memory, never the figures."""
    output: Path | None = None
    """Where to write the figures, the prediction of each frame and what repeats the run, as JSON."""


def run(config: Config) -> int:
    """Measures, prints a table and returns 0.

    Raises:
        CommandError: a network or a video that cannot be used.
    """
    if config.frames < 2:
        raise CommandError(f"--frames is {config.frames}; it must be at least 2")
    network = _network(config)
    rule = network.preprocessing
    margin = reflect_margin(rule)
    room = margin or (rule.resize - rule.crop) // 2
    if config.jitter > room:
        raise CommandError(f"--jitter is {config.jitter}; frames of this network leave room for at most {room}")
    try:
        measure = Video(
            crop=rule.crop,
            jitter=config.jitter,
            pairs=config.pairs,
            seed=config.seed,
            device_batch=config.batch_size,
        )
    except ValueError as error:
        raise CommandError(f"--{' '.join(str(error).split()).replace('device_batch', 'batch-size')}") from error
    results = {}
    with progress(open_console(stderr=True), "frames") as bars, jax.default_matmul_precision("highest"):
        for path in config.video:
            task = bars.add_task(f"{path.name}: reading", total=None)
            frames = read_frames(path, rule, config.frames)
            bars.update(task, description=path.name, total=len(frames))
            try:
                results[str(path)] = measure.measure(
                    network.fn,
                    frames,
                    preprocess=network_input(rule),
                    progress=lambda done, _, task=task: bars.update(task, completed=done),
                )
            except ValueError as error:
                raise CommandError(f"--video {path}: {error}") from error
    if config.output is not None:
        try:
            write_atomically(config.output, json.dumps(_record(config, network, results), indent=1).encode())
        except OSError as error:
            raise CommandError(f"--output {config.output} cannot be written: {error.strerror}") from error
    open_console().print(_table(config, network, results))
    return 0


def _network(config: Config) -> Measurable:
    foreign = config.foreign.open()
    if foreign is not None:
        for name in ("weights", "model"):
            if getattr(config, name) is not None:
                raise CommandError(f"--{name} and {config.foreign.named} name a network each; give one")
        return foreign
    if config.weights is None:
        raise CommandError("give --weights DIRECTORY, or a network of another make: --onnx, --timm, --torchvision ...")
    opened = open_network(config.weights, config.model)
    known = opened.config
    return Measurable(
        model=known.model,
        fn=as_function(opened.model),
        preprocessing=known.preprocessing,
        num_classes=known.num_classes,
        class_names=known.class_names,
    )


def _table(config: Config, network: Measurable, results: dict[str, Result]) -> Table:
    table = Table(title=f"{network.model}: changes from frame to frame, percent +- stderr", title_justify="left")
    table.add_column("video", overflow="fold")
    for column in ("frames", "changes", f"jitter, {config.jitter} px", "beyond"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, result in results.items():
        table.add_row(name, f"{_frames(result):,}", *map(_cell, (result, *result.parts.values())))
    if len(results) > 1:
        frames = sum(map(_frames, results.values()))
        table.add_row("mean over videos", f"{frames:,}", *map(_cell, over_videos(list(results.values())).values()))
    return table


def _frames(result: Result) -> int:
    return len(result.arrays["index"])


def _cell(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} +- {'-' if math.isnan(estimate.stderr) else f'{estimate.stderr:.2f}'}"


def _record(config: Config, network: Measurable, results: dict[str, Result]) -> dict[str, Any]:
    videos = [
        {
            "video": name,
            "frames": _frames(result),
            "changes": Estimate(result.value, result.stderr).as_dict(),
            **{part: each.as_dict() for part, each in result.parts.items()},
            "predictions": result.arrays["predictions"][:, 0].tolist(),
        }
        for name, result in results.items()
    ]
    means = {name: each.as_dict() for name, each in over_videos(list(results.values())).items()}
    settings = {name: getattr(config, name) for name in ("jitter", "pairs", "seed", "frames")}
    return {**network.as_dict(), "settings": settings, "videos": videos, "mean": means, "environment": environment()}
