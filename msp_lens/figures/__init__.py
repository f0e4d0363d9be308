"""Pictures of arrays: they know nothing of models or processes."""

from msp_lens.figures.simplex import plot_beliefs
from msp_lens.figures.tokens import attention_view

__all__ = ["attention_view", "plot_beliefs"]
