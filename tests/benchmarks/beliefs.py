"""How fast is the theory? Filtering and mixed states by depth, beside hmmlearn and a plain numpy expansion, in one run.

    python -m tests.benchmarks.beliefs

hmmlearn filters word by word in compiled code and gives log-likelihoods and smoothed posteriors, not filtered beliefs;
it is timed on its forward pass. The plain expansion makes every word of every level, as most code of the field does.
"""

import os
import time

import numpy as np
import torch

import msp_lens as msp
from msp_lens.beliefs import attractor, box_counting_dimension, entropy_rate, mixed_states, presentation


def timed(function):
    """Its result, and the seconds it took."""
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started


def plain_levels(process, depth):
    """Every word of every length up to `depth`, level by level, nothing merged."""
    transitions, beliefs, probabilities = process.transitions.numpy(), process.initial.numpy()[None], np.ones(1)
    nodes = 1
    for _ in range(depth):
        joint = np.einsum("ni,xij->nxj", beliefs, transitions).reshape(-1, process.n_states)
        conditional = joint.sum(axis=1)
        possible = conditional > 0
        probabilities = np.repeat(probabilities, process.n_tokens)[possible] * conditional[possible]
        beliefs = joint[possible] / conditional[possible, None]
        nodes += len(beliefs)
    return nodes


def moore(n_states, n_tokens):
    """A random ordinary HMM, for hmmlearn and for us."""
    from hmmlearn.hmm import CategoricalHMM

    generator = np.random.default_rng(0)
    theirs = CategoricalHMM(n_components=n_states)
    theirs.transmat_ = generator.dirichlet(np.ones(n_states), n_states)
    theirs.emissionprob_ = generator.dirichlet(np.ones(n_tokens), n_states)
    stationary = np.linalg.matrix_power(theirs.transmat_, 1000)[0]
    theirs.startprob_ = stationary / stationary.sum()
    return theirs, msp.processes.from_moore(theirs.transmat_, theirs.emissionprob_)


def main():
    """Run every part and print seconds."""
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}")

    print("\nfiltering: words × tokens, seconds; likelihoods differ by at most")
    theirs, ours = moore(5, 4)
    for n_words, length in ((1, 1000), (1000, 100), (100_000, 10)):
        words = ours.sample(n_words, length, seed=0)
        _, filtering = timed(lambda words=words: msp.filter_beliefs(ours, words))
        log_probabilities, likelihood = timed(lambda words=words: ours.word_log_probabilities(words))
        column, lengths = words.reshape(-1, 1).numpy(), [length] * n_words
        reference, hmmlearn = timed(lambda column=column, lengths=lengths: theirs.score(column, lengths))
        difference = abs(float(log_probabilities.sum()) - reference) / abs(reference)
        print(
            f"  {n_words:7,} × {length:4}   beliefs {filtering:7.3f}   likelihood {likelihood:7.3f}   "
            f"hmmlearn likelihood {hmmlearn:7.3f}   {difference:.0e} relative"
        )

    print("\na world of 7 × mess3 (2,187 states and tokens), by factor: seconds")
    world = msp.processes.product([msp.mess3(x=0.15, a=0.6)] * 7)
    words, sampling = timed(lambda: world.sample(10_000, 10, seed=0))
    _, filtering = timed(lambda: world.filter_factors(words))
    _, entropies = timed(lambda: msp.beliefs.myopic_entropies(world, 10))
    print(f"  10,000 × 10: sampled {sampling:.3f}   filtered {filtering:.3f}   ten entropies {entropies:.3f}")

    print("\nmixed states: seconds and nodes, merged; every word, plain numpy")
    for process, depths in ((msp.mess3(x=0.05, a=0.85), (6, 9, 12)), (msp.rrxor(), (10, 20, 100, 1000))):
        for depth in depths:
            tree, took = timed(lambda process=process, depth=depth: mixed_states(process, depth))
            line = f"  {process.name:6} depth {depth:4}   {took:7.3f} s {len(tree):9,} nodes"
            if depth <= 20:
                nodes, plain = timed(lambda process=process, depth=depth: plain_levels(process, depth))
                line += f"   plain {plain:7.3f} s {nodes:9,} nodes"
            print(line)

    print("\nother")
    points, took = timed(lambda: attractor(msp.mess3(x=0.05, a=0.85), 3_000_000, seed=0, even=True))
    print(f"  3,000,000 points of the Mess3 fractal   {took:7.3f} s")
    dimension, took = timed(lambda: box_counting_dimension(points))
    print(f"  {dimension}   {took:7.3f} s")
    for process in (msp.rrxor(), msp.processes.days_of_week(), msp.processes.sns()):
        found, took = timed(lambda process=process: presentation(process, max_states=500))
        print(f"  {found}   {took:7.3f} s")
    rate, took = timed(lambda: entropy_rate(msp.mess3(x=0.05, a=0.85)))
    print(f"  Mess3 entropy rate {rate}   {took:7.3f} s")


if __name__ == "__main__":
    main()
