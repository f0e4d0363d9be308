"""Read beliefs: moments, the small solves, probes, their controls and their report."""

from msp_lens.probing.belief_probe import BeliefProbe, read_beliefs
from msp_lens.probing.controls import Controls, ControlScore, TokenWindows
from msp_lens.probing.fit import probe, probe_rows
from msp_lens.probing.geometry import Geometry, geometry
from msp_lens.probing.moments import Moments, merge_all
from msp_lens.probing.regression import LinearMap, Spectrum, decompose, least_squares
from msp_lens.probing.report import ProbeReport
from msp_lens.probing.scores import HeldOutScore, ProbeScores, Score, held_out_score, score
from msp_lens.probing.solvers import Solver
from msp_lens.probing.transfer import TransferScore, score_probe

__all__ = [
    "BeliefProbe",
    "ControlScore",
    "Controls",
    "Geometry",
    "HeldOutScore",
    "LinearMap",
    "Moments",
    "ProbeReport",
    "ProbeScores",
    "Score",
    "Solver",
    "Spectrum",
    "TokenWindows",
    "TransferScore",
    "decompose",
    "geometry",
    "held_out_score",
    "least_squares",
    "merge_all",
    "probe",
    "probe_rows",
    "read_beliefs",
    "score",
    "score_probe",
]
