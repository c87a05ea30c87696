"""A PyTorch file as a network in a directory: what a person should know of it, and whether it is right."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aa_flax.files import Progress
from aa_flax.models.base import ModelSpec, Network
from aa_flax.models.variables import variables
from aa_flax.weights import catalog
from aa_flax.weights.config import Preprocessing, read_config
from aa_flax.weights.input_channels import with_input_channels
from aa_flax.weights.mapping import (
    Layout,
    blurs_alike,
    clean_names,
    convert_state_dict,
    detect_layout,
    tensors_in_layout,
)
from aa_flax.weights.statistics import describe_folded_norms
from aa_flax.weights.store import load_pretrained, save_pretrained
from aa_flax.weights.torch.fitting import layout_for
from aa_flax.weights.torch.reader import list_state_dicts, read_torch_checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Conversion:
    """A PyTorch file and the network that it was converted to.

    Attributes:
        path: the file.
        sha256: of its bytes.
        key: which of its state dicts was asked for; None for the weights' own.
        prefix: with what the names of the tensors begin that were taken; None for all.
        original: these tensors.
        state: the same, with the first kernels for the channels that were asked for.
        layout: whose names they have.
        model: the network.
        skip_head: whether its classifier is fresh.
    """

    path: Path
    sha256: str
    key: str | None
    prefix: str | None
    original: Mapping[str, np.ndarray]
    state: Mapping[str, np.ndarray]
    layout: Layout
    model: Network
    skip_head: bool

    @property
    def published(self) -> catalog.Published | None:
        """The published checkpoint that the file is; None for any other."""
        return catalog.identify(self.sha256)

    @property
    def source(self) -> dict[str, Any]:
        """What `config.json` says about where the weights come from."""
        chosen = {name: value for name, value in (("key", self.key), ("prefix", self.prefix)) if value is not None}
        layout = {"layout": self.layout.name, "filter_size": self.layout.filter_size}
        published = self.published.source if self.published else {}
        return {"file": self.path.name, "sha256": self.sha256, **layout, **chosen, **published}

    def notes(self) -> Iterator[str]:
        """What a person should know: which of the file's weights were taken, what was changed, how to train."""
        yield from self._notes_of_file()
        yield from self.changes()
        if folded := describe_folded_norms(self.model):
            yield f"{folded}: train with --recalibrate-bn or --net.frozen-bn"

    def _notes_of_file(self) -> Iterator[str]:
        found = list_state_dicts(self.path)
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

    def save(self, directory: Path, *, preprocessing: Preprocessing, license: str | None) -> None:
        """Writes the network by `save_pretrained`, with the figures of a published file whose network it still is.

        Args:
            directory: the folder.
            preprocessing: how images are prepared.
            license: of the weights.

        Raises:
            OSError: the files cannot be written.
        """
        metrics = self.published.metrics if self.published and not any(self.changes()) else {}
        save_pretrained(
            self.model,
            directory,
            preprocessing=preprocessing,
            source=self.source,
            license=license,
            metrics=metrics,
        )

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
    path: Path,
    spec: str,
    *,
    sha256: str,
    key: str | None = None,
    prefix: str | None = None,
    skip_head: bool = False,
    allow_filter_change: bool = False,
    **options: Any,
) -> Conversion:
    """Reads a PyTorch file and converts it.

    Args:
        path: the file.
        spec: the network.
        sha256: of the file.
        key: see `read_torch_checkpoint`.
        prefix: see `read_torch_checkpoint`.
        skip_head: see `convert_state_dict`.
        allow_filter_change: see `convert_state_dict`.
        options: of `create_model`; for other `in_channels` than the file's the first kernels are spread.

    Raises:
        OSError: the file cannot be read.
        CheckpointError: (a ValueError) it is damaged, or does not fit the network.
    """
    original = read_torch_checkpoint(path, key=key, prefix=prefix)
    state = with_input_channels(original, spec, options["in_channels"]) if "in_channels" in options else original
    model = convert_state_dict(
        state, spec, skip_head=skip_head, allow_filter_change=allow_filter_change, what=str(path), **options
    )
    return Conversion(
        path=path,
        sha256=sha256,
        key=key,
        prefix=prefix,
        original=original,
        state=state,
        layout=layout_for(model.spec, detect_layout(original)),
        model=model,
        skip_head=skip_head,
    )


def holds_conversion(directory: Path, spec: ModelSpec, **source: str | None) -> bool:
    """Whether a directory has the network of a spec from the same file: `source` is `sha256`, `key` and `prefix`."""
    with contextlib.suppress(OSError, ValueError):
        config = read_config(directory)
        return config.spec == spec and all(config.source.get(name) == value for name, value in source.items())
    return False
