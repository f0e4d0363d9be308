"""Read beliefs: moments, the small solves, probes and their report."""

from msp_lens.probing.belief_probe import BeliefProbe, read_beliefs
from msp_lens.probing.fit import probe
from msp_lens.probing.moments import Moments, merge_all
from msp_lens.probing.regression import LinearMap, least_squares
from msp_lens.probing.scores import HeldOutScore, Score, held_out_score, score
from msp_lens.probing.report import ProbeReport

__all__ = [
    "BeliefProbe",
    "LinearMap",
    "Moments",
    "ProbeReport",
    "Score",
    "held_out_score",
    "least_squares",
    "merge_all",
    "probe",
    "read_beliefs",
    "score",
]
