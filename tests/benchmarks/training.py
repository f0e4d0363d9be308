"""How long does the paper's result take, and how much of a step is the library's own work?

    python -m tests.benchmarks.training [PRESET] [STEPS]

For Mess3 and RRXOR, it runs the preset's training to its end (or for STEPS steps) and prints the regret and loss ratio
reached, in exact expectation over all words. It prints three times for a step: of that training; of the bare step
(forward, loss, backward and optimizer on batches made before); and of a floor, a plain torch module of the same shape
with PyTorch's fused attention, under the same optimizer. `OMP_NUM_THREADS` limits the threads: on a shared machine
fewer are faster. `what_was_tried.md` holds earlier results.
"""

import os
import sys
import time
from dataclasses import replace

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import msp_lens as msp
from msp_lens.training import recipe
from msp_lens.training.batches import Batches
from msp_lens.training.optimizers import WeightOptimizer

# Shai et al. 2024: the validation loss reached, over the least possible one.
LOSS_RATIO = 1.0002
BARE_STEPS = 40


class FloorBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_heads, width = config.n_heads, config.n_heads * config.d_head
        self.attention_norm, self.mlp_norm = nn.LayerNorm(config.d_model), nn.LayerNorm(config.d_model)
        self.qkv, self.out = nn.Linear(config.d_model, 3 * width), nn.Linear(width, config.d_model)
        self.mlp = nn.Sequential(
            nn.Linear(config.d_model, config.d_mlp), nn.ReLU(), nn.Linear(config.d_mlp, config.d_model)
        )

    def forward(self, stream):
        q, k, v = (
            part.unflatten(2, (self.n_heads, -1)).transpose(1, 2)
            for part in self.qkv(self.attention_norm(stream)).chunk(3, dim=2)
        )
        attended = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        stream = stream + self.out(attended)
        return stream + self.mlp(self.mlp_norm(stream))


class Floor(nn.Module):
    """The least work that a transformer of this shape can do."""

    def __init__(self, config):
        super().__init__()
        self.tokens = nn.Embedding(config.d_vocab, config.d_model)
        self.positions = nn.Parameter(torch.zeros(config.n_ctx, config.d_model))
        self.blocks = nn.ModuleList(FloorBlock(config) for _ in range(config.n_layers))
        self.norm, self.unembed = nn.LayerNorm(config.d_model), nn.Linear(config.d_model, config.d_vocab)

    def forward(self, tokens):
        stream = self.tokens(tokens) + self.positions
        for block in self.blocks:
            stream = block(stream)
        return self.unembed(self.norm(stream))


def seconds_of_a_step(model, config, batches):
    """The median time of forward, loss, backward and optimizer, on batches made before."""
    optimizer = WeightOptimizer(model, config)
    times = []
    for batch in batches:
        started = time.perf_counter()
        optimizer.zero_grad()
        batch.loss(model(batch.tokens).log_softmax(-1)).backward()
        optimizer.step()
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]


def measure(process, preset, steps):
    """Train, time and print one process."""
    chosen = recipe(preset, process)
    config = chosen.training if steps is None else replace(chosen.training, steps=steps)
    supply = iter(Batches(process, config.batch_size, chosen.model.n_ctx, seed=0))
    batches = [next(supply) for _ in range(BARE_STEPS)]
    floor = seconds_of_a_step(Floor(chosen.model), config, batches)
    bare = seconds_of_a_step(msp.build_model(chosen.model), config, batches)
    run = msp.train(process, chosen.model, config=config, progress=False)
    step = run.seconds / run.step
    words = sum(len(batch.tokens) for batch in batches) / len(batches)
    print(f"{process.name}, {preset}: {run.step} steps of {config.batch_size} words, {words:.0f} of them distinct")
    print(f"    time to quality {run.seconds:8.1f} s    regret {float(run.regret.mean()):.2e} nats", end="")
    print(f"    loss ratio {run.loss_ratio:.5f} (the paper's: {LOSS_RATIO})")
    print(f"    a step {1e3 * step:6.1f} ms    bare {1e3 * bare:6.1f} ms    floor {1e3 * floor:6.1f} ms", flush=True)


def main():
    """Measure both processes."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    preset = sys.argv[1] if len(sys.argv) > 1 else "paper"
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else None
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    for process in (msp.mess3(x=0.05, a=0.85), msp.rrxor()):
        measure(process, preset, steps)


if __name__ == "__main__":
    main()
