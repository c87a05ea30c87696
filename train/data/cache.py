"""Small JPEG data sets decoded once into checked array files below a cache directory."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aa_flax.weights.json_file import read_json

log = logging.getLogger(__name__)


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
            manifest = read_json(self.directory / "manifest.json")
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
        """Writes all arrays, then moves the finished directory into place.

        Args:
          arrays: names and values.
          about: what the manifest says beside the sums, for people.
        """
        parent = self.directory.parent
        parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{self.directory.name}.", dir=parent))
        try:
            sums = {}
            for name, array in arrays:
                target = building / f"{name}.npy"
                with target.open("wb") as file:
                    np.save(file, array)
                    _flush(file)
                sums[name] = file_sha256(target)
            with (building / "manifest.json").open("w") as file:
                json.dump({**about, "sha256": sums}, file, indent=1)
                _flush(file)
            self._put_in_place(building)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def _put_in_place(self, building: Path) -> None:
        building.chmod(0o755)
        try:
            os.rename(building, self.directory)
        except OSError:
            # Another process was quicker, or a damaged cache lies there.
            if self.is_good():
                return
            shutil.rmtree(self.directory, ignore_errors=True)
            os.rename(building, self.directory)


def _flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())
