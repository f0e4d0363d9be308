"""The one idea: second moments of `[features | targets]`, and everything that is solved from them.

It knows nothing of beliefs or networks: accumulate, merge, fold, solve, score.
"""

from msp_lens.moments.estimator import BeliefRegressor
from msp_lens.moments.grid import MomentsGrid, TooWideError
from msp_lens.moments.moments import Moments, merge_all
from msp_lens.moments.reduction import PrincipalComponents, RandomProjection
from msp_lens.moments.scores import HeldOutScore, ProbeScores, Score, held_out_score, score
from msp_lens.moments.solve import LinearMap, Spectrum, decompose, least_squares
from msp_lens.moments.solvers import Solver

__all__ = [
    "BeliefRegressor",
    "HeldOutScore",
    "LinearMap",
    "Moments",
    "MomentsGrid",
    "PrincipalComponents",
    "ProbeScores",
    "RandomProjection",
    "Score",
    "Solver",
    "Spectrum",
    "TooWideError",
    "decompose",
    "held_out_score",
    "least_squares",
    "merge_all",
    "score",
]
