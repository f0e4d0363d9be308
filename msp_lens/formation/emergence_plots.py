"""Pictures of how beliefs form over training: curves, and the movie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from msp_lens.data import BeliefDataset, Weighting
from msp_lens.formation.series import AtStep
from msp_lens.formation.snapshots import Snapshot, count_text, curve, over_training
from msp_lens.models.model_files import model_fingerprint
from msp_lens.probing.belief_probe import read_beliefs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.movie import Movie
    from msp_lens.figures.style import ThemeName


@dataclass(frozen=True, eq=False, repr=False)
class EmergencePlots:
    """The pictures of an emergence: `found.plot()`, and the methods here."""

    snapshots: tuple[Snapshot, ...]
    checkpoints: tuple[AtStep, ...]
    dataset: BeliefDataset | None
    weighting: Weighting

    def __call__(self, *sites: str, in_sample: bool = False, theme: ThemeName = "light") -> Figure:
        """R² and MSE of beliefs at each site, and the regret, over the tokens seen; by default at every site."""
        from msp_lens.figures.formation_curves import plot_emergence

        scored = scored_text(in_sample)
        r2, mse = (self._curves(f"{score} {scored}", sites) for score in ("R²", "MSE"))
        return plot_emergence(self._seen, r2, mse, self._regrets, scored=scored, counted=self._counted, theme=theme)

    def regret(self, *sites: str, in_sample: bool = False, theme: ThemeName = "light") -> Figure:
        """Regret against MSE, a point for each checkpoint; by default at the site best at the end and concatenated."""
        from msp_lens.figures.formation_curves import plot_regret_against_error

        scored, probes = scored_text(in_sample), self.snapshots[-1].report
        chosen = sites or [site for site in dict.fromkeys((probes.best_site.label, "concatenated")) if site in probes]
        mse = self._curves(f"MSE {scored}", chosen)
        options: Any = {"scored": scored, "counted": self._counted, "theme": theme}
        return plot_regret_against_error(self._seen, self._regrets, mse, **options)

    def use(self, *sites: str, theme: ThemeName = "light") -> Figure:
        """When beliefs can be read, and when writing them begins to steer; by default at the last four sites."""
        from msp_lens.figures.formation_curves import plot_use

        steered = self.snapshots[0].interventions
        if steered is None:
            raise ValueError("No beliefs were written: call emergence(…, interventions=True).")
        chosen = sites or steered.values("site")[-4:]
        columns = ("R² held out", "steer", "placebo", "donor")
        curves = [self._curves(column, chosen) for column in columns]
        return plot_use(self._seen, *curves, counted=self._counted, theme=theme)

    def movie(
        self,
        *sites: str,
        device: str = "cpu",
        batch_size: int | None = None,
        theme: ThemeName | Literal["both"] = "light",
    ) -> Movie:
        """The beliefs that each checkpoint represents, next to the true ones: the fractal as it forms.

        Each site is a panel: by default the single site that is read best at the end. Each checkpoint's own probes map
        its activations to beliefs, and all frames share the projection of the true ones. Every model is run again.
        With `theme="both"`, a page follows its reader's scheme, light or dark.

        Raises:
            KeyError: if a site was not probed.
            ValueError: if a checkpoint has changed since it was probed, or the words or models are missing.
        """
        from msp_lens.figures.movie import Progress, beliefs_movie

        last = self.snapshots[-1].report
        chosen = [last[site].label for site in sites] or [last.best_site.label]
        if self.dataset is None or len(self.checkpoints) != len(self.snapshots):
            raise ValueError(
                "There are no words or models to run: load with Emergence.load(folder, checkpoints=…, dataset=…)."
            )
        represented: dict[str, list] = {f"represented at {site}": [] for site in chosen}
        captions = []
        for saved, snapshot in zip(self.checkpoints, self.snapshots, strict=True):
            model = saved.load(device=device).model
            if model_fingerprint(model) != snapshot.report.provenance["model_fingerprint"]:
                raise ValueError(f"{saved.path} has changed since it was probed: call emergence() again.")
            probes = [snapshot.report[site] for site in chosen]
            read = read_beliefs(model, self.dataset, probes, batch_size=batch_size)
            for frames, beliefs in zip(represented.values(), read, strict=True):
                frames.append(beliefs)
            r2 = probes[0].scores.held_out.r2
            seen = f"    {count_text(snapshot.tokens)} tokens" if snapshot.tokens is not None else ""
            captions.append(f"step {snapshot.step:,}{seen}    R² {r2:.4f}")
        curves = {"MSE of beliefs": curve(self.snapshots, "MSE held out", chosen[0])}
        if not any(map(math.isnan, self._regrets)):
            curves["regret (nats)"] = self._regrets
        return beliefs_movie(
            self.dataset.prefix_beliefs,
            represented,
            captions,
            weights=self.dataset.prefix_weights(self.weighting),
            states=self.dataset.process.states,
            progress=Progress(self._seen, curves, self._counted),
            title=f"{self.dataset.process.name}: beliefs forming",
            theme=theme,
        )

    def _curves(self, column: str, sites: Sequence[str]) -> dict[str, list[float]]:
        wide = over_training(self.snapshots, column, *sites)
        return {str(site): wide[site].tolist() for site in wide.columns}

    @property
    def _seen(self) -> list[int]:
        """Tokens, or steps if anybody's tokens are not known."""
        tokens = [each.tokens for each in self.snapshots if each.tokens is not None]
        return tokens if len(tokens) == len(self.snapshots) else [each.step for each in self.snapshots]

    @property
    def _counted(self) -> str:
        return "tokens seen" if all(each.tokens is not None for each in self.snapshots) else "steps"

    @property
    def _regrets(self) -> list[float]:
        return [each.regret for each in self.snapshots]


def scored_text(in_sample: bool) -> str:
    """How tables name the rows that a score is of."""
    return "in-sample" if in_sample else "held out"
