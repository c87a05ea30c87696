"""Every downsampling of every family as an ONNX file, beside JAX: `make test-export` runs it where the converter is."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import aa_flax
from aa_flax.models.abstract import abstract_model
from aa_flax.models.base import Network
from aa_flax.models.variables import variables
from examples.to_onnx import Config, main

# The converter asks for float64 here and there, and for what Flax no longer recommends.
pytestmark = pytest.mark.filterwarnings("ignore")

CIRCULAR = {"circular": True, "pad_type": "circular", "pool_only": False}
RESNET = {"depths": (1, 1, 1, 1)}
# Padded pools, as DenseNet has, convert for a fixed batch only; the others for any.
CASES = [
    *(("resnet18_lpf3", {"downsample": kind, **RESNET}, None) for kind in ("blur", "aps", "ddac", "ideal")),
    ("resnet50_lpf4", {"downsample": "aps", **CIRCULAR, **RESNET}, None),
    *(("mobilenet_v2_lpf4", {"downsample": kind, "width_mult": 0.25}, None) for kind in ("aps", "ddac", "ideal")),
    *(("densenet121_lpf3", {"downsample": kind, **RESNET}, 2) for kind in ("aps", "ddac", "ideal")),
    ("vgg11_lpf4", {"downsample": "aps"}, None),
    ("alexnet_lpf3", {"downsample": "ddac"}, None),
]


def random_network(spec: str, **options) -> Network:
    """Weights that keep a signal's size, by numpy."""
    model, random = abstract_model(spec, **options), np.random.default_rng(0)
    for path, variable in variables(model).items():
        shape = variable.shape
        if path.endswith("kernel"):
            value = random.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))
        else:
            value = random.uniform(0.5, 1.5, shape) - path.endswith(("bias", "mean"))
        variable.set_value(jnp.asarray(value, jnp.float32))
    return model


@pytest.mark.parametrize(("spec", "options", "batch"), CASES, ids=lambda value: str(value)[:48])
def test_onnxruntime_answers_as_jax_does(spec: str, options: dict, batch: int | None, tmp_path: Path):
    heads = {} if spec.startswith(("vgg", "alexnet")) else {"num_classes": 10}
    aa_flax.save_pretrained(random_network(spec, **({"num_classes": 0} | heads), **options), tmp_path / "w")
    config = Config(weights=tmp_path / "w", output=tmp_path / "n.onnx", size=64, batch=batch, tolerance=5e-5)
    assert main(config) == 0


def test_what_wants_a_fixed_batch_says_so(tmp_path: Path):
    aa_flax.save_pretrained(random_network("densenet121_lpf3", num_classes=2, **RESNET), tmp_path / "w")
    with pytest.raises(ValueError, match="does not convert for any number of images: give --batch"):
        main(Config(weights=tmp_path / "w", output=tmp_path / "n.onnx", size=64))
