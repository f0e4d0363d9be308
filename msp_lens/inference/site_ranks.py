"""Which site spans the predictive space, whatever the process: reduced-rank regression of futures on activations.

The targets are the network's own probabilities of all futures v of some length, P(v | u), and the features are its
activations after the context u. The least-squares map of rank r from one to the other (Izenman 1975) says how well r
directions of the activations carry all futures. Probabilities sum to 1, so r directions beside the constant make r + 1
dimensions, as `predictive_rank` counts them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens._checks import Count, Seed, checked
from msp_lens._random import derived_generator
from msp_lens._tables import TableView
from msp_lens._values import Value
from msp_lens.data import TokenMap
from msp_lens.inference.predictor import Predictor, network_predictor, reader_of
from msp_lens.inference.word_probabilities import every_word, sampled_from_network
from msp_lens.models.activations import stream_activations
from msp_lens.models.hooked import HookedModel, site_groups
from msp_lens.models.sites import Sites
from msp_lens.models.symbol_reader import reading_symbols
from msp_lens.moments import Moments, Ridge
from msp_lens.moments.moments import merge_all
from msp_lens.moments.solve import mean_squared_errors, variances
from msp_lens.processes.validation import ArrayLike

FUTURES = "futures"
# Penalties tried, in units of the features' variance: the one that predicts best held out is used.
_PENALTIES = (1e-6, 1e-4, 1e-3, 1e-2, 0.1)
# Contexts of one length and futures, at most; few futures leave room for long contexts.
_MOST_CONTEXTS, _MOST_FUTURES = 3_000, 30
# A rank that lacks less than this share of the futures' variance lacks nothing worth a dimension.
_NEGLIGIBLE = 1e-3


@dataclass(frozen=True, eq=False)
class SiteRank(Value):
    """How many directions of one site carry the futures.

    Attributes:
        site: The site's label.
        dimensions: The smallest rank, and 1 for the constant, whose held-out error is within a standard error of the
            best one's, or within a thousandth of the variance.
        best: The rank, and 1, with the lowest held-out error.
        r2: R² of the futures, held out, at `dimensions`.
        r2_by_rank: The same for each rank from 0.
    """

    site: str
    dimensions: int
    best: int
    r2: float
    r2_by_rank: Float64[Tensor, "rank"]


@dataclass(frozen=True, eq=False, repr=False)
class SiteRanks(Value, TableView):
    """The sites of a network, and how many of their directions carry all futures; `site_ranks` makes it.

    Attributes:
        sites: In the order of the forward pass.
        n_contexts: How many contexts were read.
        future_length: Tokens in each future.
        n_folds: How often a part of the contexts was held out.
    """

    sites: tuple[SiteRank, ...]
    n_contexts: int
    future_length: int
    n_folds: int

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each site: dimensions, the best number of them, R² of futures at 2, 3, … and all dimensions."""
        rows = [
            {"site": each.site, "dimensions": each.dimensions, "best": each.best, "R²": each.r2}
            | {"R² all": float(each.r2_by_rank[-1])}
            for each in self.sites
        ]
        return pd.DataFrame(rows).set_index("site")

    def summary(self) -> list[str]:
        """What the numbers are."""
        return [
            f"How many dimensions of each site, the constant included, carry the network's own probabilities of all "
            f"futures of {self.future_length} tokens: the fewest within a standard error of the best (last column but "
            f"one: at these, last: at full rank). {self.n_contexts:,} contexts by probability, {self.n_folds} folds."
        ]

    def _title(self) -> str:
        return "The predictive dimensions of sites"

    def _display(self) -> pd.DataFrame:
        table = self.to_dataframe()
        shown = pd.DataFrame({name: table[name].astype(str) for name in ("dimensions", "best")})
        for name in ("R²", "R² all"):
            shown[name] = [f"{value:.5f}" for value in table[name]]
        return shown


@checked
def site_ranks(
    model: HookedModel,
    sites: Sites = None,
    *,
    n_ctx: Count | None = None,
    token_map: TokenMap | None = None,
    first: ArrayLike = None,
    n_folds: Count = 10,
    seed: Seed = 0,
) -> SiteRanks:
    """How many directions of each site carry the network's own probabilities of the future.

    Args:
        model: Any hooked causal model with logits.
        sites: As for `find_sites` and its groups; by default the residual stream.
        n_ctx: The longest word of symbols to read; by default as many as fit in its context.
        token_map: How the model reads symbols; by default each token of its vocabulary is one.
        first: Distribution of the first symbol, as for `network_predictor`.
        n_folds: Parts of the contexts, each held out in turn.
        seed: Of the folds, and of the contexts where there are too many.

    Raises:
        KeyError: if the model lacks a site.
        ValueError: if two symbols begin with the same token, its context is shorter than two symbols, or there are
            fewer contexts than folds.
    """
    groups = site_groups(model, sites)
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    longest = reader_of(model, n_ctx=n_ctx, token_map=token_map)[1] or 8
    if longest < 2:
        raise ValueError(f"n_ctx={longest}: a context and a future need two tokens at least.")
    predictor = network_predictor(model, n_ctx=n_ctx, token_map=token_map, first=first)
    reader = reading_symbols(model, token_map)
    future_length = max(1, min(longest // 2, int(math.log(_MOST_FUTURES, max(predictor.n_tokens, 2)))))
    contexts = _contexts(predictor, longest + 1 - future_length, seed)
    generator, parts, n_rows = derived_generator(seed, "folds"), None, sum(map(len, contexts))
    folds = [torch.randint(n_folds, (len(words),), generator=generator) for words in contexts]
    if len(torch.cat(folds).unique()) < n_folds:
        raise ValueError(f"n_folds={n_folds}: there are only {n_rows} contexts. Give fewer folds.")
    for words, fold in zip(contexts, folds, strict=True):
        futures, weights = _futures(predictor, words, future_length)
        for batch in stream_activations(reader, words, names, logits=False):
            chosen = torch.arange(batch.words.start, batch.words.stop)
            read = {name: batch.activations[name][:, -1].cpu().double() for name in names}
            rows = torch.cat([*read.values(), futures[chosen]], dim=1)
            if parts is None:
                blocks = {name: read[name].shape[1] for name in names} | {FUTURES: futures.shape[1]}
                parts = [Moments(blocks) for _ in range(n_folds)]
            for k in range(n_folds):
                here = fold[chosen] == k
                if here.any():
                    parts[k].update(rows[here], weights[chosen][here])
    assert parts is not None
    found = tuple(_site_rank(label, group, parts) for label, group in groups.items())
    return SiteRanks(found, n_rows, future_length, n_folds)


def _contexts(predictor: Predictor, longest: int, seed: int) -> list[Int[Tensor, "word pos"]]:
    """Contexts of each length: all of them, or distinct ones of a sample."""
    found = []
    for length in range(1, longest + 1):
        if predictor.n_tokens**length <= _MOST_CONTEXTS:
            found.append(every_word(predictor.n_tokens, length))
        else:
            found.append(torch.unique(sampled_from_network(predictor, _MOST_CONTEXTS, length, seed=seed), dim=0))
    return found


def _futures(
    predictor: Predictor, contexts: Int[Tensor, "word pos"], length: int
) -> tuple[Float64[Tensor, "word future"], Float64[Tensor, "word"]]:
    """P(v | u) for all futures of a length, and P(u), among contexts of this length."""
    n_tokens, n_ctx = predictor.n_tokens, contexts.shape[1]
    endings = every_word(n_tokens, length - 1)
    words = torch.cat([contexts.repeat_interleave(len(endings), dim=0), endings.repeat(len(contexts), 1)], dim=1)
    after = predictor.after(words)
    steps = after[:, n_ctx - 1 : -1].gather(2, words[:, n_ctx:].unsqueeze(2)).squeeze(2).prod(dim=1)
    futures = (steps.unsqueeze(1) * after[:, -1]).reshape(len(contexts), -1)
    weights = predictor.log_probabilities(contexts).exp()
    return futures, weights / weights.sum()


def _site_rank(label: str, group: tuple[str, ...], parts: list[Moments]) -> SiteRank:
    whole = merge_all(parts)
    most = min(sum(whole.blocks[name] for name in group), whole.blocks[FUTURES] - 1)
    weights = torch.tensor([part.weight for part in parts], dtype=torch.float64)
    tried = [_errors(group, parts, most, penalty) for penalty in _PENALTIES]
    errors = min(tried, key=lambda each: float((weights @ each).min()))
    mean, variance = weights @ errors / weights.sum(), float(variances(whole, [FUTURES]).sum())
    best = int(mean.argmin())
    # Of the difference from the best, fold by fold: what all folds find hard does not blur it.
    spread = (errors - errors[:, best : best + 1]).std(dim=0) / math.sqrt(len(parts))
    fewest = int((mean <= mean[best] + spread.clamp(min=_NEGLIGIBLE * variance)).nonzero()[0])
    r2 = 1 - mean / variance
    return SiteRank(label, fewest + 1, best + 1, float(r2[fewest]), r2)


def _errors(group: tuple[str, ...], parts: list[Moments], most: int, penalty: float) -> Float64[Tensor, "fold rank"]:
    """The error of the maps of each rank, from 0, on each part when they are solved from the others."""
    ranks, solver = list(range(1, most + 1)), Ridge(penalty=penalty)
    errors = torch.zeros(len(parts), most + 1, dtype=torch.float64)
    for k, held_out in enumerate(parts):
        rest = merge_all([part for each, part in enumerate(parts) if each != k])
        maps = solver.solve_by_rank(solver.decompose(rest, list(group)), [FUTURES], ranks)
        away = held_out.block_mean(FUTURES) - rest.block_mean(FUTURES)
        errors[k, 0] = (variances(held_out, [FUTURES]) + away**2).sum()
        for rank, each in zip(ranks, maps, strict=True):
            errors[k, rank] = mean_squared_errors(each, held_out, list(group), [FUTURES]).sum()
    return errors
