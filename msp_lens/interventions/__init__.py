"""Write beliefs: edits of the residual stream, and the experiments that tell whether the network uses them."""

from msp_lens.interventions.edits import Edit, applying
from msp_lens.interventions.experiment import intervene
from msp_lens.interventions.menu import EDITS
from msp_lens.interventions.report import InterventionReport, InterventionResult
from msp_lens.interventions.targets import TARGETS, Targets
from msp_lens.interventions.trajectories import filter_from

__all__ = [
    "EDITS",
    "TARGETS",
    "Edit",
    "InterventionReport",
    "InterventionResult",
    "Targets",
    "applying",
    "filter_from",
    "intervene",
]
