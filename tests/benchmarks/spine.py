"""How fast is the spine? Sampling, all prefixes with beliefs, and probing against scikit-learn, in one run.

    python -m tests.benchmarks.spine

Probing is of the published Mess3 model where it is at hand, else of an untrained one of the same size: six sites of
64 features and their concatenation, 590,490 rows. Each part runs in a process of its own, for its peak memory. Its
imports are done before the clock starts; the memory that they take is also measured alone.
"""

import json
import multiprocessing
import os
import resource
import time

import numpy as np
import torch

import msp_lens as msp
from msp_lens.data import Weighting
from msp_lens.models.activations import stream_activations
from msp_lens.models.hooked import find_sites
from tests.conftest import ORACLE

WEIGHTING: Weighting = "sequence"


def mess3_model():
    """The published model, or one like it."""
    if not (ORACLE / "model.safetensors").is_file():
        return msp.build_model(msp.ModelConfig(d_vocab=3))
    from safetensors.torch import load_file

    model = msp.build_model(json.loads((ORACLE / "config.json").read_text())["model"])
    msp.models.load_weights(model, load_file(ORACLE / "model.safetensors"))
    return model


def imports(process):
    """What every part holds before it begins."""
    assert mess3_model()
    assert msp.probe
    return {}


def sampling(process):
    """A million tokens at once."""
    process.sample(1000, 11, seed=0)
    started = time.perf_counter()
    process.sample(100_000, 10, seed=0)
    return {"sample 1,000,000 tokens": time.perf_counter() - started}


def prefixes(process):
    """All prefixes of up to ten tokens with their probabilities and beliefs."""
    started = time.perf_counter()
    dataset = msp.data.all_words(process, 10)
    assert dataset.n_prefixes == 88_572
    dataset.prefix_weights("probability")
    return {"88,572 prefixes with beliefs and weights": time.perf_counter() - started}


def forward_pass(process):
    """The forward pass alone, as a floor: what probing costs beside it is ours."""
    model, dataset = mess3_model(), msp.data.all_words(process, 10)
    started = time.perf_counter()
    for _ in stream_activations(model, dataset.tokens):
        pass
    return {"forward pass over 590,490 tokens": time.perf_counter() - started}


def probing(process):
    """Seven probes with five folds, shuffled control and regret."""
    model, probe = mess3_model(), msp.probe
    started = time.perf_counter()
    report = probe(model, process, weighting=WEIGHTING, progress=False)
    took = time.perf_counter() - started
    errors = [probe.scores.in_sample.mse for probe in report.probes]
    return {"msp_lens: 7 probes, held out, shuffled, regret": took, "errors": errors}


def scikit_learn(process):
    """Seven in-sample fits on all rows, nothing else."""
    from sklearn.linear_model import LinearRegression

    model, dataset = mess3_model(), msp.data.all_words(process, 10)
    sites = find_sites(model, None)
    started = time.perf_counter()
    batches = [batch.activations for batch in stream_activations(model, dataset.tokens)]
    activations = [torch.cat([batch[site] for batch in batches]).flatten(0, 1).double().numpy() for site in sites]
    beliefs = dataset.beliefs.flatten(0, 1).numpy()
    errors = []
    for features in [*activations, np.concatenate(activations, axis=1)]:
        residual = LinearRegression().fit(features, beliefs).predict(features) - beliefs
        errors.append(float((residual**2).mean()))
    return {"scikit-learn: 7 in-sample fits on all rows": time.perf_counter() - started, "errors": errors}


def _measured(function, queue):
    torch.set_num_threads(os.cpu_count() or 1)
    result = function(msp.mess3(x=0.05, a=0.85))
    queue.put((result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main():
    """Run every part, print seconds and peak memory, and compare."""
    context = multiprocessing.get_context("spawn")
    print(f"{os.cpu_count()} cores, torch {torch.__version__}")
    errors, took, peaks = {}, {}, {}
    for function in (imports, sampling, prefixes, forward_pass, probing, scikit_learn):
        queue = context.SimpleQueue()
        process = context.Process(target=_measured, args=(function, queue))
        process.start()
        result, peaks[function] = queue.get()
        process.join()
        errors[function] = result.pop("errors", None)
        for name, took[function] in result.items():
            print(f"{name:50s} {took[function]:8.2f} s   peak {peaks[function]:6.0f} MiB")
    base, ours, theirs = peaks[imports], peaks[probing], peaks[scikit_learn]
    print(f"imports and the model alone: peak {base:.0f} MiB")
    print(f"scikit-learn takes {took[scikit_learn] / took[probing]:.1f} times as long as msp_lens, with", end=" ")
    print(f"{theirs / ours:.1f} times its peak ({(theirs - base) / (ours - base):.1f} times, beyond the imports).")
    print(f"msp_lens takes {took[probing] / took[forward_pass]:.2f} times as long as a forward pass over all tokens.")
    pairs = zip(errors[probing], errors[scikit_learn], strict=True)
    difference = max(abs(ours - theirs) for ours, theirs in pairs)
    print(f"largest difference between the seven mean squared errors: {difference:.1e}")


if __name__ == "__main__":
    main()
