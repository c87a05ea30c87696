"""Weights of a network as a start for the same network with other classes, or for images of other channels."""

import numpy as np
from flax import nnx

from aa_flax.models.abstract import Dtype, build_abstract, fresh_values
from aa_flax.models.base import ModelSpec
from aa_flax.models.registry import family_of
from aa_flax.models.variables import variables
from aa_flax.weights.input_channels import spread

Arrays = dict[str, np.ndarray]


def refit(arrays: Arrays, spec: ModelSpec, wanted: ModelSpec, *, rngs: nnx.Rngs, param_dtype: Dtype) -> Arrays:
    """The arrays that a network needs, those of a similar one as far as they fit.

    The first convolution is spread over other channels; what else has another shape, or was not there, is fresh, and
    what the new network does not have is left out. Both are heads.

    Args:
        arrays: by path, as `variables` has them; what does not belong to `spec` stays, and is refused by `fill`.
        spec: the network that they belong to.
        wanted: the network that is to be filled.
        rngs: source of fresh values.
        param_dtype: their dtype.
    """
    before, after = ({k: tuple(v.shape) for k, v in variables(build_abstract(s)).items()} for s in (spec, wanted))
    stem = f"{family_of(spec.name).network.first_conv}.kernel"
    kept = {path: array for path, array in arrays.items() if path in after or path not in before}
    if before[stem] != after[stem] and stem in kept and kept[stem].shape == before[stem]:
        wide = spread(np.moveaxis(kept[stem].astype(np.float64), (3, 2), (0, 1)), wanted.in_channels)
        kept[stem] = np.moveaxis(wide, (0, 1), (3, 2)).astype(kept[stem].dtype)
    new = {path for path in after if path != stem and before.get(path) != after[path]}
    if new:
        fresh = fresh_values(wanted, new, key=rngs.params(), param_dtype=param_dtype)
        kept |= {path: np.asarray(value) for path, value in fresh.items()}
    return kept
