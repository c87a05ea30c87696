"""Converts a PyTorch checkpoint to a directory that `aa_flax.load_pretrained` reads; needs no PyTorch.

python convert_weights.py resnet50_lpf4.pth --model resnet50_lpf4 --output weights/resnet50_lpf4
python convert_weights.py --model resnet50_lpf4 --output weights/resnet50_lpf4     # downloads it first
python convert_weights.py --list                                                   # what can be downloaded
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aa_flax.files import cache_directory, file_sha256
from aa_flax.local_paths import local_path
from aa_flax.models.abstract import build_abstract
from aa_flax.models.base import ModelSpec, Network
from aa_flax.models.specs import resolve_spec
from aa_flax.models.variables import variables
from aa_flax.printable import accept_any_text, printable
from aa_flax.weights import catalog
from aa_flax.weights.config import INTERPOLATIONS, Preprocessing, PretrainedConfig, read_config
from aa_flax.weights.identity import spec_of
from aa_flax.weights.input_channels import channel_statistics, with_input_channels
from aa_flax.weights.json_file import parse_json
from aa_flax.weights.mapping import (
    Layout,
    blurs_alike,
    clean_names,
    convert_state_dict,
    detect_layout,
    tensors_in_layout,
)
from aa_flax.weights.statistics import describe_folded_norms
from aa_flax.weights.store import WEIGHTS_NAME, load_pretrained, save_pretrained
from aa_flax.weights.torch.reader import list_state_dicts, read_torch_checkpoint

BAD_INPUT = 2
INTERRUPTED = 130
PLAIN_PROGRESS_SECONDS = 2.0

Advance = Callable[[int, int | None], None]


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends the program with exit code 2 where it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="convert_weights.py",
        description="Converts a PyTorch checkpoint (.pth, .pt, .safetensors) for aa_flax. Needs no PyTorch.",
        epilog="Published checkpoints are under CC BY-NC-SA 4.0: non-commercial use, with attribution.",
    )
    add = parser.add_argument
    add("input", metavar="IN", nargs="?", type=Path, help="the checkpoint; without it the published one is downloaded")
    add("--model", metavar="SPEC", help="the network: <name>[_lpf<k>|_plain], such as resnet50_lpf4")
    add("--output", metavar="DIR", type=Path, help="directory to write config.json and model.safetensors into")
    add("--key", help="which state dict of a training checkpoint, such as state_dict_ema (default: the weights' own)")
    add("--prefix", help="take the tensors alone whose names begin so, without it: backbone, encoder_q, model.net")
    add("--num-classes", type=int, default=1000, help="classes of the network (default 1000)")
    add("--skip-head", action="store_true", help="start the classifier afresh, to fine-tune on other classes")
    add(
        "--in-channels",
        metavar="N",
        type=int,
        help="channels of the images, where the file has others: the first kernels are summed for 1, else repeated",
    )
    add(
        "--allow-filter-change",
        action="store_true",
        help="take weights trained with another blur; their accuracy is lost until the network is fine-tuned",
    )
    add(
        "--option",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an option of the network, such as pool_only=false; may be repeated",
    )
    add("--training", choices=("scratch", "finetuned"), help="which published checkpoint (default: the fine-tuned one)")
    add("--resize", metavar="PIXELS", type=int, help="shorter side of an image after resizing (default 256)")
    add("--crop", metavar="PIXELS", type=int, help="side of the centre crop (default 224)")
    add("--interpolation", choices=INTERPOLATIONS, help="of the resizing (default bilinear)")
    add("--mean", metavar="R,G,B", type=numbers, help="subtracted from the channels, 0 to 1 (default ImageNet's)")
    add("--std", metavar="R,G,B", type=numbers, help="the channels are divided by it afterwards (default ImageNet's)")
    add("--license", metavar="TEXT", help="licence of the weights, for config.json; known for published ones")
    add("--verify", action="store_true", help="load the result again and compare it with the checkpoint")
    add("--overwrite", action="store_true", help="replace other weights in DIR")
    add("--list", metavar="PATTERN", nargs="?", const="*", help="list what is published, e.g. --list 'resnet*'")
    options = parser.parse_args(arguments)
    if options.list is None and not (options.model and options.output):
        parser.error("--model and --output are needed (or --list)")
    if options.input and options.training:
        parser.error(f"--training chooses what to download: leave it out, or leave out {options.input}")
    return options


def numbers(text: str) -> tuple[float, ...]:
    """`0.485,0.456,0.406` as numbers."""
    return tuple(float(word) for word in text.split(","))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 2 for bad input, 130 when interrupted."""
    accept_any_text()
    options = parse_arguments(arguments)
    try:
        if options.list is not None:
            print_catalog(options.list)
        else:
            convert(options)
    except (OSError, ValueError) as error:
        # CheckpointError and DownloadError are among these.
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as interrupt:
        print(f"interrupted: {str(interrupt) or 'nothing was written'}", file=sys.stderr)
        return INTERRUPTED
    return 0


def convert(options: argparse.Namespace) -> None:
    """Converts one checkpoint and prints a summary."""
    for path in (options.input, options.output):
        if path is not None:
            local_path(path)
    network_options = {"num_classes": options.num_classes, **parse_network_options(options.option)}
    if options.in_channels is not None:
        network_options["in_channels"] = options.in_channels
    resolved = check_network(options, network_options)
    spec = str(resolved)
    preprocessing = prepare_images(options, resolved.in_channels)
    with progress() as step:
        path = options.input or fetch(spec, options.training, step)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: " + ("it is no file" if path.exists() else "there is no such file"))
        digest = file_sha256(path, step(f"hashing {path.name}"))
        check_output(options, digest, resolved)
        step(f"converting {path.name}")
        original = read_torch_checkpoint(path, key=options.key, prefix=options.prefix)
        layout = detect_layout(original)
        state = original if options.in_channels is None else with_input_channels(original, spec, options.in_channels)
        model = convert_state_dict(
            state,
            spec,
            skip_head=options.skip_head,
            allow_filter_change=options.allow_filter_change,
            what=str(path),
            **network_options,
        )
        entry = catalog.identify(digest)
        changes = list(notes_of_network(original, state, layout, model, options))
        step(f"writing {options.output}")
        save_pretrained(
            model,
            options.output,
            preprocessing=preprocessing,
            source=describe_source(path, digest, layout, entry, options),
            license=options.license or (entry.license if entry else None),
            metrics=entry.metrics if entry and not changes else {},
        )
        try:
            verified = verify(options.output, state, model, options.skip_head, step) if options.verify else None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{options.output} is written, but not verified") from None
    print_summary(model, path, digest, layout, entry, options)
    for note in (*notes_of_file(path, original, options), *changes, *notes_of_statistics(model)):
        print(printable(f"  note        {note}"))
    if verified is not None:
        print(f"  verified    {verified} tensors, read back, equal the checkpoint's")


def parse_network_options(words: Sequence[str]) -> dict[str, Any]:
    """`pool_only=false`, `pad_type=zero` and the like as keyword arguments."""
    options = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (name and equals and text):
            raise ValueError(f"--option {word}: write NAME=VALUE, such as pool_only=false or width_mult=0.5")
        try:
            value = parse_json(text.lower())
        except json.JSONDecodeError:
            value = text
        except ValueError as error:
            raise ValueError(f"--option {name}: {error}") from error
        options[name] = tuple(value) if isinstance(value, list) else value
    return options


def check_network(options: argparse.Namespace, network_options: Mapping[str, Any]) -> ModelSpec:
    """The network asked for, refused before anything is downloaded or read if there can be none of that kind."""
    try:
        spec = resolve_spec(options.model, **network_options)
        PretrainedConfig(spec=spec, preprocessing=prepare_images(options, spec.in_channels))
        if options.option:
            build_abstract(spec)
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"--option {' '.join(options.option)}: makes no network: {error}") from error
    return spec


def fetch(spec: str, training: str | None, step: Callable[[str], Advance]) -> Path:
    """The published checkpoint, downloaded unless it is in the cache."""
    return catalog.fetch(
        spec, training=training, progress=step(f"downloading {catalog.find(spec, training).file_name}")
    )


def prepare_images(options: argparse.Namespace, channels: int) -> Preprocessing:
    """How the network's images are prepared: as the options say, else ImageNet's standard."""
    standard = Preprocessing()
    mean, std = (channel_statistics(values, channels) for values in (standard.mean, standard.std))
    names = ("resize", "crop", "interpolation", "mean", "std")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    prepared = Preprocessing(**{"mean": mean, "std": std, **given})
    if len(prepared.mean) != channels:
        raise ValueError(f"--mean and --std have {len(prepared.mean)} numbers, the images {channels} channels")
    return prepared


def check_output(options: argparse.Namespace, digest: str, spec: ModelSpec) -> None:
    """Refuses to replace anything but what the same command has written before."""
    directory = options.output
    if options.overwrite or not (directory / WEIGHTS_NAME).exists():
        return
    with contextlib.suppress(OSError, ValueError):
        config = read_config(directory)
        chosen = {"sha256": digest, "key": options.key, "prefix": options.prefix}
        if config.spec == spec and all(config.source.get(name) == value for name, value in chosen.items()):
            return
    raise FileExistsError(f"{directory}: holds other weights; give another --output, or --overwrite")


def describe_source(
    path: Path, digest: str, layout: Layout, entry: catalog.Published | None, options: argparse.Namespace
) -> dict[str, Any]:
    """What config.json says about where the weights come from."""
    source = {"file": path.name, "sha256": digest, "layout": layout.name, "filter_size": layout.filter_size}
    source |= {name: value for name in ("key", "prefix") if (value := getattr(options, name)) is not None}
    return source | (entry.source if entry else {})


def notes_of_file(path: Path, state: Mapping[str, np.ndarray], options: argparse.Namespace) -> Iterator[str]:
    """What a person should know about the file: which of its weights were taken."""
    found = list_state_dicts(path)
    if options.key is None and len(found) > 1:
        taken, *others = (f"{name[:60]!r} ({count} tensors)" for name, count in found.items())
        yield f"taken is {taken}; the file also has {', '.join(others[:8])}: --key takes another"
    for name, array in state.items():
        if name.rpartition(".")[2] == "n_averaged":
            yield (
                f"these are the average of {int(array)} sets of weights: their batch statistics are right only if "
                "they were taken anew (torch.optim.swa_utils.update_bn)"
            )


def notes_of_network(
    original: Mapping[str, np.ndarray],
    state: Mapping[str, np.ndarray],
    layout: Layout,
    model: Network,
    options: argparse.Namespace,
) -> Iterator[str]:
    """What a person should know about the network: in what it is not the file's."""
    if not blurs_alike(layout, model):
        yield "these weights were trained with other blurs or none: fine-tune before you use them"
    if options.skip_head:
        yield "the classifier is fresh: fine-tune before you use it"
    before = clean_names(original)
    for name, array in state.items():
        if name in before and before[name].shape != array.shape:
            given, here = before[name].shape[1], array.shape[1]
            way = "summed" if here == 1 else f"repeated in order and scaled by {given}/{here}"
            count = f"{here} channel" + "s" * (here != 1)
            yield f"{name} reads {count} here, {given} in the file: its kernels were {way}; fine-tune"


def notes_of_statistics(model: Network) -> Iterator[str]:
    """What a person should know before training the network."""
    folded = describe_folded_norms(model)
    if folded:
        yield f"{folded}: train with --recalibrate-bn or --net.frozen-bn"


def verify(
    directory: Path, state: Mapping[str, np.ndarray], model: Network, skip_head: bool, step: Callable[[str], Advance]
) -> int:
    """Loads a written directory and compares it with the model, and through PyTorch's layout with the checkpoint.

    Returns:
        How many tensors of the checkpoint were compared.

    Raises:
        ValueError: a tensor differs.
    """
    advance = step(f"verifying {directory}")
    loaded = load_pretrained(directory)
    written, converted = variables(loaded), variables(model)
    for path, variable in converted.items():
        if not np.array_equal(np.asarray(written[path][...]), np.asarray(variable[...])):
            raise ValueError(f"{directory}: {path} differs from what was converted: the disk or the memory is faulty")
    source = clean_names(state)
    back = tensors_in_layout(loaded, detect_layout(state), skip_head=skip_head)
    done, total = 0, sum(array.nbytes for array in back.values())
    for key, ours in back.items():
        done += ours.nbytes
        advance(done, total)
        if not np.array_equal(ours, source[key].astype(ours.dtype)):
            raise ValueError(f"{directory}: {key} differs from the checkpoint's")
    return len(back)


def print_summary(
    model: Network,
    path: Path,
    digest: str,
    layout: Layout,
    entry: catalog.Published | None,
    options: argparse.Namespace,
) -> None:
    """What was converted and what to do with it."""
    spec = spec_of(model, "convert_weights.py")
    counted = [
        (v.size, "statistics" if p.endswith((".mean", ".var")) else "parameters") for p, v in variables(model).items()
    ]
    parameters = sum(size for size, kind in counted if kind == "parameters")
    statistics = sum(size for size, kind in counted if kind == "statistics")
    taps = "no blur" if layout.filter_size is None else f"blurs of {layout.filter_size} taps"
    megabytes = (options.output / WEIGHTS_NAME).stat().st_size / 2**20
    license = options.license or (entry.license if entry else None)
    print(printable(f"{spec} from {path}"))
    print(f"  checkpoint  {layout.name} layout, {taps}, sha256 {digest[:16]}…")
    if entry:
        print(f"  published   {entry.training}, top-1 {entry.top1:.2f} %, consistency {entry.consistency:.2f} %")
    print(printable(f"  licence     {license or 'not known; --license records it'}"))
    print(f"  network     {parameters:,} parameters, {statistics:,} statistics, {spec.num_classes} classes")
    print(printable(f"  written     {options.output}{os.sep} ({WEIGHTS_NAME} {megabytes:.1f} MiB, config.json)"))


def print_catalog(pattern: str) -> None:
    """The published networks as a table."""
    entries = catalog.list_published(pattern)
    if not entries:
        raise ValueError(f"nothing published matches {pattern!r}; --list without a pattern shows all")
    print(f"{'network':<22} {'training':<12} {'top-1 %':>8} {'consistency %':>14}  checkpoint")
    for e in entries:
        checkpoint = e.file_name or "(torchvision's; the baseline)"
        print(f"{e.spec:<22} {e.training:<12} {e.top1:>8.2f} {e.consistency:>14.2f}  {checkpoint}")
    count = sum(e.url is not None for e in entries)
    print(f"\n{count} checkpoints, {catalog.LICENSE}. Downloads go to {cache_directory()}")


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], Advance]]:
    """A function that begins a step by its name and returns what reports how far it is, on stderr."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        yield plain_step
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield plain_step
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:

        def step(name: str) -> Advance:
            for task in bars.tasks:
                bars.remove_task(task.id)
            task = bars.add_task(printable(name), total=None, amount="")
            return lambda done, total: bars.update(task, completed=done, total=total, amount=amount(done, total))

        yield step


def amount(done: int, total: int | None) -> str:
    """Bytes that are done, for people."""
    return f"{done / 2**20:.1f} MiB" + (f" of {total / 2**20:.1f}" if total else "")


def plain_step(name: str) -> Advance:
    """Progress as lines: the step's name at once, and how far it is every few seconds."""
    print(printable(f"{name} …"), file=sys.stderr)
    printed = time.monotonic()

    def advance(done: int, total: int | None) -> None:
        nonlocal printed
        if time.monotonic() - printed > PLAIN_PROGRESS_SECONDS:
            print(printable(f"{name}: {amount(done, total)}"), file=sys.stderr)
            printed = time.monotonic()

    return advance


if __name__ == "__main__":
    # Copying arrays needs no accelerator, and should not take one from a training run.
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main())
