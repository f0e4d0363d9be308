"""What attention alone can believe: evidence that adds up, each token by itself, without being weighed anew.

The Bayes step is recursive, but one attention layer reads all tokens in parallel. What it can do is to take what each
token says by itself, π T[z] / (π T[z] w) - π, let it decay for as many steps as lie between, and add:

    r(z1 … zd) = π + Σ_s (π T[zs] / (π T[zs] w) - π) T^(d-s),    T = Σ_x T[x].

These constrained beliefs are not renormalized, may leave the simplex, and are a rival of the true ones.

Source: Piotrowski et al. 2025 (arXiv 2502.01954).
"""

from __future__ import annotations

import torch
from jaxtyping import Complex128, Float64
from torch import Tensor

from msp_lens._checks import check_memory, checked
from msp_lens.beliefs.information import long_run_state
from msp_lens.processes.process import Process
from msp_lens.processes.words import Words

ROUNDING = 1e-9  # Evidence smaller than this share of the largest is rounding.
ONE_RATE = 1e-6  # Rates this close are one: rounding moves those of a defective matrix by its square root.


@checked
def constrained_beliefs(process: Process, tokens: Words) -> Float64[Tensor, "batch pos state"]:
    """The additive beliefs of one attention layer after each token of a batch of words.

    They are computed by the recursion r_d = r_{d-1} T + c_d(z_d) with r_0 = π, where c_d(z) is what token z says by
    itself at step d: the belief after z of an observer who saw no other token, less that of one who did not see z
    either. For a stationary process this is the formula above at every step. If the start is not stationary, the
    observer who has seen nothing believes π T^(d-1) before step d, which takes the place of π; so a BOS token leaves
    exactly the prior.

    Args:
        process: The process observed, of any kind.
        tokens: The words, `[batch, pos]`: token numbers in any container, names or text; see `Process.read_words`.

    Raises:
        TypeError: if the tokens are neither numbers nor names.
        ValueError: naming the word and position, if a token is outside the vocabulary or never occurs at its position.
            A word that is impossible as a whole is not refused: its tokens still say what each says by itself.

    Example:
        >>> from msp_lens.processes.catalog import mess3
        >>> constrained_beliefs(mess3(x=0.15, a=0.6), "AA")[0]
        tensor([[0.6000, 0.2000, 0.2000],
                [0.7467, 0.1267, 0.1267]], dtype=torch.float64)
    """
    tokens = process.read_words(tokens, what="tokens")
    what = f"The constrained beliefs along {len(tokens)} words of {tokens.shape[1]} tokens"
    check_memory(what, 8 * tokens.numel() * process.n_states, "Compute them for fewer words at a time.")
    walk, uninformed = process.state_transitions, process.initial
    believed = process.initial.expand(len(tokens), -1)
    beliefs = torch.empty(*tokens.shape, process.n_states, dtype=torch.float64)
    for position, token in enumerate(tokens.T):
        informed, _ = process.bayes_children(uninformed.unsqueeze(0))
        uninformed = uninformed @ walk
        believed = believed @ walk + (informed[0] - uninformed)[token]
        if believed.isnan().any():
            word = int(believed.isnan().any(dim=1).nonzero()[0, 0])
            raise ValueError(
                f"Word {word}: token {int(token[word])} never occurs at position {position} of {process.name}. Check "
                "that the tokens come from this process."
            )
        beliefs[:, position] = believed
    return beliefs


@checked
def decay_rates(process: Process) -> Complex128[Tensor, "rate"]:
    """The rates ζ by which what a token says decays with each later step, the slowest first.

    They are the eigenvalues of T = Σ_x T[x] other than its first, but only those that the tokens' evidence excites in
    the long run, each once whatever its multiplicity (as often as it takes to span its decays, where T is defective).
    A rate of 0 is left out: such evidence is gone at the next step. The rates of Mess3 are 1 - 3x alone; those of a
    mixture include 1, since evidence for a component never decays; complex rates come in pairs.

    Example:
        >>> from msp_lens.processes.catalog import mess3
        >>> decay_rates(mess3(x=0.15, a=0.6))
        tensor([0.5500+0.j], dtype=torch.complex128)
    """
    state, walk = long_run_state(process), process.state_transitions
    informed, probabilities = process.bayes_children(state.unsqueeze(0))
    evidence = informed[probabilities > 0] - state
    # Arnoldi's method: T as it acts on the span of what all tokens say after 1, 2, … steps.
    directions, columns = [], []
    newest, smallest = evidence @ walk, ROUNDING * max(1.0, float(evidence.norm()))
    while (size := newest.norm()) > smallest and len(directions) < process.n_states:
        if columns:
            columns[-1] = torch.cat([columns[-1], size[None]])
        directions.append(newest / size)
        newest = directions[-1] @ walk
        column = torch.zeros(len(directions), dtype=torch.float64)
        for _ in range(2):  # Projecting once leaves rounding errors; twice is enough.
            overlaps = torch.stack([(direction * newest).sum() for direction in directions])
            newest = newest - torch.einsum("k,kts->ts", overlaps, torch.stack(directions))
            column += overlaps
        columns.append(column)
        smallest = ROUNDING * max(1.0, float(walk.norm()))
    matrix = torch.zeros(len(columns), len(columns), dtype=torch.float64)
    for k, column in enumerate(columns):
        matrix[: len(column), k] = column
    rates = torch.linalg.eigvals(matrix)
    return rates[torch.argsort(rates.abs(), descending=True, stable=True)]


@checked
def attention_heads_needed(process: Process) -> int:
    """How many attention heads of one layer the constrained beliefs ask for, in contexts of any length.

    Head h adds A_h(m) V_h(z) for a token z that lies m steps back. Its pattern A_h(m) is not negative, being a softmax
    (its sum over the context is left out of account), and its values V_h(z) are free; a token's own position costs
    nothing, since the residual stream carries it. The evidence decays by k distinct rates ζ (`decay_rates`), so the
    patterns have to span the k functions ζ^m. As many heads do so exactly if a slowest rate is positive, since the
    others can be added to its pattern without making it negative. Otherwise every pattern within the span changes
    its sign somewhere (Pringsheim's theorem), and it takes k + 1. So one positive rate needs 1 head, one negative rate
    2, a complex pair alone 3, and no evidence, or evidence gone at the next step, 0.

    Source: that a negative eigenvalue asks for a second head is from Piotrowski et al. 2025 (arXiv 2502.01954); the
    count is worked out here.

    Example:
        >>> from msp_lens.processes.catalog import golden_mean, mess3
        >>> attention_heads_needed(mess3()), attention_heads_needed(golden_mean(p=0.5))   # ζ = 0.85, -0.5
        (1, 2)
    """
    rates = decay_rates(process)
    lasting = rates[rates.abs() > ONE_RATE]
    # A defective 0 is a decay that lasts a few steps and then ends: it is not negative, and dominates nothing.
    if not len(lasting):
        return len(rates)
    slowest = lasting.abs().max()
    is_positive = (lasting - slowest).abs() <= ONE_RATE
    return len(rates) + (not is_positive.any())
