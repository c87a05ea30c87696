"""Who may write to a run's directory in a bucket: an object that names the holder, renewed as long as that lives.

A disk has locks that end with their process. In a bucket every write can name the state that it replaces, so that of
two processes only one gets through; and whoever has not renewed its object for a while counts as gone.
"""

import getpass
import json
import os
import secrets
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from aa_flax.buckets import BucketPath, Written
from aa_flax.weights.json_file import parse_json
from train.errors import CommandError

RENEW_SECONDS, STALE_SECONDS = 10.0, 60.0
# In a container the next process may have the number of the last.
_THIS_PROCESS = secrets.token_hex(8)


class Lease:
    """The right to write to a directory, held by this process until it is released.

    Args:
        directory: in a bucket.
        name: of the object below it.

    Raises:
        CommandError: another process has it.
        OSError: the bucket cannot be reached or written to.
    """

    def __init__(self, directory: BucketPath, name: str):
        self._directory, self._path = directory, directory / name
        self._content = _about_this_process()
        self._lost = False
        self._lock, self._over = threading.Lock(), threading.Event()
        self._generation, self._renewed = self._take(), time.monotonic()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Makes sure that nobody else has the directory by now; to be asked before anything is written to it.

        Raises:
            CommandError: another process has taken it over, or it has been out of reach for so long that one may.
        """
        if time.monotonic() - self._renewed > STALE_SECONDS / 2:
            self._renew()
        silent = time.monotonic() - self._renewed
        if self._lost:
            raise CommandError(
                f"--run-dir {self._directory}: {_name(self._found()[0])} has taken it over, because this process could "
                f"not renew its lease for {STALE_SECONDS:g} s; nothing more is written by this one"
            )
        if silent > STALE_SECONDS:
            raise CommandError(
                f"--run-dir {self._directory} has been out of reach for {silent:.0f} s, so that another process may "
                "have taken it over: start again when the storage service answers"
            )

    def release(self) -> None:
        """Lets go of it; may be called again."""
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join()
        if not self._lost:
            # What cannot be removed now counts for nothing soon.
            with suppress(OSError):
                self._path.unlink(missing_ok=True, generation=self._generation)

    def _take(self) -> int:
        """The generation of the object once it is ours."""
        while True:
            holder, state = self._found()
            if holder.get("token") == self._content["token"] and state is not None:
                return state.generation
            if state is not None:
                self._refuse_the_living(holder, state)
            # Where another process is quicker, the next look finds it.
            with suppress(FileExistsError):
                return self._write(state.generation if state else 0)

    def _refuse_the_living(self, holder: dict[str, Any], state: Written) -> None:
        if _has_ended(holder):
            return
        silent = (self._server_time() - state.updated).total_seconds()
        if silent <= STALE_SECONDS:
            raise CommandError(
                f"--run-dir {self._directory}: another process is training in it: {_name(holder)} has had it "
                f"since {holder.get('since', 'an unknown time')} and has said so {max(0.0, silent):.0f} s ago. If "
                f"that is gone, the same command takes over after {max(1.0, STALE_SECONDS - silent):.0f} s"
            )

    def _found(self) -> tuple[dict[str, Any], Written | None]:
        """Who the object says has it, and its state; None where there is none."""
        try:
            state = self._path.stat()
            holder = parse_json(self._path.read_bytes())
        except FileNotFoundError:
            return {}, None
        except ValueError:
            return {}, state
        return (holder if isinstance(holder, dict) else {}), state

    def _server_time(self) -> Any:
        """The time by the clock that also dates the object: those of two machines may differ by minutes."""
        clock = self._directory / f".clock-{self._content['token']}"
        now = clock.write_bytes(b"").updated
        clock.unlink(missing_ok=True)
        return now

    def _write(self, replaced: int) -> int:
        return self._path.write_bytes(json.dumps(self._content).encode(), generation=replaced).generation

    def _keep(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            # The next time may go better; `check` has the last word.
            with suppress(OSError):
                self._renew()

    def _renew(self) -> None:
        with self._lock:
            try:
                self._generation = self._write(self._generation)
            except FileExistsError:
                holder, state = self._found()
                if state is None:
                    # The directory has been removed; a run goes on in a new one.
                    self._generation = self._write(0)
                elif holder.get("token") == self._content["token"]:
                    # Our own write, whose answer was lost on the way.
                    self._generation = state.generation
                else:
                    self._lost = True
                    return
            self._renewed = time.monotonic()


def _about_this_process() -> dict[str, Any]:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "somebody"
    return {
        "token": secrets.token_hex(8),
        "user": user,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process": _THIS_PROCESS,
        "machine": _machine(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def _name(holder: dict[str, Any]) -> str:
    """How a person knows a process."""
    if "host" not in holder:
        return "a process that does not say its name"
    return f"process {holder.get('pid')} of {holder.get('user')} on {holder['host']}"


def _machine() -> str | None:
    """What tells this start of this machine, and this container on it, from all others; None where nothing does."""
    if sys.platform != "linux":
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    pid, machine = holder.get("pid"), holder.get("machine")
    if type(pid) is not int or pid <= 0 or machine is None or machine != _machine():
        return False
    if pid == os.getpid():
        return holder.get("process") != _THIS_PROCESS
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
