"""Anti-aliasing somebody's own network, and finding the strides that are left in it."""

from aa_flax.surgery.antialias import antialias
from aa_flax.surgery.report import Change, SurgeryReport
from aa_flax.surgery.strides import StridedOperation, find_strided

__all__ = ["Change", "StridedOperation", "SurgeryReport", "antialias", "find_strided"]
