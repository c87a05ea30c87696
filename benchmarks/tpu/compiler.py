"""The TPU compiler in a process of its own, which may end at a program that it cannot compile.

`python -m benchmarks.tpu.compiler` reads programs from its input, a line of JSON each, and answers each with a line.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

from aa_flax.files import write_atomically
from benchmarks.tpu.programs import Program

# Read by libtpu when it is loaded and by JAX when it is imported: there is no TPU to be asked anything, and other
# processes may compile as well.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
SLOWEST = 10


def require_libtpu() -> None:
    """ValueError where the compiler is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError('the TPU compiler, libtpu, is not installed: run make tpu, or pip install "jax[tpu]"')


def versions() -> dict[str, str]:
    """Of what makes programs from our code."""
    return {package: importlib.metadata.version(package) for package in ("jax", "flax", "libtpu")}


class Compiler:
    """The process, started with its first program and again after it has ended.

    Args:
        texts: folder for the text of each compiled program, what a person reads who tunes it; None for none.
    """

    def __init__(self, texts: Path | None = None) -> None:
        self._texts = texts
        self._process: subprocess.Popen[str] | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._said.close()

    def compile(self, program: Program, known: str | None = None) -> dict[str, Any]:
        """Compiles a program.

        Args:
            program: which.
            known: the digest of one that needs not be compiled again.

        Returns:
            What `_compiled` says; `{"digest": known}` alone if nothing has changed; `error`, a line, if it failed.
        """
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        text = None if self._texts is None else str(self._texts / f"{str(program).replace(' ', '-')}.txt")
        order = {"program": dataclasses.asdict(program), "known": known, "text": text}
        with contextlib.suppress(BrokenPipeError):  # it has ended already, and has its last words below
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        if answer := process.stdout.readline():
            return json.loads(answer)
        process.communicate()
        self._process = None
        return {"error": f"the compiler ended with code {process.returncode}: {self._last_words()}"}

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._said.seek(0)
            self._said.truncate()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.tpu.compiler"],
                env=os.environ | ENVIRONMENT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
            )
        return self._process

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _compiled(program: Program, known: str | None, text_file: str | None) -> dict[str, Any]:
    """What the compiler says of a program: see `benchmarks.tpu.results`."""
    from benchmarks.tpu import compiled, lowering

    placement = _placement(program.topology)
    lowered, fixed = lowering.lower(program, placement)
    digest = hashlib.sha256(lowered.as_text().encode()).hexdigest()[:16]
    if digest == known:
        return {"digest": digest}
    start, worked = time.perf_counter(), time.process_time()
    binary = lowered.compile()
    took = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - worked}
    plan, costs, text = binary.memory_analysis(), binary.cost_analysis(), binary.as_text()
    if text_file is not None:
        write_atomically(Path(text_file), text.encode())
    found = compiled.kernels(text)
    return {
        "digest": digest,
        "error": None,
        **{name: round(value, 1) for name, value in took.items()},
        "chips": placement.mesh.size,
        "memory": {
            "fixed": fixed,
            "arguments": plan.argument_size_in_bytes,
            "results": plan.output_size_in_bytes,
            "shared": plan.alias_size_in_bytes,
            "temporary": plan.temp_size_in_bytes,
            "code": plan.generated_code_size_in_bytes,
        },
        "flops": costs["flops"],
        "bytes": costs["bytes accessed"],
        "gigaoperations": lowering.operations(program),
        "kernels": len(found),
        "without_estimate": compiled.without_estimate(text),
        "cycles": compiled.cycles_by_part(found),
        "collectives": compiled.collectives(text),
        "slowest": found[:SLOWEST],
    }


@functools.cache
def _placement(topology: str) -> Any:
    from benchmarks.tpu.lowering import devices_of

    return devices_of(topology)


def _serve() -> None:
    """Answers one order after the other. What libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    orders: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(orders,), daemon=True).start()
    import jax

    while True:
        order = json.loads(orders.get())
        try:
            answer = _compiled(Program(**order["program"]), order["known"], order["text"])
        except Exception as error:  # whatever it is, it belongs to this program
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:2000]}"}
        print(json.dumps(answer), file=answers, flush=True)
        jax.clear_caches()


def _read(orders: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        orders.put(line)
    os._exit(0)  # nobody waits for the program that is being compiled


if __name__ == "__main__":
    _serve()
