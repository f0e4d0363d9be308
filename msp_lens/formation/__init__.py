"""What becomes of beliefs over training."""

from msp_lens.formation.emergence import Emergence, Snapshot, emergence

__all__ = ["Emergence", "Snapshot", "emergence"]
