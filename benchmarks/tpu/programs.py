"""What is compiled: a network's forward pass, its update, or a part of it, for a topology."""

import dataclasses
import re
from typing import Any, Literal

Work = Literal["forward", "update", "backward"]
Form = Literal["plain", "antialiased", "obvious"]

# Memory of a chip in GiB: cloud.google.com/tpu/docs, the page of each generation.
CHIP_GIB = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}
_TOPOLOGY = re.compile(rf"({'|'.join(CHIP_GIB)}):\d+(x\d+){{1,2}}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One program, by everything that decides it but the code.

    Attributes:
        topology: generation and chips, such as v5e:2x2.
        work: `forward`: inference of a network, or a part's result. `update`: the trainer's. `backward`: a part's
            result and its gradients.
        name: the network, or the part.
        form: `plain`, `antialiased`, or `obvious`: anti-aliased with a depthwise convolution in place of each blur.
        part: whether `name` is a part.
        filter_size: taps of the blurs.
        batch: images a chip.
        image_size: height and width of a network's images.
        dtype: what is computed in; parameters are float32.
        bn_group: images over which an update's BatchNorm takes its statistics; None for the batch of all chips.
    """

    topology: str
    work: Work
    name: str
    form: Form
    part: bool = False
    filter_size: int = 4
    batch: int = 64
    image_size: int = 224
    dtype: str = "bfloat16"
    bn_group: int | None = None

    def __str__(self) -> str:
        return f"{self.topology} {self.work} {self.name} {self.form}"

    @property
    def spec(self) -> str:
        """The network's name for `aa_flax.create_model`."""
        return f"{self.name}_plain" if self.form == "plain" else f"{self.name}_lpf{self.filter_size}"

    @property
    def downsample(self) -> str:
        """What subsamples, a name of `aa_flax.downsample.METHODS`."""
        return "obvious" if self.form == "obvious" else "blur"

    @property
    def chip_bytes(self) -> int:
        """Memory of a chip."""
        return CHIP_GIB[self.topology.partition(":")[0]] << 30

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells programs apart."""
        return dataclasses.astuple(self)


def check_topology(name: str) -> None:
    """ValueError for what is no topology's name."""
    if not _TOPOLOGY.fullmatch(name):
        raise ValueError(
            f"--topology {name} must be a generation ({', '.join(CHIP_GIB)}) and the chips of its slice, such as "
            "v5e:2x2, v5p:2x2x1 or v6e:16x16"
        )
