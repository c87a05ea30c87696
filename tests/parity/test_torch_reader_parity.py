"""The reader of checkpoints against PyTorch's own."""

import argparse
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest

from aa_flax.weights.errors import CheckpointError
from aa_flax.weights.torch.globals import GLOBALS
from aa_flax.weights.torch.reader import read_torch_checkpoint
from tests.parity.oracles import torch

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
DTYPES = ["float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16", "bool"]


def assert_equal(array: np.ndarray, tensor) -> None:
    """Same type, shape and bits."""
    tensor = tensor.detach().contiguous()
    assert array.dtype.name == str(tensor.dtype).removeprefix("torch.")
    assert array.shape == tuple(tensor.shape)
    # As bytes, because NumPy has no bfloat16 that torch would know.
    expected = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else np.empty(0, np.uint8)
    np.testing.assert_array_equal(np.frombuffer(array.tobytes(), np.uint8), expected)


def check(path, saved, *, zipped: bool) -> dict[str, np.ndarray]:
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    expected = torch.load(path, weights_only=True)
    found = read_torch_checkpoint(path)
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert_equal(found[key], tensor)
    return found


@FORMATS
def test_every_dtype(tmp_path, zipped):
    generator = torch.Generator().manual_seed(0)
    # What torch writes of uint16 in the legacy format, it cannot read itself.
    names = DTYPES if zipped else [name for name in DTYPES if name != "uint16"]
    state = {name: (torch.randn(3, 5, generator=generator) * 9).to(getattr(torch, name)) for name in names}
    check(tmp_path / "a.pth", state, zipped=zipped)


@FORMATS
def test_shapes_strides_and_sharing(tmp_path, zipped):
    base = torch.arange(24.0).reshape(2, 3, 4)
    state = {
        "whole": base,
        "permuted": base.permute(2, 0, 1),
        "part": base[1, :, 1:3],
        "every_other": base[:, ::2, ::3],
        "channels_last": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "expanded": torch.ones(1).expand(5, 4),
        "scalar": torch.tensor(3),
        "empty": torch.ones(0, 3),
        "half_of_shared": torch.arange(6, dtype=torch.bfloat16)[3:],
        "slice_of_one": base[:1, :1, :1],
    }
    found = check(tmp_path / "a.pth", state, zipped=zipped)
    assert np.shares_memory(found["whole"], found["permuted"])


@FORMATS
def test_parameters_buffers_and_attributes(tmp_path, zipped):
    tagged = torch.nn.Parameter(torch.arange(3.0))
    tagged.tag = "x"
    noted = torch.arange(4.0)
    noted.note = 3
    state = OrderedDict(a=torch.nn.Parameter(torch.ones(2, 2).mT), b=tagged, c=noted, d=torch.nn.Buffer(torch.ones(1)))
    check(tmp_path / "a.pth", state, zipped=zipped)


@FORMATS
def test_state_dict_of_a_module(tmp_path, zipped):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    found = check(tmp_path / "a.pth", net.state_dict(), zipped=zipped)
    assert found["1.num_batches_tracked"].shape == ()


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(tmp_path, zipped, protocol):
    state = torch.nn.Linear(4, 2).state_dict()
    path = tmp_path / "a.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    found = read_torch_checkpoint(path)
    assert list(found) == list(state)
    for key, tensor in state.items():
        assert_equal(found[key], tensor)


@FORMATS
def test_training_checkpoint_of_data_parallel(tmp_path, zipped):
    net = torch.nn.Sequential(OrderedDict(features=torch.nn.Linear(4, 3), classifier=torch.nn.Linear(3, 2)))
    parallel = torch.nn.DataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "arch": "resnet18",
        "best_acc1": torch.tensor(71.5),
        "numpy": np.float64(0.5),
        "array": np.ones(2),
        "args": argparse.Namespace(lr=0.1),
        "sizes": torch.Size([1, 2]),
        "kinds": {torch.float32: torch.device("cpu")},
        "history": defaultdict(list, {"loss": [1.0, 2.0]}),
        "state_dict": parallel.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    path = tmp_path / "a.pth"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    found = read_torch_checkpoint(path)
    assert list(found) == list(net.state_dict())
    for key, tensor in net.state_dict().items():
        assert_equal(found[key], tensor)


def test_every_name_of_the_safe_loader():
    """Whatever `torch.load(weights_only=True)` may be asked for, this reader knows as well."""
    from torch._weights_only_unpickler import _get_allowed_globals

    assert _get_allowed_globals().keys() - GLOBALS.keys() == set()


# What the safe loader reads beside tensors; and tensors that are no plain run of numbers.
SAFE = {
    "Counter": lambda: Counter([30, 60, 60]),
    "schedule": lambda: torch.optim.lr_scheduler.MultiStepLR(
        torch.optim.SGD([torch.ones(1, requires_grad=True)], 0.1), [30, 60]
    ).state_dict(),
    "set": lambda: {1, 2},
    "bytes": lambda: b"abc",
    "bytearray": lambda: bytearray(b"abc"),
    "complex": lambda: 1 + 2j,
    "device": lambda: torch.device("cpu"),
    "size": lambda: torch.Size([1, 2]),
    "dtypes": lambda: [torch.float8_e4m3fn, torch.complex32, torch.uint4, torch.qint8, torch.bits8],
    "layout": lambda: torch.strided,
    "random state": lambda: torch.get_rng_state(),
    "quantised": lambda: torch.quantize_per_tensor(torch.arange(4.0), 0.1, 0, torch.qint8),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse rows": lambda: torch.eye(3).to_sparse_csr(),
    "meta": lambda: torch.ones(2, device="meta"),
    "float8": lambda: torch.ones(2).to(torch.float8_e4m3fn),
}


@FORMATS
@pytest.mark.parametrize("name", SAFE)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_whatever_the_safe_loader_reads_beside_the_weights(tmp_path, zipped, name):
    if name == "float8" and not zipped:
        pytest.skip("torch cannot write it in the legacy format")
    state, path = torch.nn.Linear(2, 2).state_dict(), tmp_path / "a.pth"
    torch.save({"other": SAFE[name](), "state_dict": state}, path, _use_new_zipfile_serialization=zipped)
    torch.load(path, weights_only=True)
    for key, tensor in state.items():
        assert_equal(read_torch_checkpoint(path)[key], tensor)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_sets_of_every_protocol(tmp_path, protocol):
    """The safe loader itself knows those of protocol 2 and 3 alone."""
    state = torch.nn.Linear(2, 2).state_dict()
    others = {"set": {1, 2}, "frozen": frozenset("ab"), "bytes": bytearray(b"abc"), "array": np.ones(3)}
    torch.save(others | {"state_dict": state}, tmp_path / "a.pth", pickle_protocol=protocol)
    assert list(read_torch_checkpoint(tmp_path / "a.pth")) == list(state)


def test_an_average_of_weights(tmp_path):
    net = torch.nn.Linear(2, 2)
    averaged = torch.optim.swa_utils.AveragedModel(net)
    torch.save(averaged.state_dict(), tmp_path / "a.pth")
    found = read_torch_checkpoint(tmp_path / "a.pth")
    assert list(found) == ["n_averaged", *net.state_dict()]


@FORMATS
def test_a_pickled_module_is_refused(tmp_path, zipped):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"refused.*torch\.nn\.modules\.linear\.Linear|source code of a module"):
        read_torch_checkpoint(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_torch_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("option", ["no check sums", "large alignment"])
def test_options_of_the_archive(tmp_path, option):
    alignment = {"save.storage_alignment": 4096} if option == "large alignment" else {}
    torch.serialization.set_crc32_options(option != "no check sums")
    try:
        with torch.utils.serialization.config.patch(alignment):
            check(tmp_path / "a.pth", torch.nn.Linear(4, 2).state_dict(), zipped=True)
    finally:
        torch.serialization.set_crc32_options(True)


def test_real_checkpoint(shared):
    path = shared / "weights" / "mobilenet_v2_imagenet.pth"
    expected = torch.load(path, weights_only=True)
    found = read_torch_checkpoint(path)
    assert list(found) == list(expected)
    assert len(found) == 314
    for key, tensor in expected.items():
        assert_equal(found[key], tensor)
