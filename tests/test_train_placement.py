"""Where arrays lie: the order of devices, and the processes' parts of a batch."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from train.errors import CommandError
from train.fit import distributed
from train.fit.distributed import Placement, in_a_row


@dataclasses.dataclass(frozen=True)
class Chip:
    """What the order of devices asks of one."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


def test_the_devices_of_a_slice_lie_together():
    chips = [Chip(id=i, process_index=i // 2, slice_index=i % 2) for i in range(8)]
    row = in_a_row(chips)
    assert row.shape == (8,)
    assert [chip.slice_index for chip in row] == [0] * 4 + [1] * 4
    assert {chip.id for chip in row} == set(range(8))


def test_all_devices_are_in_the_row():
    placement = Placement.of_all_devices()
    assert set(placement.mesh.devices.flat) == set(jax.devices())
    rows = np.arange(2 * jax.device_count(), dtype=np.int32)
    placed = placement.batch({"label": rows})["label"]
    assert (np.asarray(placed) == rows).all()
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2,)}


@pytest.mark.parametrize("part", ["process", "slice"])
def test_parts_with_other_numbers_of_devices_are_refused(monkeypatch, part):
    owners = [0, 0, 1, 1, 1]
    other = {"process": "slice", "slice": "process"}[part]
    devices = [types.SimpleNamespace(**{f"{part}_index": owner, f"{other}_index": 0}) for owner in owners]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    with pytest.raises(CommandError, match=f"^{part} 1 has 3 devices and {part} 0 2: give each as many$"):
        distributed._check_equal_shares()
