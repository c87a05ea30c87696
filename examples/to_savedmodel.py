"""A network as a TensorFlow SavedModel, checked in TensorFlow.

    python -m examples.to_savedmodel --weights weights/mobilenet_v2_lpf4-cifar10 --output saved_model

It needs TensorFlow beside JAX: make test-export makes an environment for it. The model holds one XLA program (the
operation XlaCallModule), so that only a TensorFlow with XLA runs it.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import tensorflow as tf  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
import tyro
from jax.experimental import jax2tf

import aa_flax
from aa_flax.local_paths import check_local_paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Convert and compare."""

    weights: Path
    """A directory that convert_weights.py or save_pretrained has written."""

    output: Path
    """The directory of the SavedModel."""

    size: int | None = None
    """Side of the images; by default the crop of the weights' preprocessing."""

    tolerance: float = 1e-5
    """Largest difference to JAX, over the largest logit."""


class _Saved(tf.Module):
    """What the SavedModel holds: `predict(images)` gives logits."""

    def __init__(self, predict: Callable):
        super().__init__()
        self.predict = predict


def main(config: Config) -> int:
    """Writes the directory; 1 where TensorFlow and JAX differ."""
    check_local_paths(config)
    described = aa_flax.read_config(config.weights)
    size = described.preprocessing.crop if config.size is None else config.size
    if size < 1:
        raise ValueError(f"--size must be at least 1 pixel, got {size}")
    model = aa_flax.fold_batchnorm(aa_flax.load_pretrained(config.weights))

    def network(images: jax.Array) -> jax.Array:
        return model(images)

    shape = (size, size, described.in_channels)
    converted = jax2tf.convert(
        network, polymorphic_shapes=[f"(batch, {', '.join(map(str, shape))})"], with_gradient=False
    )
    signature = [tf.TensorSpec((None, *shape), tf.float32, name="images")]
    predict = tf.function(converted, input_signature=signature, autograph=False)
    tf.saved_model.save(_Saved(predict), str(config.output), signatures=predict.get_concrete_function())

    images = np.random.default_rng(0).standard_normal((3, *shape), np.float32)
    got = tf.saved_model.load(str(config.output)).predict(images).numpy()
    with jax.default_matmul_precision("highest"):
        want = np.asarray(jax.jit(network)(images))
    error = float(np.abs(got - want).max() / np.abs(want).max())
    print(f"{config.output}: {described.model}, images (batch, {', '.join(map(str, shape))})")
    print(f"TensorFlow {tf.__version__} and JAX differ by {error:.1e} of the largest logit")
    return int(not error <= config.tolerance)


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Config, description=__doc__)))
    except (OSError, ValueError) as error:
        print(f"to_savedmodel: {error}", file=sys.stderr)
        sys.exit(2)
