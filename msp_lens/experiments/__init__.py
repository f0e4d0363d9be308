"""Whole experiments: a run from process to report, sweeps of networks side by side, papers reproduced."""

from msp_lens.experiments.claims import Claim, Section
from msp_lens.experiments.report_comparison import ReportComparison, compare
from msp_lens.experiments.reproduce import papers_to_reproduce, reproduce
from msp_lens.experiments.reproduction import Reproduction
from msp_lens.experiments.run_inference import infer_run
from msp_lens.experiments.sharing import from_hub, push_to_hub
from msp_lens.experiments.study import Study, report, run
from msp_lens.experiments.sweep import SweepResult, SweepRun, sweep

__all__ = [
    "Claim",
    "ReportComparison",
    "Reproduction",
    "Section",
    "Study",
    "SweepResult",
    "SweepRun",
    "compare",
    "from_hub",
    "infer_run",
    "papers_to_reproduce",
    "push_to_hub",
    "report",
    "reproduce",
    "run",
    "sweep",
]
