"""Whole experiments: a run from process to report, and sweeps of networks side by side."""

from msp_lens.experiments.run_inference import infer_run
from msp_lens.experiments.study import Study, report, run
from msp_lens.experiments.sweep import SweepResult, SweepRun, sweep

__all__ = ["Study", "SweepResult", "SweepRun", "infer_run", "report", "run", "sweep"]
