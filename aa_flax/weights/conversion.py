"""A PyTorch file as a network in a directory: what a person should know of it, and whether it is right."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aa_flax.files import Progress
from aa_flax.models.base import ModelSpec, Network
from aa_flax.models.specs import resolve_spec
from aa_flax.models.variables import variables
from aa_flax.weights.config import WEIGHTS_NAME, read_config
from aa_flax.weights.identity import spec_of
from aa_flax.weights.input_channels import with_input_channels
from aa_flax.weights.mapping import (
    Layout,
    blurs_alike,
    clean_names,
    convert_state_dict,
    counts_in,
    detect_layout,
    layout_of,
    tensors_in_layout,
)
from aa_flax.weights.names import Weights
from aa_flax.weights.statistics import describe_folded_norms
from aa_flax.weights.store import load_pretrained, save_pretrained
from aa_flax.weights.torch.reader import list_state_dicts, read_torch_checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Conversion:
    """A PyTorch file and the network that it was converted to.

    Attributes:
        weights: the file, and what is known of it.
        key: which of its state dicts was asked for; None for the weights' own.
        prefix: with what the names of the tensors begin that were taken; None for all.
        original: these tensors.
        state: the same, with the first kernels for the channels that were asked for.
        layout: whose names they have.
        model: the network.
        skip_head: whether its classifier is fresh.
    """

    weights: Weights
    key: str | None
    prefix: str | None
    original: Mapping[str, np.ndarray]
    state: Mapping[str, np.ndarray]
    layout: Layout
    model: Network
    skip_head: bool

    @property
    def spec(self) -> ModelSpec:
        """The network's."""
        return spec_of(self.model, "convert_weights.py")

    @property
    def source(self) -> dict[str, Any]:
        """What `config.json` says about where the weights come from."""
        chosen = {name: value for name, value in (("key", self.key), ("prefix", self.prefix)) if value is not None}
        layout = {"layout": self.layout.name, "filter_size": self.layout.filter_size}
        return {"file": self.weights.path.name, **self.weights.config.source, **layout, **chosen}

    def notes(self) -> Iterator[str]:
        """What a person should know: which of the file's weights were taken, what was changed, how to train."""
        yield from self._notes_of_file()
        yield from self.changes()
        if folded := describe_folded_norms(self.model):
            yield f"{folded}: train with --recalibrate-bn or --net.frozen-bn"

    def _notes_of_file(self) -> Iterator[str]:
        found = list_state_dicts(self.weights.path)
        if self.key is None and len(found) > 1:
            taken, *others = (f"{name[:60]!r} ({count} tensors)" for name, count in found.items())
            yield f"taken is {taken}; the file also has {', '.join(others[:8])}: --key takes another"
        for name, array in self.original.items():
            if name.rpartition(".")[2] == "n_averaged":
                yield (
                    f"these are the average of {int(array)} sets of weights: their batch statistics are right only if "
                    "they were taken anew (torch.optim.swa_utils.update_bn)"
                )

    def changes(self) -> Iterator[str]:
        """In what the network is not the file's."""
        if not blurs_alike(self.layout, self.model):
            yield "these weights were trained with other blurs or none: fine-tune before you use them"
        if self.skip_head:
            yield "the classifier is fresh: fine-tune before you use it"
        before = clean_names(self.original)
        for name, array in self.state.items():
            if name in before and before[name].shape != array.shape:
                given, here = before[name].shape[1], array.shape[1]
                way = "summed" if here == 1 else f"repeated in order and scaled by {given}/{here}"
                count = f"{here} channel" + "s" * (here != 1)
                yield f"{name} reads {count} here, {given} in the file: its kernels were {way}; fine-tune"

    def save(self, directory: Path, *, overwrite: bool = False, **said: Any) -> None:
        """Writes the network by `save_pretrained`, with the published figures of a file whose network it still is.

        Args:
            directory: the folder.
            overwrite: replace other weights than those of the same conversion.
            **said: `preprocessing`, `test_preprocessing` and `license`.

        Raises:
            FileExistsError: it holds other weights.
            OSError: the files cannot be written.
        """
        if not overwrite and (directory / WEIGHTS_NAME).exists() and not self._is_in(directory):
            raise FileExistsError(f"{directory}: holds other weights; give another --output, or --overwrite")
        known = self.weights.config
        classes_kept = known.num_classes == self.spec.num_classes and not self.skip_head
        save_pretrained(
            self.model,
            directory,
            source=self.source,
            metrics={} if any(self.changes()) else known.metrics,
            class_names=known.class_names if classes_kept else None,
            **said,
        )

    def _is_in(self, directory: Path) -> bool:
        with contextlib.suppress(OSError, ValueError):
            config = read_config(directory)
            same = all(config.source.get(name) == self.source.get(name) for name in ("sha256", "key", "prefix"))
            return same and config.spec == self.spec
        return False

    def summary(self, directory: Path, license: str | None) -> Iterator[str]:
        """What was converted and written where, what to do with it, and what to know before."""
        known, layout = self.weights.config, self.layout
        sizes = {path: variable.size for path, variable in variables(self.model).items()}
        statistics = sum(size for path, size in sizes.items() if path.endswith((".mean", ".var")))
        parameters = sum(sizes.values()) - statistics
        taps = "no blur" if layout.filter_size is None else f"blurs of {layout.filter_size} taps"
        megabytes = (directory / WEIGHTS_NAME).stat().st_size / 2**20
        yield f"{self.spec} from {self.weights.path}"
        yield f"  checkpoint  {layout.name} layout, {taps}, sha256 {self.source['sha256'][:16]}…"
        for where, figures in known.metrics.items():
            shown = (f"{name} {value:.2f} %" for name, value in figures.items())
            who, at, size = where.partition(" at ")
            yield f"  {who:<11} {known.source.get('training', '')}{at}{size}, {', '.join(shown)}"
        yield f"  licence     {license or 'not known; --license records it'}"
        yield f"  network     {parameters:,} parameters, {statistics:,} statistics, {self.spec.num_classes} classes"
        yield f"  written     {directory}{os.sep} ({WEIGHTS_NAME} {megabytes:.1f} MiB, config.json)"
        for note in self.notes():
            yield f"  note        {note}"

    def verify(self, directory: Path, progress: Progress) -> int:
        """Loads a written directory and compares it with the model, and in PyTorch's layout with the file.

        Returns:
            How many tensors of the file were compared.

        Raises:
            ValueError: a tensor differs.
        """
        loaded = load_pretrained(directory)
        written, converted = variables(loaded), variables(self.model)
        for path, variable in converted.items():
            if not np.array_equal(np.asarray(written[path][...]), np.asarray(variable[...])):
                raise ValueError(
                    f"{directory}: {path} differs from what was converted: the disk or the memory is faulty"
                )
        source = clean_names(self.state)
        back = tensors_in_layout(loaded, detect_layout(self.state), skip_head=self.skip_head)
        done, total = 0, sum(array.nbytes for array in back.values())
        for key, ours in back.items():
            done += ours.nbytes
            progress(done, total)
            if not np.array_equal(ours, source[key].astype(ours.dtype)):
                raise ValueError(f"{directory}: {key} differs from the checkpoint's")
        return len(back)


def convert_file(
    weights: Weights,
    spec: str,
    *,
    key: str | None = None,
    prefix: str | None = None,
    skip_head: bool = False,
    allow_filter_change: bool = False,
    **options: Any,
) -> Conversion:
    """Reads a PyTorch file and converts it.

    Args:
        weights: the file.
        spec: the network.
        key: see `read_torch_checkpoint`.
        prefix: see `read_torch_checkpoint`.
        skip_head: see `convert_state_dict`.
        allow_filter_change: see `convert_state_dict`.
        options: of `create_model`. Without `num_classes` and `in_channels` they are the file's; for other
            `in_channels` the first kernels are spread.

    Raises:
        OSError: the file cannot be read.
        CheckpointError: (a ValueError) it is damaged, or does not fit the network.
    """
    original = read_torch_checkpoint(weights.path, key=key, prefix=prefix)
    options = counts_in(original, resolve_spec(spec), str(weights.path)) | options
    state = with_input_channels(original, spec, options["in_channels"]) if "in_channels" in options else original
    model = convert_state_dict(
        state,
        spec,
        skip_head=skip_head,
        allow_filter_change=allow_filter_change,
        what=str(weights.path),
        **options,
    )
    return Conversion(
        weights=weights,
        key=key,
        prefix=prefix,
        original=original,
        state=state,
        layout=layout_of(original, resolve_spec(spec), str(weights.path)),
        model=model,
        skip_head=skip_head,
    )
