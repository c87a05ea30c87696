"""What alias-free networks cost: floating point operations for one image, as XLA counts them.

python -m examples.alias_free_cost
"""

import jax
from flax import nnx

from aa_flax.models.abstract import abstract_model

THROUGHOUT = {"downsample": "ideal", "circular": True, "pool_only": False}
FORMS = {
    "plain": ("_plain", {}),
    "BlurPool, 4 taps": ("_lpf4", {}),
    "ideal filters throughout": ("_lpf4", THROUGHOUT),
    "alias-free": ("_lpf4", {"downsample": "ideal", "activation": "alias_free", "norm": "alias_free"}),
}


def gflops(spec: str, side: int = 224, **options) -> float:
    """Of one image, in evaluation, before the compiler has changed anything."""
    model = abstract_model(spec, **options)
    model.eval()
    graphdef, state = nnx.split(model)
    image = jax.ShapeDtypeStruct((1, side, side, 3), "float32")
    cost = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x)).lower(state, image).cost_analysis()
    assert cost is not None
    return cost["flops"] / 1e9


def main() -> None:
    """Prints the table of docs/alias-free.md."""
    print(f"| | {' | '.join(FORMS)} |\n|{'---|' * (len(FORMS) + 1)}")
    for name in ("resnet18", "convnext_tiny"):
        cells = [f"{gflops(name + suffix, **options):.1f}" for suffix, options in FORMS.values()]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
