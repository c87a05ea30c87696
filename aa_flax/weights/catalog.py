"""What has been published: networks with their figures, licences and the addresses of their checkpoints, as data."""

import csv
import dataclasses
import fnmatch
import functools
import urllib.parse
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from aa_flax.models.registry import MODELS
from aa_flax.models.specs import resolve_spec
from aa_flax.weights.config import Preprocessing, PretrainedConfig

HUB = "hf://"


@dataclasses.dataclass(frozen=True)
class Source:
    """One place where a checkpoint is, or was.

    Attributes:
        address: https, or `hf://owner/name` for a repository on the Hugging Face Hub.
        note: what to know of it.
        gone: whether it is known to give nothing any more.
    """

    address: str
    note: str = ""
    gone: bool = False

    @property
    def host(self) -> str:
        """The server, as people know it."""
        if self.address.startswith(HUB):
            return "huggingface.co"
        return (urllib.parse.urlsplit(self.address).hostname or "").removeprefix("www.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A network with published weights.

    Attributes:
        model: one of `list_models`.
        filter_size: taps of the blurs; None for a plain network, and for timm's, whose names say it all.
        training: `scratch`, `finetuned` from torchvision's weights, `torchvision` itself, or timm's tag, such as
            `a1h_in1k`.
        top1: accuracy on ImageNet's validation images, in percent; None where there is none, as for other classes.
        top5: the same with five guesses, where it is published.
        consistency: how often two crops of one image get one answer, in percent (Zhang 2019, section 4.1), where it
            is published.
        num_classes: logits.
        preprocessing: how images are prepared, for `top1` too.
        test_preprocessing: the same for images larger than those of the training, where there are figures for them.
        test_top1: accuracy on those.
        test_top5: the same with five guesses.
        license: of the checkpoint; None where its publisher names none.
        sha256_prefix: first digits of the checkpoint's SHA-256, as many as its publisher tells.
        sources: where the checkpoint is, in the order in which they are tried.
    """

    model: str
    filter_size: int | None
    training: str
    top1: float | None
    top5: float | None = None
    consistency: float | None
    num_classes: int = 1000
    preprocessing: Preprocessing = dataclasses.field(default_factory=Preprocessing)
    test_preprocessing: Preprocessing | None = None
    test_top1: float | None = None
    test_top5: float | None = None
    license: str | None = None
    sha256_prefix: str = ""
    sources: tuple[Source, ...] = ()

    @property
    def spec(self) -> str:
        """The network as `create_model` takes it."""
        if self.repository:
            return self.model
        return f"{self.model}_plain" if self.filter_size is None else f"{self.model}_lpf{self.filter_size}"

    @property
    def name(self) -> str:
        """The weights as `load_pretrained` takes them."""
        return f"{self.spec}.{self.training}"

    @property
    def repository(self) -> str | None:
        """The repository on the Hugging Face Hub, `owner/name`, where it is published there."""
        found = (s.address.removeprefix(HUB) for s in self.sources if s.address.startswith(HUB))
        return next(found, None)

    @property
    def url(self) -> str | None:
        """The original address."""
        return self.sources[0].address if self.sources else None

    @property
    def file_name(self) -> str:
        """The checkpoint's name."""
        if self.repository or not self.url:
            return f"{self.name}.safetensors"
        return Path(urllib.parse.urlsplit(self.url).path).name

    @property
    def reachable_from(self) -> str:
        """The servers that are not known to be gone, with what to know of them; empty if there are none."""
        alive = (source for source in self.sources if not source.gone)
        return ", ".join(f"{source.host} ({source.note})" if source.note else source.host for source in alive)

    @property
    def source(self) -> dict[str, str | None]:
        """Where the checkpoint comes from, as `config.json` says it."""
        return {"url": self.url, "published": self.spec, "training": self.training}

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The published figures, as `config.json` has them."""
        found = {"published": {"top1": self.top1, "top5": self.top5, "consistency": self.consistency}}
        if self.test_preprocessing:
            at = f"published at {self.test_preprocessing.crop} pixels"
            found[at] = {"top1": self.test_top1, "top5": self.test_top5}
        known = {at: {name: x for name, x in values.items() if x is not None} for at, values in found.items()}
        return {at: values for at, values in known.items() if values}

    @property
    def config(self) -> PretrainedConfig:
        """What `config.json` says of the converted checkpoint."""
        return PretrainedConfig(
            spec=resolve_spec(self.spec, num_classes=self.num_classes),
            preprocessing=self.preprocessing,
            test_preprocessing=self.test_preprocessing,
            source=self.source,
            license=self.license,
            metrics=self.metrics,
        )


@functools.cache
def published() -> tuple[Published, ...]:
    """Everything published, by network, filter size and training.

    Sources: the tables of github.com/adobe/antialiased-cnns, whose checkpoints are under CC BY-NC-SA 4.0; torchvision's
    first weights of each network, the baselines of these tables, whose licence nobody states; the anti-aliased networks
    of timm on the Hugging Face Hub, under Apache-2.0, as far as this library has them.
    """
    mirrors: dict[str, list[Source]] = {}
    for row in _rows("mirrors"):
        mirrors.setdefault(row["file"], []).append(Source(row["address"], row["note"]))
    return (*_reference(mirrors), *_timm())


def list_pretrained(
    pattern: str = "*", *, min_top1: float | None = None, licence: str | None = None
) -> list[Published]:
    """The networks with published figures or weights.

    Args:
        pattern: a shell pattern that the network's name, its spec, or both with the training behind a point match:
            `resnet*`, `*_lpf4`, `*.a1h_in1k`.
        min_top1: least accuracy, in percent; what has none is left out.
        licence: a shell pattern that the licence matches, in small or capital letters, such as `apache*`; what states
            none is left out.

    Returns:
        Data of each: `name` for `load_pretrained`, `top1`, `top5`, `consistency`, `license`, `preprocessing`,
        `sources`, `reachable_from` and more.
    """
    return [
        e
        for e in published()
        if any(fnmatch.fnmatchcase(name, pattern) for name in (e.model, e.spec, e.name))
        and (min_top1 is None or (e.top1 or 0) >= min_top1)
        and (licence is None or fnmatch.fnmatchcase((e.license or "").lower(), licence.lower() or "-"))
    ]


def find(name: str) -> Published:
    """The entry of a network.

    Args:
        name: `<spec>[.<training>]`, such as `resnet50_lpf4`, `resnet50_lpf4.scratch`, `resnetaa50.a1h_in1k`. Without
            a training it is the most accurate one.

    Raises:
        ValueError: unknown network, or nothing published for it; the message lists what is.
    """
    asked, _, training = name.partition(".")
    spec = str(resolve_spec(asked))
    found = [e for e in published() if e.spec == spec and training in ("", e.training)]
    if not found:
        model = resolve_spec(asked).name
        listed = ", ".join(e.name for e in published() if e.model == model)
        instead = f"there is {listed}" if listed else "aa_flax.list_pretrained() has what is"
        raise ValueError(f"nothing is published for {name}; {instead}")
    return max(found, key=lambda e: (e.top1 or 0, e.consistency or 0, e.training == "finetuned"))


def identify(sha256: str) -> Published | None:
    """The entry whose checkpoint has this SHA-256, if it is a published one."""
    matches = (e for e in published() if e.sha256_prefix and sha256.startswith(e.sha256_prefix))
    return next(matches, None)


def of_repository(repository: str) -> Published | None:
    """The entry of a repository on the Hugging Face Hub, if it is a published one."""
    return next((e for e in published() if e.repository == repository), None)


def _rows(name: str) -> Iterator[dict[str, str]]:
    text = resources.files("aa_flax.weights").joinpath(f"{name}.csv").read_text("utf-8")
    return csv.DictReader(text.splitlines())


def _reference(mirrors: dict[str, list[Source]]) -> Iterator[Published]:
    for row in _rows("published"):
        plain = row["training"] == "torchvision"
        original = Source(row["url"], "" if plain else "answers 403 since January 2024", gone=not plain)
        yield Published(
            model=row["model"],
            filter_size=int(row["filter_size"]) or None,
            training=row["training"],
            top1=float(row["top1"]),
            consistency=float(row["consistency"]),
            license=None if plain else "CC BY-NC-SA 4.0",
            sha256_prefix=row["sha256_prefix"],
            sources=(original, *mirrors.get(row["url"].rpartition("/")[2], ())),
        )


def _timm() -> Iterator[Published]:
    # Rows of networks that this library does not have are facts for whoever adds them.
    for row in filter(lambda row: row["model"] in MODELS, _rows("timm")):
        test = row["test_size"] != ""
        yield Published(
            model=row["model"],
            filter_size=None,
            training=row["tag"],
            top1=_number(row["top1"]),
            top5=_number(row["top5"]),
            consistency=None,
            num_classes=int(row["classes"]),
            preprocessing=_preparation(row["size"], row["crop_pct"]),
            test_preprocessing=_preparation(row["test_size"], row["test_crop_pct"]) if test else None,
            test_top1=_number(row["test_top1"]),
            test_top5=_number(row["test_top5"]),
            license="Apache-2.0",
            sources=(Source(f"{HUB}timm/{row['model']}.{row['tag']}"),),
        )


def _number(text: str) -> float | None:
    return float(text) if text else None


def _preparation(size: str, share: str) -> Preprocessing:
    return Preprocessing.of_share(int(size), float(share), interpolation="bicubic")
