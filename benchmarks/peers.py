"""The PyTorch side: the reference package, torchvision and timm, where they are installed."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aa_flax.models.registry import MODELS
from benchmarks.measure import Case

LAYOUTS = ("eager", "channels_last", "compile")
# The reference's VGGs and AlexNet cannot flatten a channels_last map.
CONTIGUOUS_LAYOUTS = ("eager", "compile contiguous")


def missing() -> str | None:
    """Why PyTorch's part cannot be measured here, or None."""
    for package in ("torch", "torchvision", "antialiased_cnns"):
        if importlib.util.find_spec(package) is None:
            return f"PyTorch's part was left out: {package} is not installed"
    return None


def torch() -> Any:
    """The torch module, imported when first asked for."""
    return importlib.import_module("torch")


def reference() -> Any:
    """The reference package, imported when first asked for."""
    return importlib.import_module("antialiased_cnns")


def device() -> str:
    """Where PyTorch runs: on the GPU if JAX does."""
    return "cuda" if jax.default_backend() == "gpu" and torch().cuda.is_available() else "cpu"


_declared: list[Any] = []


def torchvision() -> Any:
    """torchvision, also beside a torch that its compiled part does not fit: no classifier needs that part."""
    found = importlib.util.find_spec("torchvision")
    assert found is not None
    assert found.origin is not None
    try:
        for library in Path(found.origin).parent.glob("_C*.so"):
            torch().ops.load_library(str(library))
    except OSError:
        if not _declared:
            _declared.append(torch().library.Library("torchvision", "DEF"))
            for operator in ("nms", "qnms"):
                _declared[0].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision")


def network(name: str, filter_size: int | None) -> Any:
    """A peer's network with its own initial weights, on CPU; None where no package that is here has one.

    Plain networks (`filter_size` None) are torchvision's, those with timm's names timm's, all others the reference's.
    """
    torch().manual_seed(0)
    if MODELS[name].filter_size is not None:
        if importlib.util.find_spec("timm") is None:
            return None
        torchvision()  # which timm imports
        return importlib.import_module("timm").create_model(name)
    if filter_size is None:
        return getattr(torchvision().models, name)(weights=None)
    make = getattr(reference(), name, None)
    return make and make(pretrained=False, filter_size=filter_size)


def randomize(net: Any) -> Any:
    """Statistics and weights under which the logits depend on every layer and on the image."""
    generator = torch().Generator().manual_seed(1)
    with torch().no_grad():
        for module in net.modules():
            weight = getattr(module, "weight", None)
            if weight is not None and weight.ndim > 1:
                weight.normal_(0, (2 / weight[0].numel()) ** 0.5, generator=generator)
            elif hasattr(module, "running_mean"):
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
    return net


def arrays(net: Any) -> dict[str, np.ndarray]:
    """The network's state dict as NumPy arrays."""
    return {key: value.detach().cpu().numpy() for key, value in net.state_dict().items()}


def layouts(net: Any) -> tuple[str, ...]:
    """The ways to run a network that it supports, the compiled one last."""
    flattens = type(net).__module__.startswith("antialiased_cnns") and type(net).__name__ in ("AlexNet", "VGG")
    return CONTIGUOUS_LAYOUTS if flattens else LAYOUTS


def memory_format(layout: str) -> Any:
    """In which order a layout keeps the bytes of maps."""
    return torch().contiguous_format if layout in CONTIGUOUS_LAYOUTS else torch().channels_last


def nchw(images: np.ndarray, layout: str, dtype: Any) -> Any:
    """NHWC images as a tensor on the device; channels_last keeps their bytes as they are."""
    tensor = torch().from_numpy(np.ascontiguousarray(images)).to(device(), dtype).permute(0, 3, 1, 2)
    return tensor.contiguous(memory_format=memory_format(layout))


def placed(net: Any, layout: str, dtype: Any) -> Any:
    """The network on the device in a layout; `compile` is torch.compile over channels_last."""
    net = net.to(device(), dtype).to(memory_format=memory_format(layout))
    return torch().compile(net) if layout.startswith("compile") else net


def case(call: Callable[[], Any]) -> Case:
    """A PyTorch call as something to be timed."""
    return Case(call, (lambda _: torch().cuda.synchronize()) if device() == "cuda" else (lambda _: None))


def peak_memory(call: Callable[[], Any]) -> int | None:
    """Most bytes that tensors held during a call, weights and inputs included; None on a CPU."""
    if device() != "cuda":
        return None
    torch().cuda.synchronize()
    torch().cuda.reset_peak_memory_stats()
    call()
    torch().cuda.synchronize()
    return torch().cuda.max_memory_allocated()


def allow_tf32() -> None:
    """PyTorch's float32 products on the matrix units, as JAX does by default."""
    torch().backends.cuda.matmul.allow_tf32 = True
    torch().backends.cudnn.allow_tf32 = True


def forget() -> None:
    """Frees what the last networks held, compiled code included."""
    torch()._dynamo.reset()
    if device() == "cuda":
        torch().cuda.empty_cache()
