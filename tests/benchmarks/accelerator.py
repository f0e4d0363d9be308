"""How fast are probing and training on an accelerator, against what the card can do?

    python -m tests.benchmarks.accelerator [PART …]

- Probing a randomly initialized model of GPT-2's size in float32, bfloat16 and float16: tokens a second of the bare
  forward pass, of streaming thirteen sites, and of the whole probe, with the share of the card's peak that each
  reaches. The peak is what one large matrix product reaches on the same card in the same precision. The probe is taken
  twice: of beliefs, with the regret of 50,257 logits, and of labelled tokens, without it.
- Training of the preset `quick` on Mess3, and on the CPU beside it.

Name the parts to run (float32, bfloat16, float16, training) for fewer than all. Each prints its line when it is done.
Without an accelerator it says so and does nothing.
"""

import sys
import time
from dataclasses import replace

import torch

import msp_lens as msp
from msp_lens.models import find_sites, stream_activations
from msp_lens.models.build import has_hooked_transformer
from msp_lens.training import recipe

LAYERS, WIDTH, VOCABULARY, CONTEXT = 12, 768, 50_257, 128
WORDS, DTYPES, STEPS = 1_024, ("float32", "bfloat16", "float16"), 2_000


def accelerator():
    """The accelerator of this machine, or none."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps") if torch.backends.mps.is_available() else None


def seconds(device, work, *, repeat=1, warm_up=True):
    """The least time of some work on the device."""

    def wait():
        (torch.cuda if device.type == "cuda" else torch.mps).synchronize()

    if warm_up:
        work()
    times = []
    for _ in range(repeat):
        wait()
        started = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - started)
    return min(times)


def peak(device, dtype):
    """Operations a second in one large matrix product of random numbers."""
    size = 8_192
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds(device, lambda: left @ right, repeat=10)


def operations_a_token(with_logits):
    """Multiplications and additions of one token's forward pass: two a weight, and attention's two products."""
    weights = LAYERS * 12 * WIDTH**2 + with_logits * WIDTH * VOCABULARY
    return 2 * weights + LAYERS * 4 * CONTEXT * WIDTH


def model_in(dtype, device):
    """A model of GPT-2's size with random weights."""
    sizes = {"n_layers": LAYERS, "d_model": WIDTH, "n_heads": 12, "d_head": 64, "d_mlp": 4 * WIDTH}
    config = {"d_vocab": VOCABULARY, "n_ctx": CONTEXT, "act_fn": "gelu_new", "normalization_type": "LN"}
    return msp.build_model(sizes | config | {"dtype": dtype}, device=device)


def probing(device, dtype):
    """Print the speeds of one precision."""
    model = model_in(dtype, device)
    best = peak(device, getattr(torch, dtype))
    words = msp.words(msp.mess3(x=0.05, a=0.85), n_ctx=CONTEXT, n_words=WORDS, seed=0)
    labelled = msp.LabelledTokens.from_tokens(words.tokens, words.beliefs)
    sites = find_sites(model, None)
    n_tokens = WORDS * CONTEXT

    def forward():
        with torch.no_grad():
            for some in words.tokens.split(64):
                model(some.to(device))

    def streamed():
        for _ in stream_activations(model, words.tokens, sites):
            pass

    def probed(data):
        return lambda: msp.probe(model, data, sites=sites, concatenate=False, controls=False, progress=False)

    parts = {
        "bare forward pass": forward,
        f"{len(sites)} sites streamed": streamed,
        "probe of labelled tokens": probed(labelled),
        "probe of beliefs, with regret": probed(words),
    }
    print(f"{dtype}: a matrix product reaches {best / 1e12:.1f} TFLOP/s", flush=True)
    for name, work in parts.items():
        # By then every kernel has run, and the regret takes its time on the CPU.
        took = seconds(device, work, warm_up="regret" not in name)
        share = n_tokens * operations_a_token(True) / took / best
        print(f"  {name:32} {n_tokens / took:12,.0f} tokens/s {share:7.1%} of the peak", flush=True)
    if device.type == "cuda":
        print(f"  memory at most {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB", flush=True)
        torch.cuda.reset_peak_memory_stats(device)


def training(device):
    """Print the speed of the training of the paper's network on Mess3, on the accelerator and on the CPU."""
    process = msp.mess3(x=0.05, a=0.85)
    chosen = recipe("quick", process)
    print(f"training on Mess3, batches of {chosen.training.batch_size} words", flush=True)
    for where in (device, torch.device("cpu")):
        config = replace(chosen.training, steps=STEPS if where == device else STEPS // 10)
        run = msp.train(process, chosen.model, config=config, device=where, progress=False)
        speed = run.step * config.batch_size * chosen.model.n_ctx / run.seconds
        told = f"{1e3 * run.seconds / run.step:6.1f} ms a step, {speed:12,.0f} tokens/s"
        print(f"  {where.type:5} {told}, regret {float(run.regret.mean()):.1e} after {run.step} steps", flush=True)


def main():
    device = accelerator()
    if device is None:
        print("No accelerator is at hand: nothing to measure.")
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "Apple GPU"
    kind = "HookedTransformer" if has_hooked_transformer() else "native bridge"
    print(f"{name}, torch {torch.__version__}, {kind}", flush=True)
    only = sys.argv[1:] or [*DTYPES, "training"]
    for dtype in DTYPES:
        if dtype in only:
            probing(device, dtype)
    if "training" in only:
        training(device)


if __name__ == "__main__":
    main()
