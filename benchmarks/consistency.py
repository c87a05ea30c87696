"""Crops per second of the shift protocols, against the plain way: cut on the host, send, predict, compare."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aa_flax.consistency import create_protocol
from aa_flax.consistency.views import Normalise
from benchmarks import measure, peers
from benchmarks.measure import Case
from benchmarks.networks import Variant
from benchmarks.options import Common
from benchmarks.report import Report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Times crop consistency of one network on random photos that are in memory; crops per second."""

    model: str = "mobilenet_v2"
    """Network, anti-aliased with four taps."""

    images: int = 32
    """Photos of 256x256."""

    pairs: int = 5
    """Pairs of crops for each photo."""


def run(config: Config) -> int:
    """Measures each way; see `Config`."""
    if config.smoke:
        config = dataclasses.replace(config, images=8, pairs=1)
    crop = 64 if config.smoke else 224
    report = Report("consistency", config.output)
    reason = peers.missing() if config.torch else "PyTorch's part was left out: --no-torch"
    if reason:
        report.note(reason)
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (config.images, crop + 32, crop + 32, 3), np.uint8)
    offsets = rng.integers(0, 32, (config.pairs, 2, 2))
    net = peers.randomize(peers.network(config.model, 4)) if reason is None else None
    ways = _ours(config, photos, offsets, crop, None if net is None else peers.arrays(net))
    if net is not None:
        ways["torch reference"] = _reference(net.eval(), photos, offsets, crop)
    values = {name: way() for name, way in ways.items()}
    # One photo in all may sit on the fence between two classes in another framework's rounding.
    slack = 100 / config.images / config.pairs + 1e-6
    for name, value in values.items():
        if not abs(value - values["aa_flax"]) <= slack:
            raise ValueError(f"{name} finds a consistency of {value:.2f}, aa_flax {values['aa_flax']:.2f}")
    cases = {name: Case(way, lambda value: value) for name, way in ways.items()}
    times = measure.alternate(cases, **config.timing)  # type: ignore[arg-type]
    crops = config.images * config.pairs * 2
    for name, timing in times.items():
        ratio = timing.median / times["aa_flax"].median
        row = {"way": name, "crops/s": crops / timing.median, "time / ours": ratio, "spread": timing.spread}
        report.add(f"Crop consistency of {config.model}_lpf4, {config.images} photos, {config.pairs} pairs", row)
    print(report.markdown())
    return 0


def _ours(
    config: Config, photos: np.ndarray, offsets: np.ndarray, crop: int, state: dict[str, np.ndarray] | None
) -> dict[str, Callable[[], float]]:
    model: Any = Variant(config.model, 4).create(jnp.float32, state=state)
    model.eval()
    protocol = create_protocol("crop", crop=crop, given=offsets)

    def swept() -> float:
        return protocol.measure(model, photos, preprocess=Normalise()).value

    graph, arrays = nnx.split(model)
    predict = jax.jit(lambda arrays, x: nnx.merge(graph, arrays)(Normalise()(x)).argmax(-1))
    arrays = nnx.to_pure_dict(arrays)

    def by_hand() -> float:
        agree = [
            np.asarray(predict(arrays, _cut(photos, a, crop))) == np.asarray(predict(arrays, _cut(photos, b, crop)))
            for a, b in offsets
        ]
        return 100 * float(np.mean(agree))

    return {"aa_flax": swept, "cut on the host, jitted network": by_hand}


def _cut(photos: np.ndarray, offset: np.ndarray, crop: int) -> np.ndarray:
    top, left = offset
    return photos[:, top : top + crop, left : left + crop]


def _reference(net: Any, photos: np.ndarray, offsets: np.ndarray, crop: int) -> Callable[[], float]:
    """The same in PyTorch, network in eager mode, crops cut from a normalised batch as the reference does."""
    torch = peers.torch()
    peers.allow_tf32()
    net = peers.placed(net, "channels_last", torch.float32)
    scale = Normalise()
    normal = (photos.astype(np.float32) / scale.scale - np.asarray(scale.mean, np.float32)) / np.asarray(
        scale.std, np.float32
    )

    def measured() -> float:
        batch = peers.nchw(normal, "channels_last", torch.float32)

        def predict(offset: np.ndarray) -> Any:
            top, left = (int(v) for v in offset)
            return net(batch[:, :, top : top + crop, left : left + crop]).argmax(1)

        with torch.inference_mode():
            return 100 * float(np.mean([(predict(a) == predict(b)).float().mean().item() for a, b in offsets]))

    return measured
