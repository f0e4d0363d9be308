"""Checks of the matrices and vectors that define a process."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import permutations
from numbers import Integral
from typing import Any, TypeAlias

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float64
from torch import Tensor

from msp_lens._checks import converted, shown
from msp_lens.processes.chains import RANK_TOLERANCE

# Real numbers in any container: whatever `float64` reads.
ArrayLike: TypeAlias = Any

ROW_SUM_TOLERANCE = 1e-6
# A sum this close to 1 differs from it only by rounding: such values are kept to the last bit.
ROUNDING = 1e-12
# How far a generalized process may violate its equations, and its word probabilities be below 0.
GENERALIZED_TOLERANCE = 1e-9


def float64(values: ArrayLike, what: str) -> Float64[Tensor, "..."]:
    """Finite real numbers as a new tensor on the CPU; errors call them `what`."""
    return converted(values, Float64[Tensor, "..."], what).detach().cpu().clone()


def validated_transitions(values: ArrayLike, *, generalized: bool) -> Float64[Tensor, "token state state"]:
    """One finite square matrix per token, in float64 on the CPU; of joint probabilities unless generalized."""
    matrices = float64(values, "transitions")
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or 0 in matrices.shape:
        raise ValueError(
            f"transitions has shape {tuple(matrices.shape)}; it needs [token, state, state], a square matrix per token."
            f"{_other_order(matrices)}"
        )
    if generalized:
        return matrices
    remedy = "(For a generalized process, with negative entries, use Process(..., generalized=True).)"
    _check_entries(matrices, matrices >= 0, f"probabilities must be ≥ 0. {remedy}")
    row_sums = matrices.sum(dim=(0, 2))
    worst = int((row_sums - 1).abs().argmax())
    if abs(float(row_sums[worst]) - 1) > ROW_SUM_TOLERANCE:
        raise ValueError(
            f"The transitions out of state {worst} sum to {float(row_sums[worst]):g} over tokens and next states, "
            "not to 1: transitions[x, i, j] is the joint probability P(emit x, go to j | in i)."
            f"{_other_order(matrices)}"
        )
    needs_normalizing = (row_sums - 1).abs() > ROUNDING
    return matrices / torch.where(needs_normalizing, row_sums, 1.0)[None, :, None]


def _other_order(matrices: Tensor) -> str:
    """A hint, if the axes in another order hold the probabilities of a process."""
    if matrices.ndim == 3:
        for order in permutations(range(3)):
            moved = matrices.permute(order)
            is_square = moved.shape[1] == moved.shape[2] and 0 not in moved.shape
            if is_square and ((moved.sum(dim=(0, 2)) - 1).abs() <= ROW_SUM_TOLERANCE).all():
                return f" Are the axes in another order? np.transpose(transitions, {order}) is one."
    return ""


def _check_entries(
    matrices: Float64[Tensor, "token state state"], is_valid: Bool[Tensor, "token state state"], rule: str
) -> None:
    if not is_valid.all():
        place = (~is_valid).nonzero()[0].tolist()
        raise ValueError(f"transitions{place} = {float(matrices[tuple(place)]):g}: {rule}")


def validated_distribution(values: ArrayLike, length: int, what: str) -> Float64[Tensor, "state"]:
    """The values as a probability vector of the given length; errors call it `what`."""
    vector = _finite_vector(values, length, what)
    if (vector < 0).any():
        raise ValueError(f"{what}={shown(vector.tolist())} is not a distribution: give numbers ≥ 0.")
    total = float(vector.sum())
    if abs(total - 1) > ROW_SUM_TOLERANCE:
        raise ValueError(f"{what}={shown(vector.tolist())} sums to {total:g}, not to 1: normalize it first.")
    return vector if abs(total - 1) <= ROUNDING else vector / total


def validated_names(names: Sequence[str | int] | None, count: int, what: str) -> tuple[str, ...]:
    """`count` distinct names, by default numbers."""
    result = tuple(str(name) for name in (range(count) if names is None else names))
    if len(result) != count or len(set(result)) != count or "" in result:
        raise ValueError(f"{what}={shown(result)}: the transitions need {count} distinct names.")
    return result


def plain_parameters(parameters: Mapping[str, Any]) -> dict[str, float | list[float]]:
    """Parameters as Python's numbers, whole ones as integers, or lists of them."""
    return {str(name): _plain(value, f"parameters[{name!r}]") for name, value in parameters.items()}


def _plain(value: Any, what: str) -> Any:
    if isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 1:
        return [_plain(each, what) for each in value]
    number = converted(value, float, what)
    if not math.isfinite(number):
        raise ValueError(f"{what}={number}: give a finite number.")
    plain = value.item() if hasattr(value, "item") else value
    return int(plain) if isinstance(plain, Integral) else number


def validated_right_eigenvector(
    matrices: Float64[Tensor, "token state state"], values: ArrayLike | None
) -> Float64[Tensor, "state"]:
    """The w with Σ_x T[x] w = w: the given one, or the unique one, scaled so that its largest entry is 1."""
    chain = matrices.sum(dim=0)
    if values is None:
        vector = unique_fixed_vector(chain.T, "right")
        return vector / vector[vector.abs().argmax()]
    vector = _finite_vector(values, len(chain), "right_eigenvector")
    error = float((chain @ vector - vector).abs().max())
    if not vector.any() or error > GENERALIZED_TOLERANCE * float(vector.abs().max()):
        raise ValueError(
            f"right_eigenvector={shown(vector.tolist())} is off by {error:.1e}: the sum of the transitions over tokens "
            "must leave it unchanged, Σ_x T[x] w = w, with w ≠ 0."
        )
    return vector


def unique_fixed_vector(chain: Float64[Tensor, "state state"], side: str) -> Float64[Tensor, "state"]:
    """The unique vector, up to its length, with v S = v, to within `RANK_TOLERANCE` of the norm of S."""
    left, sizes, _ = torch.linalg.svd(chain - torch.eye(len(chain), dtype=torch.float64))
    fixed = left.T[sizes <= RANK_TOLERANCE * max(1.0, float(torch.linalg.matrix_norm(chain, 2)))]
    if len(fixed) == 0:
        largest = float(torch.linalg.eigvals(chain).abs().max())
        raise ValueError(
            "The sum of the transitions over tokens has no eigenvalue 1, so word probabilities would not sum to 1 "
            f"(its spectral radius is {largest:g}: divide by it)."
        )
    if len(fixed) > 1:
        raise ValueError(
            f"The sum of the transitions over tokens has {len(fixed)} {side} eigenvectors of eigenvalue 1, so they do "
            "not define one process: give initial= and right_eigenvector=."
        )
    return fixed[0]


def normalized_initial(values: ArrayLike, right_eigenvector: Float64[Tensor, "state"]) -> Float64[Tensor, "state"]:
    """A generalized process's vector before any token, checked to have π w = 1 and rescaled to remove rounding."""
    vector = _finite_vector(values, len(right_eigenvector), "initial")
    total = float(vector @ right_eigenvector)
    if abs(total - 1) > ROW_SUM_TOLERANCE:
        raise ValueError(
            f"initial={shown(vector.tolist())} times the right eigenvector is {total:g}, not 1: normalize it first."
        )
    return vector if abs(total - 1) <= ROUNDING else vector / total


def check_words(
    matrices: Float64[Tensor, "token state state"],
    initial: Float64[Tensor, "state"],
    right_eigenvector: Float64[Tensor, "state"],
    name: str,
) -> None:
    """Raise `ValueError` naming a shortest word of negative probability, if a short word has one.

    All words are checked up to the greatest length that has at most 5000 words.
    """
    n_tokens, forward, length, most = len(matrices), initial.unsqueeze(0), 0, 5000
    while n_tokens ** (length + 1) <= max(most, n_tokens) and length < most.bit_length():
        length += 1
        forward = rearrange(einsum(forward, matrices, "word i, token i j -> word token j"), "w t j -> (w t) j")
        probabilities = forward @ right_eigenvector
        worst = int(probabilities.argmin())
        if float(probabilities[worst]) < -GENERALIZED_TOLERANCE:
            word = [worst // n_tokens**k % n_tokens for k in reversed(range(length))]
            raise ValueError(
                f"{name} gives the word {word} the probability {float(probabilities[worst]):.3g}: these matrices, "
                "initial vector and right eigenvector do not define a process."
            )


def _finite_vector(values: ArrayLike, length: int, what: str) -> Float64[Tensor, "state"]:
    vector = float64(values, what)
    if vector.shape != (length,):
        raise ValueError(f"{what} has shape {tuple(vector.shape)}; it needs one number for each state: ({length},).")
    return vector
