"""Networks that leave JAX's Python: a serialised StableHLO program, its weights beside it, and a loader.

The program is `jax.export`'s: it runs wherever a JAX of about the same time or a newer one runs (jax-ml's promise is
six months), on the platforms that it was lowered for, without this package's networks.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aa_flax import platforms as known
from aa_flax.axes import per_axis
from aa_flax.files import whole_directory
from aa_flax.local_paths import local_path
from aa_flax.models.base import ModelSpec, Network
from aa_flax.weights.errors import CheckpointError
from aa_flax.weights.json_file import read_json
from aa_flax.weights.safetensors_file import read_safetensors, write_safetensors

PROGRAM, WEIGHTS, DESCRIPTION = "program.jax", "weights.safetensors", "export.json"
PLATFORMS = ("cpu", "cuda", "tpu")
# Smaller images vanish on the way through the pools of some networks.
_LEAST_FREE_SIZE = 64


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedNetwork:
    """A loaded program with its weights: `network(images)` gives what the model gave in evaluation mode.

    Attributes:
        input_shape: what the program takes, text for sizes that are free, such as `("b", 224, 224, 3)`.
        dtype: dtype of the images.
        platforms: where it runs.
        model: the spec that it was exported from, None for networks that are not of this package.
        program: the program, of `(weights, images)`.
        weights: the arrays by path.
    """

    input_shape: tuple[str | int, ...]
    dtype: str
    platforms: tuple[str, ...]
    model: str | None
    program: jax.export.Exported = dataclasses.field(repr=False)
    weights: dict[str, jax.Array] = dataclasses.field(repr=False)

    def __call__(self, images: jax.Array) -> Any:
        """The outputs for images of `input_shape`; can be called inside `jax.jit`.

        Raises:
            ValueError: for images of another shape or dtype.
        """
        free = [i for i, n in enumerate(self.input_shape) if isinstance(n, str)]
        fits = len(images.shape) == len(self.input_shape) and all(
            i in free or n == images.shape[i] for i, n in enumerate(self.input_shape)
        )
        if not fits or images.dtype != self.dtype:
            wanted = f"{self.dtype} {self.input_shape}"
            raise ValueError(f"the program takes {wanted}, got {images.dtype} {tuple(images.shape)}: export it again")
        return self.program.call(self.weights, images)


def export(
    model: nnx.Module,
    directory: str | os.PathLike[str],
    *,
    batch: str | int = "b",
    image_size: int | tuple[int | str, int | str] = 224,
    in_channels: int | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
    platforms: Sequence[str] = PLATFORMS,
) -> Path:
    """Lowers a network in evaluation mode and writes program, weights and a description to a directory.

    The files appear complete or not at all. The weights are no part of the program: one can be replaced by others
    of the same shapes.

    Args:
        model: an NNX module that maps images (N, H, W, C) to arrays; one of this package, or any other.
        directory: the folder, made when missing; other files in it stay.
        batch: a name leaves the batch size free; a number fixes it.
        image_size: height and width in pixels, one number for both. Names, as in `("h", "w")`, leave them free from
            64 pixels on; not for networks with tables that depend on the size, as every blur has.
        in_channels: channels of the images; by default what a network of this package takes.
        dtype: dtype of the images.
        platforms: where the program is to run; it is lowered once for each, and none has to be present.

    Returns:
        The directory.

    Raises:
        ImportError: if the package `flatbuffers` is missing.
        TypeError: if `model` is no NNX module.
        ValueError: if the channels are not known, the model holds no values, or a size or platform is none.
    """
    _need_flatbuffers()
    if not isinstance(model, nnx.Module):
        raise TypeError(f"export takes a flax.nnx.Module, got {type(model).__name__}")
    _check_platforms(platforms)
    spec = getattr(model, "spec", None)
    channels = in_channels or (model.image_channels() if isinstance(model, Network) else None)
    if channels is None:
        raise ValueError(f"in_channels is needed to export {type(model).__name__}, which has no spec")
    height, width = _height_and_width(image_size)
    _check_batch(batch)
    graphdef, noise, state = nnx.split(model, nnx.RngState, ..., graph=True)
    arrays = _arrays(state)

    def run(weights: dict[str, jax.Array], images: jax.Array) -> Any:
        network = nnx.merge(graphdef, noise, _filled(state, weights))
        network.eval()
        return network(images)

    free = sorted({size for size in (height, width) if isinstance(size, str)})
    bounds = [f"{name} >= {_LEAST_FREE_SIZE}" for name in free]
    shape = jax.export.symbolic_shape(f"{batch}, {height}, {width}, {channels}", constraints=bounds)
    weights = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in arrays.items()}
    lower = jax.export.export(jax.jit(run), platforms=tuple(platforms))
    try:
        exported = lower(weights, jax.ShapeDtypeStruct(shape, dtype))
    except (TypeError, ValueError, jax.errors.InconclusiveDimensionOperation) as error:
        if not free:
            raise
        name = type(model).__name__
        raise ValueError(
            f"image_size={image_size!r}: {name} depends on the size of its images, as every blur does: give numbers"
        ) from error
    return _write(
        local_path(directory),
        bytes(exported.serialize()),
        arrays,
        {
            "input_shape": [batch, height, width, channels],
            "dtype": jnp.dtype(dtype).name,
            "platforms": list(platforms),
            "model": str(spec) if isinstance(spec, ModelSpec) else None,
            "jax": jax.__version__,
        },
    )


def _check_platforms(platforms: Sequence[str]) -> None:
    # jax.export takes any text, and a single one for its letters.
    if isinstance(platforms, str) or not platforms or not set(platforms) <= set(known.PLATFORMS):
        raise ValueError(f"platforms must be a list of {', '.join(known.PLATFORMS)}, got {platforms!r}")


def _height_and_width(image_size: int | tuple[int | str, int | str]) -> tuple[int | str, ...]:
    sizes: Any = image_size
    if not isinstance(sizes, tuple | list) or not any(map(_is_name, sizes)):
        return per_axis("image_size", sizes, 2)
    numbers = per_axis("image_size", tuple(1 if _is_name(size) else size for size in sizes), 2)
    return tuple(size if _is_name(size) else number for size, number in zip(sizes, numbers, strict=True))


def _is_name(size: Any) -> bool:
    return isinstance(size, str) and size.isidentifier()


def _check_batch(batch: str | int) -> None:
    if batch.isidentifier() if isinstance(batch, str) else batch >= 1:
        return
    raise ValueError(f"batch must be a name such as 'b' or a whole number >= 1, got {batch!r}")


def load_exported(directory: str | os.PathLike[str]) -> ExportedNetwork:
    """The program that `export` has written, with its weights on the default device.

    Raises:
        ImportError: if the package `flatbuffers` is missing.
        FileNotFoundError: if a file is missing.
        CheckpointError: (a ValueError) if a file is damaged, or program and weights do not belong together.
    """
    _need_flatbuffers()
    directory = local_path(directory)
    for name in (DESCRIPTION, PROGRAM, WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory / name}: not found; export the network again")
    try:
        described = read_json(directory / DESCRIPTION)
        digest = described["sha256"]
        keys = ("input_shape", "dtype", "platforms", "model")
        shape, dtype, platforms, model = (described[key] for key in keys)
        if not (isinstance(shape, list) and isinstance(platforms, list) and isinstance(model, str | None)):
            raise TypeError("input_shape or platforms is no list, or model no text")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{directory / DESCRIPTION}: damaged ({error}); export the network again") from error
    program = (directory / PROGRAM).read_bytes()
    if hashlib.sha256(program).hexdigest() != digest:
        raise CheckpointError(f"{directory / PROGRAM}: not the file that was exported; export the network again")
    try:
        arrays, metadata = read_safetensors(directory / WEIGHTS)
    except CheckpointError as error:
        raise CheckpointError(f"{directory / WEIGHTS}: {error}") from error
    exported, wanted, images = _deserialised(directory / PROGRAM, program)
    here, there = [*shape, dtype, *platforms], [*map(str, images.shape), images.dtype.name, *exported.platforms]
    if list(map(str, here)) != there:
        raise CheckpointError(f"{directory / DESCRIPTION}: it says {here}, and {PROGRAM} {there}: export again")
    _check_weights(directory / WEIGHTS, wanted, arrays, metadata.get("program"), digest)
    weights = {name: jnp.array(a) for name, a in arrays.items()}
    return ExportedNetwork(tuple(shape), dtype, tuple(platforms), model, exported, weights)


def _deserialised(path: Path, program: bytes) -> tuple[jax.export.Exported, dict[str, Any], Any]:
    """The program, the arrays that it takes by path, and the images that it takes."""
    try:
        exported = jax.export.deserialize(bytearray(program))
        (wanted, images), options = jax.tree.unflatten(exported.in_tree, exported.in_avals)
        if options or not all(hasattr(a, "shape") for a in (images, *dict(wanted).values())):
            raise ValueError("it takes other arguments than weights and images")
    except Exception as error:
        # What JAX raises on other bytes is not documented: among others struct.error, KeyError and StopIteration.
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise CheckpointError(f"{path}: no program of aa_flax.export ({reason}); export the network again") from error
    return exported, wanted, images


def _need_flatbuffers() -> None:
    try:
        import flatbuffers  # noqa: F401
    except ImportError as error:
        raise ImportError("jax.export stores programs by the package flatbuffers: pip install flatbuffers") from error


def _arrays(state: Any) -> dict[str, np.ndarray]:
    arrays = {}
    for path, variable in nnx.to_flat_state(state):
        value = variable.get_value()
        if not isinstance(value, jax.Array | np.ndarray):
            raise ValueError(f"export needs a model with values, but {'.'.join(map(str, path))} has none")
        arrays[".".join(map(str, path))] = np.asarray(value, order="C")
    return arrays


def _filled(state: Any, weights: dict[str, jax.Array]) -> Any:
    flat = nnx.to_flat_state(state)
    return nnx.from_flat_state([(path, variable.replace(weights[".".join(map(str, path))])) for path, variable in flat])


def _write(directory: Path, program: bytes, arrays: dict[str, np.ndarray], described: dict[str, Any]) -> Path:
    described["sha256"] = hashlib.sha256(program).hexdigest()
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"{directory}: it is a file; give a directory to write into")
    with whole_directory(directory, last=DESCRIPTION) as fresh:
        (fresh / PROGRAM).write_bytes(program)
        write_safetensors(fresh / WEIGHTS, arrays, ("program", described["sha256"]))
        (fresh / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n", "utf-8")
    return directory


def _check_weights(
    path: Path, wanted: dict[str, Any], arrays: dict[str, np.ndarray], program: str | None, digest: str
) -> None:
    """Both ways strict; a file of other weights for the same program says nothing of a program, or its own."""
    shapes = {name: (tuple(a.shape), jnp.dtype(a.dtype).name) for name, a in wanted.items()}
    found = {name: (a.shape, a.dtype.name) for name, a in arrays.items()}
    if found != shapes or program not in (None, digest):
        odd = sorted(set(shapes.items()) ^ set(found.items()))[:4]
        raise CheckpointError(f"{path}: its weights do not belong to {PROGRAM}; first differences: {odd}")
