"""Infer the process whose words a network predicts, or that data come from: `msp.infer`.

Candidates are hidden Markov machines of 1, 2, … states, each the nearest to the source's words (`likelihood`), and the
generalized process that linear algebra gives (`operators`). They are judged by contexts longer than the words they were
fitted to. The one chosen has the lowest criterion

    KL per token + n_parameters log(n) / 2n,

where n is the number of tokens in the data, or for a network the number that its probabilities are taken to be worth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from msp_lens._checks import Count, Seed, checked
from msp_lens.beliefs.information import entropy_rate
from msp_lens.data import TokenMap
from msp_lens.inference.inference_report import (
    MAX_LEVEL,
    Candidate,
    Inference,
    best_candidate,
    price_of_parameter,
)
from msp_lens.inference.likelihood import check_starts, fit_machine
from msp_lens.inference.machine import divergence_rate, simplified
from msp_lens.inference.operators import Operators, spectral_operators
from msp_lens.inference.predictive_states import predictive_rank, stationarity_gap
from msp_lens.inference.source import Source, read_source
from msp_lens.inference.word_probabilities import WordProbabilities
from msp_lens.models.hooked import HookedModel
from msp_lens.processes.process import Process
from msp_lens.processes.validation import ArrayLike

# Steps of Baum and Welch's iteration for each number of states.
_STEPS = 300


@checked
def infer(
    source: HookedModel | Process | Int[Tensor, "word pos"],
    *,
    n_states: Count | Sequence[Count] | None = None,
    n_ctx: Count | None = None,
    token_map: TokenMap | None = None,
    first: ArrayLike = None,
    n_starts: Count = 32,
    max_words: Count = 8_000,
    max_states: Count = 8,
    n_worth: Count = 100_000,
    seed: Seed = 0,
    progress: bool = True,
) -> Inference:
    """The process whose words a network predicts, found from the network alone; or that of data, or of a process.

    Args:
        source: A hooked model with logits; or sequences of tokens, `[word, pos]`; or a process.
        n_states: Numbers of states to try. By default 1, 2, …, until more states stop lowering the criterion.
        n_ctx: The longest context of symbols; by default as many as fit in the model's context, or 12.
        token_map: How the model reads symbols; by default each token of its vocabulary is one.
        first: Distribution of the first symbol, which a network without BOS does not predict. By default that which
            makes the second symbol distributed alike.
        n_starts: Random starts for each number of states.
        max_words: Machines are fitted to all words of the greatest length that has no more, or to a sample of as many.
        max_states: The most states that are tried by default.
        n_worth: How many tokens a network's probabilities are worth in the criterion.
        seed: Of the starts, the samples and the bootstrap.
        progress: Whether to show a progress bar.

    Raises:
        TypeError: if the source is neither a model, a process nor tokens.
        ValueError: if contexts are shorter than two tokens, or symbols begin with the same token.

    Source: Jaeger 2000 and Hsu, Kakade & Zhang 2012 (operators); Baum, Petrie, Soules & Weiss 1970 (machines); the
    question is that of Shai et al. 2024 (arXiv 2405.15943) the other way round.

    Example:
        >>> from msp_lens.processes.catalog import golden_mean
        >>> found = infer(golden_mean(p=0.5), n_ctx=6, progress=False)
        >>> found.process.states, found.is_trusted
        (('0', '1'), True)
    """
    numbers = _numbers(n_states, max_states)
    read = read_source(source, n_ctx=n_ctx, token_map=token_map, first=first, max_words=max_words, seed=seed)
    words, worth = read.words, read.words.n_seen or n_worth
    if n_states is not None:
        check_starts(words, max(numbers), n_starts)
    rank = predictive_rank(words, seed=seed)
    operators = spectral_operators(words, rank.rank)
    candidates: list[Candidate] = []
    with tqdm(total=_STEPS, disable=not progress, unit="step", leave=False) as bar:
        for k in numbers:
            # At most so many steps: fits that stand still end earlier.
            bar.reset(total=_STEPS)
            bar.set_description(f"Fitting machines of {k} state{'s' * (k > 1)}")
            fit = fit_machine(words, k, n_starts=n_starts, n_steps=_STEPS, seed=seed, progress=bar.update)
            candidates.append(Candidate.of(fit.process, read.judge(fit.process), worth, fit=fit))
            is_beyond = k > rank.rank and k >= best_candidate(candidates).process.n_states + 1 + rank.is_growing
            if n_states is None and is_beyond:
                break
    candidates += _generalized(operators, read, worth)
    best = best_candidate(candidates)
    process, cost = best.process, 0.0
    if not process.is_generalized:
        tolerance = max(best.divergence, 1e-9)
        process = simplified(process, tolerance=tolerance, per_parameter=price_of_parameter(worth))
        cost = divergence_rate(process, best.process)
    process = _renamed(process, f"inferred from {read.name}")
    return Inference(
        process=process,
        candidates=tuple(candidates),
        rank=rank,
        operators=operators,
        entropy_rate=entropy_rate(process, max_level=MAX_LEVEL).value,
        memory=read.judge(_without_memory(words)),
        stationarity_gap=stationarity_gap(words),
        simplification=cost,
        provenance={
            "source": read.name,
            "kind": read.kind,
            "fingerprint": read.fingerprint,
            "word_length": words.length,
            "n_words": len(words.tokens),
            "is_population": words.is_population,
            "is_held_out": read.is_held_out,
            "n_ctx": read.contexts.shape[1],
            "n_worth": worth,
            "n_starts": n_starts,
            "seed": seed,
            "notes": list(words.notes),
        },
    )


def _numbers(n_states: int | Sequence[int] | None, max_states: int) -> Sequence[int]:
    if n_states is None:
        return range(1, max_states + 1)
    numbers = [n_states] if isinstance(n_states, int) else sorted(set(n_states))
    if not numbers:
        raise ValueError("n_states=[]: give at least one number of states, or None.")
    return numbers


def _generalized(operators: Operators, source: Source, worth: int) -> Iterator[Candidate]:
    """The operators as a candidate, unless noise makes a word's probability negative."""
    try:
        process = operators.to_process(f"{operators.dimension} dimensions")
    except ValueError:
        return
    found = operators.word_probabilities(source.words.tokens).clamp_min(0)
    own = source.words.probabilities
    divergence = float((own * (own.log() - found.log())).sum()) / source.words.length
    yield Candidate.of(process, source.judge(process), worth, divergence=divergence)


def _without_memory(words: WordProbabilities) -> Process:
    """The process of the same tokens in which none tells anything of the next."""
    single = words.part(0, 1)
    shares = torch.full((words.n_tokens,), 1e-13, dtype=torch.float64)
    shares[single.tokens[:, 0]] += single.probabilities
    return Process((shares / shares.sum()).reshape(-1, 1, 1), name="no memory")


def _renamed(process: Process, name: str) -> Process:
    return Process.from_dict({**process.to_dict(), "name": name})
