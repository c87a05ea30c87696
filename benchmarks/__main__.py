"""`python -m benchmarks [NAME ...]`: one benchmark, or without a name every one in turn.

Each is a module with a frozen dataclass `Config`, which tyro reads from the command line, and `run(config) -> int`,
the exit code.
"""

import importlib
import os
import sys
from collections.abc import Sequence

import tyro

from train.errors import CommandError
from train.local_paths import require_local_paths

BENCHMARKS = {
    "blurpool": "the operator, forward and backward, against convolutions and the PyTorch reference",
    "convolutions": "single convolutions in the form that this device gets, against XLA's own and PyTorch's",
    "inference": "whole networks, forward",
    "training": "whole networks, one update",
    "dispatch": "Python's share of a call",
    "startup": "import, creation, compilation with and without the persistent cache",
    "consistency": "crops per second of the shift protocols",
    "input_pipeline": "decoding and transforms, against torchvision's loader",
    "tpu": "networks and parts of them compiled by the TPU's own compiler; only when it is named",
    "gpu": "what needs a GPU and is missing, benchmarks and training runs, for a budget; only when it is named",
}
# Minutes for each program, in an environment of its own (`make tpu`); a queue that is never through (`make gpu`).
ONLY_BY_NAME = ("tpu", "gpu")

USAGE_ERROR = 2


def _overview() -> str:
    width = max(map(len, BENCHMARKS))
    rows = [f"  {name:<{width}}  {summary}" for name, summary in BENCHMARKS.items()]
    last = [
        "Without a name all others run in turn; --smoke checks results and times nothing, of one or of all.",
        "`python -m benchmarks NAME --help` lists a benchmark's options.",
    ]
    return "\n".join(["usage: python -m benchmarks [NAME] [OPTIONS]", "", "benchmarks:", *rows, "", *last])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one benchmark.

    Args:
        arguments: the words after `python -m benchmarks`; those of this process by default.

    Returns:
        The benchmark's exit code: 0, or 2 for bad input, which is then named in one line on stderr.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    named = bool(words) and not words[0].startswith("-")
    if named and words[0] not in BENCHMARKS:
        print(f"unknown benchmark {words[0]!r}: one of {', '.join(BENCHMARKS)}", file=sys.stderr)
        return USAGE_ERROR
    # JAX would reserve most of the device's memory for itself, PyTorch's part included.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if named:
        return _run(words[0], words[1:])
    codes = []
    for name in (name for name in BENCHMARKS if name not in ONLY_BY_NAME):
        print(f"\n== {name}", flush=True)
        codes.append(_run(name, words))
    return max(codes)


def _run(name: str, options: Sequence[str]) -> int:
    module = importlib.import_module(f"benchmarks.{name}")
    config = tyro.cli(module.Config, prog=f"python -m benchmarks {name}", args=options)
    try:
        require_local_paths(config)
        return module.run(config)
    except (CommandError, ValueError, OSError) as error:
        print(f"benchmark {name}: {error}", file=sys.stderr)
        return USAGE_ERROR


if __name__ == "__main__":
    sys.exit(main())
