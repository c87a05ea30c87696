"""Convolutions of the networks in the form that this device gets, against XLA's own and PyTorch's."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aa_flax.models.convolutions import dense_conv, depthwise_conv
from benchmarks import measure, peers
from benchmarks.measure import Case
from benchmarks.options import Common
from benchmarks.report import Report

NUMBERS = ("NHWC", "HWIO", "NHWC")


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution with `kernel // 2` pixels of zeros around the map, or `padding`."""

    size: int
    channels: int
    kernel: int
    features: int
    stride: int = 1
    depthwise: bool = False
    padding: int | None = None

    def __str__(self) -> str:
        return f"{self.kernel}x{self.kernel}" + (", depthwise" if self.depthwise else "")

    @property
    def pad(self) -> int:
        return self.kernel // 2 if self.padding is None else self.padding

    @property
    def out_size(self) -> int:
        return (self.size + 2 * self.pad - self.kernel) // self.stride + 1


# By name: ResNet's first convolution and one of each kind of its blocks, its last stage on images of 64x64, DenseNet's,
# MobileNetV2's, ConvNeXt's, and the first of anti-aliased AlexNet.
LAYERS = {
    "stem": Layer(224, 3, 7, 64, stride=2),
    "pointwise": Layer(56, 64, 1, 256),
    "three": Layer(56, 64, 3, 64),
    "small-map": Layer(2, 512, 3, 512),
    "growth": Layer(56, 128, 3, 32),
    "expansion": Layer(28, 32, 1, 192),
    "depthwise": Layer(28, 192, 3, 192, depthwise=True),
    "seven": Layer(56, 96, 7, 96, depthwise=True),
    "alexnet": Layer(224, 3, 11, 64, stride=2, padding=2),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Times single convolutions; backward is the gradient with respect to both map and kernel."""

    layers: tuple[str, ...] = tuple(LAYERS)
    """Which convolutions."""

    batch: int | None = None
    """Images; 256 on an accelerator and 8 on a CPU by default."""

    dtype: Literal["bfloat16", "float32"] | None = None
    """Type of maps and kernels; bfloat16 on an accelerator, float32 on a CPU by default."""


def run(config: Config) -> int:
    """Measures every layer; see `Config`."""
    unknown = set(config.layers) - set(LAYERS)
    if unknown:
        raise ValueError(f"--layers {min(unknown)} is none of {', '.join(LAYERS)}")
    on_cpu = jax.default_backend() == "cpu"
    batch = 2 if config.smoke else config.batch or (8 if on_cpu else 256)
    config = dataclasses.replace(config, batch=batch, dtype=config.dtype or ("float32" if on_cpu else "bfloat16"))
    report = Report("convolutions", config.output)
    reason = peers.missing() if config.torch else "PyTorch's part was left out: --no-torch"
    if reason:
        report.note(reason)
    for name in config.layers:
        layer = LAYERS[name]
        if config.smoke:
            layer = dataclasses.replace(layer, size=min(layer.size, 14))
        for direction in ("forward", "backward"):
            _measure(name, layer, direction, config, report, with_torch=reason is None)
    print(report.markdown())
    return 0


def _measure(name: str, layer: Layer, direction: str, config: Config, report: Report, *, with_torch: bool) -> None:
    arrays = _arrays(layer, config)
    want = _reference(layer, direction, *(np.asarray(array, np.float64) for array in arrays))
    cases: dict[str, Case] = {}
    for form, function in {"ours": depthwise_conv if layer.depthwise else dense_conv, "XLA": _native}.items():
        run = jax.jit(_directed(function, layer, direction))
        for got, exact in zip(jax.tree.leaves(run(*arrays)), want, strict=True):
            measure.check(f"{name} {direction} {form}", got, exact, 2e-2 if config.dtype == "bfloat16" else 2e-3)
        cases[form] = measure.jax_case(run, [arrays])
    if with_torch:
        for layout in ("eager", "channels_last"):
            cases[f"torch {layout}"] = _torch_case(layer, direction, layout, arrays)
    times = measure.alternate(cases, **config.timing)  # type: ignore[arg-type]
    ours = times["ours"].median
    row: dict[str, Any] = {
        "layer": name,
        "kernel": str(layer),
        "map": f"{config.batch}x{layer.size}x{layer.size}x{layer.channels}",
        "features": layer.features,
        "type": config.dtype,
        "us": ours * 1e6,
        "spread": times["ours"].spread,
    }
    row |= {f"{peer} / ours": timing.median / ours for peer, timing in times.items() if peer != "ours"}
    report.add(direction.capitalize(), row)


def _arrays(layer: Layer, config: Config) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The map, the kernel and a gradient of the result, random."""
    rng = np.random.default_rng(0)
    depth = 1 if layer.depthwise else layer.channels
    shapes = [
        (config.batch, layer.size, layer.size, layer.channels),
        (layer.kernel, layer.kernel, depth, layer.features),
        (config.batch, layer.out_size, layer.out_size, layer.features),
    ]
    x, kernel, gradient = (jnp.asarray(rng.standard_normal(shape, np.float32), config.dtype) for shape in shapes)
    return x, kernel, gradient


def _native(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


def _directed(function: Any, layer: Layer, direction: str) -> Any:
    pad = layer.pad
    groups = layer.channels if layer.depthwise else 1

    def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
        padding = [(pad, pad), (pad, pad)]
        options = {"dimension_numbers": NUMBERS, "feature_group_count": groups}
        return function(x, kernel, (layer.stride, layer.stride), padding, **options)

    if direction == "forward":
        return lambda x, kernel, gradient: forward(x, kernel)
    return lambda x, kernel, gradient: jax.vjp(forward, x, kernel)[1](gradient)


def _reference(layer: Layer, direction: str, x: np.ndarray, kernel: np.ndarray, g: np.ndarray) -> list[np.ndarray]:
    """In float64, tap by tap: the result, or the gradients of map and kernel."""
    pad, out = layer.pad, layer.out_size
    taps, result = ("c", "nhwc") if layer.depthwise else ("co", "nhwo")
    if layer.depthwise:
        kernel = kernel.squeeze(2)
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    y, of_map, of_kernel = np.zeros(g.shape), np.zeros(padded.shape), np.zeros(kernel.shape)
    for i, j in np.ndindex(layer.kernel, layer.kernel):
        rows, columns = (slice(k, k + layer.stride * (out - 1) + 1, layer.stride) for k in (i, j))
        seen = padded[:, rows, columns]
        if direction == "forward":
            y += np.einsum(f"nhwc,{taps}->{result}", seen, kernel[i, j], optimize=True)
        else:
            of_map[:, rows, columns] += np.einsum(f"{result},{taps}->nhwc", g, kernel[i, j], optimize=True)
            of_kernel[i, j] = np.einsum(f"nhwc,{result}->{taps}", seen, g, optimize=True)
    if direction == "forward":
        return [y]
    inside = slice(pad, pad + layer.size)
    return [of_map[:, inside, inside], of_kernel[:, :, None] if layer.depthwise else of_kernel]


def _torch_case(layer: Layer, direction: str, layout: str, arrays: tuple[jax.Array, ...]) -> Case:
    torch = peers.torch()
    kind = getattr(torch, arrays[0].dtype.name)
    x, kernel, gradient = (np.asarray(array, np.float32) for array in arrays)
    groups = layer.channels if layer.depthwise else 1
    given, upstream = peers.nchw(x, layout, kind), peers.nchw(gradient, layout, kind)
    weight = torch.from_numpy(kernel).to(peers.device(), kind).permute(3, 2, 0, 1)
    weight = weight.contiguous(memory_format=peers.memory_format(layout))

    def forward() -> Any:
        return torch.nn.functional.conv2d(given, weight, None, layer.stride, layer.pad, 1, groups)

    if direction == "forward":
        return peers.case(torch.no_grad()(forward))
    given.requires_grad_()
    weight.requires_grad_()
    y = forward()
    return peers.case(lambda: torch.autograd.grad(y, (given, weight), upstream, retain_graph=True))
