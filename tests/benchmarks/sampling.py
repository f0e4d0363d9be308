"""How fast are samples drawn? Tokens per second, beside a plain numpy sampler and hmmlearn's, in one run.

    python -m tests.benchmarks.sampling

The numpy sampler draws all words at once, too, a step at a time, and compares a uniform number with every outcome of
its state. hmmlearn draws one token after the other, and from an ordinary hidden Markov model: the process's, with a
state for every pair (token, next state). Words have ten tokens; the frequencies of the tokens are compared as well.
"""

import os
import resource
import time

import numpy as np
import torch
from hmmlearn.hmm import CategoricalHMM

import msp_lens as msp

LENGTH = 10
SIZES = (1, 100_000, 10_000_000)
HMMLEARN_TOKENS = 10_000


def our_sample(process, n_words, length):
    """What is measured."""
    return process.sample(n_words, length, seed=0).numpy()


def numpy_sample(process, n_words, length):
    """Words along hidden paths, a step at a time; None for a generalized process."""
    if process.is_generalized:
        return None
    generator = np.random.default_rng(0)
    outcomes = process.transitions.permute(1, 0, 2).flatten(1).numpy().cumsum(axis=1)
    outcomes /= outcomes[:, -1:]
    state = generator.choice(process.n_states, size=n_words, p=process.initial.numpy())
    words = np.empty((n_words, length), dtype=np.int64)
    for position in range(length):
        outcome = (generator.random((n_words, 1)) >= outcomes[state]).sum(axis=1)
        words[:, position], state = outcome // process.n_states, outcome % process.n_states
    return words


def hmmlearn_sample(process, n_tokens):
    """One long word by hmmlearn; None for a generalized process."""
    if process.is_generalized:
        return None
    pairs = process.transitions.permute(1, 0, 2).flatten(1)
    model = CategoricalHMM(n_components=pairs.shape[1], n_features=process.n_tokens)
    model.transmat_ = pairs[torch.arange(pairs.shape[1]) % process.n_states].numpy()
    model.startprob_ = (process.initial @ pairs).numpy()
    model.emissionprob_ = np.eye(process.n_tokens).repeat(process.n_states, axis=0)
    return model.sample(n_tokens, random_state=0)[0]


def frequencies(words, n_tokens):
    """Relative frequency of each token."""
    counts = np.bincount(np.asarray(words).ravel(), minlength=n_tokens)
    return counts / counts.sum()


def measured(draw, *arguments):
    """The words, and tokens per second of the fastest of a few tries."""
    best, words = float("inf"), None
    for _ in range(3):
        started = time.perf_counter()
        words = draw(*arguments)
        best = min(best, time.perf_counter() - started)
        if words is None or best > 1:
            break
    return words, np.nan if words is None else np.asarray(words).size / best


def main():
    """Print a line for each process and size."""
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, numpy {np.__version__}; tokens per second")
    print(f"{'process':16s} {'tokens':>10s} {'msp_lens':>14s} {'numpy':>14s} {'hmmlearn':>14s}  frequencies differ by")
    big = msp.processes.product([msp.mess3(), msp.rrxor(), msp.processes.z1r()])
    for process in (
        msp.mess3(),
        msp.rrxor(),
        msp.processes.days_of_week(),
        big,
        msp.processes.bloch_walk(),
        msp.processes.frdn(),
    ):
        process.sample(1, 1, seed=0)
        slow, slow_rate = measured(hmmlearn_sample, process, HMMLEARN_TOKENS)
        for size in SIZES:
            shape = (max(1, size // LENGTH), min(size, LENGTH))
            words, rate = measured(our_sample, process, *shape)
            plain, plain_rate = (None, np.nan)
            if shape[0] * process.n_states * process.n_tokens * 8 < 2e9:
                plain, plain_rate = measured(numpy_sample, process, *shape)
            others = [frequencies(other, process.n_tokens) for other in (plain, slow) if other is not None]
            differ = [f"{abs(frequencies(words, process.n_tokens) - other).max():.0e}" for other in others]
            rates = " ".join(f"{r:14,.0f}" for r in (rate, plain_rate, slow_rate))
            print(f"{process.name:16s} {size:10,d} {rates}  {', '.join(differ) if size > 1 else ''}", flush=True)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB (numpy's included)")


if __name__ == "__main__":
    main()
