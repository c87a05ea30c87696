"""Networks as programs: what `aa_flax.export` has written, and functions of Python."""

import functools
import importlib
import math
import sys
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from aa_flax.export import WEIGHTS, load_exported
from train.errors import CommandError
from train.measurable.network import Input, Measurable, Told, input_of_shape, measurable
from train.networks import as_function


def open_exported(directory: Path, told: Told) -> Measurable:
    """The program in a directory that `aa_flax.export` has written.

    Raises:
        CommandError: nothing there, a damaged file, a program for other platforms or of no images.
    """
    try:
        network = load_exported(directory)
    except (OSError, ValueError, ImportError) as error:
        raise CommandError(" ".join(str(error).split())) from error
    here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if here not in network.platforms:
        raise CommandError(f"{directory} was exported for {', '.join(network.platforms)}; this is {here}")
    expected = input_of_shape(network.input_shape, told, str(directory), dtype=jax.numpy.dtype(network.dtype))
    return measurable(
        jax.jit(network),
        expected,
        told,
        model=network.model or directory.name,
        file=directory / WEIGHTS,
        parameters=sum(math.prod(array.shape) for array in network.weights.values()),
        described={"kind": "exported", "directory": str(directory)},
    )


def open_function(name: str, told: Told) -> Measurable:
    """A function of images, or an `nnx.Module`, by the module that holds it and its name there.

    Images come as NumPy arrays (n, height, width, channels), or channels first if told so; any number of them.

    Args:
        name: such as `package.module:function`.
        told: what a person says.

    Raises:
        CommandError: no such module, nothing of that name in it, nothing that can be called.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise CommandError(f"{name!r} is no package.module:function")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise CommandError(f"{name}: {error}; the module is looked for from here and in what is installed") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise CommandError(f"{name}: {module_name} has no {attribute}")
        found = getattr(found, part)
    if isinstance(found, nnx.Module):
        network = nnx.view(found, use_running_average=True, deterministic=True, raise_if_not_found=False)
        # The weights are an argument: as constants of the program they would be compiled with it.
        found = functools.partial(jax.jit(lambda fn, images: fn(images)), as_function(network))
    if not callable(found):
        raise CommandError(f"{name} is {type(found).__name__}, which cannot be called")
    source = getattr(sys.modules[module_name], "__file__", None)
    return measurable(
        found,
        Input(layout=told.layout or "nhwc"),
        told,
        model=name,
        file=None if source is None else Path(source),
        described={"kind": "function", "name": name},
    )
