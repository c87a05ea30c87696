"""Networks of PyTorch, measured from Python, from its libraries and from an ONNX file that it wrote."""

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from aa_flax.weights.config import Preprocessing
from tests.parity.oracles import torchvision
from train.errors import CommandError
from train.measurable.network import Told
from train.measurable.onnx_file import open_onnx
from train.measurable.torch_library import open_timm, open_torchvision

IMAGES = np.random.default_rng(0).standard_normal((3, 64, 64, 3), np.float32)


def answers(network: torch.nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return network(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())).numpy()


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> tuple[torch.nn.Module, Path]:
    """A network of ten classes with random statistics, and its state dict."""
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v2(num_classes=10, width_mult=1.0).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("state") / "network.pth"
    torch.save(network.state_dict(), path)
    return network, path


def test_torchvision_with_weights_of_a_file(network):
    module, path = network
    found = open_torchvision("mobilenet_v2", path, Told(classes=10, size=64))
    np.testing.assert_allclose(found.fn(IMAGES), answers(module), rtol=1e-5, atol=1e-5)
    assert found.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert found.preprocessing == Preprocessing(resize=64, crop=64)
    assert found.model == "torchvision/mobilenet_v2"


def test_timm_with_weights_of_a_file(tmp_path):
    torch.manual_seed(1)
    module = timm.create_model("mobilenetv2_050", num_classes=10).eval()
    torch.save({"state_dict": module.state_dict()}, tmp_path / "network.pth")
    found = open_timm("mobilenetv2_050", tmp_path / "network.pth", Told(classes=10, size=64))
    np.testing.assert_allclose(found.fn(IMAGES), answers(module), rtol=1e-5, atol=1e-5)
    said = timm.data.resolve_model_data_config(module)
    rule = Preprocessing.of_share(64, said["crop_pct"], **{key: said[key] for key in ("interpolation", "mean", "std")})
    assert dataclasses.replace(found.preprocessing, resize=rule.resize) == rule
    assert abs(found.preprocessing.resize - rule.resize) <= 1


@pytest.mark.parametrize("free", [True, False], ids=["any number", "two at a time"])
def test_a_file_that_pytorch_wrote(network, tmp_path, free):
    module, _ = network
    path = tmp_path / "network.onnx"
    axes = {"images": {0: "n"}, "logits": {0: "n"}} if free else None
    names = {"input_names": ["images"], "output_names": ["logits"], "dynamic_axes": axes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this way of writing files is the older one
        torch.onnx.export(module, (torch.zeros(2, 3, 64, 64),), str(path), dynamo=False, **names)
    found = open_onnx(path, Told())
    assert (found.preprocessing.crop, found.num_classes) == (64, 10)
    np.testing.assert_allclose(found.fn(IMAGES), answers(module), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "weights", "classes", "message"),
    [
        ("mobilenet_v22", "FILE", 10, "torchvision has no 'mobilenet_v22'; close to it: mobilenet_v2"),
        ("mobilenet_v2.IMAGENET1K_V3", None, None, "mobilenet_v2 has no 'IMAGENET1K_V3'; close to it: IMAGENET1K_V"),
        ("resnet18", "FILE", 10, "network.pth is not of this network: "),
        ("mobilenet_v2", "FILE", 12, "network.pth is not of this network: .*size mismatch"),
        ("mobilenet_v2", "/nowhere.pth", None, "/nowhere.pth"),
    ],
)
def test_what_does_not_fit_is_one_line(network, name, weights, classes, message):
    path = None if weights is None else Path(weights.replace("FILE", str(network[1])))
    with pytest.raises(CommandError, match=message) as error:
        open_torchvision(name, path, Told(classes=classes))
    assert "\n" not in str(error.value)
