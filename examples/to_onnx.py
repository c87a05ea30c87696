"""A network as an ONNX file, checked in onnxruntime.

    python -m examples.to_onnx --weights weights/mobilenet_v2_lpf4-cifar10 --output network.onnx

The converter jax2onnx holds other packages back, so it wants an environment of its own: make test-export makes one.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import jax2onnx  # pyright: ignore[reportMissingImports]
import numpy as np
import onnx  # pyright: ignore[reportMissingImports]
import onnxruntime  # pyright: ignore[reportMissingImports]
import tyro
from flax import nnx

import aa_flax
from aa_flax.local_paths import check_local_paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Convert and compare."""

    weights: Path
    """A directory that convert_weights.py or save_pretrained has written."""

    output: Path
    """The ONNX file."""

    size: int | None = None
    """Side of the images; by default the crop of the weights' preprocessing."""

    batch: int | None = None
    """A fixed number of images; by default any. Padded pools, as DenseNet has, only convert with a number."""

    pad_type: Literal["reflect", "replicate", "zero", "circular"] | None = None
    """Padding of the blurs in place of the trained one, such as zero."""

    tolerance: float = 1e-5
    """Largest difference to JAX, over the largest logit."""


class _NoDropout(nnx.Module):
    """What dropout is when nothing is trained."""

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        return x


def main(config: Config) -> int:
    """Writes the file; 1 where onnxruntime and JAX differ."""
    check_local_paths(config)
    described = aa_flax.read_config(config.weights)
    size = described.preprocessing.crop if config.size is None else config.size
    for option, number in (("--size", size), ("--batch", config.batch)):
        if number is not None and number < 1:
            raise ValueError(f"{option} must be at least 1, got {number}")
    model = aa_flax.fold_batchnorm(aa_flax.load_pretrained(config.weights, pad_type=config.pad_type))
    # jax2onnx puts layers of its own in place of Flax's; that of Dropout takes no `rngs`.
    model = nnx.recursive_map(lambda _, node: _NoDropout() if isinstance(node, nnx.Dropout) else node, model)

    def network(images: jax.Array) -> jax.Array:
        return model(images)

    # ONNX has no choice by platform. The form for TPU holds a blur as one matrix product per axis, without gathers.
    with aa_flax.traced_for("tpu"):
        shape = (config.batch or "batch", size, size, described.in_channels)
        try:
            jax2onnx.to_onnx(network, [shape], return_mode="file", output_path=str(config.output))
        except jax.errors.InconclusiveDimensionOperation as error:
            raise ValueError(f"{described.model} does not convert for any number of images: give --batch") from error

    describe(config.output, described)
    session = onnxruntime.InferenceSession(str(config.output))
    images = np.random.default_rng(0).standard_normal((config.batch or 3, *shape[1:]), np.float32)
    got = session.run(None, {session.get_inputs()[0].name: images})[0]
    with jax.default_matmul_precision("highest"):
        want = np.asarray(jax.jit(network)(images))
    error = float(np.abs(got - want).max() / np.abs(want).max())
    print(f"{config.output}: {described.model}, images ({', '.join(map(str, shape))})")
    print(f"onnxruntime {onnxruntime.__version__} and JAX differ by {error:.1e} of the largest logit")
    return int(not error <= config.tolerance)


def describe(path: Path, described: aa_flax.PretrainedConfig) -> None:
    """Puts what the network takes and tells apart into the metadata of its file, where `evaluate --onnx` reads it."""
    network = onnx.load(str(path), load_external_data=False)
    said: dict[str, Any] = {"preprocessing": dataclasses.asdict(described.preprocessing)}
    if described.class_names is not None:
        said["class_names"] = described.class_names
    onnx.helper.set_model_props(network, {name: json.dumps(value) for name, value in said.items()})
    path.write_bytes(network.SerializeToString())


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Config, description=__doc__)))
    except (OSError, ValueError) as error:
        print(f"to_onnx: {error}", file=sys.stderr)
        sys.exit(2)
