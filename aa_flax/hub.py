"""Networks on the Hugging Face Hub: a repository is a pretrained directory with a model card.

Needs the package `huggingface_hub` (`pip install "aa_flax[hub]"`); nothing else of this library does.
"""

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from aa_flax.downsample import METHODS
from aa_flax.local_paths import local_path
from aa_flax.models.base import Network
from aa_flax.weights.config import CONFIG_NAME, PretrainedConfig, read_config
from aa_flax.weights.store import WEIGHTS_NAME, load_pretrained, save_pretrained

CARD_NAME = "README.md"
_FILES = [CONFIG_NAME, WEIGHTS_NAME]
# The Hub's names of the licences that weights of these networks come under.
_LICENSES = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"}


def push_to_hub(
    model_or_directory: Network | str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
    **saving: Any,
) -> str:
    """Uploads a network to the Hugging Face Hub, with a model card made from its configuration.

    Args:
        model_or_directory: a network, or a directory that `aa_flax.save_pretrained` or `convert_weights.py`
            has written. A `README.md` in the directory is kept as the card.
        repo_id: `owner/name`; the repository is made when it is missing.
        private: make it private, if it is made.
        token: access token; by default the one that `hf auth login` has stored.
        commit_message: what the history says.
        **saving: for a network: `license`, `metrics`, `source`, `class_names` and `preprocessing` of
            `aa_flax.save_pretrained`.

    Returns:
        Address of the commit.

    Raises:
        ImportError: if `huggingface_hub` is missing.
        FileNotFoundError: if the directory holds no network.
        ValueError, TypeError: if the network cannot be saved, or a directory is given with arguments for saving.
    """
    client = _client()
    if isinstance(model_or_directory, Network):
        with tempfile.TemporaryDirectory() as folder:
            directory = save_pretrained(model_or_directory, Path(folder) / "model", **saving)
            return _upload(client, directory, repo_id, private, token, commit_message)
    if saving:
        raise TypeError(f"{', '.join(saving)} cannot be given for a directory: they are in its {CONFIG_NAME} already")
    directory = local_path(model_or_directory)
    if not (directory / WEIGHTS_NAME).is_file():
        raise FileNotFoundError(f"{directory / WEIGHTS_NAME}: not found; save_pretrained writes it")
    return _upload(client, directory, repo_id, private, token, commit_message)


def check_push(repo_id: str) -> None:
    """Refuses an upload that cannot come to anything, before work is put into it.

    Raises:
        ImportError: if `huggingface_hub` is missing.
        ValueError: no `owner/name`, or no token.
    """
    client = _client()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"a repository is called owner/name, not {repo_id!r}")
    if client.get_token() is None:
        raise ValueError(f"uploading to {repo_id} needs a token that may write there: hf auth login, or set HF_TOKEN")


def load_from_hub(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    dtype: jax.typing.DTypeLike | None = None,
    **changes: Any,
) -> Network:
    """Downloads a network from the Hugging Face Hub, once, and loads it in evaluation mode.

    Args:
        repo_id: `owner/name`.
        revision: branch, tag or commit; by default the newest.
        token: access token for private repositories.
        cache_dir: where downloads are kept; by default the client's own place.
        local_files_only: use what was downloaded before, without a connection.
        dtype: what layers compute in, see `aa_flax.load_pretrained`.
        **changes: `num_classes`, `in_channels`, `frozen_bn`, `pad_type` and `rngs`, as there.

    Raises:
        ImportError: if `huggingface_hub` is missing.
        CheckpointError: (a ValueError) if the repository's files do not fit.
        FileNotFoundError: if the repository holds no network of this package, or is not in the cache.
    """
    folder = _client().snapshot_download(
        repo_id,
        revision=revision,
        token=token,
        cache_dir=None if cache_dir is None else local_path(cache_dir),
        local_files_only=local_files_only,
        allow_patterns=_FILES,
    )
    return load_pretrained(Path(folder), dtype=dtype, **changes)


def model_card(config: PretrainedConfig, repo_id: str = "owner/name") -> str:
    """The text of a model card: metadata for the Hub, use, figures, preparation of images, source, licence.

    Args:
        config: the configuration of a pretrained directory, see `aa_flax.read_config`.
        repo_id: the repository that the example loads.
    """
    p = config.preprocessing
    parts = [
        _front_matter(config),
        f"# {config.model}",
        _summary(config),
        "```python\nimport aa_flax\n\n"
        f'model = aa_flax.load_from_hub("{repo_id}")\nlogits = model(images)  # (N, H, W, {config.in_channels})\n```',
        f"Images: shorter side resized to {p.resize} ({p.interpolation}), centre crop {p.crop}, scaled to 0..1, mean "
        f"{list(p.mean)} subtracted, divided by {list(p.std)}.",
    ]
    figures = _figures(config.metrics)
    if figures:
        rows = [f"| {name} | {value:g} |" for name, value in figures.items()]
        parts.append("\n".join(["## Figures", "", "| what | value |", "|---|---|", *rows]))
    if config.source:
        parts.append("\n".join(["## Source", "", *(f"- {key}: {value}" for key, value in config.source.items())]))
    parts.append(f"## Licence\n\n{config.license or 'Not known: ask whoever trained the weights.'}")
    parts.append(
        "## Citation\n\nRichard Zhang, *Making Convolutional Networks Shift-Invariant Again*, ICML 2019, "
        "[arXiv 1904.11486](https://arxiv.org/abs/1904.11486)."
    )
    return "\n\n".join(parts) + "\n"


def _client() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError('the Hub needs its client: pip install "aa_flax[hub]"') from error
    return huggingface_hub


def _upload(client: Any, directory: Path, repo_id: str, private: bool, token: str | None, message: str | None) -> str:
    config = read_config(directory)
    api = client.HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        card = Path(folder) / CARD_NAME
        own = directory / CARD_NAME
        card.write_text(own.read_text("utf-8") if own.is_file() else model_card(config, repo_id), "utf-8")
        operations = [
            client.CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=str(path))
            for path in (directory / CONFIG_NAME, directory / WEIGHTS_NAME, card)
        ]
        # One commit: nobody downloads the configuration of one network with the weights of another.
        commit = api.create_commit(repo_id, operations, commit_message=message or f"Upload {config.model}")
    return str(commit.commit_url)


def _front_matter(config: PretrainedConfig) -> str:
    name = (config.license or "").lower().replace(" ", "-")
    lines = ["---", "library_name: aa_flax", "pipeline_tag: image-classification"]
    lines += ["tags:", *(f"- {tag}" for tag in ("flax", "jax", "anti-aliasing", "shift-invariance"))]
    if name in _LICENSES:
        lines.append(f"license: {name}")
    elif config.license:
        # JSON's texts are YAML's too: a licence's name may hold any character.
        lines += ["license: other", f"license_name: {json.dumps(config.license, ensure_ascii=False)}"]
    return "\n".join([*lines, "---"])


def _summary(config: PretrainedConfig) -> str:
    spec = config.spec
    options = dict(spec.options)
    kind = str(options.pop("downsample", "blur"))
    if spec.filter_size is None:
        what = "without anti-aliasing (torchvision's network)"
    else:
        filters = f" with {spec.filter_size} taps and {spec.pad_type} padding" if kind == "blur" else ""
        what = f"anti-aliased by {METHODS[kind].title}{filters}"
    more = f" Options: {', '.join(f'{k}={v}' for k, v in options.items())}." if options else ""
    return (
        f"`{spec.name}` for JAX and Flax, {what}, {spec.num_classes} classes, {spec.in_channels} input channels.{more}"
    )


def _figures(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            found |= _figures(value, f"{prefix}{name} ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = float(value)
    return found
