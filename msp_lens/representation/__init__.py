"""How the network holds beliefs, beyond one linear probe: layers, attention, other content, curvature, similarity."""

from msp_lens.representation.attention_by_lag import attention_by_lag
from msp_lens.representation.attention_reading import (
    AttentionBatch,
    attention_layers,
    output_weights,
    stream_attention,
)
from msp_lens.representation.attention_report import AttentionByLag, HeadAttention, NetworkAttention, SiteReading
from msp_lens.representation.crosstalk import crosstalk
from msp_lens.representation.curvature import Curvature, CurvedBeliefs, curved_beliefs
from msp_lens.representation.factor_geometry import FactorGeometry, Predicted, SiteFactors, factor_geometry
from msp_lens.representation.inert_past import beyond_belief
from msp_lens.representation.logit_lens import LayerReading, LogitLens, logit_lens
from msp_lens.representation.past_report import BeyondBelief, Decodable, Erased
from msp_lens.representation.side_by_side import side_by_side
from msp_lens.representation.similarity import Similarity, similarity

__all__ = [
    "AttentionBatch",
    "AttentionByLag",
    "BeyondBelief",
    "Curvature",
    "CurvedBeliefs",
    "Decodable",
    "Erased",
    "FactorGeometry",
    "HeadAttention",
    "LayerReading",
    "LogitLens",
    "NetworkAttention",
    "Predicted",
    "Similarity",
    "SiteFactors",
    "SiteReading",
    "attention_by_lag",
    "attention_layers",
    "beyond_belief",
    "crosstalk",
    "curved_beliefs",
    "factor_geometry",
    "logit_lens",
    "output_weights",
    "side_by_side",
    "similarity",
    "stream_attention",
]
