"""Attention by lag, beside what attention alone can do best.

One attention layer adds what each token says by itself, decayed by its age (`constrained_beliefs`):

    r_d - π = Σ_s δ(z_s) T^(d-s),    δ(z) = π T[z] / (π T[z] w) - π,    T = Σ_x T[x].

Where all that tokens say decays at one rate ζ, as for Mess3 with ζ = 1 - 3x, a single head does so with

    A[d + m, s] = ζ^m A[d, s] for d > s,    and values whose output is parallel to δ(z).

Weights of a softmax sum to 1, so some position must take what is left: the first one, which is kept apart here, as is
lag 0, where the residual stream carries the token anyway. What all heads together add is compared by the *effective*
attention, signs included: the slope of what key s adds to query d, read as a constrained belief, on δ(z_s),

    a[d, s] = E (Σ_h A^h[d, s] (v^h_s - v̄^h_s) W_O^h W) · δ(z_s) / E |δ(z_s)|²,    W: from activations to r,

which should be E (δ T^m) · δ / E |δ|² at lag m: ζ^m, if there is one rate.

Source: Piotrowski et al. 2025, "Constrained belief updates explain geometric structures in transformer
representations" (arXiv 2502.01954).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import one_hot

from msp_lens._checks import Count, Seed, checked
from msp_lens.beliefs.constrained import attention_heads_needed, constrained_beliefs, decay_rates
from msp_lens.controls.untrained_twins import untrained_twins
from msp_lens.data import BeliefDataset, LabelledTokens
from msp_lens.data.labelled import BELIEF
from msp_lens.data.splits import Folds
from msp_lens.models.hooked import HookedModel, site_index
from msp_lens.models.sites import site_label
from msp_lens.moments.folds import Cells
from msp_lens.probing.geometry import explained
from msp_lens.processes.process import Process
from msp_lens.representation import folded_moments as folded
from msp_lens.representation.attention_decay import by_lag, fit_decay
from msp_lens.representation.attention_reading import attention_layers, output_weights, stream_attention
from msp_lens.representation.attention_report import AttentionByLag, HeadAttention, NetworkAttention, SiteReading

CONSTRAINED = "constrained belief"
TRAINED = "trained"
# Tokens that a word needs for a decay to be seen: a first one, a key and two later queries.
_SHORTEST = 4


@checked
def attention_by_lag(
    model: HookedModel,
    data: Process | BeliefDataset,
    *,
    n_words: Count | None = None,
    untrained: int | Sequence[HookedModel] = 1,
    n_folds: Folds = 5,
    seed: Seed = 0,
    batch_size: Count | None = None,
) -> AttentionByLag:
    """Compare each head's attention by lag with what the constrained beliefs of a process ask for.

    Args:
        model: A causal transformer with TransformerLens's hooks.
        data: The process that it was trained on, or a `BeliefDataset` to average over.
        n_words: Every possible word of the model's context if there are at most this many, else this many drawn; by
            default 20,000, or fewer of more than ten tokens.
        untrained: How many untrained twins to measure beside it, or the twins themselves.
        n_folds: Parts of the prefixes, each held out in turn where beliefs are read.
        seed: Of drawn words, folds and twins.
        batch_size: Words in one forward pass.

    Raises:
        ValueError: if the model does not fit the words or has no attention to read; if words have fewer than four
            tokens, or a symbol is not one token to the model; if no twin can be built from the model's config.
    """
    layers = attention_layers(model)
    _check_length(data, folded.checked_length(data, model))
    twins = untrained_twins(model, untrained, [f"blocks.{layer}.hook_attn_out" for layer in layers], seed=seed)
    dataset, described = folded.words_of(data, model, n_words, seed)
    process = dataset.process
    evidence, asked = _evidence(process, dataset.n_ctx)
    additive = constrained_beliefs(process, dataset.tokens)
    labelled = LabelledTokens.from_beliefs(dataset, targets={CONSTRAINED: additive})

    def measured(network: HookedModel, name: str) -> NetworkAttention:
        sites = _sites(network, layers)
        cells = folded.folded_moments(
            network, labelled, sites, n_folds=n_folds, seed=seed, by_position=True, batch_size=batch_size
        )
        heads = []
        for layer in layers:
            heads += _heads(network, dataset, layer, cells[_after_attention(network, layer)], evidence, batch_size)
        return NetworkAttention(name, tuple(heads), tuple(_site_reading(site, each) for site, each in cells.items()))

    return AttentionByLag(
        trained=measured(model, TRAINED),
        untrained=tuple(measured(twin, name) for name, twin in twins),
        rates=decay_rates(process),
        heads_needed=attention_heads_needed(process),
        asked=asked,
        description=f"{described}; R² held out by prefix in {n_folds} folds, at positions with prefixes enough for a "
        "map of their own.",
    )


def _check_length(data: Process | BeliefDataset, n_ctx: int) -> None:
    """Raise `ValueError` if words are too short for a decay, or a symbol has no column of its own."""
    # The first column is kept apart.
    length = folded.symbol_columns(data)[0].shape[1] if isinstance(data, BeliefDataset) else n_ctx
    if length < _SHORTEST:
        raise ValueError(
            f"Words have {length} tokens: a decay shows in words of at least {_SHORTEST}. Give longer words."
        )


def _evidence(process: Process, n_ctx: int) -> tuple[Float64[Tensor, "token state"], Float64[Tensor, "lag"]]:
    """What each token says by itself, δ(z), 0 if it never occurs; and what attention should add at each lag."""
    joint = process.stationary @ process.transitions
    probabilities = joint @ process.right_eigenvector
    says = torch.where(probabilities.unsqueeze(1) > 0, joint / probabilities.unsqueeze(1) - process.stationary, 0.0)
    decayed, asked = says, []
    for _ in range(n_ctx):
        asked.append(probabilities @ (decayed * says).sum(dim=1))
        decayed = decayed @ process.state_transitions
    asked = torch.stack(asked)
    return says, asked / asked[0] if asked[0] > 0 else torch.full_like(asked, math.nan)


def _after_attention(model: HookedModel, layer: int) -> str:
    labels = site_index(model).labels
    return labels.get(f"{layer}_mid") or labels[f"{layer}_post"]


def _sites(model: HookedModel, layers: Sequence[int]) -> list[str]:
    """What attention adds, the residual stream after it, and after the last layer, each once."""
    labels = site_index(model).labels
    found = [name for layer in layers for name in (labels[f"{layer}_attn_out"], _after_attention(model, layer))]
    return list(dict.fromkeys([*found, labels[f"{layers[-1]}_post"]]))


def _site_reading(site: str, cells: Cells) -> SiteReading:
    of_each, of_all = folded.held_out_r2_by_position, folded.held_out_r2
    return SiteReading(
        site=site_label(site),
        constrained=of_each(cells, site, CONSTRAINED),
        belief=of_each(cells, site, BELIEF),
        constrained_everywhere=of_all(cells, site, CONSTRAINED),
        belief_everywhere=of_all(cells, site, BELIEF),
        variance=explained(cells.whole.covariance(site, site))[:6],
    )


def _heads(
    model: HookedModel,
    dataset: BeliefDataset,
    layer: int,
    cells: Cells,
    evidence: Float64[Tensor, "token state"],
    batch_size: int | None,
) -> list[HeadAttention]:
    """Each head of a layer, then all of them together."""
    _, columns = folded.symbol_columns(dataset)
    (after,) = set(cells.whole.blocks) - {CONSTRAINED, BELIEF}
    within = folded.within_positions(folded.at_positions(cells))
    read = folded.SOLVER.solve(folded.SOLVER.decompose(within, after), CONSTRAINED).weights
    sums = _sums(model, dataset, layer, read, evidence, batch_size)
    # The first column takes what a softmax leaves over, whether it is a symbol or a start token.
    first_key = int(columns[0] == 0)
    pattern = sums["pattern"][:, columns][..., columns]
    slope = sums["product"] - torch.einsum("shb,hdsb->hds", sums["mean"], sums["said"])
    effective = (slope / sums["squares"])[:, columns]
    outputs = sums["by token"] / sums["frequencies"].clamp(min=1e-300).unsqueeze(1)

    def described(label: str, own: Tensor, added: Tensor, output: Tensor, first: float) -> HeadAttention:
        (decay, fit), (rate, rate_fit) = fit_decay(own, first_key), fit_decay(added, first_key)
        alignment, gram = _parallel(output, read, evidence, sums["frequencies"])
        lags = by_lag(own, first_key), by_lag(added, first_key)
        return HeadAttention(label, lags[0], first, decay, fit, lags[1], rate, rate_fit, alignment, gram)

    first = sums["pattern"][:, 1:, 0].mean(dim=1).tolist()
    rows = zip(pattern, effective, outputs, first, strict=True)
    found = [described(f"L{layer}H{head}", *row) for head, row in enumerate(rows)]
    # The outputs of several heads add up by how much later queries attend.
    shares = pattern[:, :, first_key:].tril(-1).mean(dim=(1, 2))
    together = effective.sum(dim=0), torch.einsum("h,hzm->zm", shares, outputs)
    return [*found, described(f"layer {layer}", torch.full_like(pattern[0], math.nan), *together, math.nan)]


def _sums(
    model: HookedModel,
    dataset: BeliefDataset,
    layer: int,
    read: Float64[Tensor, "d_model state"],
    evidence: Float64[Tensor, "token state"],
    batch_size: int | None,
) -> dict[str, Tensor]:
    """Expectations over words, by head, query and key, from one pass over the layer's attention.

    Of the pattern; of what values add at each key, read as a belief; of the pattern times the product of that with what
    the key's token says, and times what it says; and of what values add for each token, after the first symbol.
    """
    tokens, columns = folded.symbol_columns(dataset)
    written, says, n_tokens = output_weights(model, layer).double(), evidence[dataset.tokens], len(evidence)
    sums: dict[str, Tensor] = {}
    for batch in stream_attention(model, tokens, layer, batch_size=batch_size):
        weights, said, read_here = dataset.word_weights[batch.words], says[batch.words], batch.pattern.cpu().double()
        is_token = one_hot(dataset.tokens[batch.words][:, 1:], n_tokens).double()
        added = torch.einsum("wshf,hfm->wshm", batch.values.cpu().double()[:, columns], written)
        believed, to_symbols = added @ read, read_here[..., columns]
        agreeing = torch.einsum("w,wshb,wsb->wsh", weights, believed, said)
        parts = {
            "pattern": torch.einsum("w,whds->hds", weights, read_here),
            "mean": torch.einsum("w,wshb->shb", weights, believed),
            "product": torch.einsum("whds,wsh->hds", to_symbols, agreeing),
            "said": torch.einsum("whds,wsb->hdsb", to_symbols, weights[:, None, None] * said),
            "squares": torch.einsum("w,wsb->s", weights, said**2),
            "by token": torch.einsum("wsz,wshm->hzm", weights[:, None, None] * is_token, added[:, 1:]),
            "frequencies": torch.einsum("w,wsz->z", weights, is_token),
        }
        sums = {name: sums[name] + part if sums else part for name, part in parts.items()}
    return sums


def _parallel(
    outputs: Float64[Tensor, "token d_model"],
    read: Float64[Tensor, "d_model state"],
    evidence: Float64[Tensor, "token state"],
    frequencies: Float64[Tensor, "token"],
) -> tuple[float, float]:
    """Cosines, over tokens by their frequency, of outputs read as beliefs and of Gram matrices, with the evidence."""
    shares = (frequencies / frequencies.sum()).unsqueeze(1)
    outputs = (outputs - (shares * outputs).sum(dim=0)) * shares.sqrt()
    says = (evidence - (shares * evidence).sum(dim=0)) * shares.sqrt()
    return _cosine(outputs @ read, says), _cosine(outputs @ outputs.T, says @ says.T)


def _cosine(a: Tensor, b: Tensor) -> float:
    norms = float(a.norm() * b.norm())
    return float((a * b).sum()) / norms if norms > 0 else math.nan
