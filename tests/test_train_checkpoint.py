"""Checkpoints: what is kept, what is noticed, and what happens when the disk does not play along."""

import json
import shutil
import sys
import time
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.training_runs import small_files
from train.errors import CommandError
from train.fit.checkpoint import Checkpoints, named_leaves
from train.fit.step import TrainState
from train.fit.storage import TEMPORARY, quiet_storage_library, reason, remove_half_a_save


@pytest.fixture(autouse=True)
def _as_commands_have_it(monkeypatch):
    """Threads of the storage library call back into closed event loops; pytest would write a traceback in each, which
    has ended a worker natively."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    quiet_storage_library()


def replicated(devices: int) -> NamedSharding:
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    return NamedSharding(mesh, PartitionSpec())


def state(step: int, devices: int = 1) -> TrainState:
    """A state of every kind of leaf, different at every step."""
    random = np.random.default_rng(step)
    kernel = random.normal(size=(3, 3, 4, 700)).astype(np.float32)
    params = {"conv1": {"kernel": kernel}, "fc": {"bias": np.zeros(5, np.float32) + step}}
    tree = TrainState(
        step=np.int32(step),
        params=params,
        stats={"bn1": {"mean": random.normal(size=4).astype(np.float32)}},
        opt_state=((), (kernel * 2, np.int32(step))),
        ema={"params": {"half": jnp.asarray(kernel[0], jnp.bfloat16)}},
    )
    return jax.device_put(tree, replicated(devices))


def like(devices: int = 1) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(devices)), state(0))


def assert_equal(one: TrainState, other: TrainState) -> None:
    for (name, a), b in zip(named_leaves(one).items(), named_leaves(other).values(), strict=True):
        assert a.dtype == b.dtype, name
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), name


def saved(directory: Path, steps, scores=None) -> None:
    checkpoints = Checkpoints(directory, scores=scores)
    for step in steps:
        checkpoints.save(step, state(step))
    checkpoints.close()


def largest_file(directory: Path) -> Path:
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path: Path, position: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize(("before", "after"), [(1, 8), (8, 1)])
def test_what_was_saved_on_some_devices_is_restored_on_others(tmp_path, before, after):
    checkpoints = Checkpoints(tmp_path / "c")
    original = state(7, before)
    checkpoints.save(7, original)
    # The save runs in the background: the state may be donated meanwhile.
    jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(original)
    checkpoints.close()
    restored = Checkpoints(tmp_path / "c").restore(like(after))
    assert restored is not None
    assert (restored.step, restored.damaged) == (7, ())
    assert_equal(restored.state, state(7))
    assert len(restored.state.params["conv1"]["kernel"].sharding.device_set) == after


def test_an_empty_directory_restores_nothing(tmp_path):
    assert Checkpoints(tmp_path / "c").restore(like()) is None


def test_the_last_two_and_the_best_stay_also_after_a_restart(tmp_path):
    scores: dict[int, float] = {}
    checkpoints = Checkpoints(tmp_path / "c", scores=scores)
    for step, score in ((1, 50.0), (2, 90.0), (3, 60.0), (4, 90.0), (5, 10.0)):
        checkpoints.save(step, state(step))
        scores[step] = score
    checkpoints.close()
    # Of equal scores the newer is kept.
    assert checkpoints.steps() == [4, 5]
    again = Checkpoints(tmp_path / "c", scores=scores)
    for step in (6, 7, 8):
        again.save(step, state(step))
    again.close()
    assert again.steps() == [4, 7, 8]
    assert again.best_step() == 4


def test_a_flipped_bit_falls_back_to_the_older_one_and_is_named(tmp_path):
    saved(tmp_path / "c", (1, 2))
    flip(largest_file(tmp_path / "c" / "2"))
    checkpoints = Checkpoints(tmp_path / "c")
    restored = checkpoints.restore(like())
    assert restored is not None
    assert restored.step == 1
    assert_equal(restored.state, state(1))
    assert "step 2 is damaged" in restored.damaged[0]
    # The damaged one is out of the way, and its step can be saved again.
    assert checkpoints.steps() == [1]
    assert (tmp_path / "damaged" / "2.0").is_dir()
    checkpoints.save(2, state(2))
    checkpoints.close()
    assert checkpoints.steps() == [1, 2]


def damages(directory: Path):
    """Ways to damage each file of a checkpoint, one at a time."""
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        for kind in ("flip", "truncate", "empty", "delete"):
            yield path, kind


def test_no_damage_to_any_file_is_ever_loaded(tmp_path):
    saved(tmp_path / "original", (1, 2))
    outcomes = {1: 0, 2: 0}
    for path, kind in damages(tmp_path / "original" / "2"):
        shutil.copytree(tmp_path / "original", tmp_path / "c")
        target = tmp_path / "c" / path.relative_to(tmp_path / "original")
        if kind == "flip":
            if not path.stat().st_size:
                shutil.rmtree(tmp_path / "c")
                continue
            flip(target)
        elif kind == "delete":
            target.unlink()
        else:
            target.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if kind == "truncate" else 0])
        restored = Checkpoints(tmp_path / "c").restore(like())
        assert restored is not None, (path, kind)
        # Either the damage did not matter, or it was noticed; in both cases the state is a true one.
        assert_equal(restored.state, state(restored.step))
        outcomes[restored.step] += 1
        shutil.rmtree(tmp_path / "c")
        shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
    assert outcomes[1] > 10
    assert outcomes[2] > 10


def test_when_all_are_damaged_it_says_so_and_touches_nothing(tmp_path):
    saved(tmp_path / "c", (1, 2))
    for step in "12":
        flip(largest_file(tmp_path / "c" / step))
    with pytest.raises(CommandError, match=r"no sound checkpoint: .*step 2 .*step 1 .*--run-dir"):
        Checkpoints(tmp_path / "c").restore(like())
    assert Checkpoints(tmp_path / "c").steps() == [1, 2]


def test_leavings_of_a_killed_save_are_no_checkpoint(tmp_path):
    saved(tmp_path / "c", (1,))
    shutil.copytree(tmp_path / "c" / "1", tmp_path / "c" / "2.orbax-checkpoint-tmp")
    (tmp_path / "c" / "3").mkdir()
    checkpoints = Checkpoints(tmp_path / "c")
    restored = checkpoints.restore(like())
    assert restored is not None
    assert restored.step == 1
    assert_equal(restored.state, state(1))
    assert not (tmp_path / "c" / "2.orbax-checkpoint-tmp").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s._replace(ema=None), "ema.params.half is unknown"),
        (lambda s: s._replace(stats={**s.stats, "bn2": s.stats["bn1"]}), "stats.bn2.mean is missing"),
        (lambda s: s._replace(step=s.stats["bn1"]["mean"]), r"step is .*\[\].* there and .*\[4\].* here"),
    ],
)
def test_another_state_than_the_saved_one_is_refused_by_name(tmp_path, change, message):
    saved(tmp_path / "c", (1, 2))
    with pytest.raises(CommandError, match=f"belongs to another network or optimiser .*of step 2: {message}") as found:
        Checkpoints(tmp_path / "c").restore(change(like()))
    assert "damaged" not in str(found.value)
    # It is sound, and stays where it is.
    assert Checkpoints(tmp_path / "c").steps() == [1, 2]


def test_reading_only_changes_nothing(tmp_path):
    saved(tmp_path / "c", (1, 2))
    flip(largest_file(tmp_path / "c" / "2"))
    before = {p: p.read_bytes() for p in (tmp_path / "c").rglob("*") if p.is_file()}
    restored = Checkpoints(tmp_path / "c", read_only=True).restore(like())
    assert restored is not None
    assert restored.step == 1
    assert {p: p.read_bytes() for p in (tmp_path / "c").rglob("*") if p.is_file()} == before
    assert not (tmp_path / "damaged").exists()


def test_the_stored_checksum_is_that_of_the_bytes(tmp_path):
    saved(tmp_path / "c", (3,))
    meta = json.loads((tmp_path / "c" / "3" / "meta" / "metadata").read_text())
    kernel = np.asarray(state(3).params["conv1"]["kernel"])
    assert meta["leaves"]["params.conv1.kernel"] == {
        "shape": [3, 3, 4, 700],
        "dtype": "float32",
        "crc32": zlib.crc32(kernel.tobytes()),
    }


# The storage library calls back into an event loop that it has closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_named_with_the_last_good_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, state(1))
    checkpoints.wait()

    def save() -> None:
        checkpoints.save(2, state(2))
        checkpoints.wait()

    said = r"could not be written to .*: File too large; the last good .* of step 1$"
    with small_files(20_000), pytest.raises(CommandError, match=said):
        save()
    assert Checkpoints(tmp_path / "c").steps() == [1]


def test_half_a_save_is_removed_while_its_writers_still_write(tmp_path, monkeypatch):
    """The storage library does not wait for its other writes when one has failed."""
    half = tmp_path / f"2{TEMPORARY}"
    (tmp_path / "1").mkdir()
    late = iter(["a", "b"])

    def write_late(_: float) -> None:
        if name := next(late, None):
            (half / "d").mkdir(parents=True, exist_ok=True)
            (half / "d" / name).write_text(name)

    monkeypatch.setattr(time, "sleep", write_late)
    remove_half_a_save(tmp_path)
    assert next(late, None) is None
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandError, match=r"checkpoint directory .*file/c: Not a directory"):
        Checkpoints(tmp_path / "file" / "c")


def test_a_failed_write_is_told_in_the_systems_own_words():
    """The storage library wraps the system's error in a paragraph that may quote its whole specification."""
    wrapped = (
        'OUT_OF_RANGE: Failed writing: "d/c1": Failed to write 9 bytes: File too large [tensorstore_spec=\''
        '{"context":{"limit":128},"open":true}\'] [os_error_code=\'27\']'
    )
    assert reason(ValueError(wrapped)) == "File too large"
    assert reason(OSError(28, "No space left on device")) == "No space left on device"
    assert reason(RuntimeError("no\n  code")) == "no code"
