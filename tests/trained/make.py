"""Train the networks whose weights are kept here, so that tests need not: `python -m tests.trained.make`.

Each is written beside this file, under its name here.
"""

from pathlib import Path

import msp_lens as msp

HERE = Path(__file__).parent
# How each network is trained: process, steps, words in a step, learning rate, what its config has beside `SIZES`, or
# the whole config of a recurrent network, and how its training differs from the others'.
SIZES = {"n_layers": 2, "d_model": 32, "n_heads": 2, "d_head": 16, "d_mlp": 128, "n_ctx": 9}
TRAINED = {
    "rrxor": (msp.rrxor(), 700, 2048, 3e-3, {"n_heads": 4, "d_model": 64, "d_mlp": 256, "n_ctx": 10}),
    "rrxor_adamw": (
        msp.rrxor(),
        1500,
        64,
        5e-3,
        {"d_model": 64, "n_ctx": 10},
        {"optimizer": "adamw", "warmup_steps": 50},
    ),
    "frdn": (msp.processes.frdn(), 600, 512, 5e-3, {}),
    "even": (msp.processes.even(p=0.5), 400, 256, 5e-3, {}),
    "mess3_lstm": (msp.mess3(), 600, 256, 1e-2, {"kind": "lstm", "d_model": 16, "n_ctx": 10}),
}


def train(process, steps, batch_size, learning_rate, wider, otherwise=None):
    """A network that is trained on a process."""
    usual = {"optimizer": "muon", "warmup_steps": 20}
    config = msp.TrainingConfig(
        steps=steps, batch_size=batch_size, learning_rate=learning_rate, **usual | (otherwise or {})
    )
    if "kind" in wider:
        model = msp.models.RecurrentConfig(d_vocab=process.n_tokens, **wider)
    else:
        model = msp.ModelConfig(d_vocab=process.n_tokens, **SIZES | wider)
    return msp.train(process, model, config=config, progress=False).model


def load(name):
    """The network that is kept."""
    return msp.load_checkpoint(HERE / f"{name}.safetensors").model


if __name__ == "__main__":
    for name, recipe in TRAINED.items():
        msp.save_checkpoint(HERE / f"{name}.safetensors", train(*recipe), process=recipe[0])
