"""How fast are probing and training on an accelerator, against what the card can do?

    python -m tests.benchmarks.accelerator [PART …]

- Probing a randomly initialized model of GPT-2's size in float32, bfloat16 and float16: tokens a second of the bare
  forward pass, of streaming thirteen sites, and of the whole probe, with the share of the card's peak that each
  reaches. The peak is what one large matrix product reaches on the same card in the same precision. The probe is taken
  twice: of beliefs, with the regret of 50,257 logits, and of labelled tokens, without it. Most of a short probe's time
  goes to the solves, so the time of each further token of labelled tokens is given, too.
- Probing the paper's model on all words of ten tokens of Mess3, and training of the preset `quick`; and on the CPU.
- Waits: how often the CPU waits for the GPU for each further batch of words and each further step of a training, and
  which lines of this package make it wait (NVIDIA alone).

Name the parts to run (float32, bfloat16, float16, paper, training, waits) for fewer than all. Each prints its line when
it is done. Without an accelerator it says so and does nothing.
"""

import sys
import time
from dataclasses import replace

import torch

import msp_lens as msp
from msp_lens.models import find_sites, stream_activations
from msp_lens.models.build import has_hooked_transformer
from msp_lens.training import recipe
from tests.waits import further_waits

LAYERS, WIDTH, VOCABULARY, CONTEXT = 12, 768, 50_257, 128
WORDS, MORE_WORDS, DTYPES, STEPS = 1_024, 5_120, ("float32", "bfloat16", "float16"), 500
PARTS = (*DTYPES, "paper", "training", "waits")


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


def words_of(n_words):
    """Sampled words of the model's context."""
    return msp.words(msp.mess3(x=0.05, a=0.85), n_ctx=CONTEXT, n_words=n_words, seed=0)


def labelled_words(n_words):
    """The same words, labelled with their beliefs."""
    words = words_of(n_words)
    return msp.LabelledTokens.from_tokens(words.tokens, words.beliefs)


def probing(device, dtype):
    """Print the speeds of one precision."""
    model = model_in(dtype, device)
    best = peak(device, getattr(torch, dtype))
    words = words_of(WORDS)
    sites = find_sites(model, None)
    n_tokens = WORDS * CONTEXT

    def forward():
        with torch.no_grad():
            for some in words.tokens.split(64):
                model(some.to(device))

    def streamed():
        for _ in stream_activations(model, words.tokens, sites, logits=False):
            pass

    def probed(data):
        return lambda: msp.probe(model, data, sites=sites, concatenate=False, controls=False, progress=False)

    parts = {
        "bare forward pass": forward,
        f"{len(sites)} sites streamed": streamed,
        "probe of labelled tokens": probed(labelled_words(WORDS)),
        "probe of beliefs, with regret": probed(words),
    }
    print(f"{dtype}: a matrix product reaches {best / 1e12:.1f} TFLOP/s", flush=True)
    for name, work in parts.items():
        # By then every kernel has run, and the regret takes its time on the CPU.
        took = seconds(device, work, warm_up="regret" not in name)
        share = n_tokens * operations_a_token("labelled" not in name and "streamed" not in name) / took / best
        print(f"  {name:32} {n_tokens / took:12,.0f} tokens/s {share:7.1%} of the peak", flush=True)
        if name.startswith("probe of labelled"):
            further = seconds(device, probed(labelled_words(MORE_WORDS)), warm_up=False) - took
            n_further = (MORE_WORDS - WORDS) * CONTEXT
            share = n_further * operations_a_token(False) / further / best
            print(
                f"  {'  each further token':32} {n_further / further:12,.0f} tokens/s {share:7.1%} of the peak",
                flush=True,
            )
    if device.type == "cuda":
        print(f"  memory at most {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB", flush=True)
        torch.cuda.reset_peak_memory_stats(device)


def paper(device):
    """Print the speed of a probe of the paper's network on all words of ten tokens, on both."""
    process = msp.mess3(x=0.05, a=0.85)
    words = msp.words(process, n_ctx=10)
    print(f"the paper's probe, {words.tokens.numel():,} tokens", flush=True)
    for where in (device, torch.device("cpu")):
        model = msp.build_model(recipe("paper", process).model, device=where)

        def probed(model=model):
            msp.probe(model, words, progress=False)

        took = seconds(device, probed)
        print(f"  {where.type:5} {took:6.2f} s, {words.tokens.numel() / took:12,.0f} tokens/s", flush=True)


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


def waiting(device):
    """Print how often the CPU waits for each further batch or step."""
    process = msp.mess3(x=0.05, a=0.85)
    chosen = recipe("quick", process)
    small, large = msp.build_model(recipe("paper", process).model, device=device), model_in("bfloat16", device)
    short, long = msp.words(process, n_ctx=10), msp.words(process, n_ctx=CONTEXT, n_words=512, seed=0)

    def probed(model, words, n_batches):
        size = -(-len(words) // n_batches)
        msp.probe(model, words, batch_size=size, concatenate=False, controls=False, progress=False)

    def trained(steps):
        config = replace(chosen.training, steps=steps, log_every=1_000, warmup_steps=1)
        msp.train(process, chosen.model, config=config, device=device, progress=False)

    works = {
        "a batch of the paper's probe": (lambda n: probed(small, short, n), 4, 12),
        "a batch of a probe of GPT-2's size": (lambda n: probed(large, long, n), 2, 8),
        "a step of a training": (trained, 20, 116),
    }
    print("the CPU waits for the GPU", flush=True)
    for name, (work, few, many) in works.items():
        found = further_waits(work, few, many)
        print(f"  {sum(found.values()):8.2f} times for {name}", flush=True)
        for line, times in sorted(found.items(), key=lambda item: -item[1]):
            print(f"    {times:8.2f} {line}", flush=True)


def main():
    device = accelerator()
    if device is None:
        print("No accelerator is at hand: nothing to measure.")
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "Apple GPU"
    kind = "HookedTransformer" if has_hooked_transformer() else "native bridge"
    print(f"{name}, torch {torch.__version__}, {kind}", flush=True)
    only = sys.argv[1:] or PARTS
    for dtype in DTYPES:
        if dtype in only:
            probing(device, dtype)
    for part, work in (("paper", paper), ("training", training)):
        if part in only:
            work(device)
    if "waits" in only and device.type == "cuda":
        waiting(device)


if __name__ == "__main__":
    main()
