"""One function in several forms, chosen by where the program runs."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax import lax

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# A part of the key of JAX's caches: what was traced outside is traced again inside.
_CHOSEN: Any = jax.make_user_context(None)


@contextlib.contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Networks that are traced inside this context hold the form for one platform alone.

    A traced network holds each form of its blurs and the choice between them, which XLA makes when it compiles.
    Converters that read the trace operation by operation, such as those to ONNX, know no such choice:

        with aa_flax.traced_for("cpu"):
            jaxpr = jax.make_jaxpr(model)(images)

    All forms give the same numbers but for rounding.

    Args:
        platform: `cpu`, `cuda`, `rocm` or `tpu`.

    Raises:
        ValueError: for any other platform.
    """
    if platform not in PLATFORMS:
        raise ValueError(f"platform must be one of {', '.join(PLATFORMS)}, got {platform!r}")
    with _CHOSEN(platform):
        yield


def platform_of(device: Any) -> str:
    """The name of the platform of a `jax.Device`, as `traced_for` takes it."""
    if device.platform != "gpu":
        return device.platform
    return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"


def platform_dependent(*operands: Any, default: Callable[..., Any], **forms: Callable[..., Any]) -> Any:
    """As `jax.lax.platform_dependent`, but for `traced_for`."""
    platform = _CHOSEN.value
    if platform is None:
        return lax.platform_dependent(*operands, default=default, **forms)
    return forms.get(platform, default)(*operands)
