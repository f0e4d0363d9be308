"""What generates the data: hidden Markov processes and the named ones of the literature."""

from msp_lens.processes.catalog import CATALOG, build_process, coin, even, golden_mean, mess3, rrxor, sns, z1r
from msp_lens.processes.process import Process

__all__ = [
    "CATALOG",
    "Process",
    "build_process",
    "coin",
    "even",
    "golden_mean",
    "mess3",
    "rrxor",
    "sns",
    "z1r",
]
