"""How long inference takes, beside hmmlearn on the same data. Run as `python -m tests.benchmarks.inference`."""

import resource
import time
import warnings

import torch

import msp_lens as msp
from msp_lens.inference import data_words, fit_machine, process_words
from msp_lens.inference.word_tree import WordTree


def timed(what, work):
    """Print how long the work took, and return what it made."""
    start = time.perf_counter()
    made = work()
    print(f"{what:66s} {time.perf_counter() - start:8.2f} s")
    return made


def memory():
    """The most memory held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    process = msp.mess3(x=0.05, a=0.85)
    model = msp.build_model(msp.ModelConfig(d_vocab=3), seed=0)
    timed(
        "msp.infer, Mess3's words, n_ctx 10, 2 to 5 states, 32 starts",
        lambda: msp.infer(process, n_ctx=10, n_states=[2, 3, 4, 5], progress=False),
    )
    timed(
        "msp.infer, an untrained network, n_ctx 10, 2 to 5 states, 32 starts",
        lambda: msp.infer(model, n_states=[2, 3, 4, 5], progress=False),
    )
    words = process_words(process, 8)
    print(f"prefixes of 8 tokens: {WordTree(words).n_nodes:,}")
    for n_starts in (8, 32, 128):
        before = memory()
        timed(f"fit_machine, 3 states, {n_starts} starts", lambda n=n_starts: fit_machine(words, 3, n_starts=n))
        print(f"{'':66s} {memory() - before:8.0f} MB more")

    moore = msp.processes.from_moore([[0.9, 0.1], [0.3, 0.7]], [[0.8, 0.2], [0.1, 0.9]])
    data = moore.sample(2_000, 8, seed=0)
    fit = timed("fit_machine, 2 states, 8 starts, 2,000 sequences of 8 tokens", lambda: of_data(data))
    print(f"log-likelihood {float(fit.process.word_log_probabilities(data).sum()):,.1f}")
    try:
        from hmmlearn.hmm import CategoricalHMM
    except ImportError:
        print("hmmlearn is not installed")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flat, lengths = data.reshape(-1, 1).numpy(), [8] * len(data)
        fitted = timed(
            "hmmlearn's CategoricalHMM, 2 states, 2 starts, 50 iterations",
            lambda: [
                CategoricalHMM(n_components=2, random_state=seed, n_iter=50, tol=1e-6).fit(flat, lengths)
                for seed in range(2)
            ],
        )
        print(f"log-likelihood {max(each.score(flat, lengths) for each in fitted):,.1f}")


def of_data(data):
    """The machine of two states that is nearest to the data."""
    return fit_machine(data_words(data, 8, n_tokens=2), 2, n_starts=8)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
