"""Which licence the weights of a fine-tuned network are under."""

import re
from collections.abc import Sequence

# Words of licences that bind whoever passes a work on, and what they bind to.
_BINDING = {
    "NC": "non-commercial",
    "NONCOMMERCIAL": "non-commercial",
    "ND": "no derivatives",
    "SA": "share alike",
    "GPL": "share alike",
    "LGPL": "share alike",
    "AGPL": "share alike",
}
_FREE = {"MIT", "BSD", "APACHE", "ISC", "CC0", "CC", "UNLICENSE", "ZLIB", "PUBLIC"}


def licence_of(given: str | None, parents: Sequence[str | None]) -> tuple[str | None, str]:
    """The licence of weights that began with others, and a note about it.

    A licence that allows what a parent's forbids does not hold: the parent's is inherited. This compares what licences
    commonly bind to; it is no legal advice.

    Args:
        given: the licence asked for, if any.
        parents: those of the weights that they began with; None where not known.

    Returns:
        The licence, and a line for people, empty where nothing was inherited.
    """
    known = [licence for licence in parents if licence]
    if not known:
        return given, ""
    bound = frozenset().union(*map(_bindings, known))
    if given is not None and _bindings(given) >= bound:
        return given, ""
    inherited = max(known, key=lambda licence: len(_bindings(licence)))
    asked = "" if given is None else f", which binds to more than {given}"
    return inherited, f"licence {inherited}: inherited from the weights that training began with{asked}"


def _bindings(licence: str) -> frozenset[str]:
    """What a licence binds to; of an unknown one all that is known is that it is one of its own."""
    words = re.findall(r"[A-Z]+0?", licence.upper().replace("NON-", "NON").replace("NON COMM", "NONCOMM"))
    found = frozenset(_BINDING[word] for word in words if word in _BINDING)
    return found if found or _FREE & set(words) else frozenset([licence])
