"""Batches are a function of seed and step: not of workers, processes, or where a run resumed."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aa_flax.weights.config import Preprocessing
from train.data import (
    ArraySource,
    Augmentation,
    DataConfig,
    Dataset,
    ImageFolder,
    evaluation_batches,
    open_dataset,
    steps_per_epoch,
    train_batches,
    val_batches,
)
from train.data.steps import TrainSteps
from train.errors import CommandError

RULE = Preprocessing(resize=18, crop=16)


def photos(root: Path, count: int, *, bad: tuple[int, ...] = ()) -> ImageFolder:
    random = np.random.default_rng(0)
    for i in range(count):
        path = root / f"class{i % 3}" / f"{i:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i in bad:
            path.write_text("no image at all")
        else:
            pixels = random.integers(0, 256, (20 + i % 5, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    return ImageFolder(root)


def dataset_of(source, **changes) -> Dataset:
    fields = {
        "name": "photos",
        "train": source,
        "val": source,
        "num_classes": 3,
        "class_names": ("class0", "class1", "class2"),
        "preprocessing": RULE,
        "augmentation": Augmentation(random_resized_crop=True, flip=True),
    }
    return Dataset(**{**fields, **changes})


def numbered(count: int) -> ArraySource:
    """Images that show their own number."""
    images = np.zeros((count, 16, 16, 3), np.uint8)
    images[:] = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return ArraySource(images, np.arange(count) % 3, "numbered")


def first(batches, count: int) -> list[dict[str, np.ndarray]]:
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


def assert_equal(left, right) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return dataset_of(photos(tmp_path_factory.mktemp("photos"), 21))


def test_batches_hold_what_they_promise(dataset: Dataset):
    (batch,) = first(train_batches(dataset, global_batch=8, seed=0), 1)
    assert batch.keys() == {"image", "label"}
    assert (batch["image"].shape, batch["image"].dtype) == ((8, 16, 16, 3), np.uint8)
    assert (batch["label"].shape, batch["label"].dtype) == ((8,), np.int32)


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(dataset: Dataset, workers: int):
    expected = first(train_batches(dataset, global_batch=8, seed=5, start_step=1), 5)
    assert_equal(first(train_batches(dataset, global_batch=8, seed=5, start_step=1, workers=workers), 5), expected)


def test_a_resumed_run_sees_the_batches_it_would_have_seen(dataset: Dataset):
    whole = first(train_batches(dataset, global_batch=8, seed=5), 9)
    for start in (1, 2, 7):
        assert_equal(first(train_batches(dataset, global_batch=8, seed=5, start_step=start), 9 - start), whole[start:])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_rows_of_one_batch(dataset: Dataset, processes: int):
    whole = first(train_batches(dataset, global_batch=8, seed=5), 4)
    parts = [
        first(train_batches(dataset, global_batch=8, seed=5, process_index=i, process_count=processes), 4)
        for i in range(processes)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]} for step in zip(*parts, strict=True)
    ]
    assert_equal(joined, whole)


def test_an_epoch_shows_every_image_once_in_a_new_order_each_time():
    source = numbered(24)
    dataset = dataset_of(source, augmentation=Augmentation())
    assert steps_per_epoch(dataset, 8) == 3
    steps = first(train_batches(dataset, global_batch=8, seed=1), 9)
    order = np.concatenate([batch["image"][:, 0, 0, 0] for batch in steps]).reshape(3, 24)
    for epoch in order:
        assert sorted(epoch) == list(range(24))
    assert not (order[0] == order[1]).all()
    assert not (order[1] == order[2]).all()


def test_the_remainder_changes_from_epoch_to_epoch():
    dataset = dataset_of(numbered(30), augmentation=Augmentation())
    steps = TrainSteps(dataset.train, RULE, dataset.augmentation, 8, 3, 0, 1)
    epochs = [{steps.record(24 * epoch + i) for i in range(24)} for epoch in range(40)]
    assert all(len(epoch) == 24 for epoch in epochs)
    assert set.union(*epochs) == set(range(30))


def test_seeds_do_not_share_their_epochs():
    source = numbered(200)
    orders = {}
    for seed in range(4):
        steps = TrainSteps(source, RULE, Augmentation(), 200, seed, 0, 1)
        for epoch in range(4):
            orders[seed, epoch] = tuple(steps.record(200 * epoch + i) for i in range(200))
    assert len(set(orders.values())) == len(orders)
    # Positions are unrelated between epochs too, not only different.
    first_epoch, second_epoch = np.array(orders[0, 0]), np.array(orders[0, 1])
    assert abs(np.corrcoef(first_epoch, second_epoch)[0, 1]) < 0.25


def test_crops_differ_between_epochs_and_seeds(dataset: Dataset):
    one = dataset_of(ArraySource(dataset.train[0][0][None], np.zeros(1), "one"))
    crops = first(train_batches(one, global_batch=1, seed=0), 4) + first(train_batches(one, global_batch=1, seed=1), 4)
    images = [crop["image"].tobytes() for crop in crops]
    assert len(set(images)) == 8


def test_without_random_crop_training_images_are_the_evaluation_s(dataset: Dataset):
    plain = dataset_of(dataset.train, augmentation=Augmentation())
    train = first(train_batches(plain, global_batch=21, seed=0), 1)[0]
    val = first(val_batches(plain, global_batch=21, size=16), 1)[0]
    assert {image.tobytes() for image in train["image"]} == {image.tobytes() for image in val["image"]}


@pytest.mark.parametrize(("batch", "processes"), [(8, 1), (8, 2), (21, 1), (64, 4), (1, 1)])
def test_evaluation_counts_every_image_exactly_once(dataset: Dataset, batch: int, processes: int):
    seen = []
    shapes = set()
    lengths = set()
    for i in range(processes):
        batches = list(val_batches(dataset, global_batch=batch, process_index=i, process_count=processes))
        lengths.add(len(batches))
        shapes |= {each["image"].shape for each in batches}
        seen += [each["index"][each["mask"]] for each in batches]
    assert sorted(np.concatenate(seen)) == list(range(21))
    assert lengths == {-(-21 // batch)}
    assert shapes == {(batch // processes, 18, 18, 3)}


def test_evaluation_with_workers_is_the_same(dataset: Dataset):
    expected = list(val_batches(dataset, global_batch=8))
    assert_equal(list(val_batches(dataset, global_batch=8, workers=2)), expected)


def test_bad_training_images_are_replaced_named_and_counted_once(tmp_path: Path, caplog):
    dataset = dataset_of(photos(tmp_path, 21, bad=(4, 5)), max_bad_fraction=0.1)
    with caplog.at_level(logging.WARNING):
        batches = train_batches(dataset, global_batch=7, seed=0)
        steps = [next(batches) for _ in range(9)]
    batches.close()
    assert sorted(batches.bad.found) == ["class1/0004.jpg", "class2/0005.jpg"]
    assert caplog.text.count("class1/0004.jpg") == 1
    assert "not an image" in caplog.text
    assert all((step["image"].reshape(7, -1).std(axis=1) > 0).all() for step in steps)
    assert_equal(first(train_batches(dataset, global_batch=7, seed=0, workers=1), 9), steps)


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_images_stop_the_run(tmp_path: Path, workers: int):
    dataset = dataset_of(photos(tmp_path, 21, bad=(2, 9, 11)), max_bad_fraction=0.1)
    message = r"3 of 21 images are unreadable, more than the share allowed by --data\.max-bad-fraction \(0\.1\)"
    with pytest.raises(CommandError, match=message):
        first(train_batches(dataset, global_batch=7, seed=0, workers=workers), 6)


def test_nothing_but_bad_images_stops_the_run_too(tmp_path: Path):
    dataset = dataset_of(photos(tmp_path, 20, bad=tuple(range(20))), max_bad_fraction=1.0)
    with pytest.raises(CommandError, match="images in a row are unreadable"):
        first(train_batches(dataset, global_batch=4, seed=0), 1)


def test_bad_evaluation_images_are_masked_and_named(tmp_path: Path):
    source = photos(tmp_path, 21, bad=(20,))
    batches = evaluation_batches(source, RULE, global_batch=8, max_bad_fraction=0.1)
    parts = list(batches)
    mask = np.concatenate([part["mask"] for part in parts])
    bad = np.concatenate([part["bad"] for part in parts])
    index = np.concatenate([part["index"] for part in parts])
    assert mask.sum() == 20
    assert [source.name(i) for i in index[bad]] == ["class2/0020.jpg"]
    assert batches.bad.found == {"class2/0020.jpg": "not an image that Pillow knows"}
    with pytest.raises(CommandError, match="1 of 21 images are unreadable"):
        list(evaluation_batches(source, RULE, global_batch=8, max_bad_fraction=0.01))


def test_waiting_is_measured(dataset: Dataset):
    batches = train_batches(dataset, global_batch=8, seed=0)
    next(batches)
    waited = batches.wait_seconds
    assert waited > 0
    next(batches)
    assert batches.wait_seconds > waited
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)
    batches.close()


def test_images_of_the_right_size_are_picked_as_they_are():
    rule = Preprocessing(resize=16, crop=16)
    random = np.random.default_rng(0)
    source = ArraySource(random.integers(0, 256, (30, 16, 16, 3), dtype=np.uint8), np.arange(30) % 3, "set")
    fast = TrainSteps(source, rule, Augmentation(), 8, 1, 0, 1)[5]
    records = [TrainSteps(source, rule, Augmentation(), 8, 1, 0, 1).record(40 + i) for i in range(8)]
    np.testing.assert_array_equal(fast["image"], source.images[records])
    np.testing.assert_array_equal(fast["label"], source.labels[records])
    assert fast["label"].dtype == np.int32
    larger = TrainSteps(source, Preprocessing(resize=20, crop=20), Augmentation(), 8, 1, 0, 1)[5]
    np.testing.assert_array_equal(larger["label"], fast["label"])


def test_a_run_ends_at_its_last_step(dataset: Dataset):
    whole = first(train_batches(dataset, global_batch=8, seed=0), 5)
    assert_equal(list(train_batches(dataset, global_batch=8, seed=0, start_step=2, stop_step=5)), whole[2:])


def test_what_cannot_be_batched(dataset: Dataset):
    with pytest.raises(CommandError, match="21 training images, fewer than one batch of 22"):
        train_batches(dataset, global_batch=22, seed=0)
    with pytest.raises(ValueError, match="8 cannot be shared evenly by 3 processes"):
        train_batches(dataset, global_batch=8, seed=0, process_count=3)
    with pytest.raises(ValueError, match="size 19 is not between crop 16 and resize 18"):
        val_batches(dataset, global_batch=8, size=19)


def test_batches_left_open_end_with_the_process():
    """Threads, worker processes and shared memory go quietly, whatever the caller forgets."""
    program = (
        "from train.data import DataConfig, open_dataset, train_batches\n"
        "if __name__ == '__main__':\n"
        "    batches = train_batches(open_dataset(DataConfig(name='digits')), global_batch=8, seed=0, workers=1)\n"
        "    print(next(batches)['image'].shape)\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "(8, 32, 32, 3)", "")


LOADING = """
import multiprocessing, signal, sys
from train.data import DataConfig, open_dataset, train_batches

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    dataset = open_dataset(DataConfig(name="synthetic", image_size=16, synthetic_size=256))
    batches = train_batches(dataset, global_batch=32, seed=0, workers=2)
    for _ in range(3):
        next(batches)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    sys.stdin.readline()
    for _ in range(30):
        next(batches)
    batches.close()
"""


def loading() -> tuple[subprocess.Popen[str], list[int]]:
    """A process that loads, in a group of its own, and the process numbers of its workers."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOADING],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, [int(word) for word in process.stdout.readline().split()]


def shared_memory_of(pids: Iterable[int]) -> set[Path]:
    """What these processes share, where the system shows it; others use shared memory at the same time."""
    maps = [Path(f"/proc/{pid}/maps") for pid in pids]
    return {Path(name) for each in maps if each.exists() for name in re.findall("/dev/shm/psm_.*", each.read_text())}


def wait_until_true(condition) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Ended, and not yet waited for by whoever takes care of orphans.
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def test_workers_and_shared_memory_go_with_a_process_that_is_killed():
    process, workers = loading()
    held = shared_memory_of([process.pid, *workers])
    assert len(workers) == 2
    assert all(map(alive, workers))
    process.kill()
    process.communicate()
    wait_until_true(lambda: not any(map(alive, workers)))
    wait_until_true(lambda: not any(path.exists() for path in held))


def test_workers_outlive_a_signal_to_the_group_and_leave_nothing_when_closed():
    process, workers = loading()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        os.killpg(process.pid, number)
    # Shared memory that is left would be named on stderr.
    output, errors = process.communicate("\n", timeout=300)
    assert (process.returncode, output, errors) == (0, "", "")
    assert not any(map(alive, workers))


def test_digits_load_without_a_folder():
    dataset = open_dataset(DataConfig(name="digits"))
    (batch,) = first(train_batches(dataset, global_batch=16, seed=0), 1)
    assert batch["image"].shape == (16, 32, 32, 3)
