"""The PyTorch networks that ours must equal: antialiased-cnns, torchvision and timm, with weights that tell a fault."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

try:
    import torch

    # torchvision registers shapes for two operators that builds without its compiled part do not have.
    _library = torch.library.Library("torchvision", "DEF")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import antialiased_cnns
    import timm
    import torchvision
except ImportError as error:
    if os.environ.get("CI") == "true":
        raise
    pytest.skip(f"the oracle is missing ({error}): run make parity", allow_module_level=True)

torch.set_num_threads(1)


@contextlib.contextmanager
def _without_initial_values() -> Iterator[None]:
    """Skips PyTorch's own initial values, which take longer than the comparison and are overwritten."""
    names = ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_", "trunc_normal_")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)
        yield


def network(name: str, filter_size: int | None, *, seed: int = 0, dtype: Any = None, **options: Any) -> torch.nn.Module:
    """A reference network (torchvision's where `filter_size` is None) with random weights, in eval mode."""
    with _without_initial_values():
        if filter_size is None:
            net = getattr(torchvision.models, name)(weights=None, **options)
        else:
            net = getattr(antialiased_cnns, name)(pretrained=False, filter_size=filter_size, **options)
    return _with_weights(net, seed, dtype)


def timm_network(name: str, *, seed: int = 0, dtype: Any = None, **options: Any) -> torch.nn.Module:
    """A network of timm's with random weights, in eval mode."""
    with _without_initial_values():
        net = timm.create_model(name, **options)
    return _with_weights(net, seed, dtype)


def _with_weights(net: torch.nn.Module, seed: int, dtype: Any) -> torch.nn.Module:
    net = net.to(dtype or torch.float32)
    randomize(net, seed)
    return net.eval()


def randomize(net: torch.nn.Module, seed: int) -> None:
    """Weights, statistics and affine terms under which the logits depend on every layer and on the image.

    Where gates multiply the maps (squeeze and excitation) blocks add little and gates stay between 0 and 1. Otherwise
    maps grow to 1e4 and gates become steps: PyTorch's own float32 is then 80 % off its float64.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: torch.Tensor, mean: float, deviation: float) -> None:
        tensor.normal_(mean, deviation, generator=generator)

    gated = any(name.endswith(".se") and list(module.children()) for name, module in net.named_modules())
    with torch.no_grad():
        for name, module in net.named_modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                fan_in = module.weight[0].numel()
                gain = 0.3 if ".se." in name else 1.0
                draw(module.weight, 0.0, gain * (2 / fan_in) ** 0.5)
                if module.bias is not None:
                    draw(module.bias, 0.0, 0.2)
            elif isinstance(module, torch.nn.BatchNorm2d):
                draw(module.running_mean, 0.0, 0.2)
                module.running_var.uniform_(0.5, 2.0, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                if gated and name.endswith(".bn3"):
                    module.weight *= 0.2
                draw(module.bias, 0.0, 0.2)


def arrays(net: torch.nn.Module) -> dict[str, np.ndarray]:
    """The network's state dict as NumPy arrays."""
    return {key: tensor.detach().numpy() for key, tensor in net.state_dict().items()}


def nchw(images: np.ndarray) -> torch.Tensor:
    """NHWC images as PyTorch has them."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def nhwc(tensor: torch.Tensor) -> np.ndarray:
    """A PyTorch map or matrix as we have it."""
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def activations(net: torch.nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
    """The output of every module by name, channels last; the network's own is called `logits`."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str):
        def hook(module: torch.nn.Module, args: Any, output: torch.Tensor) -> None:
            # A copy: PyTorch's ReLUs work in place.
            found[name] = nhwc(output.clone())

        return hook

    hooks = [module.register_forward_hook(keep(name or "logits")) for name, module in net.named_modules()]
    with torch.no_grad():
        net(nchw(images))
    for hook in hooks:
        hook.remove()
    return found


def images(size: tuple[int, int], *, batch: int = 2, seed: int = 1, dtype: Any = np.float32) -> np.ndarray:
    """Random NHWC images that differ in colour, contrast and shading as well as in their noise."""
    rng = np.random.default_rng(seed)
    colour = 2 * rng.normal(size=(batch, 1, 1, 3))
    contrast = np.exp(rng.normal(size=(batch, 1, 1, 1)))
    shading = np.linspace(-2, 2, size[0])[:, None, None] * rng.normal(size=(batch, 1, 1, 3))
    return (colour + shading + contrast * rng.normal(size=(batch, *size, 3))).astype(dtype)
