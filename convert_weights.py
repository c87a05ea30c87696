"""Converts a PyTorch checkpoint to a directory that `aa_flax.load_pretrained` reads; needs no PyTorch.

python convert_weights.py resnet50_lpf4.pth --model resnet50_lpf4 --output weights/resnet50_lpf4
python convert_weights.py --model resnet50_lpf4 --output weights/resnet50_lpf4     # downloads it first
python convert_weights.py --list                                                   # what can be downloaded
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from aa_flax.files import Progress, cache_directory, file_sha256
from aa_flax.local_paths import local_path
from aa_flax.models.abstract import build_abstract
from aa_flax.models.base import ModelSpec
from aa_flax.models.specs import resolve_spec
from aa_flax.models.variables import variables
from aa_flax.printable import accept_any_text, printable
from aa_flax.progress import progress
from aa_flax.weights import catalog
from aa_flax.weights.config import INTERPOLATIONS, Preprocessing, PretrainedConfig
from aa_flax.weights.conversion import Conversion, convert_file, holds_conversion
from aa_flax.weights.identity import spec_of
from aa_flax.weights.input_channels import channel_statistics
from aa_flax.weights.json_file import parse_json
from aa_flax.weights.store import WEIGHTS_NAME

BAD_INPUT = 2
INTERRUPTED = 130


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
        conversion = convert_file(
            path,
            spec,
            sha256=digest,
            key=options.key,
            prefix=options.prefix,
            skip_head=options.skip_head,
            allow_filter_change=options.allow_filter_change,
            **network_options,
        )
        step(f"writing {options.output}")
        published = conversion.published
        license = options.license or (published.license if published else None)
        conversion.save(options.output, preprocessing=preprocessing, license=license)
        if options.verify:
            try:
                verified = conversion.verify(options.output, step(f"verifying {options.output}"))
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"{options.output} is written, but not verified") from None
    print_summary(conversion, options.output, license)
    if options.verify:
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


def fetch(spec: str, training: str | None, step: Callable[[str], Progress]) -> Path:
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
    if not holds_conversion(directory, spec, sha256=digest, key=options.key, prefix=options.prefix):
        raise FileExistsError(f"{directory}: holds other weights; give another --output, or --overwrite")


def print_summary(conversion: Conversion, output: Path, license: str | None) -> None:
    """What was converted, what to do with it, and what to know before."""
    spec, layout, published = spec_of(conversion.model, "convert_weights.py"), conversion.layout, conversion.published
    sizes = {path: variable.size for path, variable in variables(conversion.model).items()}
    statistics = sum(size for path, size in sizes.items() if path.endswith((".mean", ".var")))
    parameters = sum(sizes.values()) - statistics
    taps = "no blur" if layout.filter_size is None else f"blurs of {layout.filter_size} taps"
    megabytes = (output / WEIGHTS_NAME).stat().st_size / 2**20
    print(printable(f"{spec} from {conversion.path}"))
    print(f"  checkpoint  {layout.name} layout, {taps}, sha256 {conversion.sha256[:16]}…")
    if published:
        figures = f"top-1 {published.top1:.2f} %, consistency {published.consistency:.2f} %"
        print(f"  published   {published.training}, {figures}")
    print(printable(f"  licence     {license or 'not known; --license records it'}"))
    print(f"  network     {parameters:,} parameters, {statistics:,} statistics, {spec.num_classes} classes")
    print(printable(f"  written     {output}{os.sep} ({WEIGHTS_NAME} {megabytes:.1f} MiB, config.json)"))
    for note in conversion.notes():
        print(printable(f"  note        {note}"))


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


if __name__ == "__main__":
    # Copying arrays needs no accelerator, and should not take one from a training run.
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main())
