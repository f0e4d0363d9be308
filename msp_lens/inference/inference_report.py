"""What `msp.infer` found: the candidates, the process chosen, and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypedDict

import pandas as pd
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens._checks import AtLeast, Count, Seed, checked
from msp_lens._files import read_json, without_nan, write_json
from msp_lens._tables import TableView, nats_text
from msp_lens._values import Value
from msp_lens.beliefs.information import entropy_rate
from msp_lens.inference.likelihood import Fit
from msp_lens.inference.operators import Operators, eigenvalues_text, sorted_eigenvalues
from msp_lens.inference.predictive_states import PredictiveRank
from msp_lens.inference.process_comparison import ProcessComparison, compare_processes
from msp_lens.inference.source import Kind
from msp_lens.processes.process import Process
from msp_lens.processes.structure import minimal_dimension

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName

# A machine is named with confidence if it explains this share of what the context tells, and if what no stationary
# process could explain is less than this share of it.
_EXPLAINED, _UNSTATIONARY = 0.98, 0.02
# Below this many nats per token the context tells nothing.
_NO_MEMORY = 1e-4
# Beliefs that entropy rates are followed over: enough for four digits.
MAX_LEVEL = 5_000
# Operators leave at most this share of what a machine leaves, and this many nats less.
_CLEARLY, _TIE = 0.5, 1e-6
# The largest machine that can be read beside others.
_MOST_DRAWN = 12
# Fields of an inference that are plain numbers.
_NUMBERS = ("entropy_rate", "memory", "stationarity_gap", "simplification")
# Infinity was written as null.
_Amount: TypeAlias = Annotated[float, AtLeast(0)] | None


class _SavedCandidate(TypedDict):
    process: dict[str, Any]
    divergence: float | None
    held_out: float | None
    criterion: float | None
    entropy_rate: float
    n_agreeing: Annotated[int, AtLeast(0)]
    n_finished: Annotated[int, AtLeast(0)]


class _SavedRank(TypedDict):
    singular_values: Float64[Tensor, "dimension"]
    noise: Annotated[float, AtLeast(0)]
    rank: Count
    samples: Int[Tensor, "rank"]
    is_growing: bool
    context_length: Count
    future_length: Count
    n_contexts: Count


class _SavedOperators(TypedDict):
    transitions: Float64[Tensor, "token i j"]
    initial: Float64[Tensor, "i"]
    right_eigenvector: Float64[Tensor, "i"]
    word_error: float
    negative: float


class _Provenance(TypedDict):
    source: str
    kind: Kind
    fingerprint: str | None
    word_length: Count
    n_words: Count
    is_population: bool
    is_held_out: bool
    n_ctx: Count
    n_worth: Count
    n_starts: Count
    seed: Seed
    notes: list[str]


class _Saved(TypedDict):
    """What the JSON file says."""

    process: dict[str, Any]
    candidates: list[_SavedCandidate]
    rank: _SavedRank
    operators: _SavedOperators
    entropy_rate: _Amount
    memory: _Amount
    stationarity_gap: float | None
    simplification: _Amount
    provenance: _Provenance


@dataclass(frozen=True, eq=False)
class Candidate(Value):
    """A process that could be the source's.

    Attributes:
        process: The machine as it was fitted, or the operators as a generalized process.
        divergence: KL(words fitted to ‖ process), nats per token.
        held_out: KL of the next token after longer contexts, nats; for data the expected loss.
        criterion: `held_out` plus what its parameters cost.
        entropy_rate: Of the process, nats.
        n_agreeing: How many of the starts that were finished came to the same divergence; 0 for operators.
        n_finished: How many were finished.
    """

    process: Process
    divergence: float
    held_out: float
    criterion: float
    entropy_rate: float
    n_agreeing: int = 0
    n_finished: int = 0

    @classmethod
    def of(
        cls, process: Process, held_out: float, worth: int, *, fit: Fit | None = None, divergence: float = math.nan
    ) -> Candidate:
        """The candidate with its criterion; `worth` is the number of tokens that what it was fitted to is worth."""
        n_parameters = process.n_states * (process.n_states * process.n_tokens - 1)
        criterion = held_out + n_parameters * price_of_parameter(worth)
        rate = entropy_rate(process, max_level=MAX_LEVEL).value
        agreement = (fit.n_agreeing, fit.n_finished) if fit else (0, 0)
        return cls(process, fit.divergence if fit else divergence, held_out, criterion, rate, *agreement)


def price_of_parameter(worth: int) -> float:
    """What the criterion charges for a parameter, in nats per token; `worth` as for `Candidate.of`."""
    return math.log(worth) / (2 * worth)


def best_candidate(candidates: Sequence[Candidate]) -> Candidate:
    """The machine with the lowest criterion, or operators that clearly predict better.

    They do if their criterion is the lowest, and they leave at most half of what a machine of as many states leaves,
    of the words fitted to as well as held out.
    """
    machines = [each for each in candidates if not each.process.is_generalized]
    best = min(machines, key=lambda each: each.criterion)
    for each in candidates:
        rival = next((machine for machine in machines if machine.process.n_states == each.process.n_states), None)
        if each in machines or rival is None or each.criterion >= best.criterion:
            continue
        if each.divergence < _CLEARLY * rival.divergence and each.held_out < _CLEARLY * rival.held_out - _TIE:
            return each
    return best


@dataclass(frozen=True, eq=False, repr=False)
class Inference(Value, TableView):
    """The process inferred from a network, from data or from a process; `infer` makes it.

    Attributes:
        process: The chosen process. A machine is without transitions and states that matter less than their parameters
            cost; each of its states is named by a shortest word after which an observer believes in it.
        candidates: All that were fitted, by number of states, and last the operators if they are a process.
        rank: The singular values of the predictive states.
        operators: The spectral solution at that rank, whether or not it is a process.
        entropy_rate: Of the chosen process, nats.
        memory: What is lost without any memory of the context, nats per token, judged as candidates are.
        stationarity_gap: How far words differ from the same words a token later; no process can explain that.
        simplification: KL(process ‖ the candidate that it simplifies), nats per token.
        provenance: The source, the words and the seed.
    """

    process: Process
    candidates: tuple[Candidate, ...]
    rank: PredictiveRank
    operators: Operators
    entropy_rate: float
    memory: float
    stationarity_gap: float
    simplification: float
    provenance: dict[str, Any]

    @property
    def chosen(self) -> Candidate:
        """The candidate with the lowest criterion."""
        return best_candidate(self.candidates)

    @property
    def n_states(self) -> int:
        """States of the chosen process, or dimensions if it is a generalized one."""
        return self.process.n_states

    @property
    def explained(self) -> float:
        """The share of what the context tells that the chosen process accounts for; NaN for data or without memory."""
        if self.provenance["kind"] == "data" or self.memory <= _NO_MEMORY:
            return math.nan
        return 1 - self.chosen.held_out / self.memory

    @property
    def doubts(self) -> list[str]:
        """Why the process should not be trusted, a sentence each; empty if it can be."""
        found, chosen, source = [], self.chosen, self.provenance["source"]
        if self.provenance["kind"] != "data" and self.memory <= _NO_MEMORY:
            found.append(
                f"What {source} predicts hardly depends on the context: {nats_text(self.memory)} nats per token."
            )
        elif self.explained < _EXPLAINED:
            found.append(
                f"The chosen process accounts for {self.explained:.1%} of what the context tells: "
                f"{nats_text(chosen.held_out)} of {nats_text(self.memory)} nats per token are left."
            )
        if self.stationarity_gap > _UNSTATIONARY * max(self.memory, _NO_MEMORY) and self.provenance["kind"] != "data":
            found.append(
                f"Words differ from the same words a token later by {nats_text(self.stationarity_gap)} nats per token. "
                "No stationary process explains that: the predictions depend on the position itself."
            )
        if self.rank.is_growing:
            found.append(
                f"Words of {self.provenance['word_length']} tokens are too short: with longer contexts or futures the "
                f"predictive rank still grows ({self.rank.rank} so far)."
            )
        dimensions = minimal_dimension(chosen.process)
        if self.rank.interval[0] > dimensions:
            found.append(
                f"The predictions have at least {self.rank.interval[0]} dimensions, the chosen process {dimensions}."
            )
        machines = [each for each in self.candidates if not each.process.is_generalized]
        if len(machines) > 1 and chosen is machines[-1]:
            found.append(f"No more than {chosen.process.n_states} states were tried, and the last state still helped.")
        return found

    @property
    def is_trusted(self) -> bool:
        """Whether nothing speaks against the chosen process; see `doubts`."""
        return not self.doubts

    @checked
    def compare(self, other: Process | Inference) -> ProcessComparison:
        """The process beside another one, or one inferred from another network; see `compare`."""
        return compare_processes(self.process, other if isinstance(other, Process) else other.process)

    @checked
    def plot(self, *, against: Process | None = None, theme: ThemeName = "light") -> Figure:
        """The singular values, the elbow, and the machine, beside another process if one is given."""
        from msp_lens.figures.curves import plot_inference

        machines = [each for each in self.candidates if not each.process.is_generalized]
        shown = [each for each in (self.process, against) if each is not None and not each.is_generalized]
        return plot_inference(
            self.rank.singular_values.tolist(),
            self.rank.noise,
            self.rank.rank,
            {each.process.n_states: each.held_out for each in machines},
            chosen=None if self.chosen.process.is_generalized else self.chosen.process.n_states,
            ylabel="expected loss (nats)" if self.provenance["kind"] == "data" else "KL per token (nats)",
            machines=[each.plot(theme=theme) for each in shown if each.n_states <= _MOST_DRAWN],
            theme=theme,
        )

    @checked
    def save(self, path: str | Path) -> Path:
        """Write everything to a JSON file, and return its path; `load` reads it."""
        path = Path(path)
        parts = {"process": self.process.to_dict(), "candidates": [_listed(each) for each in self.candidates]}
        parts |= {"rank": _listed(self.rank), "operators": _listed(self.operators)}
        write_json(path, without_nan(parts | {name: getattr(self, name) for name in (*_NUMBERS, "provenance")}))
        return path

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Inference:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged or holds something else.
        """
        path = Path(path)
        saved = read_json(path, _Saved)
        try:
            found = cls(
                process=Process.from_dict(saved["process"]),
                candidates=tuple(map(_candidate, saved["candidates"])),
                rank=PredictiveRank(**saved["rank"]),
                operators=Operators(**saved["operators"]),
                provenance=dict(saved["provenance"]),
                **{name: math.inf if saved[name] is None else saved[name] for name in _NUMBERS},
            )
            found._check_fits()
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error} It is damaged or was edited: infer the process again.") from None
        return found

    def _check_fits(self) -> None:
        """Raise `ValueError` unless the parts, which were read from a file, fit each other."""
        sizes, (n_tokens, *square) = len(self.rank.singular_values), self.operators.transitions.shape
        dimensions = {*square, len(self.operators.initial), len(self.operators.right_eigenvector)}
        if not self.candidates or self.rank.rank > sizes or int(self.rank.samples.sum()) < 1:
            raise ValueError("candidates, rank or samples are missing.")
        processes = [self.process, *(each.process for each in self.candidates)]
        if len(dimensions) > 1 or {each.n_tokens for each in processes} != {n_tokens}:
            raise ValueError("operators and processes are of different sizes.")

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each candidate: states, KL on the words fitted to and held out, criterion, rank, entropy rate."""
        rows = [
            {
                "candidate": "operators" if each.process.is_generalized else "machine",
                "states": each.process.n_states,
                "KL": each.divergence,
                "held out": each.held_out,
                "criterion": each.criterion,
                "rank": minimal_dimension(each.process),
                "entropy rate": each.entropy_rate,
                "starts agreeing": each.n_agreeing / each.n_finished if each.n_finished else math.nan,
                "chosen": each is self.chosen,
            }
            for each in self.candidates
        ]
        return pd.DataFrame(rows).set_index("candidate")

    def summary(self) -> list[str]:
        """What was found, how far it can be trusted, and what was assumed."""
        given, chosen, process = self.provenance, self.chosen, self.process
        what = f"a {'unifilar ' * process.is_unifilar}machine of {process.n_states} state{'s' * (process.n_states > 1)}"
        if process.is_generalized:
            what = f"a generalized process of {process.n_states} dimensions"
        left = nats_text(chosen.held_out)
        found = f"{what}, with an expected loss of {left} nats per token"
        if given["kind"] != "data":
            found = f"{what}, with a KL of {left} nats per token"
        lines = [f"Found: {found}."] if self.is_trusted else [f"No process is named with confidence. Nearest: {found}."]
        lines += [f"Doubt: {each}" for each in self.doubts]
        if not math.isnan(self.explained) and self.is_trusted:
            told = f"{nats_text(self.memory)} nats per token"
            lines.append(f"It accounts for {self.explained:.2%} of what the context tells ({told}).")
        if process.is_generalized:
            machines = [each for each in self.candidates[:-1] if each.process.n_states == process.n_states]
            left = f" (KL {nats_text(machines[0].held_out)})" if machines else ""
            lines.append(
                f"No hidden Markov machine of {process.n_states} states predicts as well{left}: the dimensions are no "
                "hidden states."
            )
        eigenvalues = eigenvalues_text(sorted_eigenvalues(process.state_transitions))
        lines.append(f"{self.rank!r}. Eigenvalues of the process: {eigenvalues}.")
        which = "every" if given["is_population"] else "sampled"
        held_out = "longer contexts" if given["is_held_out"] else "the same contexts, for want of longer ones"
        lines.append(
            f"Fitted to {given['n_words']:,} words ({which}) of {given['word_length']} tokens, judged after "
            f"{held_out}; {given['n_starts']} starts, worth {given['n_worth']:,} tokens, seed {given['seed']}."
        )
        return lines + given["notes"]

    def _title(self) -> str:
        return f"Which process? Inferred from {self.provenance['source']}"

    def _display(self) -> pd.DataFrame:
        table = self.to_dataframe()
        shown = pd.DataFrame(index=table.index.rename("candidate"))
        shown["states"] = [f"{'→ ' * chosen}{k}" for k, chosen in zip(table["states"], table["chosen"], strict=True)]
        for name in ("KL", "held out", "criterion"):
            shown[name] = [nats_text(value) for value in table[name]]
        shown["rank"] = table["rank"].astype(str)
        shown["entropy rate"] = [nats_text(value) for value in table["entropy rate"]]
        finished = [f"{each.n_agreeing} of {each.n_finished}" if each.n_finished else "–" for each in self.candidates]
        shown["starts agreeing"] = finished
        return shown


def _listed(record: Any) -> dict[str, Any]:
    """A record's fields as JSON-ready values."""
    found = {each.name: getattr(record, each.name) for each in fields(record)}
    return {
        name: value.tolist() if isinstance(value, Tensor) else value.to_dict() if isinstance(value, Process) else value
        for name, value in found.items()
    }


def _candidate(saved: _SavedCandidate) -> Candidate:
    infinite = {name: math.inf for name in ("divergence", "held_out", "criterion") if saved[name] is None}
    return Candidate(**{**saved, "process": Process.from_dict(saved["process"]), **infinite})
