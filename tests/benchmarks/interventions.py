"""How fast is a full table of interventions? Mess3, every layer × position × edit, over 1,000 words, in one run.

    python -m tests.benchmarks.interventions

The model is the published one where it is at hand, else an untrained one of the same size: six sites, ten positions,
every edit on the menu. The time is to stay under two minutes on four cores. `OMP_NUM_THREADS` limits the threads: on a
shared machine fewer are faster.
"""

import os
import resource
import time

import torch

import msp_lens as msp
from msp_lens.interventions import EDITS
from tests.benchmarks.spine import mess3_model


def main():
    """Run each experiment and print seconds."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    process, model = msp.mess3(x=0.05, a=0.85), mess3_model()
    report = msp.probe(model, process, progress=False)
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores (load {load:.1f}), torch {torch.__version__}")

    def measured(name, experiment):
        started = time.perf_counter()
        found = experiment()
        print(f"{name:60s} {time.perf_counter() - started:8.2f} s   {len(found.to_dataframe()):5d} rows")

    positions = list(range(10))
    measured(
        f"full table: 6 sites × 10 positions × {len(EDITS)} edits, 1,000 words",
        lambda: msp.intervene(model, process, probes=report, positions=positions, edits=list(EDITS), n_words=1000),
    )
    measured(
        "default table: 6 sites × 10 positions × 7 edits, 1,000 words",
        lambda: msp.intervene(model, process, probes=report, positions=positions, n_words=1000),
    )
    measured("persistence: 6 sites, 1,000 words", lambda: msp.persistence(model, process, probes=report, n_words=1000))
    measured("necessity: 6 sites and all, up to 2,000 words", lambda: msp.necessity(model, process, probes=report))
    measured(
        "Bayes consistency: 6 sites, up to 20,000 words",
        lambda: msp.interventions.bayes_consistency(model, process, probes=report),
    )
    measured(
        "prediction consistency: 6 sites, up to 20,000 words",
        lambda: msp.interventions.prediction_consistency(model, process, probes=report),
    )
    long = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=4, n_ctx=640), seed=0)
    options = {"sites": ["1_post", "3_post"], "controls": False, "concatenate": False, "progress": False}
    late = msp.words(process, n_ctx=640, n_words=100, positions=slice(-100, None))
    long_report, context = msp.probe(long, late, **options), process.sample(1, 640, seed=1)[0]
    measured(
        "the last of 640 positions: 2 sites, 100 words",
        lambda: msp.intervene(long, late, probes=long_report, positions=-1, n_words=100),
    )
    measured(
        "one context of 640, spans 1, 5 and 10: 2 sites, 100 targets",
        lambda: msp.intervene(long, late, probes=long_report, context=context, spans=[1, 5, 10], n_words=100),
    )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
