"""Networks on the Hugging Face Hub: a repository is a pretrained directory with a model card.

Needs the package `huggingface_hub` (`pip install "aa_flax[hub]"`); nothing else of this library does.
"""

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from aa_flax.downsample import method
from aa_flax.files import file_sha256
from aa_flax.local_paths import local_path
from aa_flax.models.base import Network
from aa_flax.weights.config import CONFIG_NAME, WEIGHTS_NAME, PretrainedConfig, dump_config, read_config
from aa_flax.weights.json_file import read_json
from aa_flax.weights.repository import endpoint
from aa_flax.weights.store import load_pretrained, save_pretrained

CARD_NAME = "README.md"
# One of a hundred thousand photos, with the answers to each.
_MAX_REPORT_BYTES = 2**30
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
    report: str | os.PathLike[str] | None = None,
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
        report: of `python -m train evaluate --output` on this directory: its figures go into the card and into
            `config.json` as measured. Weights with another hash are refused.
        **saving: for a network: `license`, `metrics`, `source`, `class_names` and `preprocessing` of
            `aa_flax.save_pretrained`.

    Returns:
        Address of the commit.

    Raises:
        ImportError: if `huggingface_hub` is missing.
        OSError: if the directory holds no network, or the Hub does not take it.
        ValueError, TypeError: if the network cannot be saved, or a directory is given with arguments for saving.
    """
    client = _client()
    if isinstance(model_or_directory, Network):
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) / "model"
            save_pretrained(model_or_directory, directory, **saving)
            return _upload(client, directory, repo_id, private, token, commit_message, report)
    if saving:
        raise TypeError(f"{', '.join(saving)} cannot be given for a directory: they are in its {CONFIG_NAME} already")
    directory = local_path(model_or_directory)
    if not (directory / WEIGHTS_NAME).is_file():
        raise FileNotFoundError(f"{directory / WEIGHTS_NAME}: not found; save_pretrained writes it")
    return _upload(client, directory, repo_id, private, token, commit_message, report)


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
        f'```python\nimport aa_flax\n\nmodel = aa_flax.load_pretrained("hf://{repo_id}")\n'
        f"logits = model(images)  # (N, H, W, {config.in_channels})\n```",
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
    parts.append("\n\n".join(["## Citation", *_citations(config)]))
    return "\n\n".join(parts) + "\n"


def _client() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise ImportError('the Hub needs its client: pip install "aa_flax[hub]"') from error
    return huggingface_hub


def _upload(
    client: Any,
    directory: Path,
    repo_id: str,
    private: bool,
    token: str | None,
    message: str | None,
    report: str | os.PathLike[str] | None,
) -> str:
    config, weights = read_config(directory), directory / WEIGHTS_NAME
    if report is not None:
        measured = {"measured": _measured(Path(report), weights)}
        config = dataclasses.replace(config, metrics={**config.metrics, **measured})
    own = directory / CARD_NAME
    card = own.read_text("utf-8") if own.is_file() else model_card(config, repo_id)
    contents = {CONFIG_NAME: dump_config(config).encode(), WEIGHTS_NAME: str(weights), CARD_NAME: card.encode()}
    add = client.CommitOperationAdd
    operations = [add(path_in_repo=name, path_or_fileobj=content) for name, content in contents.items()]
    api = client.HfApi(token=token, endpoint=endpoint())
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        # One commit: nobody downloads the configuration of one network with the weights of another.
        commit = api.create_commit(repo_id, operations, commit_message=message or f"Upload {config.model}")
    except (OSError, ValueError, client.errors.HfHubHTTPError) as error:
        raise OSError(f"{endpoint()} does not take {repo_id}: {' '.join(str(error).split())}") from error
    return str(commit.commit_url)


def _measured(report: Path, weights: Path) -> dict[str, Any]:
    """The figures of a report of `evaluate` on these weights.

    Raises:
        OSError, ValueError: it is none, or on other weights.
    """
    try:
        content = read_json(report, max_bytes=_MAX_REPORT_BYTES)
        hashed, images = content["repeat"]["weights_sha256"], content["images"]
        figures = {name: content[name] for name in ("top1", "top5") if content[name] is not None}
        agreements = {f"consistency ({name})": each["value"] for name, each in content["consistency"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{report}: no report of `python -m train evaluate --output`") from error
    if hashed != file_sha256(weights):
        raise ValueError(f"{report}: measured other weights than {weights}: measure these")
    return {"images": images, **figures, **agreements}


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
    kind = method(str(options.pop("downsample", "blur")))
    if not spec.suffix:
        what = "timm's network, anti-aliased as its name says"
    elif spec.filter_size is None:
        what = "without anti-aliasing (torchvision's network)"
    else:
        filters = f" with {spec.filter_size} taps and {spec.pad_type} padding" if kind.name == "blur" else ""
        chosen = "".join(f", {option}={value}" for option, value in kind.options)
        what = f"anti-aliased by {kind.layer.title}{chosen}{filters}"
    more = f" Options: {', '.join(f'{k}={v}' for k, v in options.items())}." if options else ""
    return (
        f"`{spec.name}` for JAX and Flax, {what}, {spec.num_classes} classes, {spec.in_channels} input channels.{more}"
    )


def _citations(config: PretrainedConfig) -> list[str]:
    texts = [
        "```bibtex\n@inproceedings{zhang2019shiftinvar,\n"
        "  title = {Making Convolutional Networks Shift-Invariant Again},\n"
        "  author = {Zhang, Richard},\n  booktitle = {ICML},\n  year = {2019},\n"
        "  note = {arXiv:1904.11486}\n}\n```"
    ]
    if not config.spec.suffix:
        texts.append(
            "The network and its training are timm's: Ross Wightman, *PyTorch Image Models*, 2019, "
            "[doi 10.5281/zenodo.4414861](https://doi.org/10.5281/zenodo.4414861)."
        )
    return texts


def _figures(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            found |= _figures(value, f"{prefix}{name} ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = float(value)
    return found
