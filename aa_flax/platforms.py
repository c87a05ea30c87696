"""One function in several forms, chosen by where the program runs."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

from jax import lax

_CHOSEN: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Networks that are traced inside this context hold the form for one platform alone.

    A traced network holds each form of its blurs and the choice between them, which XLA makes when it compiles.
    Converters that read the trace operation by operation, such as those to ONNX, know no such choice:

        with aa_flax.traced_for("cpu"):
            jaxpr = jax.make_jaxpr(model)(images)

    All forms give the same numbers but for rounding. A function that ``jax.jit`` has traced before is not traced again.

    Args:
        platform: ``cpu``, ``cuda``, ``rocm`` or ``tpu``.
    """
    token = _CHOSEN.set(platform)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def platform_dependent(*operands: Any, default: Callable[..., Any], **forms: Callable[..., Any]) -> Any:
    """As ``jax.lax.platform_dependent``, but for :func:`traced_for`."""
    platform = _CHOSEN.get()
    if platform is None:
        return lax.platform_dependent(*operands, default=default, **forms)
    return forms.get(platform, default)(*operands)
