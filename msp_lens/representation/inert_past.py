"""More than the belief: what else of the past a network holds, and whether it needs it.

The belief is all of the past that predicts the future. Given it, other things may still be read: which token came m
steps ago, or what the state was then. How much so is a partial R², held out by prefix,

    1 - E|y - ŷ(b, h)|² / E|y - ŷ(b)|²,    ŷ: affine, with a mean for each position,

or with the products of b's entries beside b, so that nothing that bends with the belief counts as more than it.

What is read beyond the belief may be used all the same. So it is erased at every position, by LEACE of what is read of
y and is uncorrelated with the belief read,

    h - (h - μ_t) V (Vᵀ Σ V)⁺ Vᵀ Σ,    V = W_y - W_b (W_bᵀ Σ W_b)⁺ W_bᵀ Σ W_y,

with W_b and W_y the least-squares maps of activations to b and y, Σ the activations' covariance and μ_t their mean at
each position. Vᵀ Σ W_b = 0, so that exactly the same belief is read afterwards, and no more of y than follows from it.
Beside it stand as many random directions that leave the belief read alone, too.

Source: LEACE is from Belrose et al. 2023 (arXiv 2306.03819).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from jaxtyping import Float64, Int
from torch import Tensor
from torch.nn.functional import one_hot

from msp_lens._checks import Count, Seed, checked
from msp_lens._random import derived_generator
from msp_lens.beliefs.smoothing import smoothed_beliefs
from msp_lens.controls.untrained_twins import untrained_twins
from msp_lens.data import BeliefDataset, LabelledTokens
from msp_lens.data.labelled import BELIEF
from msp_lens.data.splits import Folds
from msp_lens.interventions.necessity import worth_of_context
from msp_lens.interventions.preparation import ALL_SITES, untrained_end
from msp_lens.models.hooked import HookedModel, editing, find_sites
from msp_lens.models.sites import Sites, site_label
from msp_lens.moments import Moments
from msp_lens.moments.folds import Cells
from msp_lens.moments.solve import RANK_CUTOFF
from msp_lens.processes.process import Process
from msp_lens.representation import folded_moments as folded
from msp_lens.representation.past_report import BeyondBelief, Decodable, Erased
from msp_lens.training.regret import regret_by_position

TOKEN, STATE, BOTH = "token", "state", "token and state"
_QUADRATIC, _SHUFFLED = "products", "shuffled"
# Distinct prefixes of a position whose rows are scored; few prefixes weigh much, and are predicted badly held out.
_MANY, _FEWEST = 200, 20
# More states have too many products of two.
_MOST_STATES = 24
# Directions that read less than this share of what is asked for read nothing.
_NEGLIGIBLE = 1e-3


@checked
def beyond_belief(
    model: HookedModel,
    data: Process | BeliefDataset,
    sites: Sites = None,
    *,
    longest: Count = 4,
    n_words: Count | None = None,
    untrained: int | Sequence[HookedModel] = 1,
    n_random: Count = 3,
    n_folds: Folds = 5,
    seed: Seed = 0,
    batch_size: Count | None = None,
) -> BeyondBelief:
    """What of the past can be read at each site beyond the belief, and whether the network needs it.

    Args:
        model: A causal network with TransformerLens's hooks that predicts the next token.
        data: The process that it was trained on, or a `BeliefDataset` to average over.
        sites: As for `find_sites`; by default the residual stream.
        longest: The longest lag: tokens 0 … `longest` steps ago, and states 1 … `longest` steps ago.
        n_words: Every possible word of the model's context if there are at most this many, else this many drawn; by
            default 10,000, or fewer of more than 20 tokens.
        untrained: How many untrained twins to read beside it, or the twins themselves.
        n_random: How often as many random directions are erased.
        n_folds: Parts of the prefixes, each held out in turn.
        seed: Of drawn words, folds, twins, shuffling and random directions.
        batch_size: Words in one forward pass.

    Raises:
        ValueError: if the model does not fit the words, or a symbol is not one token to it; if words are no longer than
            `longest`, or there are too few to hold any out; if no twin can be built.
        KeyError: if the model lacks a site.
    """
    names = find_sites(model, sites)
    n_ctx = folded.checked_length(data, model)
    if isinstance(data, BeliefDataset):
        folded.symbol_columns(data)
    if longest >= n_ctx:
        raise ValueError(f"longest={longest}: words have {n_ctx} tokens, so give at most {n_ctx - 1}.")
    twins = untrained_twins(model, untrained, names, seed=seed)
    dataset, described = folded.words_of(data, model, n_words, seed, most=10_000)
    past = _past(dataset, longest)
    labelled = _labelled(dataset, past, seed)

    def read(network: HookedModel) -> dict[str, Cells]:
        options = {"n_folds": n_folds, "seed": seed, "by_position": True, "batch_size": batch_size}
        return folded.folded_moments(network, labelled, names, **options)

    if int(labelled.positions.clamp(min=0).bincount().max()) < _FEWEST:
        raise ValueError(
            f"{described}: no position has {_FEWEST} distinct prefixes, so nothing can be held out. Give longer words."
        )
    cells = read(model)
    found = [decodable for site, each in cells.items() for decodable in _decodable(site, each, past)]
    for name, twin in twins:
        others = {
            (each.site, each.what, each.lag): each
            for site, c in read(twin).items()
            for each in _decodable(site, c, past)
        }
        found = [
            replace(each, untrained={**each.untrained, name: others[each.site, each.what, each.lag].partial})
            for each in found
        ]
    erased, caution = _erased(model, dataset, cells, past, n_random, seed, batch_size)
    return BeyondBelief(
        tuple(found),
        tuple(erased),
        n_random=n_random,
        cautions=tuple(caution),
        description=f"{described}; R² held out by prefix in {n_folds} folds.",
    )


def _past(dataset: BeliefDataset, longest: int) -> dict[str, Float64[Tensor, "word pos target"]]:
    """What may be read of the past, by name, 0 where it does not reach back so far."""
    process, found = dataset.process, {}
    tokens = one_hot(dataset.tokens, process.n_tokens).double()
    for lag in range(longest + 1):
        shifted = torch.zeros_like(tokens)
        shifted[:, lag:] = tokens[:, : tokens.shape[1] - lag]
        found[f"{TOKEN} {lag}"] = shifted
    if not process.is_generalized:
        for lag in range(1, longest + 1):
            found[f"{STATE} {lag}"] = smoothed_beliefs(process, dataset.tokens, lag).nan_to_num(0.0)
    return found


def _labelled(dataset: BeliefDataset, past: Mapping[str, Tensor], seed: int) -> LabelledTokens:
    """The prefixes with their beliefs, the products of these, the past, and the past of other prefixes as long."""
    states = dataset.process.n_states
    targets = dict(past)
    if 1 < states <= _MOST_STATES:
        first, second = torch.triu_indices(states, states, offset=1)
        targets[_QUADRATIC] = dataset.beliefs[..., first] * dataset.beliefs[..., second]
    # One permutation of words keeps the position, and all prefixes as often as they are.
    order = torch.randperm(len(dataset), generator=derived_generator(seed, _SHUFFLED))
    targets |= {f"{_SHUFFLED} {name}": values[order] for name, values in past.items()}
    return LabelledTokens.from_beliefs(dataset, targets=targets)


def _decodable(site: str, cells: Cells, past: Mapping[str, Tensor]) -> list[Decodable]:
    """Each thing's partial R² at a site, given the belief and given its products too, and when it is shuffled."""
    positions = folded.positions_with(cells, _MANY) or folded.positions_with(cells, _FEWEST)
    widths = cells.whole.blocks
    columns = [widths[name] for name in past]
    shuffled = [f"{_SHUFFLED} {name}" for name in past]

    def errors(features: Sequence[str], targets: Sequence[str]) -> Float64[Tensor, "thing"]:
        of_columns = folded.errors_within_positions(positions, features, targets)
        return torch.stack([part.sum() for part in of_columns.split(columns)])

    spread = errors((), list(past))
    given, with_site = errors((BELIEF,), list(past)), errors((BELIEF, site), list(past))
    beside = (BELIEF, _QUADRATIC) if _QUADRATIC in widths else (BELIEF,)
    quadratic, quadratic_with_site = errors(beside, list(past)), errors((*beside, site), list(past))
    chance, chance_with_site = errors((BELIEF,), shuffled), errors((BELIEF, site), shuffled)

    def partial(without: Tensor, within: Tensor, index: int) -> float:
        # Where hardly anything is left, there is nothing to read.
        left = float(without[index] / spread[index]) if spread[index] > 0 else 0.0
        return float(1 - within[index] / without[index]) if left > _NEGLIGIBLE else math.nan

    return [
        Decodable(
            site=site_label(site),
            what=name.rsplit(" ", 1)[0],
            lag=int(name.rsplit(" ", 1)[1]),
            left=float(given[k] / spread[k]) if spread[k] > 0 else math.nan,
            partial=partial(given, with_site, k),
            partial_quadratic=partial(quadratic, quadratic_with_site, k) if _QUADRATIC in widths else math.nan,
            shuffled=partial(chance, chance_with_site, k),
            untrained={},
        )
        for k, name in enumerate(past)
    ]


def _erased(
    model: HookedModel,
    dataset: BeliefDataset,
    cells: Mapping[str, Cells],
    past: Mapping[str, Tensor],
    n_random: int,
    seed: int,
    batch_size: int | None,
) -> tuple[list[Erased], list[str]]:
    """Regret with each kind of thing erased at each site, and at all sites, and with as many random directions."""

    def regret(edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Float64[Tensor, "pos"]:
        with editing(model, edits) if edits else nullcontext():
            return regret_by_position(model, dataset, batch_size=batch_size)

    _, columns = folded.symbol_columns(dataset)
    alone = regret({})
    caution = untrained_end(alone)
    trained = slice(None, -1) if caution else slice(None)
    worth = float(worth_of_context(dataset)[trained].mean())
    kinds = {TOKEN: [n for n in past if n.startswith(TOKEN)], STATE: [n for n in past if n.startswith(STATE)]}
    kinds = {kind: names for kind, names in (kinds | {BOTH: list(past)}).items() if names}
    at_each = {site: folded.at_positions(each) for site, each in cells.items()}
    within = {site: folded.within_positions(positions) for site, positions in at_each.items()}
    means = {site: torch.stack([part.block_mean(site) for part in positions]) for site, positions in at_each.items()}
    found = []
    for kind, names in kinds.items():
        directions = {site: directions_beyond(moments, site, names) for site, moments in within.items()}
        groups = [(site_label(site), [site]) for site in cells]
        groups += [(ALL_SITES, list(cells))] if len(cells) > 1 else []
        for label, group in groups:
            edits = {site: _erasing(within[site], site, directions[site], means[site], columns) for site in group}
            rank = sum(directions[site].shape[1] for site in group)
            # As it is: nothing is read beyond the belief, so nothing is erased.
            at_random = []
            for draw in range(n_random if rank else 0):
                drawn = {}
                for site in group:
                    source = derived_generator(seed, label, site, kind, draw)
                    random = random_beyond(within[site], site, directions[site].shape[1], source)
                    drawn[site] = _erasing(within[site], site, random, means[site], columns)
                at_random.append(float(regret(drawn)[trained].mean()))
            values = torch.tensor(at_random or [float(alone[trained].mean())], dtype=torch.float64)
            found.append(
                Erased(
                    site=label,
                    what=kind,
                    rank=rank,
                    variance=sum(_share(within[site], site, directions[site]) for site in group) / len(group),
                    alone=float(alone[trained].mean()),
                    regret=float((regret(edits) if rank else alone)[trained].mean()),
                    at_random=float(values.mean()),
                    spread=float(values.std()) if len(values) > 1 else math.nan,
                    worth=worth,
                )
            )
    return found, caution


def directions_beyond(moments: Moments, site: str, things: Sequence[str]) -> Float64[Tensor, "feature rank"]:
    """What to read of a site, V, to know the things as far as its read-out of the belief does not tell; a basis.

    Each column reads a number of variance 1 that is uncorrelated with the others and with the belief read. Directions
    that explain less than a thousandth of the things' variance are left out.
    """
    spectrum = folded.SOLVER.decompose(moments, [site])
    of_belief, of_things = (spectrum.ridge(targets, [0.0])[0].weights for targets in ([BELIEF], list(things)))
    covariance = moments.covariance(site, site)
    beyond = _without(of_things, of_belief, covariance)
    # The principal axes of what is read, in order of what they explain of the things.
    read = beyond.T @ covariance @ beyond
    eigenvalues, axes = torch.linalg.eigh((read + read.T) / 2)
    total = float(moments.covariance(list(things), list(things)).diagonal().sum())
    kept = eigenvalues > _NEGLIGIBLE * total
    return beyond @ axes[:, kept] / eigenvalues[kept].sqrt()


def random_beyond(
    moments: Moments, site: str, rank: int, generator: torch.Generator
) -> Float64[Tensor, "feature rank"]:
    """As many random directions that read nothing of what is read of the belief, uniform in whitened coordinates."""
    covariance = moments.covariance(site, site)
    of_belief = folded.SOLVER.decompose(moments, [site]).ridge([BELIEF], [0.0])[0].weights
    eigenvalues, basis = torch.linalg.eigh(covariance)
    kept = eigenvalues > eigenvalues[-1] * RANK_CUTOFF**2
    drawn = torch.randn(int(kept.sum()), rank, dtype=torch.float64, generator=generator)
    return _without((basis[:, kept] / eigenvalues[kept].sqrt()) @ drawn, of_belief, covariance)


def _without(read: Tensor, belief: Tensor, covariance: Tensor) -> Float64[Tensor, "feature target"]:
    """Read-outs made uncorrelated with those of the belief."""
    gram = belief.T @ covariance @ belief
    return read - belief @ torch.linalg.pinv(gram, rtol=RANK_CUTOFF**2, hermitian=True) @ belief.T @ covariance @ read


def _erasing(
    moments: Moments,
    site: str,
    read: Float64[Tensor, "feature rank"],
    means: Float64[Tensor, "pos feature"],
    columns: Int[Tensor, "pos"],
) -> Callable[[Tensor], Tensor]:
    """The edit of a site's activation that erases what `read` reads, at the columns of all symbols."""
    write = _write(moments, site, read)

    def edit(activation: Tensor) -> Tensor:
        first, second, mean = (each.to(activation) for each in (read, write, means[: len(columns)]))
        here = columns.to(activation.device)
        held = activation[:, here]
        edited = activation.clone()
        edited[:, here] = held - (held - mean) @ first @ second
        return edited

    return edit


def _write(moments: Moments, site: str, read: Float64[Tensor, "feature rank"]) -> Float64[Tensor, "rank feature"]:
    moved = read.T @ moments.covariance(site, site)
    return torch.linalg.pinv(moved @ read, rtol=RANK_CUTOFF**2, hermitian=True) @ moved


def _share(moments: Moments, site: str, read: Float64[Tensor, "feature rank"]) -> float:
    """The share of the activations' variance within positions that is erased."""
    covariance = moments.covariance(site, site)
    total = float(covariance.trace())
    return float((covariance @ read @ _write(moments, site, read)).trace()) / total if total > 0 else 0.0
