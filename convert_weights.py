"""Converts weights to a directory that `aa_flax.load_pretrained` reads; needs no PyTorch.

python convert_weights.py resnet50_lpf4.pth --model resnet50_lpf4 --output weights/resnet50_lpf4
python convert_weights.py resnetaa50.a1h_in1k --output weights/resnetaa50           # fetched first
python convert_weights.py --list 'resnet*'                                          # what can be had, and where
python convert_weights.py weights/resnetaa50 --push owner/name                      # to the Hugging Face Hub
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from aa_flax.files import Progress, cache_directory
from aa_flax.hub import check_push, push_to_hub
from aa_flax.local_paths import local_path
from aa_flax.models.abstract import build_abstract
from aa_flax.models.specs import resolve_spec
from aa_flax.printable import accept_any_text, printable
from aa_flax.progress import progress
from aa_flax.weights.catalog import list_pretrained
from aa_flax.weights.config import INTERPOLATIONS, PretrainedConfig
from aa_flax.weights.conversion import convert_file
from aa_flax.weights.input_channels import preparation_for
from aa_flax.weights.json_file import parse_json
from aa_flax.weights.names import Weights, kind_of, obtain, obtain_published

BAD_INPUT = 2
INTERRUPTED = 130


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends the program with exit code 2 where it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="convert_weights.py",
        description="Converts weights for aa_flax, and lists and uploads them. Needs no PyTorch.",
        epilog="The paper's checkpoints are under CC BY-NC-SA 4.0: non-commercial use, with attribution.",
    )
    add = parser.add_argument
    add("input", metavar="IN", nargs="?", help="a .pth or .safetensors, its https address, hf://owner/name, or a name")
    add("--model", metavar="SPEC", help="the network, such as resnet50_lpf4; without IN its published weights")
    add("--output", metavar="DIR", type=Path, help="directory to write config.json and model.safetensors into")
    add("--key", help="which state dict of a training checkpoint, such as state_dict_ema (default: the weights' own)")
    add("--prefix", help="take the tensors alone whose names begin so, without it: backbone, encoder_q, model.net")
    add("--num-classes", type=int, help="classes of the network (default: those of the weights)")
    add("--skip-head", action="store_true", help="start the classifier afresh, to fine-tune on other classes")
    add(
        "--in-channels",
        metavar="N",
        type=int,
        help="channels of the images; kernels are summed for 1, else repeated",
    )
    add("--allow-filter-change", action="store_true", help="take weights of other blurs, to be fine-tuned with these")
    add("--option", metavar="NAME=VALUE", action="append", default=[], help="of the network, such as pool_only=false")
    add("--resize", metavar="PIXELS", type=int, help="shorter side of an image after resizing (default: as published)")
    add("--crop", metavar="PIXELS", type=int, help="side of the centre crop (default: as published, else 224)")
    add("--interpolation", choices=INTERPOLATIONS, help="of the resizing (default: as published, else bilinear)")
    add("--mean", metavar="R,G,B", type=numbers, help="subtracted from the channels, 0 to 1 (default ImageNet's)")
    add("--std", metavar="R,G,B", type=numbers, help="the channels are divided by it afterwards (default ImageNet's)")
    add("--license", metavar="TEXT", help="licence of the weights, for config.json; known for published ones")
    add("--verify", action="store_true", help="load the result again and compare it with the checkpoint")
    add("--overwrite", action="store_true", help="replace other weights in DIR")
    add("--push", metavar="OWNER/NAME", help="upload DIR, or the directory IN, to the Hugging Face Hub with a card")
    add("--report", metavar="FILE", type=Path, help="of evaluate --output on DIR: its figures go into the card")
    add("--list", metavar="PATTERN", nargs="?", const="*", help="list what is published, e.g. --list 'resnet*'")
    options = parser.parse_args(arguments)
    if options.list is None and not (options.input or options.model):
        parser.error("IN or --model is needed (or --list)")
    if options.list is None and not (options.output or options.push):
        parser.error("--output is needed, or --push for a directory (or --list)")
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
            return 0
        if options.push:
            check_push(options.push)
        if options.output is not None:
            convert(options)
        if options.push:
            with progress() as step:
                step(f"uploading {options.output or options.input}")
                address = push_to_hub(options.output or options.input, options.push, report=options.report)
            print(printable(f"  uploaded    {address}"))
    except (OSError, ValueError, ImportError) as error:
        # CheckpointError and DownloadError are among these.
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as interrupt:
        print(f"interrupted: {str(interrupt) or 'nothing was written'}", file=sys.stderr)
        return INTERRUPTED
    return 0


def convert(options: argparse.Namespace) -> None:
    """Converts weights and prints a summary."""
    local_path(options.output)
    network = parse_network_options(options)
    check(options, network)
    with progress() as step:
        weights = get(options, step)
        spec = (options.model or weights.config.model).partition(".")[0]
        step(f"converting {weights.path.name}")
        chosen = {name: getattr(options, name) for name in ("key", "prefix", "skip_head", "allow_filter_change")}
        conversion = convert_file(weights, spec, **chosen, **network)
        step(f"writing {options.output}")
        license = options.license or weights.config.license
        images = preparation_for(weights.config, conversion.spec.in_channels, **given_preparation(options))
        conversion.save(options.output, overwrite=options.overwrite, license=license, **images)
        if options.verify:
            try:
                verified = conversion.verify(options.output, step(f"verifying {options.output}"))
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"{options.output} is written, but not verified") from None
    for line in conversion.summary(options.output, license):
        print(printable(line))
    if options.verify:
        print(f"  verified    {verified} tensors, read back, equal the checkpoint's")


def parse_network_options(options: argparse.Namespace) -> dict[str, Any]:
    """`--num-classes`, `--in-channels`, and `--option pool_only=false` as keyword arguments of `create_model`."""
    counts = {"num_classes": options.num_classes, "in_channels": options.in_channels}
    network: dict[str, Any] = {name: count for name, count in counts.items() if count is not None}
    for word in options.option:
        name, equals, text = word.partition("=")
        if not (name and equals and text):
            raise ValueError(f"--option {word}: write NAME=VALUE, such as pool_only=false or width_mult=0.5")
        try:
            value = parse_json(text.lower())
        except json.JSONDecodeError:
            value = text
        except ValueError as error:
            raise ValueError(f"--option {name}: {error}") from error
        network[name] = tuple(value) if isinstance(value, list) else value
    return network


def check(options: argparse.Namespace, network: Mapping[str, Any]) -> None:
    """Refuses what can be no network and no preparation before anything is fetched or read."""
    if options.input is not None:
        kind_of(options.input)
    if options.model is None:
        return
    try:
        spec = resolve_spec(options.model.partition(".")[0], **network)
        channels = options.in_channels or len(options.mean or options.std or "RGB")
        preparation_for(PretrainedConfig(spec=resolve_spec(spec.name)), channels, **given_preparation(options))
        if options.option:
            build_abstract(spec)
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"--option {' '.join(options.option)}: makes no network: {error}") from error


def get(options: argparse.Namespace, step: Callable[[str], Progress]) -> Weights:
    """The weights to convert, on this disk."""
    report = step(f"getting {options.input or options.model}")
    if options.input is None:
        return obtain_published(options.model, progress=report)
    weights = obtain(options.input, spec=options.model, progress=report)
    if weights.converted:
        raise ValueError(f"{options.input}: it is converted already: aa_flax.load_pretrained takes it as it is")
    return weights


def given_preparation(options: argparse.Namespace) -> dict[str, Any]:
    """What the options say of how images are prepared."""
    names = ("resize", "crop", "interpolation", "mean", "std")
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def print_catalog(pattern: str) -> None:
    """The published networks as a table."""
    entries = list_pretrained(pattern)
    if not entries:
        raise ValueError(f"nothing published matches {pattern!r}; --list without a pattern shows all")
    print(f"{'weights':<50} {'top-1 %':>8} {'top-5 %':>8} {'consistency %':>14}  {'licence':<16} reachable from")
    for e in entries:
        figures = [f"{x:.2f}" if x is not None else "-" for x in (e.top1, e.top5, e.consistency)]
        where = e.reachable_from or "nowhere known"
        print("{:<50} {:>8} {:>8} {:>14}  {:<16} {}".format(e.name, *figures, e.license or "not stated", where))
    for note in sorted({f"{s.host} {s.note}" for e in entries for s in e.sources if s.gone}):
        print(f"\n{note}.", end="")
    print(f"\n{len(entries)} checkpoints. Downloads go to {cache_directory()}")


if __name__ == "__main__":
    # Copying arrays needs no accelerator, and should not take one from a training run.
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main())
