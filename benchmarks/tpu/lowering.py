"""Programs as JAX hands them to the TPU compiler: forward passes, and the trainer's own update."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from jax.tree_util import Partial

import aa_flax
from aa_flax.downsample import METHODS, Downsample, Site
from aa_flax.weights.config import Preprocessing
from benchmarks.candidates import depthwise
from benchmarks.networks import Variant, gflop
from benchmarks.tpu.parts import lower_part
from benchmarks.tpu.programs import Program
from train.data import Dataset
from train.data.datasets import Augmentation
from train.data.sources import ArraySource
from train.fit.config import NetworkConfig, TrainConfig
from train.fit.distributed import Placement
from train.fit.network import abstract_network
from train.fit.presets import preset
from train.fit.step import compile_step
from train.fit.update import Update

CLASSES = 1000
IMAGENET_IMAGES = 1_281_167


class ObviousBlur(Downsample):
    """The blur as it is written in JAX without further thought: a padded map, and a depthwise convolution."""

    title = "depthwise convolution"

    @classmethod
    def at(cls, site: Site) -> "ObviousBlur":
        return cls(site.filter_size, site.strides[0])

    def __init__(self, filter_size: int, stride: int):
        self.filter_size, self.stride = filter_size, stride

    def __call__(self, x: jax.Array, like: Any = None) -> jax.Array:
        with jax.named_scope("blur"):
            return depthwise(x, self.filter_size, self.stride)


def devices_of(topology: str) -> Placement:
    """The chips of a topology in a row, as the trainer places arrays on them."""
    # libtpu knows hosts of four chips unless it is told of a single one.
    alone = set(topology.partition(":")[2].split("x")) == {"1"}
    hosts = {"chips_per_host_bounds": (1, 1, 1)} if alone else {}
    chips = topologies.get_topology_desc(platform="tpu", topology_name=topology, **hosts).devices
    return Placement(Mesh(np.array(chips), ("data",), axis_types=(AxisType.Auto,)))


def lower(program: Program, placement: Placement) -> tuple[Any, int]:
    """The program, traced for its chips.

    Returns:
        What JAX calls lowered, and the bytes of its arguments that do not grow with the batch.
    """
    # A way to subsample for as long as this takes: nobody else is to choose it.
    METHODS["obvious"] = ObviousBlur
    try:
        if program.part:
            return lower_part(program, placement), 0
        return (_update if program.work == "update" else _forward)(program, placement)
    finally:
        del METHODS["obvious"]


def operations(program: Program) -> float | None:
    """Operations of the forward pass of one image in 1e9, whichever form the platform gives a blur."""
    if program.part:
        return None
    return gflop(Variant(program.name, None if program.form == "plain" else program.filter_size), program.image_size)


def _forward(program: Program, placement: Placement) -> tuple[Any, int]:
    model = nnx.eval_shape(
        lambda: aa_flax.create_model(program.spec, dtype=program.dtype, downsample=program.downsample, rngs=nnx.Rngs(0))
    )
    model.eval()
    graphdef, state = nnx.split(model)
    arrays = _placed(nnx.to_pure_dict(state), placement.replicated)
    size = program.image_size
    images = _array((_images(program, placement), size, size, 3), program.dtype, placement.sharded)
    run = jax.jit(lambda arrays, x: nnx.merge(graphdef, arrays)(x), out_shardings=placement.sharded)
    return run.lower(arrays, images), _bytes(arrays)


def _update(program: Program, placement: Placement) -> tuple[Any, int]:
    config = update_config(program, _images(program, placement))
    dataset = _dataset(program.image_size)
    model = abstract_network(config, CLASSES)
    update = Update(config, IMAGENET_IMAGES // config.batch)
    state = update.form(model, placement.replicated)
    size = program.image_size
    batch = {
        "image": _array((config.batch, size, size, 3), jnp.uint8, placement.sharded),
        "label": _array((config.batch,), jnp.int32, placement.sharded),
    }
    step = Partial(update.step(model, dataset))
    return compile_step(placement.mesh).lower(step, state, batch), _bytes(state)


def update_config(program: Program, batch: int) -> TrainConfig:
    """The run whose update is compiled: the paper's recipe for ImageNet."""
    return dataclasses.replace(
        preset("zhang2019", program.spec),
        batch=batch,
        dtype=program.dtype,
        bn_group=program.bn_group,
        net=NetworkConfig(downsample=program.downsample),
    )


def _dataset(size: int) -> Dataset:
    """ImageNet as the update knows it: how images are varied and normalised."""
    nothing = ArraySource(np.zeros((1, size, size, 3), np.uint8), np.zeros(1, np.int32), "nothing")
    return Dataset(
        name="imagenet",
        train=nothing,
        val=nothing,
        num_classes=CLASSES,
        class_names=tuple(map(str, range(CLASSES))),
        preprocessing=Preprocessing(resize=round(size * 256 / 224), crop=size),
        augmentation=Augmentation(random_resized_crop=True, flip=True),
    )


def _images(program: Program, placement: Placement) -> int:
    return program.batch * placement.mesh.size


def _array(shape: tuple[int, ...], dtype: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _placed(tree: Any, sharding: Any) -> Any:
    return jax.tree.map(lambda x: _array(x.shape, x.dtype, sharding), tree)


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
