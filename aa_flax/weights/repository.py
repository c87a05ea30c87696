"""Repositories on the Hugging Face Hub: public ones by plain https, private ones by the Hub's own client."""

import dataclasses
import io
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aa_flax.files import Progress, cache_directory, file_sha256, write_atomically
from aa_flax.weights.config import CONFIG_NAME, WEIGHTS_NAME, PretrainedConfig, read_config
from aa_flax.weights.download import DownloadError, SourceError, download, stream
from aa_flax.weights.errors import CheckpointError
from aa_flax.weights.json_file import parse_json, read_json
from aa_flax.weights.timm_config import config_from_timm, is_timm_config

# A Path has lost one of the two slashes.
_NAME = re.compile(r"hf:/+(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>\w[\w./+-]*))?/*")
_MAX_CONFIG_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository's files on this disk.

    Attributes:
        directory: the folder with `config.json` and `model.safetensors`.
        name: `owner/name`.
        commit: which version they are.
        sha256: of the weights.
    """

    directory: Path
    name: str
    commit: str
    sha256: str


def parse_address(address: str) -> tuple[str, str]:
    """Splits `hf://owner/name[@revision]`; without a revision it is `main`.

    Raises:
        ValueError: it has another form.
    """
    match = _NAME.fullmatch(address)
    if match is None:
        raise ValueError(f"{address}: write hf://owner/name, or hf://owner/name@revision")
    return match["repo"], match["revision"] or "main"


def fetch_repository(address: str, *, progress: Progress | None = None) -> Repository:
    """A repository's configuration and weights on this disk, fetched at first use.

    A branch is looked up once and stays what it was then: later calls ask nobody. The commit is what the directory is
    called; weights have to have the SHA-256 that the Hub says of large files, and keep it.

    Args:
        address: `hf://owner/name[@revision]`, of this library's layout or of timm's; `HF_ENDPOINT` names another Hub.
        progress: called with the bytes of the weights got so far and in all.

    Raises:
        ValueError: no such address.
        CheckpointError: (a ValueError) the repository holds no network of these layouts.
        DownloadError: (an OSError) it could not be had whole; nothing is left of it.
    """
    repo, revision = parse_address(address)
    folder = cache_directory() / "hub" / repo.replace("/", "--")
    pin = folder / "refs" / quote(revision, safe="")
    commit = pin.read_text("utf-8").strip() if pin.is_file() else None
    if commit is None or not (folder / commit / CONFIG_NAME).is_file():
        try:
            content, commit = _read_config(repo, revision)
        except DownloadError as error:
            if not error.refused:
                raise
            return _by_client(repo, revision, error)
        _check_config(content, address)
    else:
        content = b""
    directory = folder / commit
    digest = download([_address(repo, commit, WEIGHTS_NAME)], directory / WEIGHTS_NAME, what=address, progress=progress)
    if content:
        try:
            write_atomically(directory / CONFIG_NAME, content)
            write_atomically(pin, commit.encode())
        except OSError as error:
            raise DownloadError(f"cannot keep downloads in {directory}: {error.strerror}") from error
    return Repository(directory=directory, name=repo, commit=commit, sha256=digest)


def read_any_config(directory: Path) -> PretrainedConfig:
    """The configuration of a directory in this library's layout or timm's.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: (a ValueError) it is neither.
    """
    path = directory / CONFIG_NAME
    if holds_timm(directory):
        return config_from_timm(read_json(path), path)
    return read_config(directory)


def holds_timm(directory: Path) -> bool:
    """Whether a directory has a network in timm's layout."""
    try:
        return is_timm_config(read_json(directory / CONFIG_NAME))
    except (OSError, ValueError):
        return False


def endpoint() -> str:
    """The Hub's address, as its own client takes it."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def _address(repo: str, revision: str, name: str) -> str:
    return f"{endpoint()}/{repo}/resolve/{quote(revision, safe='')}/{name}"


def _read_config(repo: str, revision: str) -> tuple[bytes, str]:
    """The content of a repository's configuration, and the commit that has it."""
    address, content = _address(repo, revision, CONFIG_NAME), io.BytesIO()
    try:
        _, headers = stream(address, content, most=_MAX_CONFIG_BYTES)
    except SourceError as error:
        hint = ""
        if error.refused:
            hint = '; if it is private or gated: pip install "aa_flax[hub]", then hf auth login'
        raise DownloadError(
            f"cannot download hf://{repo}: {address}: {error}{hint}", offline=error.offline, refused=error.refused
        ) from error
    commit = headers.get("x-repo-commit", "")
    return content.getvalue(), commit if re.fullmatch(r"[0-9a-f]{40}", commit) else quote(revision, safe="")


def _check_config(content: bytes, address: str) -> None:
    """Refuses a repository of another kind before its weights are fetched."""
    what = f"{address}: {CONFIG_NAME}"
    try:
        found: Any = parse_json(content)
    except ValueError as error:
        raise CheckpointError(f"{what}: not valid JSON: {error}") from error
    if is_timm_config(found):
        config_from_timm(found, what)
    elif not isinstance(found, dict) or "format_version" not in found:
        raise CheckpointError(f"{what} is neither of aa_flax nor of timm: this library reads no others")


def _by_client(repo: str, revision: str, refusal: DownloadError) -> Repository:
    """A private repository, with the token that the Hub's client has."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise refusal from None
    if huggingface_hub.get_token() is None:
        raise refusal
    files = [CONFIG_NAME, WEIGHTS_NAME]
    try:
        folder = huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=files, endpoint=endpoint())
        digest = file_sha256(Path(folder) / WEIGHTS_NAME)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise DownloadError(f"{refusal}; with the token of its client: {' '.join(str(error).split())}") from error
    return Repository(directory=Path(folder), name=repo, commit=Path(folder).name, sha256=digest)
