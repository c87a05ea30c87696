"""What the TPU's own compiler makes of the networks, on a machine without a TPU.

`python -m benchmarks tpu`; needs libtpu (`make tpu` has it). Nothing is run: every figure is the compiler's estimate.
"""

from benchmarks.tpu.command import Config, run

__all__ = ["Config", "run"]
