"""What follows from a belief: the later beliefs to which tokens lead, and the tokens it predicts.

A belief b' written at position t implies the belief b' T[x] / (b' T[x] 1) at t + 1 once token x is seen, and so on. To
move a network's trajectory, write these beliefs at every later position too: it still attends to a past that supports
the old belief.
"""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens._checks import AtLeast, checked
from msp_lens.beliefs.filtering import check_beliefs
from msp_lens.processes.process import Process
from msp_lens.processes.words import Words


@checked
def filter_from(
    process: Process, beliefs: Float64[Tensor, "word state"], tokens: Words
) -> Float64[Tensor, "word later state"]:
    """The given beliefs, and those after each of the tokens that follow: `[word, pos + 1, state]`.

    Raises:
        TypeError: if the tokens are neither numbers nor names.
        ValueError: if these are no beliefs, there is not one for each word, or a token is outside the vocabulary or
            impossible after the belief and the tokens before it.

    Example:
        >>> from msp_lens.processes.catalog import z1r
        >>> start = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
        >>> filter_from(z1r(), start, torch.tensor([[1, 0]]))[0]   # state 1, then R, then 0
        tensor([[0., 1., 0.],
                [0., 0., 1.],
                [1., 0., 0.]], dtype=torch.float64)
    """
    check_beliefs(process, beliefs)
    tokens = process.read_words(tokens, what="tokens")
    if len(tokens) != len(beliefs):
        raise ValueError(f"{len(beliefs)} beliefs for {len(tokens)} words: give one for each word.")
    filtered = follow(process, beliefs, tokens)
    impossible = filtered.isnan().any(dim=2)
    if impossible.any():
        word, position = impossible.nonzero()[0].tolist()
        raise ValueError(
            f"Word {word}: after its belief {beliefs[word].tolist()}, tokens {tokens[word, :position].tolist()} are "
            f"impossible for {process.name}. Draw tokens that are possible after the belief (continuations)."
        )
    return filtered


@checked
def follow(
    process: Process, beliefs: Float64[Tensor, "word state"], tokens: Words
) -> Float64[Tensor, "word later state"]:
    """The same as `filter_from`, but with NaN from the first impossible token on."""
    filtered = [beliefs]
    for token in process.read_words(tokens, what="tokens").T:
        filtered.append(process.bayes_step(filtered[-1], token)[0])
    return torch.stack(filtered, dim=1)


@checked
def continuations(
    process: Process,
    beliefs: Float64[Tensor, "word state"],
    length: Annotated[int, AtLeast(0)],
    *,
    generator: torch.Generator,
) -> Int[Tensor, "word pos"]:
    """`length` tokens to follow each belief, drawn from what it predicts; `ValueError` if one is no belief."""
    check_beliefs(process, beliefs)
    tokens = torch.empty(len(beliefs), length, dtype=torch.int64)
    for position in range(length):
        tokens[:, position] = draw_tokens(beliefs @ process.emissions, generator)
        beliefs = follow(process, beliefs, tokens[:, position : position + 1])[:, -1]
    return tokens


@checked
def draw_tokens(probabilities: Float64[Tensor, "word token"], generator: torch.Generator) -> Int[Tensor, "word"]:
    """A token for each word, in proportion to its probability; negative ones count as 0, which is never drawn."""
    return torch.multinomial(probabilities.clamp(min=0).to(generator.device), 1, generator=generator).squeeze(1).cpu()
