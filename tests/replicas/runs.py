"""What a test asks a program of this folder to train."""

from typing import NamedTuple

# Of `problem.CASES`. By way of training and distribution: one of them takes
# all cases.
FEW = ("everything", "extra_and_mask", "rotation", "memory", "chunked")


class Run(NamedTuple):
    """Trains cases from the same weights, one after the other.

    As a string, its fields with commas: "fit,mirrored,2,all".

    Attributes:
        way: "fit", or "loop" for a custom loop.
        kind: Of the distribution, "none" alone.
        devices: How many.
        which: "all" cases, or a "few" of them.
    """

    way: str
    kind: str
    devices: int
    which: str = "all"

    @classmethod
    def read(cls, text):
        way, kind, devices, which = text.split(",")
        return cls(way, kind, int(devices), which)

    def __str__(self):
        return ",".join(map(str, self))

    @property
    def cases(self):
        """Names of some cases, () for all."""
        return FEW if self.which == "few" else ()
