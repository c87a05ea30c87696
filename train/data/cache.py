"""Small JPEG data sets decoded once into checked array files below a cache directory."""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aa_flax.files import file_sha256, whole_directory
from aa_flax.weights.json_file import read_json

MANIFEST = "manifest.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArrayCache:
    """A directory of `.npy` files and `manifest.json`, which holds their SHA-256 sums.

    Attributes:
        directory: where the files lie; written at once or not at all.
    """

    directory: Path

    def path(self, name: str) -> Path:
        """The `.npy` file of one array."""
        return self.directory / f"{name}.npy"

    def is_good(self) -> bool:
        """Whether every array is there with the bytes that were written."""
        try:
            manifest = read_json(self.directory / MANIFEST)
            sums = manifest["sha256"].items()
            damaged = [name for name, sha in sums if file_sha256(self.path(name)) != sha]
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, AttributeError) as error:
            log.warning("cache %s is unreadable (%s): building it anew", self.directory, error)
            return False
        if damaged:
            log.warning("cache %s: %s damaged: building it anew", self.directory, damaged)
        return not damaged

    def write(self, arrays: Iterable[tuple[str, np.ndarray]], about: dict) -> None:
        """Writes all arrays, then moves them into place; those of another process that was quicker stay.

        Args:
            arrays: names and values.
            about: what the manifest says beside the sums, for people.
        """
        try:
            with whole_directory(self.directory, last=MANIFEST) as fresh:
                sums = {}
                for name, array in arrays:
                    np.save(fresh / f"{name}.npy", array)
                    sums[name] = file_sha256(fresh / f"{name}.npy")
                (fresh / MANIFEST).write_text(json.dumps({**about, "sha256": sums}, indent=1), "utf-8")
        except FileExistsError:
            # Another process was quicker.
            if not self.is_good():
                raise
