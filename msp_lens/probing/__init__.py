"""Read beliefs: moments, the small solves, probes, their controls and their report."""

from msp_lens.probing.belief_probe import BeliefProbe, read_beliefs
from msp_lens.probing.checkpoint import PassCheckpoint
from msp_lens.probing.controls import Controls, ControlScore, TokenWindows
from msp_lens.probing.distances import Distances, distances
from msp_lens.probing.estimator import BeliefRegressor
from msp_lens.probing.fit import probe
from msp_lens.probing.fit_rows import probe_rows
from msp_lens.probing.geometry import Geometry, geometry
from msp_lens.probing.given_rows import batch_rows, cache_rows
from msp_lens.probing.moments import Moments, merge_all
from msp_lens.probing.moments_grid import MomentsGrid, TooWideError
from msp_lens.probing.reduction import PrincipalComponents, RandomProjection
from msp_lens.probing.regression import LinearMap, Spectrum, decompose, least_squares
from msp_lens.probing.report import ProbeReport
from msp_lens.probing.rows import RowBatch, Rows, model_rows, sampled_rows
from msp_lens.probing.scores import HeldOutScore, ProbeScores, Score, held_out_score, score
from msp_lens.probing.solvers import Solver
from msp_lens.probing.transfer import TransferScore, score_probe

__all__ = [
    "BeliefProbe",
    "BeliefRegressor",
    "ControlScore",
    "Controls",
    "Distances",
    "Geometry",
    "HeldOutScore",
    "LinearMap",
    "Moments",
    "MomentsGrid",
    "PassCheckpoint",
    "PrincipalComponents",
    "ProbeReport",
    "ProbeScores",
    "RandomProjection",
    "RowBatch",
    "Rows",
    "Score",
    "Solver",
    "Spectrum",
    "TokenWindows",
    "TooWideError",
    "TransferScore",
    "batch_rows",
    "cache_rows",
    "decompose",
    "distances",
    "geometry",
    "held_out_score",
    "least_squares",
    "merge_all",
    "model_rows",
    "probe",
    "probe_rows",
    "read_beliefs",
    "sampled_rows",
    "score",
    "score_probe",
]
