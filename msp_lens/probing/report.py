"""What probing found: one probe a site, and one over all sites concatenated, beside their controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
from jaxtyping import Float64
from torch import Tensor

from msp_lens._tables import to_html, to_text
from msp_lens.data import BeliefDataset
from msp_lens.models.checkpoints import model_fingerprint
from msp_lens.models.hooked import HookedModel
from msp_lens.probing.belief_probe import BeliefProbe, read_beliefs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class ProbeReport(Mapping[str, BeliefProbe]):
    """Probes by site, in the order of the forward pass; the last is the concatenation of all sites.

    A mapping: `report["blocks.3.hook_resid_post"]`, `report["3_post"]`, `report["concatenated"]`.

    Attributes:
        probes: The probes.
        regret: E KL(optimal next token ‖ model's) at each position, in nats; `None` if the model gave no logits.
        provenance: Process, weighting, number of words, fingerprints, seed.
        model: The model that was probed (not saved).
        dataset: The words it was probed on (not saved).
    """

    probes: tuple[BeliefProbe, ...]
    regret: Float64[Tensor, "pos"] | None
    provenance: dict[str, Any]
    model: HookedModel = field(repr=False)
    dataset: BeliefDataset = field(repr=False)

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

    def to_dataframe(self) -> pd.DataFrame:
        """One row a probe. R² is against the variance over all coordinates, MSE per coordinate."""
        rows = []
        for probe in self.probes:
            scores = probe.scores
            rows.append(
                {
                    "site": probe.label,
                    "R² held out": scores.held_out.r2,
                    "R² in-sample": scores.in_sample.r2,
                    "R² shuffled": scores.shuffled.r2,
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

    def to_dict(self) -> dict[str, Any]:
        """Everything but the probes' weights, as JSON-ready values; undefined numbers are `None`."""
        table = self.to_dataframe().reset_index()
        return {
            "sites": [
                {key: None if pd.isna(value) else value for key, value in row.items()}
                for row in table.to_dict(orient="records")
            ],
            "regret_nats": self.regret.tolist() if self.regret is not None else None,
            "provenance": self.provenance,
        }

    def summary(self) -> list[str]:
        """What the numbers are of, and how far to trust them, a sentence each."""
        given = self.provenance
        scores = self.probes[0].scores
        words = "every possible word" if given["is_population"] else f"{given['words']:,} sampled words"
        lines = [
            f"{self.dataset.process!r}; {words} of {given['n_ctx']} tokens: {scores.in_sample.n:,} distinct prefixes, "
            f"weights={given['weights']!r}.",
            f"Held out: {given['n_folds']} folds by prefix. Shuffled: a probe of beliefs dealt out at random, "
            "in-sample.",
        ]
        if self.regret is not None:
            lines.append(
                f"Regret of the model: {float(self.regret.mean()):.2g} nats on average over positions "
                f"({float(self.regret.min()):.2g} to {float(self.regret.max()):.2g})."
            )
        lines.append(
            "Not among the controls here: next-token probabilities, token windows, an untrained network. A random "
            "network can reach a high R² too; compare before concluding."
        )
        return lines

    def plot(self, *sites: str) -> Figure:
        """The belief states as they are and as these sites represent them, side by side, coloured by belief.

        Runs the model once more over the words it was probed on.

        Args:
            sites: Sites, labels or `"concatenated"`, a panel each; by default the single site with the best held-out
                R².

        Raises:
            KeyError: if a site is not in the report.
            ValueError: if the model's weights have changed since it was probed.
        """
        from msp_lens.figures.simplex import plot_beliefs

        probes = [self[site] for site in sites] if sites else [self.best_site]
        if model_fingerprint(self.model) != self.provenance["model_fingerprint"]:
            raise ValueError("The model has changed since it was probed: probe it again, then plot that report.")
        titles = [f"{probe.label}: held-out R² {probe.scores.held_out.r2:.4f}" for probe in probes]
        read = read_beliefs(self.model, self.dataset, probes)
        return plot_beliefs(
            self.dataset.prefix_beliefs,
            dict(zip(titles, read, strict=True)),
            weights=self.dataset.prefix_weights(self.provenance["weights"]),
            states=self.dataset.process.states,
        )

    def __repr__(self) -> str:
        return to_text(self._display(), title="Belief probes", notes=self.summary())

    def _repr_html_(self) -> str:
        return to_html(self._display(), title="Belief probes", notes=self.summary())

    def _display(self) -> pd.DataFrame:
        """The table as shown: rounded to what carries meaning."""
        table = self.to_dataframe().drop(columns=["n", "rank", "hook"])
        formats = {"R²": "{:.5f}", "MSE": "{:.6f}", "RMSE": "{:.4f}"}
        for column in table.columns:
            if (kind := column.split()[0]) in formats:
                table[column] = table[column].map(lambda value, kind=kind: formats[kind].format(value))
        return table
