"""How the network holds beliefs, beyond one linear probe: attention by lag, what else it holds, curvature."""

from msp_lens.representation.attention_by_lag import attention_by_lag
from msp_lens.representation.attention_report import AttentionByLag, HeadAttention, NetworkAttention, SiteReading

__all__ = ["AttentionByLag", "HeadAttention", "NetworkAttention", "SiteReading", "attention_by_lag"]
