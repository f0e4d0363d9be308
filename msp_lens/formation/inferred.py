"""Which world a network believes in as it is trained: the process inferred at every checkpoint."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from tqdm.auto import tqdm

from msp_lens._checks import Count, Seed, checked
from msp_lens._tables import TableView, nats_text
from msp_lens._values import Value
from msp_lens.data import TokenMap
from msp_lens.formation.series import Series, series
from msp_lens.inference import Inference, infer
from msp_lens.processes.validation import ArrayLike

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName


@dataclass(frozen=True, eq=False, repr=False)
class InferredOverTraining(Value, TableView):
    """The process inferred at each checkpoint of one training; `inferred_over_training` makes it.

    Attributes:
        steps: Number of optimizer steps made at each checkpoint, in order.
        tokens: Number of tokens seen by then; `None` where nobody said.
        inferences: What was inferred.
    """

    steps: tuple[int, ...]
    tokens: tuple[int | None, ...]
    inferences: tuple[Inference, ...]

    def __len__(self) -> int:
        return len(self.steps)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each checkpoint: the chosen process's states, KL per token, entropy rate; rank; how trusted.

        `states` are dimensions if the process chosen is no machine. `memory` is the KL per token of a process without
        any, and `explained` the share of it that the chosen process accounts for; NaN if there is hardly any.
        """
        rows = [
            {
                "step": step,
                "tokens": tokens,
                "states": found.n_states,
                "machine": not found.process.is_generalized,
                "KL": found.chosen.held_out,
                "memory": found.memory,
                "explained": found.explained,
                "rank": found.rank.rank,
                "entropy rate": found.entropy_rate,
                "trusted": found.is_trusted,
            }
            for step, tokens, found in zip(self.steps, self.tokens, self.inferences, strict=True)
        ]
        return pd.DataFrame(rows)

    def by_states(self) -> pd.DataFrame:
        """KL per token of the best machine of each number of states, a row for each checkpoint (by step).

        NaN where that number was not tried: by default, states are added as long as they help.
        """
        rows = [
            {each.process.n_states: each.held_out for each in found.candidates if not each.process.is_generalized}
            for found in self.inferences
        ]
        numbers = pd.Index(sorted({number for row in rows for number in row}), name="states")
        return pd.DataFrame(rows, index=pd.Index(self.steps, name="step"), columns=numbers)

    def summary(self) -> list[str]:
        """In which worlds the network believed, one after another, and whether a smaller one came before the last."""
        lines, number = ["KL per token in nats, after longer contexts; states of processes that can be trusted."], 0
        believed: list[tuple[int, int | None]] = []
        states = [found.n_states if found.is_trusted else None for found in self.inferences]
        for size, group in itertools.groupby(states):
            believed.append((self.steps[number], size))
            number += len(list(group))
        lines.append("; ".join(f"from step {step:,}: {_world(size)}" for step, size in believed) + ".")
        last = states[-1]
        if last is None:
            lines.append("At the end, no process can be trusted: " + self.inferences[-1].doubts[0])
        elif smaller := [step for step, size in believed if size is not None and size < last]:
            lines.append(f"The network first believed in a smaller world, from step {smaller[0]:,} on.")
        else:
            lines.append("At no checkpoint before was a smaller world to be trusted.")
        return lines

    @checked
    def plot(self, *, theme: ThemeName = "light") -> Figure:
        """The number of states, and what machines of each number leave, over the tokens seen; in doubt, hollow."""
        from msp_lens.figures.formation_curves import plot_inferred

        table, known = self.to_dataframe(), [each for each in self.tokens if each is not None]
        is_counted = len(known) == len(self)
        return plot_inferred(
            known if is_counted else list(self.steps),
            table["states"].tolist(),
            table["rank"].tolist(),
            table["KL"].tolist(),
            self.by_states().to_dict("list"),
            is_trusted=table["trusted"].tolist(),
            counted="tokens seen" if is_counted else "steps",
            theme=theme,
        )

    def _title(self) -> str:
        return "Which process? Inferred over training"

    def _display(self) -> pd.DataFrame:
        table = self.to_dataframe()
        shown = pd.DataFrame(index=pd.Index([f"{step:,}" for step in self.steps], name="step"))
        if any(each is not None for each in self.tokens):
            shown["tokens"] = ["–" if each is None else f"{each:,}" for each in self.tokens]
        shown["states"] = [
            str(count) if is_machine else f"{count} dimensions"
            for count, is_machine in zip(table["states"], table["machine"], strict=True)
        ]
        shown["trusted"] = ["yes" if each else "no" for each in table["trusted"]]
        for name in ("KL", "memory", "entropy rate"):
            shown[name] = [nats_text(each) for each in table[name]]
        shown["explained"] = ["–" if math.isnan(each) else f"{each:.1%}" for each in table["explained"]]
        shown["rank"] = table["rank"].astype(str).tolist()
        return shown


@checked
def inferred_over_training(
    run: Series,
    *,
    n_states: Count | Sequence[Count] | None = None,
    n_ctx: Count | None = None,
    token_map: TokenMap | None = None,
    first: ArrayLike = None,
    n_starts: Count = 8,
    max_states: Count = 5,
    seed: Seed = 0,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> InferredOverTraining:
    """Infer the process at every checkpoint of a training, which shows whether a smaller world was believed in first.

    Args:
        run: As for `emergence`: a training that kept checkpoints, its folder, some of them, or models by step.
        n_states: Numbers of states to try at each; by default as many as help.
        n_ctx: The longest context of symbols; see `infer`.
        token_map: How the models read symbols; see `infer`.
        first: Distribution of the first symbol; see `infer`.
        n_starts: Random starts for each number of states, fewer than for one network.
        max_states: The most states that are tried by default.
        seed: Of the starts, the samples and the bootstrap: the same at every checkpoint.
        device: Device of models that are read from files; a given model stays where it is.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: if the checkpoints are none or not of one training; and whatever `infer` refuses.
        TypeError: if `run` is something else, such as a list of models without their steps.
        FileNotFoundError: if the folder or the training holds no checkpoints.

    Example:
        >>> from msp_lens.models import ModelConfig, build_model
        >>> config = ModelConfig(d_vocab=2, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=4)
        >>> models = {step: build_model(config, seed=step) for step in (0, 10)}
        >>> found = inferred_over_training(models, n_states=[1, 2], n_starts=2, progress=False)
        >>> found.by_states().shape
        (2, 2)
    """
    checkpoints, found = series(run), []
    for saved in tqdm(checkpoints, desc="Inference", unit="checkpoint", disable=not progress):
        inferred = infer(
            saved.load(device=device).model,
            n_states=n_states,
            n_ctx=n_ctx,
            token_map=token_map,
            first=first,
            n_starts=n_starts,
            max_states=max_states,
            seed=seed,
            progress=False,
        )
        found.append(inferred)
    steps, tokens = (tuple(getattr(each, name) for each in checkpoints) for name in ("step", "tokens"))
    return InferredOverTraining(steps, tokens, tuple(found))


def _world(size: int | None) -> str:
    return "none to be trusted" if size is None else f"{size} state{'s' * (size > 1)}"
