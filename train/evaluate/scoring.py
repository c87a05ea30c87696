"""Running measurement protocols over a stream of batches, on all devices, every image once.

Each process measures its own rows on its own devices; only the per-image answers meet. So
nothing here depends on the number of devices or processes but the speed.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from aa_flax.consistency import PROTOCOLS, Crop, Equivariance, Pairs, Result, ShiftProtocol, create_protocol
from aa_flax.weights.config import Preprocessing
from aa_flax.weights.json_file import read_json
from train.data import Batch
from train.data.channels import network_input
from train.errors import CommandError

Predictor = Callable[[Any], Any]

# Offsets for every one of a million photos.
_MAX_OFFSETS_BYTES = 2**28


@dataclass(frozen=True, eq=False)
class Score:
    """What a set of images showed.

    Attributes:
        results: by protocol name.
        index: (images,) position in the source of each image that was measured, ascending; the
            per-image arrays of `results` are in this order.
        unreadable: positions of the images that could not be measured.
    """

    results: dict[str, Result]
    index: np.ndarray
    unreadable: np.ndarray


def protocols_for(
    names: Sequence[str],
    preprocessing: Preprocessing,
    *,
    margin: int = 0,
    seed: int = 0,
    views: int = 2,
    offsets: np.ndarray | None = None,
    device_batch: int = 64,
) -> dict[str, ShiftProtocol]:
    """Protocols with the settings that fit images of a kind.

    Args:
        names: keys of `aa_flax.consistency.PROTOCOLS`.
        preprocessing: says how far a crop can be shifted inside the resized image.
        margin: `Dataset.margin`.
        seed: of random shifts.
        views: how many shifts have to agree, of the protocols that draw pairs of them.
        offsets: given pairs of crop offsets instead of random ones, (pairs, 2, 2) or
            (images, pairs, 2, 2).
        device_batch: how many crops may lie on the devices at once.

    Raises:
        CommandError: an unknown name, views or offsets that nothing uses or that do not fit.
    """
    if not names:
        raise CommandError(f"--protocols is empty; there are {', '.join(PROTOCOLS)}")
    room = 2 * margin or preprocessing.resize - preprocessing.crop
    fitting: dict[str, Any] = {
        "crop": preprocessing.crop,
        "device_batch": device_batch,
        # 256 - 224 gives the reference's 32 offsets, 0 to 31; enlarged images use all their room.
        "shifts": 2 * margin + 1 if margin else room,
        "steps": room,
        "views": views,
    }
    chosen: dict[str, ShiftProtocol] = {}
    for name in names:
        kind = PROTOCOLS.get(name, ShiftProtocol)
        fields = {field.name for field in dataclasses.fields(kind)}
        settings = {key: value for key, value in fitting.items() if key in fields}
        if offsets is not None and issubclass(kind, Crop):
            settings["given"] = offsets
        try:
            chosen[name] = create_protocol(name, seed=seed, **settings)
            side = preprocessing.resize + 2 * margin
            chosen[name].view((side, side))
        except ValueError as error:
            raise CommandError(f"--protocols {name}: {error}") from error
    if views != 2 and not any(isinstance(each, Pairs) for each in chosen.values()):
        raise CommandError(f"--views {views} is for protocols that compare shifts, not for {', '.join(names)}")
    if offsets is not None and not any(isinstance(each, Crop) for each in chosen.values()):
        raise CommandError(f"--offsets are for crop and zhang2019, not for {', '.join(names)}")
    return chosen


def read_offsets(path: Path) -> np.ndarray:
    """Pairs of crop offsets from a JSON file: an array, or an object that holds it as "offsets" or "shift_offsets".

    Returns:
        (pairs, 2, 2) or (images, pairs, 2, 2) integers: which of the two, (rows, columns).

    Raises:
        CommandError: no such file, or other content.
    """
    try:
        content = read_json(path, _MAX_OFFSETS_BYTES)
    except OSError as error:
        raise CommandError(f"--offsets {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CommandError(f"--offsets {path} is not JSON: {error}") from error
    if isinstance(content, dict):
        content = content.get("offsets", content.get("shift_offsets"))
    try:
        offsets = np.array(content)
    except ValueError:
        offsets = np.array(None)
    if offsets.dtype.kind != "i" or offsets.ndim not in (3, 4) or offsets.shape[-2:] != (2, 2):
        raise CommandError(f"--offsets {path} holds no (pairs, 2, 2) whole numbers: which of two, (rows, columns)")
    return offsets


def local_mesh() -> Mesh:
    """This process's devices in a row, the axis being "data"."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def whole_batch(batch_size: int) -> int:
    """The least global batch of at least `batch_size` that all devices can share evenly."""
    devices = jax.device_count()
    return -(-batch_size // devices) * devices


def score(
    fn: Predictor,
    batches: Iterable[Batch],
    protocols: Mapping[str, ShiftProtocol],
    preprocessing: Preprocessing,
    *,
    margin: int = 0,
    maps: Predictor | None = None,
    progress: Callable[[int], None] | None = None,
) -> Score:
    """Measures a network on every image of one pass.

    Args:
        fn: called with (n, crop, crop, 3) float32 images, or (n, crop, crop, 1) where the preprocessing is for one
            channel, to give logits (n, classes). `Partial(function, *arrays)` is compiled once for each protocol as
            long as `function` is the same object; its arrays may lie on any devices. Others are called as they are.
        batches: what `val_batches` or `evaluation_batches` gave, with this process's rows.
        protocols: what `protocols_for` gave; each sees the same images, which are decoded and
            sent to the device once.
        preprocessing: mean and standard deviation.
        margin: `Dataset.margin`.
        maps: as `fn`, to give maps (n, h, w, C): what `Equivariance` measures, where it is among the protocols.
        progress: called after each batch with the number of images that this process has dealt with.

    Raises:
        CommandError: no readable image; a network that returned NaN; a label outside its classes.
    """
    fn = on_all_devices(fn)
    maps = None if maps is None else on_all_devices(maps)
    seen: dict[str, list[dict[str, jax.Array]]] = {name: [] for name in protocols}
    counted: list[dict[str, np.ndarray]] = []
    for batch in batches:
        for name, part in look(fn, batch, protocols, preprocessing, margin=margin, maps=maps).items():
            seen[name].append(part)
        counted.append({"index": batch["index"].astype(np.int32), "mask": batch["mask"], "bad": batch["bad"]})
        # One batch may queue behind the running one; more would fill the device's memory.
        if len(counted) > 1:
            jax.block_until_ready([parts[-2] for parts in seen.values()])
        if progress is not None:
            progress(int((batch["mask"] | batch["bad"]).sum()))
    return _summary(protocols, seen, counted)


def on_all_devices(fn: Predictor) -> Predictor:
    """A function whose arrays, if it has any that JAX knows of, lie on all devices of this process."""
    mesh = local_mesh()
    return jax.tree.map(lambda leaf: _replicated(leaf, mesh), fn) if isinstance(fn, Partial) else fn


def look(
    fn: Predictor,
    batch: Batch,
    protocols: Mapping[str, ShiftProtocol],
    preprocessing: Preprocessing,
    *,
    margin: int = 0,
    maps: Predictor | None = None,
) -> dict[str, dict[str, Any]]:
    """What each protocol sees of a network on one batch, which goes to the devices once; arguments as for `score`.

    Args:
        fn, maps: what `on_all_devices` gave.
    """
    rows = NamedSharding(local_mesh(), PartitionSpec("data"))
    images = _reflected(jax.device_put(batch["image"], rows), margin)
    labels = jax.device_put(batch["label"], rows)
    # int32: index may exceed it nowhere, and jax would truncate int64 with a warning.
    index = batch["index"].astype(np.int32)
    preprocess = network_input(preprocessing)
    seen = {}
    for name, protocol in protocols.items():
        answers = maps if isinstance(protocol, Equivariance) else fn
        assert answers is not None
        seen[name] = protocol.per_image(answers, images, index=index, labels=labels, preprocess=preprocess)
    return seen


def _replicated(leaf: jax.Array, mesh: Mesh) -> jax.Array:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = leaf.addressable_data(0)
    return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec()))


def _reflected(images: jax.Array, margin: int) -> jax.Array:
    if not margin:
        return images
    return jnp.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="reflect")


def _gathered(parts: list[dict]) -> dict[str, np.ndarray]:
    """One process's batches, then all processes', one after the other."""
    fetched = jax.device_get(parts)
    local = {name: np.concatenate([part[name] for part in fetched]) for name in fetched[0]}
    if jax.process_count() == 1:
        return local
    together = multihost_utils.process_allgather(local, tiled=True)
    return {name: np.asarray(array) for name, array in together.items()}


def _summary(
    protocols: Mapping[str, ShiftProtocol],
    seen: dict[str, list[dict[str, jax.Array]]],
    counted: list[dict[str, np.ndarray]],
) -> Score:
    tally = _gathered(counted)
    index, mask = tally["index"], tally["mask"]
    rows = np.flatnonzero(mask)
    rows = rows[np.argsort(index[rows], kind="stable")]
    if not len(rows):
        raise CommandError("no image could be read")
    results = {}
    for name, protocol in protocols.items():
        arrays = {key: array[rows] for key, array in _gathered(seen[name]).items()}
        try:
            results[name] = protocol.summarise(arrays)
        except ValueError as error:
            raise CommandError(f"protocol {name}: {error}") from error
    return Score(results, index[rows], np.sort(index[tally["bad"]]))
