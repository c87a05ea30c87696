"""JSON files from strangers: what would take all time or memory, or break whoever computes with it, is one line."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import aa_flax
from aa_flax.weights import CheckpointError
from aa_flax.weights.json_file import parse_json, read_json
from train.errors import CommandError
from train.evaluate.scoring import read_offsets
from train.fit.record import read_record
from train.fit.runlog import read_scores
from train.reproduce.measuring import read_measured

NESTED = "[" * 100_000 + "]" * 100_000
HUGE = "1" + "0" * 400
# Texts that Python's own reader answers with something else than a ValueError, or with what breaks later.
BAD = {
    "nested": (NESTED, "nested too deeply"),
    "objects": ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
    "huge": (f'{{"config": {HUGE}, "offsets": {HUGE}}}', "more than 64 bits"),
    "digits": ("9" * 100_000, "more than 64 bits"),
    "half": ('{"config": "\\ud800"}', "half a character, '\\\\ud800'"),
    "cut": ('{"a": ', "Expecting value"),
    "bytes": ("\xff\xfe\x00", "codec can't decode|Expecting value"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_json_is_a_line(kind, tmp_path):
    text, message = BAD[kind]
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as error:
        read_json(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200
    for kind_of_error, read in (
        (CheckpointError, lambda: aa_flax.read_config(tmp_path)),
        (CommandError, lambda: read_record(path)),
        (CommandError, lambda: read_offsets(path)),
    ):
        with pytest.raises(kind_of_error, match=r"config\.json") as error:
            read()
        assert "\n" not in str(error.value)
    assert read_measured(path) is None
    path.rename(tmp_path / "validation.json")
    with pytest.raises(CommandError, match=r"validation\.json is damaged"):
        read_scores(tmp_path)


def test_what_is_sound_is_read(tmp_path):
    value = {"a": [1, -(2**63), 2**63 - 1, 1e300, None, True, "é \U0001f600 \n"], "b": {"c": []}}
    assert parse_json(json.dumps(value)) == value
    path = tmp_path / "x.json"
    path.write_text(json.dumps(value))
    assert read_json(path) == value
    with pytest.raises(ValueError, match="bytes, and 10 at most are read"):
        read_json(path, 10)


def pretrained(tmp_path, **fields):
    content = {"format_version": 1, "model": "resnet18_lpf4", **fields}
    (tmp_path / "config.json").write_text(json.dumps(content))
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"options": {"depths": [2000, 1, 1, 1]}}, "options.depths ask for 2,003 blocks.* has 1 tensors"),
        ({"options": {"depths": [10**8, 1, 1, 10**18]}}, "options.depths ask for .* blocks"),
        ({"model": "vgg11", "options": {"depths": [10**8, 1, 1, 1, 1]}}, "options.depths ask for .* blocks"),
        ({"model": "densenet121", "options": {"depths": [1, 1, 1, 10**8]}}, "options.depths ask for .* blocks"),
        ({"model": "mobilenet_v2_lpf1000000"}, "model must be a network with at most 255 taps"),
        ({"model": "resnet18_lpf" + "9" * 5000}, "model|integer string"),
        ({"preprocessing": {"resize": 30000}}, "preprocessing.resize must be .* from 1 to 8192, got 30000"),
        ({"preprocessing": {"resize": 10**12}}, "preprocessing.resize"),
        ({"preprocessing": {"resize": 256, "crop": 10**12}}, "preprocessing.crop"),
        ({"preprocessing": {"mean": [10**18, 1e999, 0], "std": [1, 1, 1]}}, "preprocessing.mean"),
        ({"num_classes": 2**62}, "missing|does not fit|makes no network|too large"),
        ({"in_channels": 2**40}, "missing|does not fit|preprocessing.mean"),
        ({"model": "mobilenet_v2", "options": {"width_mult": 1e300}}, "its options make no network|does not fit"),
        ({"model": "densenet121", "options": {"growth_rate": 2**61}}, "its options make no network|does not fit"),
        ({"class_names": ["\ud800"] * 1000}, "half a character"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_small_file_never_asks_for_a_large_network(fields, message, tmp_path):
    with pytest.raises(CheckpointError, match=message) as error:
        aa_flax.load_pretrained(pretrained(tmp_path, **fields))
    assert "config.json" in str(error.value) or "model.safetensors" in str(error.value)
