"""The reader of PyTorch checkpoints, on files written byte by byte: right ones, wrong ones and hostile ones."""

import datetime
import decimal
import os
import pickle
import re
import struct
import tracemalloc
import types
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import PurePosixPath

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from aa_flax.weights.errors import CheckpointError
from aa_flax.weights.torch import pickled as torch_pickle
from aa_flax.weights.torch.reader import list_state_dicts, read_torch_checkpoint
from tests.torch_format import (
    MAGIC,
    ORDERED_DICT,
    REBUILD,
    STORAGES,
    SYSTEM,
    Call,
    Global,
    Persistent,
    Raw,
    dumps,
    legacy_file,
    saved,
    state_of,
    storage,
    tensor,
    zip_file,
)

ARRAYS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "bn.num_batches_tracked": np.array(7, dtype=np.int64),
    "bn.bias": np.array([0.5, -2], dtype=jnp.bfloat16),
}


def read(tmp_path, content: bytes) -> dict[str, np.ndarray]:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    return read_torch_checkpoint(path)


def assert_same(found, expected) -> None:
    assert list(found) == list(expected)
    for key, array in expected.items():
        assert found[key].dtype == array.dtype, key
        assert found[key].shape == array.shape, key
        np.testing.assert_array_equal(found[key], array)


@pytest.mark.parametrize("legacy", [False, True])
def test_state_dict(tmp_path, legacy):
    assert_same(read(tmp_path, saved(ARRAYS, legacy=legacy)), ARRAYS)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", STORAGES, ids=str)
def test_every_dtype(tmp_path, legacy, dtype):
    arrays = {"odd": np.array([1, 0, 1], np.uint8), "values": np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)}
    found = read(tmp_path, saved(arrays, legacy=legacy))
    assert_same(found, arrays)
    # The odd storage before it leaves the legacy file's numbers unaligned: JAX must still take them.
    np.testing.assert_array_equal(np.asarray(jnp.array(found["values"])), arrays["values"])


@pytest.mark.parametrize("legacy", [False, True])
def test_shared_storage_offsets_and_strides(tmp_path, legacy):
    flat = np.arange(12, dtype=np.float32)
    place = storage("0", np.float32, 12, legacy=legacy)
    state = OrderedDict(
        whole=tensor(place, (3, 4)),
        transposed=tensor(place, (4, 3), (1, 4)),
        part=tensor(place, (2, 2), (4, 1), offset=5),
        expanded=tensor(place, (3, 2), (0, 1)),
        scalar=tensor(place, (), (), offset=11),
        empty=tensor(place, (0, 5)),
        one=tensor(place, (1, 2), (10**30, 1)),
    )
    content = legacy_file(state, {"0": (12, flat.tobytes())}) if legacy else zip_file(state, {"0": flat.tobytes()})
    found = read(tmp_path, content)
    grid = flat.reshape(3, 4)
    expected = {
        "whole": grid,
        "transposed": grid.T,
        "part": grid[1:, 1:3],
        "expanded": np.broadcast_to(flat[:2], (3, 2)),
        "scalar": flat[11],
        "empty": np.empty((0, 5), np.float32),
        "one": flat[:2].reshape(1, 2),
    }
    assert_same(found, expected)
    assert np.shares_memory(found["whole"], found["transposed"])
    assert not any(array.flags.writeable for array in found.values() if array.size)


def test_view_of_a_storage_in_a_legacy_file(tmp_path):
    flat = np.arange(12, dtype=np.float32)
    state = {"x": tensor(storage("0", np.float32, 12, legacy=True, view=("1", 4, 6)), (2, 3))}
    assert_same(read(tmp_path, legacy_file(state, {"0": (12, flat.tobytes())})), {"x": flat[4:10].reshape(2, 3)})
    beyond = {"x": tensor(storage("0", np.float32, 12, legacy=True, view=("1", 4, 9)), (2, 3))}
    with pytest.raises(CheckpointError, match="impossible size"):
        read(tmp_path, legacy_file(beyond, {"0": (12, flat.tobytes())}))


def test_parameters_metadata_and_tensors_with_attributes(tmp_path):
    weight = tensor(storage("0", np.float32, 2), (2,))
    utils = "torch._utils"
    metadata = {"_metadata": OrderedDict([("", {"version": 1})])}
    old = Call(Global(utils, "_rebuild_tensor"), (storage("0", np.float32, 2), 0, (2,), (1,)))
    of_type = Global("torch._tensor", "_rebuild_from_type_v2")
    untyped = Persistent(("storage", Global("torch.storage", "UntypedStorage"), "1", "cpu", 4))
    half = (untyped, 0, (2,), (1,), False, OrderedDict(), Global("torch", "uint16"))
    items = [
        ["plain", weight],
        ["parameter", Call(Global(utils, "_rebuild_parameter"), (weight, True, OrderedDict()))],
        ["with_state", Call(Global(utils, "_rebuild_parameter_with_state"), (weight, True, OrderedDict(), {"a": 1}))],
        ["typed", Call(of_type, (REBUILD, Global("torch", "Tensor"), weight.args, {"a": 1}))],
        ["old", old],
        ["uint16", Call(Global(utils, "_rebuild_tensor_v3"), half)],
    ]
    root = Call(ORDERED_DICT, (items,), state=metadata)
    values = np.array([3, 4], np.float32)
    found = read(tmp_path, zip_file(root, {"0": values.tobytes(), "1": np.array([7, 8], np.uint16).tobytes()}))
    expected = dict.fromkeys(["plain", "parameter", "with_state", "typed", "old"], values)
    assert_same(found, expected | {"uint16": np.array([7, 8], np.uint16)})


def test_training_checkpoint(tmp_path):
    dtype = Call(Global("numpy", "dtype"), ("f8", False, True), state=(3, "<", None, None, None, -1, -1, 0))
    encoded = Call(Global("_codecs", "encode"), ("\x00\x08@", "latin1"))
    root = {
        "epoch": 3,
        "arch": "resnet50",
        "best_acc1": tensor(storage("best", np.float32, 1), (), ()),
        "loss": 0.25,
        "numpy": Call(Global("numpy.core.multiarray", "scalar"), (dtype, encoded)),
        "args": Call(Global("argparse", "Namespace"), (), state={"lr": 0.1}),
        "optimizer": {
            "state": Raw(b"}(K\x00K\x01u"),  # {0: 1}: keys that are no texts
            "param_groups": [{"lr": 0.1, "params": [0, 1]}],
            "seen": Call(Global("__builtin__", "set"), ([1, 2],)),
        },
        "state_dict": state_of({f"module.{key}": array for key, array in ARRAYS.items()}),
    }
    storages = {f"module.{key}": array.tobytes() for key, array in ARRAYS.items()}
    assert_same(read(tmp_path, zip_file(root, storages | {"best": b"\0\0\0\0"})), ARRAYS)


HARMLESS = {
    "milestones of a schedule": Counter([30, 60, 60]),
    "set": {1, 2, "a"},
    "frozenset": frozenset(["a", (1, 2)]),
    "bytes": bytes(300),
    "bytearray": bytearray(b"abc"),
    "complex": 1 + 2j,
    "ranges": [range(3), slice(1, 2)],
    "deque": deque([1, 2], maxlen=3),
    "defaultdict": defaultdict(list, loss=[1.0]),
    "times": [datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), datetime.timedelta(1), datetime.date(2026, 1, 2)],
    "path": PurePosixPath("/data/imagenet"),
    "namespace": types.SimpleNamespace(lr=0.1),
    "decimal": decimal.Decimal("0.1"),
    "numpy": [np.ones((2, 3)), np.float32(1), np.dtype("f4"), np.asfortranarray(np.ones((2, 2)))],
    "lone surrogate": "photo \udce9",
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_values_beside_the_weights(tmp_path, name, protocol):
    root = {name: Raw(pickle.dumps(HARMLESS[name], protocol)[2:-1]), "state_dict": state_of(ARRAYS)}
    assert_same(read(tmp_path, zip_file(root, {key: array.tobytes() for key, array in ARRAYS.items()})), ARRAYS)


def weights_and_average() -> bytes:
    """A training checkpoint with the weights, twice 1, and their average, twice 2, at two depths."""
    storages = {str(n): np.full(2, n, np.float32).tobytes() for n in (1, 2)}
    weights, average = ({"w": tensor(storage(str(n), np.float32, 2), (2,))} for n in (1, 2))
    root = {"model": {"ema": {"state_dict": average}, "state_dict": weights}, "model_ema": average, "epoch": 3}
    return zip_file(root, storages)


def test_one_of_several_state_dicts(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(weights_and_average())
    assert list_state_dicts(path) == {"model.state_dict": 1, "model.ema.state_dict": 1, "model_ema": 1}
    expected = {None: 1, "model.state_dict": 1, "model.ema.state_dict": 2, "model_ema": 2}
    for key, value in expected.items():
        assert_same(read_torch_checkpoint(path, key=key), {"w": np.full(2, value, np.float32)})
    with pytest.raises(CheckpointError, match=r"no state dict 'ema'.*--key.*'model\.ema\.state_dict' \(1 entries\)"):
        read_torch_checkpoint(path, key="ema")


def test_the_only_state_dict_needs_no_key(tmp_path):
    root = {"net": state_of(ARRAYS), "epoch": 3}
    storages = {key: array.tobytes() for key, array in ARRAYS.items()}
    assert_same(read(tmp_path, zip_file(root, storages)), ARRAYS)
    assert_same(read_torch_checkpoint(tmp_path / "weights.pth", key="net"), ARRAYS)
    path = tmp_path / "plain.pth"
    path.write_bytes(saved(ARRAYS))
    assert list_state_dicts(path) == {}
    with pytest.raises(CheckpointError, match=r"no state dict 'net'.*it is one itself, leave the key out"):
        read_torch_checkpoint(path, key="net")
    save_file(ARRAYS, path)
    assert list_state_dicts(path) == {}
    with pytest.raises(CheckpointError, match="holds one state dict: leave out the key 'net'"):
        read_torch_checkpoint(path, key="net")


def test_dictionaries_named_again_and_again_cost_nothing(tmp_path):
    """Four levels of a thousand mentions each would be 10^12 dictionaries."""
    mentions = b"".join(dumps(str(n))[2:-1] + b"h\x00" for n in range(1000))
    level = b"}(" + mentions + b"u"
    content = zip_file(Raw(b"}q\x00" + (level + b"q\x00") * 4), {})
    with pytest.raises(CheckpointError, match="is a dictionary"):
        read(tmp_path, content)


def test_tensors_of_other_kinds_are_named(tmp_path):
    sparse = Call(Global("torch._utils", "_rebuild_sparse_tensor"), (Raw(b"N"), ()))
    root = state_of({"w": np.ones(1, np.float32)}) | {"s": sparse}
    with pytest.raises(CheckpointError, match="'s' is a sparse tensor"):
        read(tmp_path, zip_file(root, {"w": ONE[:4]}))


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize(
    ("prefix", "bare"), [("module.", ""), ("features.module.", "features."), ("module.features.module.", "features.")]
)
def test_wrappers_and_prefixes(tmp_path, wrapper, prefix, bare):
    arrays = {f"{prefix}{key}": array for key, array in ARRAYS.items()} | {"classifier.1.bias": np.ones(2, np.float32)}
    root = {"note": {"a": "model"}, wrapper: state_of(arrays)}
    found = read(tmp_path, zip_file(root, {key: array.tobytes() for key, array in arrays.items()}))
    assert_same(found, {key.replace(prefix, bare): array for key, array in arrays.items()})


def test_compressed_archive(tmp_path):
    content = zip_file(state_of(ARRAYS), {key: array.tobytes() for key, array in ARRAYS.items()}, compress=True)
    assert_same(read(tmp_path, content), ARRAYS)


def test_archive_without_check_sums(tmp_path):
    content = bytearray(saved({"a": np.ones(3, np.float32)}))
    for signature, place in ((b"PK\x03\x04", 14), (b"PK\x01\x02", 16)):
        for match in re.finditer(re.escape(signature), bytes(content)):
            content[match.start() + place : match.start() + place + 4] = bytes(4)
    assert_same(read(tmp_path, bytes(content)), {"a": np.ones(3, np.float32)})


def test_safetensors_by_content(tmp_path):
    save_file({f"module.{key}": array for key, array in ARRAYS.items()}, tmp_path / "weights.pth")
    found = read_torch_checkpoint(tmp_path / "weights.pth")
    assert_same(dict(sorted(found.items())), dict(sorted(ARRAYS.items())))
    assert not found["conv.weight"].flags.writeable


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_is_copied(tmp_path, legacy):
    big = {"a": np.ones(4_000_000, np.float32)}
    content = saved(big, legacy=legacy)
    tracemalloc.start()
    try:
        found = read(tmp_path, content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    assert_same(found, big)


# Everything below must end in a CheckpointError that names the file and says what is wrong.

SYSTEM_CALL = Call(Global("posix", "system"), ("echo ran > ran",))
ONE = np.ones(4, np.float32).tobytes()


def with_tensor(**changes) -> bytes:
    settings = {"shape": (4,), "strides": (1,), "offset": 0} | changes
    return zip_file({"a": tensor(storage("0", np.float32, 4), **settings)}, {"0": ONE})


def deep_tuple_as_key() -> Raw:
    return Raw(b"})" + b"\x85" * 100_000 + b"Ns")


def laughing_key() -> Raw:
    doubled = b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(100))
    return Raw(b"})" + doubled + b"Ns")


def repeated_list() -> Raw:
    pairs = [[str(n), n] for n in range(3000)]
    return Raw(dumps(pairs)[2:-1] + b"q\x00" + dumps(ORDERED_DICT)[2:-1] + b"q\x01" + b"h\x01h\x00\x85R" * 400)


HOSTILE = {
    "os.system": (zip_file(SYSTEM_CALL, {}), "refused.*posix.system"),
    "os.system in a legacy file": (legacy_file(SYSTEM_CALL, {}), "refused.*posix.system"),
    "os.system as magic number": (legacy_file({}, {}, head=(MAGIC, SYSTEM_CALL, SYSTEM)), "refused.*posix.system"),
    "eval by protocol 4": (zip_file(Raw(b"\x8c\x08builtins\x8c\x04eval\x93"), {}), "refused.*builtins.eval"),
    "a dotted way to os": (zip_file(Raw(b"\x8c\x0ctorch._utils\x8c\x09os.system\x93"), {}), "refused.*os.system"),
    "a whole model": (zip_file(Call(Global("torchvision.models", "ResNet"), ()), {}), "refused.*ResNet.*state_dict"),
    "module source": (
        legacy_file(Persistent(("module", Global("torch", "Tensor"), "a.py", "import os")), {}),
        "refused.*source code",
    ),
    "INST instruction": (zip_file(Raw(b"(S'echo'\nios\nsystem\n"), {}), "instruction b'[Si]'"),
    "a registered extension": (zip_file(Raw(b"\x82\x01"), {}), "instruction"),
    "plain pickle": (pickle.dumps({"a": 1}), "pickle that torch.save did not write"),
    "TorchScript": (zip_file({}, {}, extra={"code/net.py": b"", "constants.pkl": b""}), "TorchScript.*state_dict"),
    "other zip": (zip_file({}, {}).replace(b"data.pkl", b"data.txt"), "not one that torch.save wrote"),
    "two parts of one name": (
        zip_file({}, {"0": b"1", "1": b"2"}).replace(b"data/1", b"data/0"),
        "two parts of the name 'archive/data/0': refused",
    ),
    "big-endian": (zip_file(state_of({}), {}, extra={"byteorder": b"big"}), "byte order b'big'"),
    "unknown byte order": (zip_file(state_of({}), {}, extra={"byteorder": b"x" * 500}), "byte order"),
    "big-endian legacy": (legacy_file({}, {}, head=(MAGIC, 1001, {"little_endian": False})), "little-endian"),
    "unknown legacy protocol": (legacy_file({}, {}, head=(MAGIC, 7, SYSTEM)), "number 7"),
    "empty": (b"", "empty"),
    "text": (b"hello world, these are no weights\n" * 40, "text file"),
    "web page": (b"<!DOCTYPE html><html>404</html>", "web page"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    "gzip": (b"\x1f\x8b\x08" + bytes(50), "gzip"),
    "HDF5": (b"\x89HDF\r\n" + bytes(50), "HDF5"),
    "old tar": (bytes(257) + b"ustar" + bytes(250), "tar archive"),
    "noise": (bytes(range(200, 256)) * 9, "unknown kind"),
    "a tensor": (zip_file(tensor(storage("0", np.float32, 4), (4,)), {"0": ONE}), "a single tensor"),
    "a list": (zip_file([1, 2], {}), "a list"),
    "nothing": (zip_file(None, {}), "None"),
    "empty state dict": (zip_file(state_of({}), {}), "it is empty"),
    "text among tensors": (zip_file(state_of({}) | {"a": "b"}, {}), "'a' is a text"),
    "number among tensors": (
        zip_file(state_of({"w": np.ones(1, np.float32)}) | {"epoch": 3}, {"w": ONE[:4]}),
        "'epoch' is a number",
    ),
    "two state dicts": (
        zip_file({key: state_of({"w": np.ones(1, np.float32)}) for key in ("model", "state_dict")}, {"w": ONE[:4]}),
        "several state dicts",
    ),
    "key with and without prefix": (
        zip_file(state_of({"module.w": np.ones(1, np.float32), "w": np.ones(1, np.float32)}), {}),
        "'w' twice",
    ),
    "too large a shape": (with_tensor(shape=(5,)), "beyond its storage"),
    "offset beyond": (with_tensor(offset=1), "beyond its storage"),
    "stride beyond": (with_tensor(shape=(2,), strides=(4,)), "beyond its storage"),
    "overflowing shape": (with_tensor(shape=(2**62, 4), strides=(4, 1)), "out of proportion"),
    "overflowing empty shape": (with_tensor(shape=(2**62, 0), strides=(0, 1)), "out of proportion"),
    "huge number": (with_tensor(shape=(2**1000,)), "out of proportion"),
    "expanded bomb": (with_tensor(shape=(2**40,), strides=(0,)), "out of proportion"),
    "negative size": (with_tensor(shape=(-4,)), "impossible shape"),
    "negative stride": (with_tensor(strides=(-1,), offset=3), "impossible shape"),
    "negative offset": (with_tensor(offset=-1), "impossible shape"),
    "fewer strides": (with_tensor(strides=()), "impossible shape"),
    "many dimensions": (with_tensor(shape=(1,) * 65, strides=(1,) * 65), "65 dimensions"),
    "float shape": (with_tensor(shape=(4.0,)), "malformed"),
    "negative storage": (
        zip_file({"a": tensor(storage("0", np.float32, -4), (4,))}, {"0": ONE}),
        "impossible size -4",
    ),
    "huge storage": (zip_file({"a": tensor(storage("0", np.float32, 2**50), (4,))}, {"0": ONE}), "impossible size"),
    "storage of another size": (
        zip_file({"a": tensor(storage("0", np.float32, 5), (4,))}, {"0": ONE}),
        "16 bytes where its pickle says 20",
    ),
    "storage of two sizes": (
        zip_file({str(n): tensor(storage("0", np.float32, n), (1,)) for n in (3, 4)}, {"0": ONE}),
        "in two ways",
    ),
    "storage missing": (zip_file({"a": tensor(storage("1", np.float32, 4), (4,))}, {"0": ONE}), "'1' is missing"),
    "storage outside the archive": (
        zip_file({"a": tensor(storage("../../../etc/passwd", np.float32, 4), (4,))}, {}),
        "is missing",
    ),
    "storage missing in a legacy file": (
        legacy_file({"a": tensor(storage("1", np.float32, 4, legacy=True), (4,))}, {}),
        "'1' is missing",
    ),
    "storage unknown to the pickle": (legacy_file({}, {"1": (4, ONE)}), "does not fit its pickle"),
    "other number of elements": (
        legacy_file({"a": tensor(storage("0", np.float32, 4, legacy=True), (4,))}, {"0": (3, ONE)}),
        "3 elements where its pickle says 4",
    ),
    "booleans that are none": (zip_file(state_of({"a": np.ones(2, bool)}), {"a": b"\x01\x02"}), "booleans"),
    "compressed pickle bomb": (zip_file(b"\x80\x02" + b"0" * 2**25, {}, compress=True), "pickle is larger"),
    "a list copied again and again": (zip_file(repeated_list(), {}), "more than 1,000,000 steps"),
    "memo bomb": (zip_file(Raw(b"}r\xff\xff\xff\xffj\xfe\xff\xff\xff"), {}), "malformed"),
    "deep key": (zip_file(deep_tuple_as_key(), {}), "it is empty"),
    "key with 2^100 parts": (zip_file(laughing_key(), {}), "it is empty"),
    "text longer than the file": (zip_file(Raw(b"X\xff\xff\xff\xff"), {}), "in the middle of its pickle"),
    "text of 2^64 bytes": (zip_file(Raw(b"\x8d" + b"\xff" * 8), {}), "in the middle of its pickle"),
    "negative text": (zip_file(Raw(b"T\xff\xff\xff\xff"), {}), "in the middle of its pickle"),
    "broken text": (zip_file(Raw(b"X\x02\x00\x00\x00\xff\xff"), {}), "malformed"),
    "empty stack": (zip_file(b"\x80\x02.", {}), "malformed"),
    "no mark": (zip_file(b"\x80\x02t.", {}), "malformed"),
    "call of a tensor type": (zip_file(Call(Global("torch", "FloatStorage"), (9,)), {}), "malformed"),
    "call of a number": (zip_file(Raw(b"K\x01)R"), {}), "malformed"),
    "state for a tensor": (zip_file(Raw(b"K\x01}b"), {}), "malformed"),
    "items for a list": (zip_file(Raw(b"](K\x01K\x02u"), {}), "malformed"),
    "odd items": (zip_file(Raw(b"}(K\x01u"), {}), "malformed"),
    "append to a dictionary": (zip_file(Raw(b"}K\x01a"), {}), "malformed"),
    "self-rebuilding type": (
        zip_file(
            Call(Global("torch._tensor", "_rebuild_from_type_v2"), (ORDERED_DICT, 0, (), 0)),
            {},
        ),
        "malformed",
    ),
    "truncated safetensors": (struct.pack("<Q", 90) + b'{"a":{"dtype":"F32","shape":[2],', "damaged or truncated saf"),
    "safetensors without data": (
        struct.pack("<Q", 56) + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  ',
        "damaged or truncated saf",
    ),
    "nested safetensors header": (struct.pack("<Q", 90_000) + b"{" * 90_000, "damaged or truncated saf"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(tmp_path, monkeypatch, name):
    content, message = HOSTILE[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=re.compile(message, re.DOTALL)) as caught:
        read(tmp_path, content)
    assert str(caught.value).startswith(str(tmp_path / "weights.pth") + ": ")
    assert len(str(caught.value)) < 600
    assert os.listdir(tmp_path) == ["weights.pth"]


def test_overlapping_tensors_add_up(tmp_path):
    place = storage("0", np.float32, 1_000_000)
    state = {str(n): tensor(place, (1_000_000,)) for n in range(60)}
    with pytest.raises(CheckpointError, match="out of proportion"):
        read(tmp_path, zip_file(state, {"0": bytes(4_000_000)}))


@pytest.mark.parametrize(("seen", "message"), [(9_000_000, "out of proportion"), (1, "refused as a zip bomb")])
def test_zip_bomb(tmp_path, seen, message):
    state = {"a": tensor(storage("0", np.float64, 9_000_000), (seen,))}
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, zip_file(state, {"0": bytes(72_000_000)}, compress=True))


def test_long_pickle(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_pickle, "_MAX_STEPS", 1000)
    with pytest.raises(CheckpointError, match="more than 1,000 steps"):
        read(tmp_path, zip_file(b"\x80\x02" + b"]" * 2000 + b".", {}))


def test_encrypted_and_foreign_compression(tmp_path):
    content = bytearray(saved(ARRAYS))
    for match in re.finditer(rb"PK\x01\x02", bytes(content)):
        content[match.start() + 8] |= 1
    with pytest.raises(CheckpointError, match="encrypted"):
        read(tmp_path, bytes(content))
    path = tmp_path / "lzma.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("archive/data.pkl", dumps({}))
    with pytest.raises(CheckpointError, match="PyTorch does not read"):
        read_torch_checkpoint(path)


@pytest.mark.parametrize("compress", [False, True])
def test_bytes_lost_within_an_archive(tmp_path, compress):
    content = zip_file(state_of(ARRAYS), {key: array.tobytes() for key, array in ARRAYS.items()}, compress=compress)
    # Now every part begins earlier than its entry says, the first one before the file itself.
    with pytest.raises(CheckpointError, match="not where the archive says"):
        read(tmp_path, content[:60] + content[68:])


@pytest.mark.parametrize("place", ["data", "pickle"])
def test_flipped_byte_in_an_archive_is_noticed(tmp_path, place):
    content = bytearray(saved(ARRAYS))
    content[content.index(ARRAYS["conv.weight"].tobytes() if place == "data" else b"conv.weight") + 7] ^= 1
    with pytest.raises(CheckpointError, match="check sum"):
        read(tmp_path, bytes(content))


@pytest.mark.parametrize("legacy", [False, True])
def test_truncation_anywhere(tmp_path, legacy):
    content = saved(ARRAYS, legacy=legacy)
    for length in range(0, len(content), 3):
        with pytest.raises(CheckpointError):
            read(tmp_path, content[:length])


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_torch_checkpoint(tmp_path / "missing.pth")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_torch_checkpoint(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_torch_checkpoint(tmp_path / "pipe")


def read_or_refuse(path) -> tuple[dict[str, np.ndarray], str]:
    """Lets every error through but the one that is right."""
    try:
        return read_torch_checkpoint(path), str(path)
    except CheckpointError as error:
        return {}, str(error)


VALID = [saved(ARRAYS), saved(ARRAYS, legacy=True), save(ARRAYS)]
VALID.append(zip_file(state_of(ARRAYS), {key: array.tobytes() for key, array in ARRAYS.items()}, compress=True))


@settings(max_examples=400)
@given(
    original=st.sampled_from(VALID),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=6),
    end=st.one_of(st.none(), st.integers(0, 10**6)),
)
def test_damaged_files_never_do_anything_else(tmp_path_factory, original, flips, end):
    content = bytearray(original)
    for position, change in flips:
        content[position % len(content)] ^= change
    if end is not None:
        del content[end % len(content) :]
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        found, message = read_or_refuse(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000
    assert message.startswith(str(path))
    assert all(array.nbytes < 10_000 for array in found.values())


PIECES = st.one_of(
    st.binary(max_size=6),
    st.sampled_from([bytes([code]) for code in b"}](t\x85\x86\x87a.esuq\x00h\x00Rb\x81QN\x88K\x01l0"]),
    st.sampled_from(
        [
            dumps(value)[2:-1]
            for value in (
                ORDERED_DICT,
                REBUILD,
                "x",
                Global("torch", "FloatStorage"),
                Global("torch", "Size"),
                tensor(storage("0", np.float32, 4), (4,)),
                storage("0", np.float32, 4),
                (),
                [],
                {},
            )
        ]
    ),
)


@settings(max_examples=400)
@given(st.lists(PIECES, max_size=30))
def test_random_pickles_never_do_anything_else(tmp_path_factory, pieces):
    path = tmp_path_factory.getbasetemp() / "random.pth"
    path.write_bytes(zip_file(b"\x80\x02" + b"".join(pieces) + b".", {"0": ONE}))
    assert read_or_refuse(path)[1].startswith(str(path))
