"""Read beliefs: rows of activations, probes fitted to them, their controls, and the report."""

from msp_lens.controls.control_scores import Controls, ControlScore
from msp_lens.controls.token_windows import TokenWindows
from msp_lens.data.splits import Split
from msp_lens.probing.belief_probe import BeliefProbe, read_beliefs
from msp_lens.probing.fit import probe
from msp_lens.probing.fit_rows import probe_rows
from msp_lens.probing.geometry import Distances, Geometry, distances, geometry
from msp_lens.probing.probe_plots import ProbePlots
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.probing.rows import RowBatch, Rows, batch_rows, cache_rows, model_rows, sampled_rows
from msp_lens.probing.transfer import TransferReport, TransferScore, transfer

__all__ = [
    "BeliefProbe",
    "ControlScore",
    "Controls",
    "Distances",
    "Geometry",
    "ProbePlots",
    "ProbeReport",
    "RowBatch",
    "Rows",
    "Split",
    "TokenWindows",
    "TransferReport",
    "TransferScore",
    "batch_rows",
    "cache_rows",
    "distances",
    "geometry",
    "model_rows",
    "probe",
    "probe_rows",
    "read_beliefs",
    "sampled_rows",
    "transfer",
]
