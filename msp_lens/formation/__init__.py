"""How beliefs form over training."""

from msp_lens.formation.emergence import emergence
from msp_lens.formation.emergence_report import Emergence
from msp_lens.formation.snapshots import Snapshot

__all__ = ["Emergence", "Snapshot", "emergence"]
