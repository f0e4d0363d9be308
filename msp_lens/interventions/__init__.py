"""Write beliefs: edits of the residual stream, and the experiment that tells whether the network uses them."""

from msp_lens.interventions.experiment import InterventionReport, InterventionResult, intervene

__all__ = ["InterventionReport", "InterventionResult", "intervene"]
