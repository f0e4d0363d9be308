"""Words drawn evenly: a batch in which every prefix occurs as nearly as can be in proportion to its probability.

Lay all words end to end in alphabetical order, each as long as its probability. Every number in [0, 1) then lies in one
word, and a uniform number gives a word of the process. Step k of a training takes the words at

    (i + u_k) / batch_size,  i = 0 … batch_size - 1,  with u_k = u_0 + k (√5 - 1) / 2  modulo 1.

Each number by itself is uniform, so the expected gradient is that of independent words. Its noise is smaller, because
the numbers are spread evenly within a batch and from batch to batch. This is randomized quasi-Monte Carlo (Cranley and
Patterson 1976), as used for stochastic gradients by Buchholz, Wenzel and Mandt (2018, arXiv 1807.01604).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens._random import derived_generator
from msp_lens.beliefs.filtering import next_token_probabilities
from msp_lens.processes.process import Process
from msp_lens.processes.sampling import cumulative_probabilities

_GOLDEN = (math.sqrt(5) - 1) / 2


def even_numbers(steps: range, batch_size: int, *, seed: int) -> Float64[Tensor, "step word"]:
    """The numbers in [0, 1) of these steps of a training, each step's in ascending order."""
    start = torch.rand(1, dtype=torch.float64, generator=derived_generator(seed, "strata"))
    shift = (start + torch.tensor(steps, dtype=torch.float64) * _GOLDEN) % 1
    return (torch.arange(batch_size, dtype=torch.float64) + shift.unsqueeze(1)) / batch_size


def words_at(
    process: Process, numbers: Float64[Tensor, "word"], length: int, *, generator: torch.Generator
) -> Int[Tensor, "word pos"]:
    """The words in which these numbers lie when all words of this length are laid end to end.

    A number has 53 bits. Where the tokens so far have used half of them up, a fresh number from the generator decides
    the next tokens.
    """
    belief = process.initial.expand(len(numbers), -1)
    used = torch.ones_like(numbers)
    words = torch.empty(len(numbers), length, dtype=torch.int64)
    rows = torch.arange(len(numbers))
    for position in range(length):
        probabilities = next_token_probabilities(process, belief)
        shares = probabilities / probabilities.sum(dim=1, keepdim=True)
        token = (numbers.unsqueeze(1) >= cumulative_probabilities(shares)).sum(dim=1)
        share = probabilities[rows, token]
        numbers = ((numbers - (shares.cumsum(dim=1)[rows, token] - share)) / share).clamp(0, 1 - 2**-53)
        used = used * share
        is_used_up = used < 2.0**-26
        fresh = torch.rand(len(numbers), dtype=torch.float64, generator=generator)
        numbers, used = torch.where(is_used_up, fresh, numbers), torch.where(is_used_up, 1.0, used)
        belief, _ = process.bayes_step(belief, token)
        words[:, position] = token
    return words
