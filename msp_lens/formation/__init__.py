"""How beliefs form over training, and which world they are beliefs about."""

from msp_lens.formation.emergence import emergence
from msp_lens.formation.emergence_report import Emergence
from msp_lens.formation.inferred import InferredOverTraining, inferred_over_training
from msp_lens.formation.snapshots import Snapshot

__all__ = ["Emergence", "InferredOverTraining", "Snapshot", "emergence", "inferred_over_training"]
