"""Methods by name, with the options that each has: `aps`, `aps:criterion=l1,choose_on=unblurred`."""

from dataclasses import dataclass
from typing import Any

from aa_flax.downsample.base import Downsample, Site
from aa_flax.downsample.blur import BlurPool
from aa_flax.downsample.content_adaptive import ContentAdaptiveBlur
from aa_flax.downsample.ideal import HammingLowPass, IdealLowPass
from aa_flax.downsample.learnable import LearnablePolyphase
from aa_flax.downsample.polyphase import AdaptivePolyphase

# Further methods may be put in, under names that the files of their networks will carry.
METHODS: dict[str, type[Downsample]] = {
    "blur": BlurPool,
    "aps": AdaptivePolyphase,
    "lps": LearnablePolyphase,
    "ddac": ContentAdaptiveBlur,
    "ideal": IdealLowPass,
    "asap": HammingLowPass,
}


@dataclass(frozen=True)
class Method:
    """What `downsample=` names; `str(method)` is its one spelling, which files carry.

    Attributes:
        name: a key of `METHODS`.
        options: those that differ from their default, sorted by name.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def layer(self) -> type[Downsample]:
        """The class of its layers."""
        return METHODS[self.name]

    def at(self, site: Site) -> Downsample:
        """The layer for a place in a network."""
        return self.layer.at(site, **dict(self.options))

    def __str__(self) -> str:
        told = ",".join(f"{option}={value}" for option, value in self.options)
        return f"{self.name}:{told}" if told else self.name


def method(text: str) -> Method:
    """Reads `NAME` or `NAME:OPTION=VALUE,OPTION=VALUE`.

    Raises:
        ValueError: no such method, option or value; the message lists what there is.
    """
    name, colon, told = text.partition(":")
    if name not in METHODS:
        raise ValueError(f"downsample must be one of {', '.join(METHODS)}, got {text!r}")
    known, given = METHODS[name].options, {}
    for each in told.split(",") if colon else ():
        option, equals, value = each.partition("=")
        if not equals or option not in known:
            has = f"has the options {', '.join(known)}" if known else "has no options"
            raise ValueError(f"downsample={text!r}: {each!r} is no OPTION=VALUE of {name}, which {has}")
        if option in given:
            raise ValueError(f"downsample={text!r} has {option} twice")
        values = {str(choice): choice for choice in known[option]}
        if value not in values:
            raise ValueError(f"downsample={text!r}: {option} must be one of {', '.join(values)}, got {value!r}")
        given[option] = values[value]
    return Method(name, tuple(sorted((option, v) for option, v in given.items() if v != known[option][0])))
