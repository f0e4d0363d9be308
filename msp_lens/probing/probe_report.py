"""What probing found: one probe a site, and one over all sites concatenated, beside their controls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jaxtyping import Float64
from torch import Tensor

from msp_lens._tables import json_records, skill_text, to_html, to_text
from msp_lens.data import BeliefDataset, TokenMap
from msp_lens.models.hooked import HookedModel
from msp_lens.models.model_files import model_fingerprint
from msp_lens.moments.scores import NOTHING_LEFT, HeldOutScore, Score, skill
from msp_lens.probing.belief_probe import BeliefProbe
from msp_lens.probing.controls import Controls, ControlScore, interval_text
from msp_lens.processes.process import Process

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from plotly.graph_objects import Figure as PlotlyFigure

    from msp_lens.figures.style import ThemeName
    from msp_lens.figures.tokens import Html
    from msp_lens.probing.distances import Distances
    from msp_lens.probing.geometry import Geometry


@dataclass(frozen=True)
class Increment:
    """A site together with all sites before it.

    Attributes:
        site: The last one's label.
        in_sample: Score of the probe of all of them.
        held_out: The same, held out.
    """

    site: str
    in_sample: Score
    held_out: HeldOutScore


@dataclass(frozen=True, eq=False)
class ProbeReport(Mapping[str, BeliefProbe]):
    """Probes by site, in the order of the forward pass; the last is the concatenation of all sites.

    A mapping: `report["blocks.3.hook_resid_post"]`, `report["3_post"]`, `report["concatenated"]`.

    Attributes:
        probes: The probes.
        regret: E KL(optimal next token ‖ model's) at each position, in nats; `None` if the model gave no logits.
        provenance: Process, weighting, split, number of words, fingerprints, seed.
        model: The model that was probed (not saved).
        dataset: The words it was probed on (not saved).
        controls: What the probes are set beside.
        cumulative: Each site together with all before it.
        token_map: How the model read the process's symbols, if not as they are.
    """

    probes: tuple[BeliefProbe, ...]
    regret: Float64[Tensor, "pos"] | None
    provenance: dict[str, Any]
    model: HookedModel | None = field(repr=False)
    dataset: BeliefDataset | None = field(repr=False)
    controls: Controls = field(default_factory=Controls, repr=False)
    cumulative: tuple[Increment, ...] = field(default=(), repr=False)
    token_map: TokenMap | None = field(default=None, repr=False)

    def __getitem__(self, site: str) -> BeliefProbe:
        for probe in self.probes:
            if site == probe.label or (len(probe.sites) == 1 and site == probe.sites[0]):
                return probe
        raise KeyError(f"No probe for {site!r} in this report; it has {', '.join(self)}.")

    def __iter__(self) -> Iterator[str]:
        return (probe.label for probe in self.probes)

    def __len__(self) -> int:
        return len(self.probes)

    @property
    def best_site(self) -> BeliefProbe:
        """The single-site probe with the highest held-out R²."""
        return max((p for p in self.probes if len(p.sites) == 1), key=lambda p: p.scores.held_out.r2)

    @property
    def process(self) -> Process | None:
        """The process whose beliefs were probed, where there is one."""
        if self.dataset is not None:
            return self.dataset.process
        return Process.from_dict(self.provenance["process"]) if "process" in self.provenance else None

    def with_controls(self, scores: Sequence[ControlScore]) -> ProbeReport:
        """The same report beside further controls."""
        return replace(self, controls=Controls((*self.controls.scores, *scores)))

    def with_regret(self, regret: Float64[Tensor, "pos"] | None) -> ProbeReport:
        """The same report with the model's regret."""
        return replace(self, regret=regret)

    def skill(self, site: str) -> float:
        """The share of what the best control leaves unexplained that the site's probe explains, held out.

        Below 0 if the control explains more. NaN if the report has no controls but shuffled beliefs.
        """
        probe = self[site]
        best = self.controls.best(probe.label)
        held_out = probe.scores.held_out
        if best is None:
            return math.nan
        return skill(held_out.mse, best.held_out.mse, held_out.variance)

    def beyond_next_token(self, site: str) -> float:
        """The share of what next-token probabilities leave of the beliefs that the activations add, held out.

        NaN where it was not measured, or where next-token probabilities leave less than a millionth of the variance:
        there the two cannot be told apart.
        """
        joint = self[site].scores.with_next_token
        rivals = [each for each in self.controls if each.is_rival]
        if joint is None or not rivals:
            return math.nan
        left = rivals[0].held_out.mse
        return 1 - joint.mse / left if left > NOTHING_LEFT * joint.variance else math.nan

    def to_dataframe(self) -> pd.DataFrame:
        """One row a probe. R² is against the variance over all coordinates, MSE per coordinate."""
        rows = []
        for probe in self.probes:
            scores = probe.scores
            best = self.controls.best(probe.label)
            rows.append(
                {
                    "site": probe.label,
                    "R² held out": scores.held_out.r2,
                    "low": scores.held_out.r2_interval[0],
                    "high": scores.held_out.r2_interval[1],
                    "R² in-sample": scores.in_sample.r2,
                    "R² shuffled": scores.shuffled.r2 if scores.shuffled else math.nan,
                    "R² shuffled held out": scores.shuffled_held_out.r2 if scores.shuffled_held_out else math.nan,
                    "R² best control": best.held_out.r2 if best else math.nan,
                    "best control": best.name if best else None,
                    "skill": self.skill(probe.label),
                    "beyond next token": self.beyond_next_token(probe.label),
                    "MSE held out": scores.held_out.mse,
                    "MSE in-sample": scores.in_sample.mse,
                    "RMSE in-sample": scores.in_sample.rmse,
                    "features": sum(probe.widths),
                    "rank": probe.read_map.rank,
                    "n": scores.in_sample.n,
                    "hook": ", ".join(probe.sites) if len(probe.sites) == 1 else f"{len(probe.sites)} sites",
                }
            )
        return pd.DataFrame(rows).set_index("site")

    def by_position(self, *, own: bool = False) -> pd.DataFrame:
        """Held-out R² at each position, a row a probe, against the variance of beliefs at that position.

        Args:
            own: Of probes fitted at each position on its own, instead of the one probe of all positions.

        Raises:
            ValueError: if it was not measured.
        """
        found = {p.label: p.scores.by_position_own if own else p.scores.by_position for p in self.probes}
        if not all(found.values()):
            option = "own_positions=True" if own else "by_position=True"
            raise ValueError(f"Positions were not scored{' on their own' if own else ''}: probe with {option}.")
        rows = {label: [score.r2 for score in scores] for label, scores in found.items()}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="site", columns="position")

    def by_state(self) -> pd.DataFrame:
        """Held-out R² of each coordinate of the belief, a row a probe."""
        process = self.process
        n_states = self.probes[0].n_states
        names = process.states if process and process.n_states == n_states else tuple(map(str, range(n_states)))
        rows = {probe.label: probe.scores.held_out.r2_by_target for probe in self.probes}
        return pd.DataFrame.from_dict(rows, orient="index", columns=pd.Index(names)).rename_axis(
            index="site", columns="state"
        )

    def by_rank(self, *, in_sample: bool = False) -> pd.DataFrame:
        """R² of reduced-rank regression of each rank, held out unless `in_sample`; a row a probe."""
        rows = {
            p.label: [score.r2 for score in (p.scores.by_rank_in_sample if in_sample else p.scores.by_rank)]
            for p in self.probes
        }
        table = pd.DataFrame.from_dict(rows, orient="index")
        return table.set_axis(range(1, table.shape[1] + 1), axis=1).rename_axis(index="site", columns="rank")

    def increments(self) -> pd.DataFrame:
        """What each site adds to those before it: R² of all sites up to it, and how much that is more.

        Raises:
            ValueError: if the sites were not concatenated, or there is only one.
        """
        if not self.cumulative:
            raise ValueError("There are no concatenations: probe two or more sites, with concatenate=True.")
        table = pd.DataFrame(
            {
                "site": each.site,
                "R² held out, alone": self[each.site].scores.held_out.r2,
                "R² held out, with those before": each.held_out.r2,
                "R² in-sample, with those before": each.in_sample.r2,
            }
            for each in self.cumulative
        ).set_index("site")
        table["increment held out"] = table["R² held out, with those before"].diff().fillna(table.iloc[0, 1])
        return table

    def by_penalty(self) -> pd.DataFrame:
        """Held-out MSE of each ridge penalty, a row a probe; the chosen one has the least, so it flatters there.

        Raises:
            ValueError: if no penalty was chosen.
        """
        rows = {probe.label: dict(probe.scores.mse_by_penalty) for probe in self.probes}
        if not all(rows.values()):
            raise ValueError("No penalty was chosen: probe with method='ridge' and no penalty=.")
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="site", columns="penalty")

    def to_dict(self) -> dict[str, Any]:
        """Everything but the probes' weights, as JSON-ready values; undefined numbers are `None`."""

        def records(table: pd.DataFrame) -> list[dict[str, Any]]:
            return json_records(table.reset_index().to_dict(orient="records"))

        return {
            "sites": records(self.to_dataframe()),
            "controls": records(self.controls.to_dataframe()),
            "increments": records(self.increments()) if self.cumulative else [],
            "regret_nats": self.regret.tolist() if self.regret is not None else None,
            "provenance": self.provenance,
        }

    def summary(self) -> list[str]:
        """What the numbers are of, and how far to trust them, a sentence each."""
        from msp_lens.probing.summary import summarize

        return summarize(self)

    def run_on(self) -> tuple[HookedModel, BeliefDataset]:
        """The model that was probed and the words it was probed on, to run it once more.

        Raises:
            ValueError: if the report has none of them, or the model's weights have changed since it was probed.
        """
        if self.model is None or self.dataset is None:
            raise ValueError(
                "This report has no model or no words of a process to run it on: load it with "
                "ProbeReport.load(path, model=model), or probe a model on a process."
            )
        if model_fingerprint(self.model) != self.provenance["model_fingerprint"]:
            raise ValueError("The model has changed since it was probed: probe it again, and go on from that report.")
        return self.model, self.dataset

    def plot(self, *sites: str, word: Sequence[int | str] = (), theme: ThemeName = "light") -> Figure:
        """The belief states as they are and as these sites represent them, side by side, colored by belief.

        This and the views of words run the model once more.

        Args:
            sites: Sites, labels or `"concatenated"`, a panel each; by default the single site with the best held-out
                R².
            word: A word (token numbers or names) whose way is drawn through every panel.
            theme: `"light"` or `"dark"`.

        Raises:
            KeyError: if a site is not in the report.
            ValueError: if the model's weights have changed since it was probed, or the report was loaded without it; if
                the word is not among those it was probed on.
        """
        from msp_lens.probing import probe_plots as pictures

        return pictures.beliefs_figure(self, sites, word=word, theme=theme)

    def plot_positions(self, *sites: str, positions: Sequence[int] | None = None, theme: ThemeName = "light") -> Figure:
        """The same by position: a column each, true beliefs in the first row, a row for each site below."""
        from msp_lens.probing import probe_plots as pictures

        return pictures.positions_figure(self, sites, shown=positions, theme=theme)

    def explore(self, *sites: str, theme: ThemeName = "light") -> PlotlyFigure:
        """The same as `plot`, interactive: prefixes show their word and belief on hover; four states can be turned."""
        from msp_lens.probing import probe_plots as pictures

        return pictures.interactive_figure(self, sites, theme=theme)

    def show_word(self, word: Sequence[int | str], *sites: str, theme: ThemeName = "light") -> Html:
        """A word, its tokens colored by the true belief after each and by those read at these sites.

        Args:
            word: Token numbers or names: any word that the process can emit and the model's context holds.
            sites: As for `plot`.
            theme: `"light"` or `"dark"`.
        """
        from msp_lens.probing import probe_plots as pictures

        return pictures.word_html(self, word, sites, theme=theme)

    def show_readouts(self, word: Sequence[int | str]) -> Html:
        """What every probe reads after each token of a word, state by state, in circuitsvis's view."""
        from msp_lens.probing import probe_plots as pictures

        return pictures.readouts_html(self, word)

    def plot_scores(self, *, theme: ThemeName = "light") -> Figure:
        """R² at each site, held out and in-sample, beside shuffled beliefs and the best control."""
        from msp_lens.probing import probe_plots as pictures

        return pictures.sites_figure(self, theme=theme)

    def plot_by_rank(self, *, in_sample: bool = False, theme: ThemeName = "light") -> Figure:
        """R² of reduced-rank regression over its rank, a curve for each site; see `by_rank`."""
        from msp_lens.probing import probe_plots as pictures

        ylabel = f"R² of beliefs, {'in-sample' if in_sample else 'held out'}"
        table = self.by_rank(in_sample=in_sample)
        return pictures.curves_figure(table, title="Reduced-rank probes", ylabel=ylabel, theme=theme)

    def plot_by_position(self, *, own: bool = False, theme: ThemeName = "light") -> Figure:
        """R² held out at each position, a curve for each site; see `by_position`."""
        from msp_lens.probing import probe_plots as pictures

        title = "Probes fitted at each position" if own else "One probe of all positions, by position"
        ylabel = "R² of beliefs, held out"
        return pictures.curves_figure(self.by_position(own=own), title=title, ylabel=ylabel, theme=theme)

    def plot_crossover(self, *, theme: ThemeName = "light") -> Figure:
        """R² held out of windows of the last k tokens over k, beside each site's: where a window overtakes it.

        Raises:
            ValueError: if the report was made without controls.
        """
        from msp_lens.probing import probe_plots as pictures

        return pictures.crossover_figure(self, theme=theme)

    def plot_regret(self, *, theme: ThemeName = "light") -> Figure:
        """The model's loss at each position on top of the least possible, and what lies between, in nats.

        Raises:
            ValueError: if the model gave no logits.
        """
        from msp_lens.probing import probe_plots as pictures

        return pictures.regret_figure(self, theme=theme)

    def distances(self, site: str | None = None, *, seed: int = 0) -> Distances:
        """Distances between beliefs read, true beliefs, and next-token probabilities; see `distances.distances`."""
        from msp_lens.probing.distances import distances

        return distances(self, site, seed=seed)

    def geometry(self) -> Geometry:
        """How the belief lies at each site: variance share, dimensions, angles, the simplex, the unembedding.

        Runs the model once more over the words it was probed on, to see where read-outs fall.

        Raises:
            ValueError: if the report was loaded without its model, or the model has changed since.
        """
        from msp_lens.probing.geometry import geometry

        return geometry(self)

    def save(self, path: str | Path) -> Path:
        """Write the report to one safetensors file, its numbers as JSON in the header; whole or not at all."""
        from msp_lens.probing.report_files import save_report

        return save_report(self, path)

    @classmethod
    def load(
        cls, path: str | Path, *, model: HookedModel | None = None, process: Process | BeliefDataset | None = None
    ) -> ProbeReport:
        """Load a report saved by `save`.

        Args:
            path: The file.
            model: The model it is of, for plots.
            process: The process it is of, or the dataset, to check; words of a dataset of one's own are not saved.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged or no report, or if the model's or the process's fingerprint is not the
                report's.
        """
        from msp_lens.probing.report_files import load_report

        return load_report(path, model=model, process=process)

    def description(self) -> dict[str, Any]:
        """All but the tensors, as values for JSON; `report_files` reads it back."""
        return {
            "probes": [probe.description() for probe in self.probes],
            "controls": [asdict(each) for each in self.controls],
            "cumulative": [asdict(each) for each in self.cumulative],
            "provenance": self.provenance,
        }

    def __repr__(self) -> str:
        return to_text(self._display(), title="Belief probes", notes=self.summary())

    def _repr_html_(self) -> str:
        return to_html(self._display(), title="Belief probes", notes=self.summary())

    def _display(self) -> pd.DataFrame:
        """The table as shown: what one must see at a glance, rounded to what carries meaning."""
        table = self.to_dataframe()
        shown = pd.DataFrame(index=table.index)
        shown["R² held out"] = table["R² held out"].map("{:.5f}".format)
        shown["95 %"] = [interval_text(*ends) for ends in zip(table["low"], table["high"], strict=True)]
        shown["in-sample"] = table["R² in-sample"].map("{:.5f}".format)
        if bool(table["R² shuffled"].notna().any()):
            shown["shuffled"] = table["R² shuffled"].map("{:.3f}".format)
        if len(self.controls) > 0:
            shown["best control"] = [
                f"{r2:.4f} {name}" for r2, name in zip(table["R² best control"], table["best control"], strict=True)
            ]
            shown["skill"] = table["skill"].map(skill_text)
        if bool(table["beyond next token"].notna().any()):
            shown["beyond"] = table["beyond next token"].map("{:.3f}".format)
        shown["MSE"] = table["MSE held out"].map("{:.6f}".format)
        return shown
