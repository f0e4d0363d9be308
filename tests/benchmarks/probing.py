"""How fast are the moments, and how much memory do they take?

    python -m tests.benchmarks.probing [largest number of rows]

- Rows in memory, 64 features and 3 targets, from 10⁴ to 10⁷: `LinearRegression` on all of them against the moments and
  their solve. Ours streams the rows from a generator and never holds them; scikit-learn is handed them whole.
- Probing of a model by size, five folds and a shuffled control at every residual site, against its bare forward pass.

Each part runs in a process of its own, for its peak memory. Seconds are of the wall and, in brackets, of the CPU: on
a machine shared with others only the latter mean much.
"""

import multiprocessing
import os
import resource
import sys
import time

import numpy as np
import torch

import msp_lens as msp
from msp_lens.models.activations import stream_activations
from msp_lens.models.hooked import find_sites
from msp_lens.moments import Moments, least_squares, score
from msp_lens.moments.grid import MomentsGrid

FEATURES, TARGETS, BATCH = 64, 3, 10_000
# Rows of scikit-learn beyond this would not fit beside its own copies.
MOST_FOR_SCIKIT_LEARN = 3_000_000

MODELS = {
    "mess3: 4 layers of 64": (msp.ModelConfig(d_vocab=3), 3_000),
    "4 layers of 256": (msp.ModelConfig(d_vocab=64, d_model=256, n_heads=4, d_head=64, d_mlp=1024, n_ctx=128), 128),
    "GPT-2 small: 12 layers of 768": (
        msp.ModelConfig(
            d_vocab=50_257, n_layers=12, d_model=768, n_heads=12, d_head=64, d_mlp=3072, n_ctx=128, act_fn="gelu"
        ),
        64,
    ),
}


class Clock:
    """Seconds since it was made, of the wall and of the CPU."""

    def __init__(self):
        self.started = time.perf_counter(), time.process_time()

    def read(self):
        return time.perf_counter() - self.started[0], time.process_time() - self.started[1]


def batches(n_rows):
    """Rows of a noisy linear problem, far from zero, a batch at a time."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(FEATURES, TARGETS, generator=generator)
    for start in range(0, n_rows, BATCH):
        h = torch.randn(min(BATCH, n_rows - start), FEATURES, generator=generator)
        yield h + 100, h @ mixing + torch.randn(len(h), TARGETS, generator=generator)


def moments_of_rows(n_rows):
    """Every batch made, taken in and forgotten; only the latter two are timed."""
    moments, wall, cpu = Moments({"h": FEATURES, "b": TARGETS}), 0.0, 0.0
    for h, b in batches(n_rows):
        clock = Clock()
        moments.update(torch.cat([h, b], dim=1), torch.ones(len(h)))
        wall, cpu = (total + part for total, part in zip((wall, cpu), clock.read(), strict=True))
    clock = Clock()
    r2 = score(least_squares(moments, "h", "b"), moments, "h", "b").r2
    return *(total + part for total, part in zip((wall, cpu), clock.read(), strict=True)), r2


def scikit_learn_on_rows(n_rows):
    """All rows at once, in float64 as its precision at an offset needs."""
    from sklearn.linear_model import LinearRegression
    from sklearn.metrics import r2_score

    h, b = np.empty((n_rows, FEATURES)), np.empty((n_rows, TARGETS))
    for k, (some_h, some_b) in enumerate(batches(n_rows)):
        h[k * BATCH : (k + 1) * BATCH], b[k * BATCH : (k + 1) * BATCH] = some_h, some_b
    clock = Clock()
    fitted = LinearRegression().fit(h, b)
    taken = clock.read()
    return *taken, r2_score(b, fitted.predict(h), multioutput="variance_weighted")


def forward(name):
    """The bare forward pass: no hooks, nothing kept."""
    return _pass(name, [])


def probing(name):
    """The same with the moments of every residual site by fold, held-out probes left to be solved."""
    return _pass(name, None)


def _pass(name, sites):
    config, n_words = MODELS[name]
    model = msp.build_model(config)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.d_vocab, (n_words, config.n_ctx), generator=generator)
    names = find_sites(model, None) if sites is None else ()
    grid = MomentsGrid([(site,) for site in names], targets=("belief", "shuffled"), n_cells=5) if names else None
    beliefs = torch.rand(*tokens.shape, 3, generator=generator, dtype=torch.float64)
    cells = torch.randint(5, tokens.shape, generator=generator)
    list(stream_activations(model, tokens[:2], []))
    clock = Clock()
    for batch in stream_activations(model, tokens, names if names else []):
        if grid is not None:
            rows = {site: values.flatten(0, 1) for site, values in batch.activations.items()}
            rows |= {"belief": beliefs[batch.words].flatten(0, 1), "shuffled": beliefs[batch.words].flatten(0, 1)}
            grid.update(rows, torch.ones(len(rows["belief"])), cells[batch.words].flatten())
    return *clock.read(), float(tokens.numel())


def _measured(function, argument, queue):
    torch.set_num_threads(os.cpu_count() or 1)
    result = function(argument)
    queue.put((result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def measure(function, argument):
    """Wall and CPU seconds, a result to compare, and peak memory in MiB, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_measured, args=(function, argument, queue))
    process.start()
    (wall, cpu, result), peak = queue.get()
    process.join()
    return wall, cpu, result, peak


def main(most_rows=10_000_000):
    """Run every part and print its figures."""
    print(f"{os.cpu_count()} cores, torch {torch.__version__}")
    for n_rows in (n for n in (10**4, 10**5, 10**6, 3 * 10**6, 10**7) if n <= most_rows):
        functions = [moments_of_rows, scikit_learn_on_rows][: 2 if n_rows <= MOST_FOR_SCIKIT_LEARN else 1]
        for function in functions:
            wall, cpu, r2, peak = measure(function, n_rows)
            what = f"{n_rows:>10,} rows  {function.__name__:22s}"
            print(f"{what} {wall:7.2f} s ({cpu:6.2f})  peak {peak:6.0f} MiB  R² {r2:.9f}")
    for name in MODELS:
        bare, probed = measure(forward, name), measure(probing, name)
        print(
            f"{name:30s} {bare[2]:9,.0f} tokens: forward {bare[0]:6.2f} s ({bare[1]:6.2f}), "
            f"with moments {probed[0]:6.2f} s ({probed[1]:6.2f}), "
            f"{probed[0] / bare[0]:.2f} times ({probed[1] / bare[1]:.2f}); peak {bare[3]:.0f} and {probed[3]:.0f} MiB"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
