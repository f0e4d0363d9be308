"""Whole experiments: a run from process to report, and sweeps of networks side by side."""

from msp_lens.experiments.study import Study, report, run
from msp_lens.experiments.sweep import SweepResult, SweepRun, sweep

__all__ = ["Study", "SweepResult", "SweepRun", "report", "run", "sweep"]
