"""Crops per second of the shift protocols, against the plain way: cut on the host, send, predict, compare.

With a folder of photos also from the files: decoded once, against decoded for every pass as the reference does.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aa_flax.consistency import create_protocol
from aa_flax.consistency.views import Normalise
from aa_flax.preprocessing.geometry import evaluation_crop
from benchmarks import measure, peers
from benchmarks.measure import Case
from benchmarks.networks import Variant
from benchmarks.options import Common
from benchmarks.report import Report
from train.data import ImageFolder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Times crop consistency of one network on random photos that are in memory; crops per second."""

    model: str = "mobilenet_v2"
    """Network, anti-aliased with four taps."""

    images: int = 32
    """Photos of 256x256."""

    pairs: int = 5
    """Pairs of crops for each photo."""

    data: Path | None = None
    """Photos, CLASS/*.jpg: times the measurement with its decoding too, on the first --images of them."""


def run(config: Config) -> int:
    """Measures each way; see `Config`."""
    if config.smoke:
        config = dataclasses.replace(config, images=8, pairs=1)
    folder = None if config.data is None else _photos(config.data, config.images)
    crop = 64 if config.smoke else 224
    report = Report("consistency", config.output)
    reason = peers.missing() if config.torch else "PyTorch's part was left out: --no-torch"
    if reason:
        report.note(reason)
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (config.images, crop + 32, crop + 32, 3), np.uint8)
    offsets = rng.integers(0, 32, (config.pairs, 2, 2))
    net = peers.randomize(peers.network(config.model, 4)) if reason is None else None
    model: Any = Variant(config.model, 4).create(jnp.float32, state=None if net is None else peers.arrays(net))
    model.eval()
    ways = _ours(model, photos, offsets, crop)
    if net is not None:
        ways["torch reference"] = _reference(net.eval(), photos, offsets, crop)
    _compare(config, report, f"Crop consistency of {config.model}_lpf4, {{}} photos, {config.pairs} pairs", ways)
    if folder is not None:
        # What a network costs hides what decoding costs; one that costs nothing shows the most that can be gained.
        for name, fn in ((f"{config.model}_lpf4", model), ("mean colour, no network", _mean_colour)):
            from_files = _decoding(config, folder, offsets, crop, fn)
            _compare(config, report, f"The same from {{}} files, {name}, {config.pairs} pairs", from_files)
    print(report.markdown())
    return 0


def _compare(config: Config, report: Report, title: str, ways: dict[str, Callable[[], float]]) -> None:
    """Checks that all ways find what the first finds, and reports their times."""
    first, *_ = ways
    values = {name: way() for name, way in ways.items()}
    # One photo in all may sit on the fence between two classes in another framework's rounding.
    slack = 100 / config.images / config.pairs + 1e-6
    for name, value in values.items():
        if not abs(value - values[first]) <= slack:
            raise ValueError(f"{name} finds a consistency of {value:.2f}, {first} {values[first]:.2f}")
    cases = {name: Case(way, lambda value: value) for name, way in ways.items()}
    times = measure.alternate(cases, **config.timing)  # type: ignore[arg-type]
    crops = config.images * config.pairs * 2
    for name, timing in times.items():
        ratio = timing.median / times[first].median
        row = {"way": name, "crops/s": crops / timing.median, "time / ours": ratio, "spread": timing.spread}
        report.add(title.format(config.images), row)


def _photos(root: Path, least: int) -> ImageFolder:
    folder = ImageFolder(root)
    if len(folder) < least:
        raise ValueError(f"--data {root} has {len(folder)} photos; --images asks for {least}")
    return folder


def _decoding(
    config: Config, folder: ImageFolder, offsets: np.ndarray, crop: int, fn: Callable[[jax.Array], jax.Array]
) -> dict[str, Callable[[], float]]:
    """The same function and cuts with the photos read from files: once in all, or once for each pair."""
    big = crop + 32

    def photos() -> np.ndarray:
        read = [folder[i][0] for i in range(config.images)]
        return np.stack([evaluation_crop(p, resize=big, big=big, crop=crop, interpolation="bilinear") for p in read])

    normalise = Normalise()
    once = create_protocol("crop", crop=crop, given=offsets)
    passes = [create_protocol("crop", crop=crop, given=pair[None]) for pair in offsets]
    return {
        "decoded once": lambda: once.measure(fn, photos(), preprocess=normalise).value,
        "decoded for every pass": lambda: float(
            np.mean([each.measure(fn, photos(), preprocess=normalise).value for each in passes])
        ),
    }


def _mean_colour(images: jax.Array) -> jax.Array:
    return images.mean((1, 2))


def _ours(model: nnx.Module, photos: np.ndarray, offsets: np.ndarray, crop: int) -> dict[str, Callable[[], float]]:
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
