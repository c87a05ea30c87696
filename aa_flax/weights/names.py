"""How weights are named everywhere, and how a name becomes weights on this disk.

A name is a local directory, or a file; one in a bucket, `gs://bucket/name`; `hf://owner/name[@revision]`;
`https://...` of a `.pth` or `.safetensors`; or `<spec>[.<training>]` of published weights, such as `resnet50_lpf4`,
`resnet50_plain`, `resnetaa50.a1h_in1k`. What lies on this disk comes first.
"""

import dataclasses
import hashlib
import os
import re
import urllib.parse
from pathlib import Path
from typing import Any, Literal

from aa_flax.buckets import is_in_bucket
from aa_flax.files import Progress, cache_directory, file_sha256
from aa_flax.local_paths import local_path
from aa_flax.models.base import ModelSpec
from aa_flax.models.registry import family_of
from aa_flax.models.specs import parse_spec, resolve_spec
from aa_flax.weights import catalog
from aa_flax.weights.bucket import fetch_from_bucket
from aa_flax.weights.catalog import Published
from aa_flax.weights.config import CONFIG_NAME, WEIGHTS_NAME, PretrainedConfig
from aa_flax.weights.download import DownloadError, download
from aa_flax.weights.errors import CheckpointError
from aa_flax.weights.repository import Repository, fetch_repository, holds_timm, parse_address, read_any_config
from aa_flax.weights.safetensors_file import begins_safetensors, read_safetensors

Kind = Literal["local", "bucket", "repository", "address", "published"]

# torch.hub's way to say the hash of a file in its name.
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights on this disk.

    Attributes:
        path: the file: `model.safetensors` that `save_pretrained` has written, or one with PyTorch's names.
        config: what is known of them. How many classes and channels a file with PyTorch's names has shows when it is
            read.
        sha256: of the file, if it was needed; of one that `save_pretrained` has written on this disk it is not.
        converted: whether `save_pretrained` has written it.
    """

    path: Path
    config: PretrainedConfig
    sha256: str | None = None
    converted: bool = False


def kind_of(name: str | os.PathLike[str]) -> Kind:
    """What kind of name it is; nothing is read or fetched.

    Raises:
        ValueError: it can be none, such as s3://bucket/weights or resnet51.
        FileNotFoundError: a path where nothing is.
    """
    text = os.fspath(name)
    if re.match("hf:/", text):
        parse_address(text)
        return "repository"
    if re.match("https?:/", text):
        _check_address(text)
        return "address"
    if is_in_bucket(text):
        return "bucket"
    path = local_path(name)
    if path.exists():
        return "local"
    try:
        parse_spec(text.partition(".")[0])
    except ValueError as error:
        if len(path.parts) > 1 or not isinstance(name, str) or path.suffix in (".pth", ".pt", ".safetensors"):
            raise FileNotFoundError(f"{path}: there is no such directory or file") from error
        raise ValueError(f"there is no directory or file {str(path)!r} either: {error}") from error
    return "published"


def obtain(name: str | os.PathLike[str], *, spec: str | None = None, progress: Progress | None = None) -> Weights:
    """The weights that a name means, fetched at first use into `cache_directory()`.

    Args:
        name: see the module.
        spec: which network a file is of that does not say so itself: `resnet50_lpf4`, or with the training behind a
            point where it is a published one that was got in another way.
        progress: called with the bytes got so far and in all.

    Raises:
        ValueError: no name, or a file whose network nobody says.
        FileNotFoundError: a path where nothing is.
        CheckpointError: (a ValueError) what is there is no network.
        DownloadError: (an OSError) it could not be had; the message names each address with its reason.
    """
    kind, text = kind_of(name), os.fspath(name)
    if kind == "published":
        return obtain_published(text, progress=progress)
    if kind == "repository":
        return _repository(fetch_repository(text, progress=progress))
    if kind == "address":
        return _downloaded(_whole_address(text), spec, progress)
    if kind == "bucket":
        return _local(fetch_from_bucket(text, progress=progress), spec, progress)
    return _local(Path(name), spec, progress)


def obtain_published(name: str, *, progress: Progress | None = None) -> Weights:
    """The published weights of a network, `<spec>[.<training>]`, whatever lies on this disk by that name.

    Raises:
        ValueError: nothing of that name is published; the message lists what is.
        DownloadError: (an OSError) they could not be had.
    """
    entry = catalog.find(name)
    if not entry.repository:
        path, digest = fetch(entry, cache_directory(), progress)
        return Weights(path=path, config=_said(entry.config, digest), sha256=digest)
    try:
        return _repository(fetch_repository(f"hf://{entry.repository}", progress=progress))
    except DownloadError as error:
        raise DownloadError(
            f"{error}. {_got_otherwise(entry)}", offline=error.offline, refused=error.refused
        ) from error


def fetch(entry: Published, directory: Path, progress: Progress | None = None) -> tuple[Path, str]:
    """A published checkpoint as a file in a directory, from the first of its sources that gives it, and its SHA-256.

    Raises:
        DownloadError: (an OSError) none did; the message names each with its reason.
    """
    path = directory / entry.file_name
    digest = download(
        [source.address for source in entry.sources],
        path,
        sha256_prefix=entry.sha256_prefix,
        what=entry.name,
        otherwise=f"{_got_otherwise(entry)}, or copy it to {path}",
        progress=progress,
    )
    return path, digest


def _got_otherwise(entry: Published) -> str:
    return (
        f'A file got otherwise: load it by aa_flax.load_pretrained(FILE, spec="{entry.name}"), keep it converted by '
        "aa_flax.save_pretrained"
    )


def _repository(found: Repository) -> Weights:
    weights = _directory(found.directory, found.sha256)
    if weights.converted:
        return weights
    entry, config = catalog.of_repository(found.name), weights.config
    config = dataclasses.replace(
        config,
        license=config.license or (entry.license if entry else None),
        metrics=entry.metrics if entry else {},
        source={**(entry.source if entry else {"url": f"hf://{found.name}"}), "revision": found.commit},
    )
    return dataclasses.replace(weights, config=_said(config, found.sha256))


def _local(path: Path, spec: str | None, progress: Progress | None) -> Weights:
    if path.is_file() and path.name == WEIGHTS_NAME and (path.parent / CONFIG_NAME).is_file():
        path = path.parent
    if path.is_dir():
        return _directory(path)
    return _file(path, file_sha256(path, progress), spec, {"file": path.name})


def _directory(path: Path, digest: str | None = None) -> Weights:
    config, file, timm = read_any_config(path), path / WEIGHTS_NAME, holds_timm(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not found beside {CONFIG_NAME}; write the directory again")
    if not timm:
        return Weights(path=file, config=config, sha256=digest, converted=True)
    digest = digest or file_sha256(file)
    return Weights(path=file, config=_said(config, digest), sha256=digest)


def _downloaded(address: str, spec: str | None, progress: Progress | None) -> Weights:
    address, _, fragment = address.partition("#")
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(address).path)).name
    hashed = _HASH_IN_NAME.search(name)
    prefix = fragment.removeprefix("sha256=") or (hashed[1] if hashed else "")
    path = cache_directory() / "files" / hashlib.sha256(address.encode()).hexdigest()[:16] / name
    digest = download([address], path, sha256_prefix=prefix, what=name, progress=progress)
    return _file(path, digest, spec, {"url": address})


def _file(path: Path, digest: str, spec: str | None, source: dict[str, Any]) -> Weights:
    """A file and what is known of it: by its hash, by what it says, by what was asked for."""
    entry, model = catalog.identify(digest), _model_in(path)
    if model is not None:
        return Weights(path=path, config=_said(PretrainedConfig(spec=model), digest, source), converted=True)
    if spec is None and entry is None:
        raise ValueError(
            f"{path}: it does not say which network it is of: give spec=, on a command line --model, such as "
            "resnet50_lpf4"
        )
    named = catalog.find(spec) if spec and "." in spec else None
    if named and not digest.startswith(named.sha256_prefix):
        raise CheckpointError(
            f"{path}: it is not {named.name}: its SHA-256 begins with {digest[:8]} instead of {named.sha256_prefix}"
        )
    known = entry or named
    asked = resolve_spec(spec.partition(".")[0]) if spec else None
    if known is None:
        assert asked is not None
        config = PretrainedConfig(spec=asked)
    elif asked is None or known.spec == str(asked):
        # Without a published hash nobody knows whether the file is the one that the figures are of.
        config = dataclasses.replace(known.config, metrics=known.metrics if entry else {})
    else:
        config = dataclasses.replace(known.config, spec=asked, metrics={})
    return Weights(path=path, config=_said(config, digest, source), sha256=digest)


def _model_in(path: Path) -> ModelSpec | None:
    """The network that a file of `save_pretrained` says it is of; None for other files."""
    with path.open("rb") as file:
        if not begins_safetensors(file.read(9)):
            return None
    try:
        arrays, metadata = read_safetensors(path)
        if "model" not in metadata:
            return None
        name = parse_spec(metadata["model"])[0]
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    network, counts = family_of(name).network, {}
    if (head := arrays.get(f"{network.last_linear}.kernel")) is not None and head.ndim == 2:
        counts["num_classes"] = head.shape[1]
    if (stem := arrays.get(f"{network.first_conv}.kernel")) is not None and stem.ndim == 4:
        counts["in_channels"] = stem.shape[2]
    return resolve_spec(metadata["model"], **counts)


def _said(config: PretrainedConfig, digest: str, source: dict[str, Any] | None = None) -> PretrainedConfig:
    return dataclasses.replace(config, source={**config.source, **(source or {}), "sha256": digest})


def _whole_address(text: str) -> str:
    """The address; a Path has lost one of the two slashes."""
    return re.sub(r"^(https?):/+", r"\1://", text)


def _check_address(text: str) -> None:
    parts = urllib.parse.urlsplit(_whole_address(text))
    if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
        raise ValueError(f"{text[:200]}: not encrypted, so that anybody could change it: give its https address")
    if not parts.hostname or not parts.path.endswith((".pth", ".pt", ".safetensors")):
        raise ValueError(f"{text[:200]}: an address of weights ends in .pth, .pt or .safetensors")
    if parts.fragment and not re.fullmatch(r"sha256=[0-9a-f]{8,64}", parts.fragment):
        raise ValueError(f"{text[:200]}: behind # may stand sha256= and 8 to 64 hexadecimal digits")
