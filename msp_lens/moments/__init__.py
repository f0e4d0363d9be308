"""Second moments of `[features | targets]`, and all that is solved from them; it knows of no beliefs or networks."""

from msp_lens.moments.estimator import BeliefRegressor
from msp_lens.moments.grid import MomentsGrid, TooWideError
from msp_lens.moments.moments import Moments, merge_all
from msp_lens.moments.reduction import PrincipalComponents, RandomProjection
from msp_lens.moments.scores import HeldOutScore, Score, score
from msp_lens.moments.solve import LinearMap, Spectrum, decompose, least_squares
from msp_lens.moments.solvers import OLS, Auto, ReducedRank, Ridge, Solver, as_solver, choose_penalty

__all__ = [
    "OLS",
    "Auto",
    "BeliefRegressor",
    "HeldOutScore",
    "LinearMap",
    "Moments",
    "MomentsGrid",
    "PrincipalComponents",
    "RandomProjection",
    "ReducedRank",
    "Ridge",
    "Score",
    "Solver",
    "Spectrum",
    "TooWideError",
    "as_solver",
    "choose_penalty",
    "decompose",
    "least_squares",
    "merge_all",
    "score",
]
