"""What a process runs on: versions of packages, devices, and the revision of this project's own files."""

import datetime
import hashlib
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "pillow",
    "simplejpeg",
)


def environment() -> dict[str, Any]:
    """Versions, devices, command and source revision of this process."""
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _packages(),
        "devices": [f"{device.device_kind} {device.id}" for device in jax.devices()],
        "processes": jax.process_count(),
        "git": git_revision(),
    }


def code(root: Path = CHECKOUT) -> dict[str, str]:
    """What computes: versions of packages, and a digest of this project's own files.

    Args:
        root: where its packages are.
    """
    digest = hashlib.sha256()
    for path in sorted([*(root / "train").rglob("*.py"), *(root / "aa_flax").rglob("*.py")]):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return {**_packages(), "the code of train and aa_flax": digest.hexdigest()[:12]}


def _packages() -> dict[str, str]:
    versions = {name: _version(name) for name in PACKAGES}
    return {name: version for name, version in versions.items() if version}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """The commit of this checkout, with `+changes` where files differ from it; None outside of git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(CHECKOUT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
