"""The one seam to TransformerLens: what a hooked model is, how to build, read, edit and save one."""

from msp_lens.models.activations import ActivationBatch, PrefixBatch, keep_activations, stream_activations
from msp_lens.models.architecture import RecurrentConfig
from msp_lens.models.beginning import CachedBeginning, after_beginning, stream_prefixes
from msp_lens.models.build import ModelConfig, build_model, load_weights
from msp_lens.models.checking import ModelCheck, check_causal, check_model
from msp_lens.models.hooked import HookedModel, editing, evaluating, find_sites, holding, residual_sites, site_groups
from msp_lens.models.loading import load_model
from msp_lens.models.model_files import Checkpoint, load_checkpoint, model_fingerprint, published_mess3, save_checkpoint
from msp_lens.models.positions import writing
from msp_lens.models.sites import Site, Sites, site_label
from msp_lens.models.symbol_reader import SymbolReader, reading_symbols

__all__ = [
    "ActivationBatch",
    "CachedBeginning",
    "Checkpoint",
    "HookedModel",
    "ModelCheck",
    "ModelConfig",
    "PrefixBatch",
    "RecurrentConfig",
    "Site",
    "Sites",
    "SymbolReader",
    "after_beginning",
    "build_model",
    "check_causal",
    "check_model",
    "editing",
    "evaluating",
    "find_sites",
    "holding",
    "keep_activations",
    "load_checkpoint",
    "load_model",
    "load_weights",
    "model_fingerprint",
    "published_mess3",
    "reading_symbols",
    "residual_sites",
    "save_checkpoint",
    "site_groups",
    "site_label",
    "stream_activations",
    "stream_prefixes",
    "writing",
]
