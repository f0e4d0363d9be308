"""The engine of the experiments that write beliefs: words with targets, edited runs, and what the edits did.

A target belief b' is written at position t, at one site or several. Later tokens may follow. At each position t + k the
model's next-token distribution is compared with that of two optimal observers:

    KL(b'_{t+k} E ‖ model's)    small if the network acts on what was written,
    KL(b_{t+k} E ‖ model's)     small if it ignores it,

with b' the target and b the actual belief, both filtered through the tokens after t. `intervene` lets no token follow;
`persistence` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from msp_lens._checks import check_at_least, check_batch_size
from msp_lens.beliefs.filtering import filter_beliefs
from msp_lens.beliefs.information import kl_divergence
from msp_lens.beliefs.trajectories import continuations, follow
from msp_lens.data import words as words_of
from msp_lens.interventions.centroids import Centroids, belief_centroids
from msp_lens.interventions.edits import Edit, applying
from msp_lens.interventions.menu import REFERENCES, Edits, Material, resolve_edits
from msp_lens.interventions.preparation import Probes, group_label, single_site_probes
from msp_lens.interventions.targets import resolve_targets
from msp_lens.models.activations import stream_activations, words_per_batch
from msp_lens.models.hooked import HookedModel, check_fits
from msp_lens.probing.belief_probe import BeliefProbe
from msp_lens.processes.process import Process


class Engine:
    """A model with the probes, edits and targets of an experiment, all checked.

    Centroids are computed, over words of `n_ctx` tokens, only if an edit needs them. `ValueError` if the process is
    generalized, an option is too small, or the model or a probe does not fit; `KeyError` for an unknown site, edit or
    target.
    """

    def __init__(
        self,
        model: HookedModel,
        process: Process,
        probes: Probes,
        edits: Edits,
        targets: str | Sequence[str] | Mapping[str, Any] | Tensor,
        n_ctx: int,
        n_words: int,
        seed: int,
        batch_size: int | None,
    ) -> None:
        check_at_least("n_words", n_words, 2, "a standard error needs two words")
        check_batch_size(batch_size)
        check_fits(model, process, n_ctx)
        if process.is_generalized:
            raise ValueError(
                f"{process!r}: the beliefs of a generalized process are no distributions, and edits write "
                "distributions over hidden states. Probe it, or use msp.necessity, msp.interventions.bayes_consistency "
                "or msp.interventions.prediction_consistency."
            )
        self.model, self.process, self.n_words, self.seed, self.batch_size = model, process, n_words, seed, batch_size
        self.probes = single_site_probes(model, process, probes)
        self.edits, self.targets = resolve_edits(edits), resolve_targets(targets)
        self.centroids: Centroids | None = None
        if "centroid" in self.edits:
            dataset = words_of(process, n_ctx=n_ctx, seed=seed)
            sites = [probe.sites[0] for probe in self.probes]
            self.centroids = belief_centroids(model, dataset, sites, batch_size=batch_size)

    def run(
        self, position: int, target: str, groups: list[list[BeliefProbe]], spans: list[int], strengths: list[float]
    ) -> pd.DataFrame:
        """Make every edit, from `position` on, at each group of sites, over each span of positions, at each strength.

        Words go on to the end of the longest span; the references are always made whole, too. Returns a row for each
        site (or group), span, edit, strength and number of tokens `after` the position, averaged over words; the
        measures are described at `InterventionReport`.
        """
        measured: dict[tuple[str, int, str, float], list[Tensor]] = {}
        sites = [probe.sites[0] for probe in self.probes]
        reader, read_site = self.probes[-1], sites[-1]
        generator = torch.Generator().manual_seed(self.seed)
        words, donors, beliefs, actual, wrong = self._draw(position, target, max(spans) - 1, generator)
        optima = [each @ self.process.emissions for each in (beliefs, actual)]
        # Where the tokens that follow are impossible there is no actual belief, and an edit away from it does nothing.
        actual = torch.where(actual.isnan(), beliefs, actual)
        later = slice(position, None)
        for rows in torch.arange(len(words)).split(words_per_batch(self.batch_size, words.shape[1])):
            _, donor = self._forward(donors[rows], sites)
            plain, held = self._forward(words[rows], [read_site])
            before = self._read(held[read_site][:, later])
            way = beliefs[rows] - before
            for group in groups:
                # Only the probe of a later site tells what became of an edit.
                watched = [] if reader in group else [read_site]
                for span in spans:
                    places = slice(position, position + span)
                    known = (actual[rows, :span], wrong[rows, :span])
                    donated = [donor[probe.sites[0]][:, places] for probe in group]
                    given = [Material(*known, each, self.centroids, generator) for each in donated]
                    for name, strength, edits in self._edits(group, given, strengths):
                        predicted, after = plain, held
                        if name != "none":
                            with applying(self.model, edits, beliefs[rows, :span], position=places):
                                predicted, after = self._forward(words[rows], watched)
                        read = self._read(after[read_site][:, later]) if watched else torch.full_like(way, math.nan)
                        kl = [kl_divergence(optimum[rows], predicted[:, later]) for optimum in optima]
                        quantities = torch.stack([*kl, ((read - before) * way).sum(dim=-1), way.square().sum(dim=-1)])
                        measured.setdefault((group_label(group), span, name, strength), []).append(quantities)
        return _table({key: torch.cat(parts, dim=1) for key, parts in measured.items()})

    def _draw(self, position: int, target: str, n_after: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw words, their targets, third words and the tokens that follow, in this order.

        The tokens that follow are drawn as an observer with the target belief expects them, so they are possible.
        Returns the words `[word, pos]`; donors that lead to the targets and go on alike; and, from the position on, the
        beliefs `[word, later, state]` to write, the actual ones (NaN where the tokens that follow are impossible) and
        those of third words.
        """
        process = self.process
        words = process.sample(self.n_words, position + 1, generator=generator)
        made = self.targets[target](process, words, generator)
        words = words[made.words]
        third = process.sample(len(words), position + 1, generator=generator)
        following = continuations(process, made.beliefs, n_after, generator=generator)
        actual, wrong = (follow(process, filter_beliefs(process, each)[:, -1], following) for each in (words, third))
        # A wrong belief that rules out the tokens that follow gives way to the belief before any token.
        wrong = torch.where(wrong.isnan(), process.initial, wrong)
        words, donors = (torch.cat([each, following], dim=1) for each in (words, made.donors))
        return words, donors, follow(process, made.beliefs, following), actual, wrong

    def _edits(
        self, group: list[BeliefProbe], materials: list[Material], strengths: list[float]
    ) -> Iterator[tuple[str, float, list[Edit]]]:
        """Each edit of the group's sites at each strength."""
        for name, maker in self.edits.items():
            whole = [maker(probe, material) for probe, material in zip(group, materials, strict=True)]
            # The references are always made whole, too; no edit has no parts.
            whole_too = [1.0] if name in REFERENCES and 1.0 not in strengths else []
            for strength in [1.0] if name == "none" else [*strengths, *whole_too]:
                yield name, strength, [edit.scaled(strength) for edit in whole]

    def _read(self, activations: Float[Tensor, "word later d_model"]) -> Float64[Tensor, "word later state"]:
        """The beliefs that the latest site's probe reads."""
        return self.probes[-1].predict(activations.flatten(0, 1)).cpu().double().unflatten(0, activations.shape[:2])

    def _forward(
        self, tokens: Int[Tensor, "word pos"], sites: Sequence[str]
    ) -> tuple[Float64[Tensor, "word pos token"], dict[str, Float[Tensor, "word pos d_model"]]]:
        """Log-probabilities of the process's next tokens, and activations at some sites, in one forward pass."""
        (batch,) = stream_activations(self.model, tokens, sites, batch_size=len(tokens))
        logits, n_tokens = batch.output, self.process.n_tokens
        if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[-1] < n_tokens:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"The model returned {got}; interventions are judged by next-token logits [word, pos, token] over at "
                f"least {n_tokens} tokens."
            )
        return logits.cpu().double().log_softmax(dim=-1)[..., :n_tokens], batch.activations


def _table(measured: Mapping[tuple[str, int, str, float], Float64[Tensor, "quantity word later"]]) -> pd.DataFrame:
    """Averages over words, with standard errors, each compared with no edit, the placebo and the donor.

    The quantities are KL to the target, KL to the actual optimum, displacement along the way, and the way squared.
    """
    records = []
    for (site, span, edit, strength), quantities in measured.items():
        for after in range(quantities.shape[2]):
            to_target, to_actual, moved, way = quantities[:, :, after]
            left_alone = measured[site, span, "none", 1.0][:, :, after]
            compared = [quantities, *(measured[site, span, name, 1.0] for name in ("placebo", "donor"))]
            recovered, placebo, donor = (ratio(left_alone[0] - each[0, :, after], left_alone[0]) for each in compared)
            gain = donor[0] - placebo[0]
            acts = acts_on_belief(_mean(left_alone[1])[0], _mean(left_alone[0])[0])
            surely = acts and gain > 2 * math.hypot(placebo[1], donor[1])
            row = {"site": site, "edit": edit, "strength": strength, "span": span, "after": after}
            row["kl_to_target"], row["kl_to_target_error"] = _mean(to_target)
            row["kl_to_actual"], row["kl_to_actual_error"] = _mean(to_actual)
            row["recovery"], row["recovery_error"] = recovered
            row["above_placebo"] = (recovered[0] - placebo[0]) / gain if surely else math.nan
            row["displacement"], row["displacement_error"] = ratio(moved, way)
            records.append(row | {"n": len(to_target)})
    return pd.DataFrame(records)


def _mean(values: Float64[Tensor, "word"]) -> tuple[float, float]:
    """The mean over the words that have a value, and its standard error."""
    known = values[~values.isnan()]
    return float(known.mean()), float(known.std()) / len(known) ** 0.5 if len(known) > 1 else math.nan


def ratio(numerator: Float64[Tensor, "word"], denominator: Float64[Tensor, "word"]) -> tuple[float, float]:
    """The ratio of two means, and its standard error by the delta method; NaN if the denominator is only rounding."""
    below = float(denominator.mean())
    if abs(below) < 1e-12:
        return math.nan, math.nan
    value = float(numerator.mean()) / below
    residual = numerator - value * denominator
    return value, float(residual.std() / len(residual) ** 0.5) / abs(below)


def acts_on_belief(kl_to_actual: float, kl_to_target: float) -> bool:
    """Whether a model left alone is at least twice as near to the actual optimum as to the target's.

    Otherwise there is nothing to recover. A network with random weights passes by chance only: its predictions are
    about as far from the one as from the other.
    """
    return kl_to_actual < 0.5 * kl_to_target
