"""ONNX files, run by onnxruntime."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from aa_flax.weights.config import Preprocessing
from aa_flax.weights.json_file import parse_json
from train.errors import CommandError
from train.measurable.network import Measurable, Told, input_of_shape, measurable

DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
# In the metadata of a file, JSON as in config.json; `examples/to_onnx.py` writes them.
PREPROCESSING, CLASS_NAMES = "preprocessing", "class_names"
# What is not there on this machine is left out.
_PROVIDERS = {"CUDAExecutionProvider": {"use_tf32": "0"}, "CPUExecutionProvider": {}}


def open_onnx(path: Path, told: Told) -> Measurable:
    """The network in an ONNX file with one input and one output.

    Raises:
        CommandError: no such file, none of ONNX, no network of images; onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise CommandError(f"{path} needs onnxruntime: pip install onnxruntime") from error
    if not path.is_file():
        raise CommandError(f"{path} is no file; give the ONNX file of a network")
    options = onnxruntime.SessionOptions()
    # Errors alone: it warns of what its own optimiser leaves out.
    options.log_severity_level = 3
    there = onnxruntime.get_available_providers()
    providers = [(name, how) for name, how in _PROVIDERS.items() if name in there]
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:
        # Its exceptions have no base of their own.
        raise CommandError(f"{path} is no ONNX file that onnxruntime reads: {' '.join(str(error).split())}") from error
    if len(session.get_inputs()) != 1 or len(session.get_outputs()) != 1:
        inputs, outputs = ([each.name for each in side] for side in (session.get_inputs(), session.get_outputs()))
        raise CommandError(f"{path} has the inputs {inputs} and the outputs {outputs}; one of each is needed")
    (images,) = session.get_inputs()
    if images.type not in DTYPES:
        raise CommandError(f"{path} takes {images.type}; normalised images are {', '.join(DTYPES)}")
    said = session.get_modelmeta().custom_metadata_map
    known = {"preprocessing": _preprocessing(path, said), "dtype": DTYPES[images.type]}
    return measurable(
        lambda array: session.run(None, {images.name: array})[0],
        input_of_shape(images.shape, told, str(path), **known),
        told,
        model=path.stem,
        class_names=_class_names(path, said),
        file=path,
        parameters=_parameters(path),
        described={"kind": "onnx", "file": str(path), "onnxruntime": onnxruntime.__version__},
    )


def _preprocessing(path: Path, metadata: dict[str, str]) -> Preprocessing | None:
    """How images are prepared, where the file says it."""
    said = _json(path, metadata, PREPROCESSING)
    if said is None:
        return None
    try:
        fields: Any = {name: tuple(each) if isinstance(each, list) else each for name, each in said.items()}
        return Preprocessing(**fields)
    except (AttributeError, TypeError, ValueError) as error:
        raise CommandError(f"{path}: its metadata {PREPROCESSING!r}: {error}") from error


def _class_names(path: Path, metadata: dict[str, str]) -> list[str] | None:
    said = _json(path, metadata, CLASS_NAMES)
    if said is None or (isinstance(said, list) and all(isinstance(name, str) for name in said)):
        return said
    raise CommandError(f"{path}: its metadata {CLASS_NAMES!r} is {metadata[CLASS_NAMES][:60]}, no list of texts")


def _json(path: Path, metadata: dict[str, str], name: str) -> Any:
    try:
        return parse_json(metadata[name]) if name in metadata else None
    except ValueError as error:
        raise CommandError(f"{path}: its metadata {name!r} is not JSON: {error}") from error


def _parameters(path: Path) -> int | None:
    """How many numbers the file holds, where the package `onnx` is there to count them."""
    try:
        import onnx
    except ImportError:
        return None
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
    tensors = onnx.load(str(path), load_external_data=False).graph.initializer
    return sum(math.prod(tensor.dims) for tensor in tensors if tensor.data_type in floats)
