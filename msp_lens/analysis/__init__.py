"""What becomes of beliefs over training."""

from msp_lens.analysis.emergence import Emergence, Snapshot, emergence

__all__ = ["Emergence", "Snapshot", "emergence"]
