"""Pretrained directories in Hugging Face's shape: `config.json` and `model.safetensors`."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aa_flax.buckets import AnyPath, any_path
from aa_flax.files import whole_directory
from aa_flax.models.abstract import build_abstract
from aa_flax.models.base import Network
from aa_flax.models.specs import changed_spec, resolve_spec
from aa_flax.models.variables import variables
from aa_flax.weights.config import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    Preprocessing,
    PretrainedConfig,
    dump_config,
    read_config,
)
from aa_flax.weights.errors import CheckpointError
from aa_flax.weights.filling import fill, listing
from aa_flax.weights.identity import spec_of
from aa_flax.weights.input_channels import preparation_for
from aa_flax.weights.names import Weights, obtain
from aa_flax.weights.provenance import Provenance, digest, known_of
from aa_flax.weights.refit import refit
from aa_flax.weights.safetensors_file import read_safetensors, write_safetensors

__all__ = [
    "CheckpointError",
    "Preprocessing",
    "PretrainedConfig",
    "fill",
    "load_pretrained",
    "read_config",
    "save_pretrained",
    "variables",
]


def save_pretrained(
    model: nnx.Module,
    directory: str | os.PathLike[str],
    *,
    preprocessing: Preprocessing | None = None,
    test_preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
    source: Mapping[str, Any] | None = None,
    license: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    overwrite: bool = True,
) -> AnyPath:
    """Writes a network to a directory that `load_pretrained` reads.

    The files appear complete or not at all: an interrupted save leaves what was there before. What a loaded network's
    files said (`model.provenance`) is written again where nothing else is given; of weights that were trained since,
    the source names the ones they began with, and the metrics are left out.

    Args:
        model: made by `create_model`, `load_pretrained` or `convert_state_dict`, perhaps trained since. Parameters
            and statistics keep their types.
        directory: the folder, made when missing; other files in it stay. gs://bucket/name is one in a bucket.
        preprocessing: how images are prepared for the network; None means what is known, else ImageNet's standard,
            which is for three channels only.
        test_preprocessing: the same at the size where accuracy counts for more than speed, if there is one.
        class_names: one for each logit.
        source: where the weights come from, such as `file`, `url`, `sha256`; anything JSON can hold.
        license: of the weights.
        metrics: figures of the network by name; anything JSON can hold.
        overwrite: replace `config.json` and `model.safetensors` where they exist.

    Returns:
        The directory.

    Raises:
        ValueError: the model is not what a spec of this library builds, is abstract, or holds NaN or infinite
            values, or an argument does not fit.
        FileExistsError: `directory` is a file, or holds a saved network while `overwrite` is off.
        OSError: the files cannot be written: no permission, a full disk.
    """
    spec, arrays = spec_of(model, "save_pretrained"), _arrays(model)
    given = {
        "preprocessing": preprocessing,
        "test_preprocessing": test_preprocessing,
        "class_names": None if class_names is None else tuple(class_names),
        "source": None if source is None else dict(source),
        "license": license,
        "metrics": None if metrics is None else dict(metrics),
    }
    given = {name: value for name, value in given.items() if value is not None}
    known = known_of(model, spec, arrays)
    if preprocessing is not None:
        # Another size, of the images that the network is for now.
        known.pop("test_preprocessing", None)
    if source is not None and "parents" in known.get("source", {}):
        given["source"] = {"parents": known["source"]["parents"], **source}
    config = PretrainedConfig(spec=spec, **(known | given))
    text = dump_config(config)
    directory = any_path(directory)
    _check_target(directory, overwrite)
    with whole_directory(directory, last=CONFIG_NAME) as fresh:
        write_safetensors(fresh / WEIGHTS_NAME, arrays, ("model", config.model))
        (fresh / CONFIG_NAME).write_text(text, "utf-8")
    return directory


def load_pretrained(
    name: str | os.PathLike[str],
    *,
    spec: str | None = None,
    dtype: jax.typing.DTypeLike | None = None,
    pad_type: str | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    frozen_bn: bool | None = None,
    rngs: nnx.Rngs | None = None,
) -> Network:
    """A network with its weights, in eval mode.

    What is fetched is checked by its hash, kept in a cache, and never asked for again.

    Args:
        name: one of

            - a directory that `save_pretrained` or `convert_weights.py` has written; a file `.pth`, `.safetensors`;
              either on this disk or in a bucket, gs://bucket/name;
            - a network with published weights: `resnet50_lpf4`, `resnet50_plain`, `resnetaa50.a1h_in1k`;
              `list_pretrained` has them;
            - a repository on the Hugging Face Hub, of this library's layout or timm's: `hf://owner/name[@revision]`;
            - the https address of a `.pth` or `.safetensors`, perhaps with `#sha256=` and its first digits.

            What lies on this disk comes first.
        spec: which network a file is of that does not say so itself, such as `resnet50_lpf4`; weights of another one
            are refused.
        dtype: what layers compute in. None means float32, or float64 where the stored weights are. The weights of a
            directory keep their stored types either way.
        pad_type: padding of every blur in place of the one that the network was trained with, such as `zero` for
            engines that cannot reflect. The answers change: `docs/export.md` has by how much.
        num_classes: another number of classes than the weights have gives a fresh head, 0 none: pooled features.
        in_channels: channels of the images; for one channel the first kernels are summed, for others repeated and
            scaled.
        frozen_bn: normalise by running statistics in training too, see `create_model`.
        rngs: source of fresh values; None means `nnx.Rngs(0)`.

    Returns:
        The network; `model.provenance` keeps what is known of the weights.

    Raises:
        FileNotFoundError: no such directory or file, or a file is missing in it.
        CheckpointError: (a ValueError) the files do not fit each other or the network (what is missing, left over or
            of another shape is listed), or hold NaN or infinite values.
        ValueError: no name of weights, such as s3://bucket/weights; a file whose network nobody says.
        DownloadError: (an OSError) they could not be fetched; each address is named with its reason.
    """
    weights = obtain(name, spec=spec)
    if spec is not None and weights.config.model != str(wanted := resolve_spec(spec.partition(".")[0])):
        raise ValueError(f"{name} holds {weights.config.model}, not {wanted}: leave the network out, or name others")
    changes = {"pad_type": pad_type, "num_classes": num_classes, "in_channels": in_channels, "frozen_bn": frozen_bn}
    return load_weights(weights, dtype=dtype, rngs=rngs, **changes)


def load_weights(
    weights: Weights, *, dtype: jax.typing.DTypeLike | None = None, rngs: nnx.Rngs | None = None, **changes: Any
) -> Network:
    """The network of weights that `aa_flax.weights.names.obtain` has found; see `load_pretrained`."""
    given = {name: value for name, value in changes.items() if value is not None}
    load = _load_converted if weights.converted else _load_checkpoint
    return load(weights, dtype, given, nnx.Rngs(0) if rngs is None else rngs)


def _load_converted(
    weights: Weights, dtype: jax.typing.DTypeLike | None, changes: dict[str, Any], rngs: nnx.Rngs
) -> Network:
    path, config, spec = weights.path, weights.config, weights.config.spec
    try:
        arrays, metadata = read_safetensors(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    # Networks that differ in their filters alone have the same tensors: nothing else would tell.
    if metadata.get("model", str(spec)) != str(spec):
        raise CheckpointError(
            f"{path}: it was saved from {metadata['model'][:60]!r}, but {CONFIG_NAME} says {config.model!r}: "
            "they do not belong together, write the directory again"
        )
    # Before anything is built: each block has tensors of its own.
    blocks = sum(config.options.get("depths", ()))
    if blocks > len(arrays):
        raise CheckpointError(
            f"{path.parent / CONFIG_NAME}: options.depths ask for {blocks:,} blocks, but {WEIGHTS_NAME} has "
            f"{len(arrays):,} tensors: they do not belong together, write the directory again"
        )
    stored_wide = any(array.dtype == np.float64 for array in arrays.values())
    default = jnp.float64 if stored_wide else jnp.float32
    wanted = changed_spec(spec, **changes)
    try:
        model = build_abstract(wanted, dtype=default if dtype is None else dtype)
    except (TypeError, ValueError, ArithmeticError) as error:
        if not config.options:
            raise
        raise CheckpointError(f"{path.parent / CONFIG_NAME}: its options make no network: {error}") from error
    if wanted != spec:
        arrays = refit(arrays, spec, wanted, rngs=rngs, param_dtype=default)
    fill(model, arrays, what=str(path), keep_dtype=True)
    model.provenance = Provenance(config, digest(arrays))
    model.eval()
    return model


def _load_checkpoint(
    weights: Weights, dtype: jax.typing.DTypeLike | None, changes: dict[str, Any], rngs: nnx.Rngs
) -> Network:
    # Imported when needed: most programs never read one.
    from aa_flax.weights import mapping
    from aa_flax.weights.torch.reader import read_torch_checkpoint

    what, state = str(weights.path), read_torch_checkpoint(weights.path)
    config = _counted(weights.config, mapping.counts_in(state, weights.config.spec, what))
    spec, compute = config.spec, jnp.float32 if dtype is None else dtype
    counts: dict[str, Any] = {"num_classes": spec.num_classes, "in_channels": spec.in_channels}
    model = mapping.convert_state_dict(state, str(spec), what=what, dtype=compute, rngs=rngs, **counts)
    arrays, wanted = _arrays(model), changed_spec(spec, **changes)
    if wanted != spec:
        arrays = refit(arrays, spec, wanted, rngs=rngs, param_dtype=jnp.float32)
        model = build_abstract(wanted, dtype=compute)
        fill(model, arrays, what=what)
        model.eval()
    layout = mapping.layout_of(state, spec, what)
    source = {**config.source, "layout": layout.name, "filter_size": layout.filter_size}
    model.provenance = Provenance(dataclasses.replace(config, source=source), digest(arrays))
    return model


def _counted(config: PretrainedConfig, counts: Mapping[str, int]) -> PretrainedConfig:
    """The configuration with the classes and channels of the file that it is of."""
    spec = changed_spec(config.spec, **counts)
    return dataclasses.replace(config, spec=spec, **preparation_for(config, spec.in_channels))


def _check_target(directory: AnyPath, overwrite: bool) -> None:
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"{directory}: it is a file; give a directory to write {WEIGHTS_NAME} into")
    existing = [name for name in (CONFIG_NAME, WEIGHTS_NAME) if (directory / name).exists()]
    if existing and not overwrite:
        raise FileExistsError(f"{directory}: already holds {existing[0]}; give another directory or overwrite=True")


def _arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    found = variables(model)
    abstract = [key for key, variable in found.items() if not isinstance(variable.get_value(), jax.Array | np.ndarray)]
    if abstract:
        raise ValueError(f"save_pretrained needs a model with values, but {abstract[0]} has none")
    arrays = {key: np.asarray(variable.get_value(), order="C") for key, variable in found.items()}
    broken = [key for key, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise ValueError("\n".join(["the model is not saved:", *listing("variables with NaN or infinity", broken)]))
    return arrays
