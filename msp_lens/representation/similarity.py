"""Similarity: how far networks arrange the same words alike, whatever their architecture.

With Σ_ab the covariance of the activations of two networks after the same prefixes, linear centered kernel alignment is

    CKA = |Σ_ab|² / (|Σ_aa| |Σ_bb|)        (Frobenius norms):

1 if one network's activations are the other's rotated and scaled, 0 if nothing in one varies with anything in the
other. Directions count by their variance. What is alike without any training shows in untrained networks.

Source: Kornblith et al. 2019 (arXiv 1905.00414).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import Count, Seed, checked
from msp_lens._names import meant
from msp_lens._tables import TableView
from msp_lens._values import Value
from msp_lens.data import BeliefDataset, LabelledTokens, Weighting
from msp_lens.models.hooked import HookedModel, check_fits, find_sites, word_length
from msp_lens.models.sites import Sites, site_label
from msp_lens.moments import Moments
from msp_lens.probing.rows import model_rows
from msp_lens.processes.process import Process
from msp_lens.training.regret import evaluation_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName


@dataclass(frozen=True, eq=False, repr=False)
class Similarity(Value, TableView):
    """How alike several networks are; `similarity` makes it.

    Attributes:
        names: The networks.
        cka: Linear CKA of each pair; NaN where activations do not vary.
        sites: The labels of the sites that were compared, by network.
        weighting: How much each prefix counts.
        n: Number of distinct prefixes.
    """

    names: tuple[str, ...]
    cka: Float64[Tensor, "network network"]
    sites: Mapping[str, tuple[str, ...]]
    weighting: Weighting
    n: int

    @property
    def lowest(self) -> float:
        """CKA of the two networks that are least alike."""
        return min(float(self.cka[i, j]) for i, j in itertools.combinations(range(len(self.names)), 2))

    def to_dataframe(self) -> pd.DataFrame:
        """CKA of each pair."""
        index = pd.Index(self.names, name="network")
        return pd.DataFrame(self.cka.numpy(), index=index, columns=list(self.names))

    def plot(self, *, theme: ThemeName = "light") -> Figure:
        """CKA of each pair, as a map."""
        from msp_lens.figures.edit_bars import plot_heat_map

        title = "Linear CKA between networks"
        return plot_heat_map(self.cka.numpy(), self.names, self.names, xlabel="", title=title, theme=theme)

    def summary(self) -> list[str]:
        """What was compared."""
        where = "; ".join(f"{name} at {', '.join(labels)}" for name, labels in self.sites.items())
        counted = {"probability": "by probability", "sequence": "by words", "prefix": "alike"}[self.weighting]
        return [f"Linear CKA of activations after the same {self.n:,} prefixes, which count {counted}: {where}."]

    def _title(self) -> str:
        return "How alike networks are"

    def _display(self) -> pd.DataFrame:
        return self.to_dataframe().map(lambda value: "–" if math.isnan(value) else f"{value:.4f}")


@checked
def similarity(
    models: Mapping[str, HookedModel],
    data: Process | BeliefDataset,
    *,
    sites: Mapping[str, Sites] | None = None,
    weighting: Weighting = "probability",
    seed: Seed = 0,
    batch_size: Count = 1_024,
) -> Similarity:
    """Linear CKA between the activations of several networks after the same prefixes, in one pass of each.

    Args:
        models: Hooked causal models of any architecture by name, at least two.
        data: A process, of which words of the shortest context are read, or a `BeliefDataset`.
        sites: For each network by name, the sites to read side by side; by default the last that `probe` reads.
        weighting: How much each prefix counts.
        seed: Of sampled words.
        batch_size: Words in one forward pass.

    Raises:
        KeyError: if a model lacks a site, or `sites` names no such model.
        ValueError: if there are fewer than two models, or one cannot read the words; before any is run.

    Example:
        >>> from msp_lens.models import ModelConfig, RecurrentConfig, build_model
        >>> from msp_lens.processes import mess3
        >>> configs = (ModelConfig(d_vocab=3, n_layers=1, n_ctx=4), RecurrentConfig(kind="gru", d_vocab=3, n_ctx=4))
        >>> models = {name: build_model(config) for name, config in zip(("transformer", "gru"), configs)}
        >>> similarity(models, mess3(x=0.05, a=0.85)).sites
        {'transformer': ('ln_final',), 'gru': ('0_hidden',)}
    """
    if len(models) < 2:
        raise ValueError(f"models names {len(models)}: give at least two networks to compare.")
    if unknown := [name for name in sites or {} if name not in models]:
        there_are = ", ".join(map(repr, models))
        raise KeyError(f"sites names {unknown[0]!r}; there are the models {there_are}.{meant(unknown[0], models)}")
    chosen = {
        name: list(find_sites(model, sites[name])) if sites and name in sites else list(find_sites(model, None))[-1:]
        for name, model in models.items()
    }
    if isinstance(data, Process):
        data = evaluation_words(data, min(map(word_length, models.values())), seed=seed)
    for model in models.values():
        check_fits(model, data.process, data.n_ctx, token_map=data.token_map)
    rows = LabelledTokens.from_beliefs(data, weighting=weighting)
    passes = [model_rows(model, rows, chosen[name], batch_size=batch_size) for name, model in models.items()]
    moments: Moments | None = None
    for batches in zip(*passes, strict=True):
        blocks = {
            name: torch.cat([batch.features[site].cpu().double() for site in chosen[name]], dim=1)
            for name, batch in zip(models, batches, strict=True)
        }
        if moments is None:
            moments = Moments({name: values.shape[1] for name, values in blocks.items()})
        moments.update(torch.cat(list(blocks.values()), dim=1), batches[0].weights)
    assert moments is not None
    labels = {name: tuple(map(site_label, found)) for name, found in chosen.items()}
    return Similarity(tuple(models), linear_cka(moments), labels, weighting, moments.n)


def linear_cka(moments: Moments) -> Float64[Tensor, "block block"]:
    """Linear CKA between the blocks of moments; NaN where a block does not vary."""
    names = list(moments.blocks)
    norms = torch.tensor([[float(moments.covariance(a, b).norm()) for b in names] for a in names], dtype=torch.float64)
    own = norms.diagonal()
    return norms.square() / torch.outer(own, own)
