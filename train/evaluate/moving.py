"""How the last map of a network moves with its photo: the settings of that measurement, checked before any photo."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from aa_flax.consistency import Equivariance
from aa_flax.weights.config import Preprocessing
from train.errors import CommandError
from train.evaluate.scoring import Predictor


def equivariance_for(
    shifts: Sequence[str],
    maps: Predictor,
    preprocessing: Preprocessing,
    *,
    margin: int = 0,
    seed: int = 0,
    device_batch: int = 64,
) -> dict[str, Equivariance]:
    """Protocols by name, such as `equivariance_circular`, with the settings that fit images of a kind.

    Args:
        shifts: kinds of shifts, as `Equivariance` has them; crops move by all the room there is.
        maps: the network's map (n, h, w, C) of images.
        preprocessing: says how far a crop can be shifted inside the resized image.
        margin: `Dataset.margin`.
        seed: of random shifts.
        device_batch: how many crops may lie on the devices at once.

    Raises:
        CommandError: an unknown kind, no room for a shift, a map that cannot be compared.
    """
    if not shifts:
        raise CommandError("--equivariance is empty; there are circular, fractional, crop")
    crop, channels = preprocessing.crop, len(preprocessing.mean)
    images = jax.ShapeDtypeStruct((1, crop, crop, channels), jnp.float32)
    sides = jax.eval_shape(maps, images).shape[1:3]
    room = margin or (preprocessing.resize - crop) // 2
    chosen = {}
    for shift in shifts:
        if shift == "crop" and not room:
            raise CommandError(f"--equivariance crop: crops of {crop} in {preprocessing.resize} pixels cannot move")
        settings: dict[str, Any] = {"shift": shift, **({"max_shift": room} if shift == "crop" else {})}
        try:
            protocol = Equivariance(crop=crop, seed=seed, device_batch=device_batch, **settings)
            protocol.movement(sides)
        except ValueError as error:
            raise CommandError(f"--equivariance {shift}: {error}") from error
        chosen[f"equivariance_{shift}"] = protocol
    return chosen
