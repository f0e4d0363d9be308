"""The experiment: push the residual stream to another word's belief, and see whether the network follows.

Words and targets are drawn from the process in pairs. After an edit at one position of the word, the network's
next-token distribution there is compared with what an optimal observer would say

- who holds the *target* belief: KL(target's optimum ‖ model), small if the network acts on what was written;
- who holds the word's *actual* belief: KL(actual optimum ‖ model), small if it takes no notice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from msp_lens._tables import to_html, to_text
from msp_lens.activations import stream_activations
from msp_lens.beliefs.filtering import filter_beliefs, next_token_probabilities
from msp_lens.beliefs.information import kl_divergence
from msp_lens.interventions.edits import Edit, donor, no_edit, patch, placebo, steer
from msp_lens.models.hooked import HookedModel, check_fits, context_length, editing, find_sites
from msp_lens.probing.belief_probe import BeliefProbe, check_position
from msp_lens.probing.report import ProbeReport
from msp_lens.processes.process import Process

EDITS = ("none", "placebo", "wrong belief", "steer", "patch", "donor")


@dataclass(frozen=True)
class InterventionResult:
    """What one edit at one site and position did, averaged over words; KL in nats.

    Attributes:
        site: Short label of the edited site.
        position: The edited position, whose next-token distribution is judged.
        edit: Which edit.
        kl_to_target: Mean KL(target's optimum ‖ model).
        kl_to_actual: Mean KL(actual optimum ‖ model).
        kl_to_target_error: Standard error of the former over words.
        kl_to_actual_error: Standard error of the latter.
        n: Pairs of word and target.
    """

    site: str
    position: int
    edit: str
    kl_to_target: float
    kl_to_actual: float
    kl_to_target_error: float
    kl_to_actual_error: float
    n: int


@dataclass(frozen=True, eq=False)
class InterventionReport:
    """The results of an experiment, one row for each site, position and edit.

    Attributes:
        results: The rows.
        provenance: Process and number of pairs, seed.
    """

    results: tuple[InterventionResult, ...]
    provenance: dict[str, Any]

    def select(self, *, site: str, edit: str, position: int | None = None) -> InterventionResult:
        """The one result asked for.

        Raises:
            KeyError: unless exactly one row fits.
        """
        found = [r for r in self.results if r.site == site and r.edit == edit and position in (None, r.position)]
        if len(found) != 1:
            raise KeyError(
                f"{len(found)} results for site={site!r}, edit={edit!r}, position={position}; there are sites "
                f"{sorted({r.site for r in self.results})}, edits {list(EDITS)} and positions "
                f"{sorted({r.position for r in self.results})}."
            )
        return found[0]

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each result."""
        return pd.DataFrame([vars(result) for result in self.results])

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values."""
        return {"results": [vars(result) for result in self.results], "provenance": self.provenance}

    def summary(self) -> list[str]:
        """How to read the table."""
        return [
            f"{self.provenance['n']:,} words drawn from {self.provenance['process']['name']}, each with another "
            "word's belief as target. KL(target's optimum ‖ model) in nats after each edit: 0 if the network acts as "
            "if it held the target belief.",
            "none: left alone. placebo: as large a step in a random direction. wrong belief: steered to a third "
            "word's. donor: the activation of a run that held the target belief, the best any edit can do. An edit "
            "that works shows that the belief there is enough to change what the network says, not that nothing else "
            "is used.",
        ]

    def _display(self) -> pd.DataFrame:
        table = self.to_dataframe()
        table["kl_to_target"] = table["kl_to_target"].map("{:.4f}".format)
        wide = table.pivot_table(
            index=["site", "position"], columns="edit", values="kl_to_target", aggfunc="first", sort=False
        )
        wide = wide[[edit for edit in EDITS if edit in wide.columns]].reset_index(level="position")
        return wide.rename_axis(columns=None)

    def __repr__(self) -> str:
        return to_text(self._display(), title="KL(target's optimum ‖ model), nats", notes=self.summary())

    def _repr_html_(self) -> str:
        return to_html(self._display(), title="KL(target's optimum ‖ model), nats", notes=self.summary())


def intervene(
    model: HookedModel,
    process: Process,
    *,
    probes: ProbeReport | BeliefProbe | Sequence[BeliefProbe],
    positions: int | Sequence[int] | None = None,
    n: int = 2000,
    seed: int = 0,
    batch_size: int | None = None,
) -> InterventionReport:
    """Write other words' beliefs into the residual stream and measure whether the network acts on them.

    Args:
        model: The model that the probes were fitted on.
        process: What it was trained on.
        probes: A report (its single sites are taken) or probes of single sites.
        positions: Positions to edit, one at a time; by default one three quarters into the context.
        n: Pairs of a word and a target word, drawn from the process.
        seed: Seed of the words, the targets and the placebo's directions.
        batch_size: Words in one forward pass.

    Raises:
        ValueError: if a position is outside the context, a probe reads several sites, or the model does not fit
            the process.
        KeyError: if the model lacks a probe's site.
    """
    chosen = _single_site_probes(probes)
    wanted = _positions(positions, context_length(model))
    if n < 2:
        raise ValueError(f"n={n}: at least 2 pairs are needed for a standard error.")
    check_fits(model, process, max(wanted) + 1)
    for each in chosen:
        find_sites(model, each.sites)
    results = [
        result
        for position in wanted
        for result in _intervene_at(model, process, chosen, position, n=n, seed=seed, batch_size=batch_size)
    ]
    provenance = {"process": process.to_dict(), "n": n, "seed": seed, "positions": wanted}
    return InterventionReport(tuple(results), provenance)


def _positions(positions: int | Sequence[int] | None, n_ctx: int | None) -> list[int]:
    """The positions to edit, counted from the start; by default one three quarters into the context."""
    if positions is None and n_ctx is None:
        raise ValueError("The model does not say how long its context is (cfg.n_ctx): give positions=.")
    if positions is None:
        positions = n_ctx * 3 // 4 if n_ctx else 0
    wanted = [positions] if isinstance(positions, int) else list(positions)
    check_position(wanted, n_ctx)
    if not wanted or (n_ctx is None and min(wanted) < 0):
        raise ValueError(f"positions={wanted}: give at least one, counted from the start.")
    return [position % n_ctx if n_ctx else position for position in wanted]


def _single_site_probes(probes: ProbeReport | BeliefProbe | Sequence[BeliefProbe]) -> list[BeliefProbe]:
    if isinstance(probes, BeliefProbe):
        chosen = [probes]
    elif isinstance(probes, ProbeReport):
        chosen = [probe for probe in probes.probes if len(probe.sites) == 1]
    else:
        chosen = list(probes)
    for probe in chosen:
        if len(probe.sites) > 1:
            raise ValueError(
                f"{probe!r} reads {len(probe.sites)} sites; an edit is made at one: give single sites' probes."
            )
    if not chosen:
        raise ValueError("probes is empty: give a report, or at least one probe of a single site.")
    return chosen


def _intervene_at(
    model: HookedModel,
    process: Process,
    probes: Sequence[BeliefProbe],
    position: int,
    *,
    n: int,
    seed: int,
    batch_size: int | None,
) -> list[InterventionResult]:
    generator = torch.Generator().manual_seed(seed)
    words, targets, third = process.sample(3 * n, position + 1, generator=generator).split(n)
    actual, target, wrong = (filter_beliefs(process, tokens)[:, -1] for tokens in (words, targets, third))
    optimal_target = next_token_probabilities(process, target)
    optimal_actual = next_token_probabilities(process, actual)
    donors = _last_activations(model, targets, [probe.sites[0] for probe in probes], batch_size)
    results = []
    for probe in probes:
        edits: dict[str, Edit] = {
            "none": no_edit,
            "placebo": placebo(probe, target, generator=generator),
            "wrong belief": steer(probe, wrong),
            "steer": steer(probe, target),
            "patch": patch(probe, target),
            "donor": donor(donors[probe.sites[0]]),
        }
        for name in EDITS:
            log_predicted = _log_predictions(model, words, probe.sites[0], edits[name])[:, : process.n_tokens]
            to_target = kl_divergence(optimal_target, log_predicted)
            to_actual = kl_divergence(optimal_actual, log_predicted)
            results.append(
                InterventionResult(
                    site=probe.label,
                    position=position,
                    edit=name,
                    kl_to_target=float(to_target.mean()),
                    kl_to_actual=float(to_actual.mean()),
                    kl_to_target_error=float(to_target.std() / n**0.5),
                    kl_to_actual_error=float(to_actual.std() / n**0.5),
                    n=n,
                )
            )
    return results


def _last_activations(
    model: HookedModel, words: Int[Tensor, "word pos"], sites: Sequence[str], batch_size: int | None
) -> dict[str, Float[Tensor, "word d_model"]]:
    """Activations at the words' last position."""
    batches = [batch.activations for batch in stream_activations(model, words, sites, batch_size=batch_size)]
    return {site: torch.cat([batch[site][:, -1] for batch in batches]) for site in sites}


def _log_predictions(
    model: HookedModel, words: Int[Tensor, "word pos"], site: str, edit: Edit
) -> Float64[Tensor, "word token"]:
    """Next-token log-probabilities after each word, its last position edited at `site`."""

    def at_last_position(activation: Tensor) -> Tensor:
        result = activation.clone()
        result[:, -1] = edit(activation[:, -1])
        return result

    # One batch: an edit's rows are matched with the words' by their order.
    with editing(model, {site: at_last_position}):
        (batch,) = stream_activations(model, words, (), batch_size=len(words))
    return batch.output[:, -1].cpu().double().log_softmax(dim=-1)
