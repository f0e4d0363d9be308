"""The engine of the experiments that write beliefs: words with targets, edited runs, and what the edits did.

A target belief b' is written at position t, at one site or several. Later tokens may follow. At each position t + k the
model's next-token distribution is compared with that of two optimal observers:

    KL(b'_{t+k} E ‖ model's)    small if the network acts on what was written,
    KL(b_{t+k} E ‖ model's)     small if it ignores it,

with b' the target and b the actual belief, both filtered through the tokens after t. `intervene` lets no token follow;
`persistence` does. What comes before the edits is read once for each batch of words, and each edited run begins there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from tqdm.auto import tqdm

from msp_lens._random import derived_generator
from msp_lens.beliefs.filtering import filter_beliefs
from msp_lens.beliefs.information import kl_divergence
from msp_lens.beliefs.trajectories import continuations, follow
from msp_lens.data import words as words_of
from msp_lens.data.belief_dataset import default_count
from msp_lens.interventions.edits import Edit, applying
from msp_lens.interventions.intervention_report import acts_on_belief
from msp_lens.interventions.menu import PLACEBOS, REFERENCES, Edits, Material, check_makes, resolve_edits
from msp_lens.interventions.preparation import (
    Probes,
    group_label,
    in_firing_order,
    log_probabilities,
    single_site_probes,
)
from msp_lens.interventions.real_activations import Centroids, Cloud, belief_centroids, cloud_words, numbered
from msp_lens.interventions.targets import AskedTargets, resolve_targets
from msp_lens.models.activations import stream_activations, words_per_batch
from msp_lens.models.beginning import after_beginning, keeps_beginnings
from msp_lens.models.hooked import HookedModel, check_fits, model_device
from msp_lens.probing.belief_probe import BeliefProbe
from msp_lens.processes.process import Process

# Of one given context, the last tokens are exchanged for others; and so many positions before the edits show whether
# the last one was trained.
ENDING, REGRETS = 20, 32


@dataclass(frozen=True, eq=False)
class Draw:
    """Words with a target belief each, drawn for one position and kind of target; the model is not run.

    Attributes:
        position: From where on predictions are judged.
        first: The first position that an edit may change.
        target: The kind of target, by name.
        words: The words, followed by the tokens that an observer with the target belief expects.
        donors: Words that lead to the targets (or to the nearest beliefs) and go on alike.
        written: From the first position on, the beliefs to write: before `position`, the target itself.
        actual: The actual ones; NaN where the tokens that follow are impossible.
        wrong: Those of third words.
    """

    position: int
    first: int
    target: str
    words: Int[Tensor, "word pos"]
    donors: Int[Tensor, "word pos"]
    written: Float64[Tensor, "word later state"]
    actual: Float64[Tensor, "word later state"]
    wrong: Float64[Tensor, "word later state"]


class Engine:
    """A model with the probes, edits and targets of an experiment, all checked without running the model.

    `ValueError` if the process is generalized or has a single belief, an option is too small, an edit cannot be made
    from a probe, or the model or a probe does not fit; `KeyError` for an unknown site, edit or target. Unless told
    otherwise it draws `most` words, or fewer long ones.
    """

    def __init__(
        self,
        model: HookedModel,
        process: Process,
        probes: Probes,
        edits: Edits,
        targets: AskedTargets,
        n_ctx: int,
        n_words: int | None,
        seed: int,
        batch_size: int | None,
        *,
        most: int = 2000,
        contexts: Int[Tensor, "context pos"] | None = None,
    ) -> None:
        check_fits(model, process, n_ctx, predicts=True)
        if process.is_generalized:
            raise ValueError(
                f"{process!r}: the beliefs of a generalized process are no distributions, and edits write "
                "distributions over hidden states. Probe it, or use msp.necessity, msp.interventions.bayes_consistency "
                "or msp.interventions.prediction_consistency."
            )
        if process.degeneracy().belief_dimensions == 0:
            raise ValueError(
                f"{process!r}: an observer's belief never changes, so there is no other belief to write. Choose a "
                "process with more than one belief."
            )
        self.model, self.process, self.n_ctx = model, process, n_ctx
        self.n_words = n_words or default_count(n_ctx, most, fewest=100)
        self.seed, self.batch_size, self.contexts = seed, batch_size, contexts
        # By what they are of, beginnings that the model has read last.
        self._read_last: dict[str, tuple[Tensor, HookedModel]] = {}
        self.edits, self.targets = resolve_edits(edits), resolve_targets(targets)
        self._unordered = single_site_probes(model, process, probes)
        check_makes(self.edits, self._unordered)

    @cached_property
    def probes(self) -> list[BeliefProbe]:
        """The probes in the order of the forward pass."""
        return in_firing_order(self.model, self._unordered)

    @cached_property
    def centroids(self) -> Centroids | None:
        """The sites' centroids over words of `n_ctx` tokens, if an edit needs them."""
        if "centroid" not in self.edits:
            return None
        most = default_count(self.n_ctx, 100_000, n_tokens=1_000_000)
        dataset = words_of(self.process, n_ctx=self.n_ctx, max_words=most, seed=self.seed)
        sites = [probe.sites[0] for probe in self.probes]
        return belief_centroids(self.model, dataset, sites, batch_size=self.batch_size)

    def draw(self, position: int, target: str, n_after: int = 0, *, first: int | None = None) -> Draw:
        """Words, their targets, third words and the tokens that follow, drawn in this order.

        The tokens that follow are drawn as an observer with the target belief expects them, so they are possible.
        Where edits begin at an earlier position, `first`, the target is written there, too.
        """
        process, generator = self.process, torch.Generator().manual_seed(self.seed)
        words, donors, written, third = self._aimed(position, target, generator)
        following = continuations(process, written, n_after, generator=generator)
        along = filter_beliefs(process, words)
        actual, wrong = (follow(process, each, following) for each in (along[:, -1], third))
        # A wrong belief that rules out the tokens that follow gives way to the belief before any token.
        wrong = torch.where(wrong.isnan(), process.initial, wrong)
        words, donors = (torch.cat([each, following], dim=1) for each in (words, donors))
        written, first = follow(process, written, following), position if first is None else first
        early = [each[:, :1].expand(-1, position - first, -1) for each in (written, wrong)]
        written, wrong = (torch.cat(pair, dim=1) for pair in zip(early, (written, wrong), strict=True))
        actual = torch.cat([along[:, first:position], actual], dim=1)
        return Draw(position, first, target, words, donors, written, actual, wrong)

    def _aimed(self, position: int, target: str, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Words up to a position, donors as long, and the beliefs to which the donors and third words lead."""
        process, maker = self.process, self.targets[target]
        if self.contexts is None:
            words = process.sample(self.n_words, position + 1, generator=generator)
            made = maker(process, words, generator)
            words = words[made.words]
            third = process.sample(len(words), position + 1, generator=generator)
            return words, made.donors, made.beliefs, filter_beliefs(process, third)[:, -1]
        parts = []
        for k, context in enumerate(self.contexts[: self.n_words]):
            # Donors go on as the context begins, so that the model reads that once.
            n_words = len(range(k, self.n_words, len(self.contexts)))
            n_kept = max(0, position + 1 - ENDING)
            ending = context[n_kept : position + 1].expand(n_words, -1)
            after = _After(process, context[:n_kept])
            made = maker(after, ending, generator)
            third = after.sample(len(made.words), ending.shape[1], generator=generator)
            kept = context[:n_kept].expand(len(third), -1)
            words, donors = (torch.cat([kept, each], dim=1) for each in (ending[made.words], made.donors))
            parts.append((words, donors, made.beliefs, filter_beliefs(after, third)[:, -1]))
        words, donors, beliefs, third = (torch.cat(each) for each in zip(*parts, strict=True))
        return words, donors, beliefs, third

    def run(
        self,
        drawn: Draw,
        groups: list[list[BeliefProbe]],
        spans: Mapping[int, slice],
        strengths: list[float],
        *,
        progress: str | None = None,
    ) -> tuple[pd.DataFrame, Float64[Tensor, "pos"]]:
        """Make every edit at each group of sites, over the positions of each span, at each strength.

        The references are always made whole, too. Returns a row for each site (or group), span, edit, strength and
        number of tokens `after` the draw's position, averaged over words (the measures are described at
        `InterventionReport`), and the regret at the last positions of the donors' runs, which nothing edits.
        `progress` is the title of a progress bar, if there is to be one.
        """
        measured: dict[tuple[str, int, str, float], list[Tensor]] = {}
        writing, regrets = set(), []
        sites = [probe.sites[0] for probe in self.probes]
        reader, read_site = self.probes[-1], sites[-1]
        position, first, process = drawn.position, drawn.first, self.process
        # Activations are those from `first` on, and of these the later ones are judged.
        later = slice(position - first, None)
        # Where the tokens that follow are impossible there is no actual belief, and what it implies is NaN.
        optima = [beliefs[:, later] @ process.emissions for beliefs in (drawn.written, drawn.actual)]
        regret_from, prior = self._regret_from(drawn), process.initial.expand(len(drawn.donors), -1)
        along_donors = follow(process, prior, drawn.donors)[:, regret_from + 1 :]
        cloud = self._cloud(drawn)
        prefixes, donor_prefixes = (numbered(each, position) for each in (drawn.words, drawn.donors))
        # An edit away from no belief does nothing.
        actual = torch.where(drawn.actual.isnan(), drawn.written, drawn.actual)

        @cache
        def source(*names: Any) -> torch.Generator:
            # One for each edit of a site goes on from batch to batch, and does not know what else is asked.
            return derived_generator(self.seed, position, *names)

        batches = torch.arange(len(drawn.words)).split(self._batch(drawn.words))
        bar = bar_of_edits(progress, len(batches) * len(groups) * len(spans))
        for rows in batches:
            donors_predict, donor = self._forward(*self._after("donors", drawn.donors[rows], regret_from), sites)
            regrets.append(kl_divergence(along_donors[rows] @ process.emissions, donors_predict))
            donor = {site: values[:, first - regret_from :] for site, values in donor.items()}
            model, tail = self._after("words", drawn.words[rows], first)
            plain, held = self._forward(model, tail, sites)
            before, written = self._read(held[read_site][:, later]), drawn.written[rows]
            way = written[:, later] - before
            for group, (span, edited) in itertools.product(groups, spans.items()):
                label, places = group_label(group), slice(edited.start - first, edited.stop - first)
                # Only the probe of a later site tells what became of an edit.
                reads, edited_sites = reader not in group, [probe.sites[0] for probe in group]
                watched = [*edited_sites, *([read_site] if reads else [])]
                known = (actual[rows, places], drawn.wrong[rows, places])
                donated = [donor[site][:, places] for site in edited_sites]
                known_prefixes = prefixes[rows], donor_prefixes[rows]
                judged = slice(max(places.start, position - first), places.stop)
                null = cloud.distance(donor, edited_sites, judged, *known_prefixes)
                materials = [Material(*known, each, self.centroids) for each in donated]
                for name, strength, edits in self._edits(group, materials, strengths, partial(source, label, span)):
                    predicted, after = plain, held
                    if name != "none":
                        with applying(model, edits, written[:, places], position=places):
                            predicted, after = self._forward(model, tail, watched)
                    read = self._read(after[read_site][:, later]) if reads else torch.full_like(way, math.nan)
                    kl = [kl_divergence(optimum[rows], predicted[:, later]) for optimum in optima]
                    moved = ((read - before) * way).sum(dim=-1), way.square().sum(dim=-1)
                    away = cloud.distance(after, edited_sites, judged, *known_prefixes)
                    outside = -predicted[:, later].logsumexp(dim=-1)
                    quantities = torch.stack([*kl, *moved, away, null, outside])
                    measured.setdefault((label, span, name, strength), []).append(quantities)
                    if name not in PLACEBOS and all(edit.writes for edit in edits):
                        writing.add(name)
                bar.update()
        bar.close()
        self._read_last.clear()
        found = _table({key: torch.cat(parts, dim=1) for key, parts in measured.items()}, writing)
        return found, torch.cat(regrets).nanmean(dim=0)

    def _regret_from(self, drawn: Draw) -> int:
        """From which position on donors are read: a little before the edits, where those of a context still agree."""
        return max(0, drawn.first - REGRETS)

    def _cloud(self, drawn: Draw) -> Cloud:
        """Real activations at all sites, of words that were drawn."""
        sites, position = [probe.sites[0] for probe in self.probes], drawn.position
        # Words of one context are all the same, and donors are other endings of it, which share the rest.
        drawn_words, first = (
            (drawn.words, position) if self.contexts is None else (drawn.donors, self._regret_from(drawn))
        )
        words = cloud_words(drawn_words, derived_generator(self.seed, "cloud", position))
        kept: dict[str, list[Tensor]] = {site: [] for site in sites}
        for some in words.split(self._batch(words)):
            _, held = self._forward(*self._after("cloud", some, first), sites)
            for site in sites:
                kept[site].append(held[site][:, position - first :].cpu().double())
        return Cloud(numbered(words, position), {site: torch.cat(parts) for site, parts in kept.items()})

    def _after(
        self, what: str, words: Int[Tensor, "word pos"], first: int
    ) -> tuple[HookedModel, Int[Tensor, "word later"]]:
        """The model after these words' beginnings, before position `first`, and the tokens that follow.

        Words that all begin as the last of this kind did go on from there.
        """
        if first == 0:
            return self.model, words
        beginning = words[:, :first]
        if (beginning == beginning[:1]).all():
            beginning = beginning[:1]
        known = self._read_last.pop(what, None)
        if known is None or not torch.equal(known[0], beginning):
            known = beginning, after_beginning(self.model, beginning)
        if len(beginning) == 1:
            self._read_last[what] = known
        return known[1], words[:, first:]

    def _edits(
        self,
        group: list[BeliefProbe],
        materials: list[Material],
        strengths: list[float],
        source: Callable[[str, str], torch.Generator],
    ) -> Iterator[tuple[str, float, list[Edit]]]:
        """Each edit of the group's sites at each strength; `source` gives the generator of an edit at a site."""
        for name, maker in self.edits.items():
            sources = [source(name, probe.label) for probe in group]
            given = [replace(material, generator=own) for material, own in zip(materials, sources, strict=True)]
            whole = [maker(probe, material) for probe, material in zip(group, given, strict=True)]
            if wrong := [each for each in whole if not isinstance(each, Edit)]:
                raise TypeError(f"edits[{name!r}] returned {wrong[0]!r}: let it return an Edit of the probe's site.")
            # Every strength is a part of the same steps.
            states = [own.get_state() for own in sources]
            # The references are always made whole, too; no edit has no parts.
            whole_too = [1.0] if name in REFERENCES and 1.0 not in strengths else []
            for strength in [1.0] if name == "none" else [*strengths, *whole_too]:
                for own, state in zip(sources, states, strict=True):
                    own.set_state(state)
                yield name, strength, [edit.scaled(strength) for edit in whole]

    def _batch(self, words: Int[Tensor, "word pos"]) -> int:
        """Words in one forward pass: activations are held of whole words, or of the end where a beginning is kept."""
        held = 0 if keeps_beginnings(self.model) else sum(probe.widths[0] for probe in self.probes)
        device = model_device(self.model)
        return words_per_batch(self.batch_size, words.shape[1], numbers_per_token=held, device=device)

    def _read(self, activations: Float[Tensor, "word later d_model"]) -> Float64[Tensor, "word later state"]:
        """The beliefs that the latest site's probe reads."""
        return self.probes[-1].predict(activations.flatten(0, 1)).cpu().double().unflatten(0, activations.shape[:2])

    def _forward(
        self, model: HookedModel, tokens: Int[Tensor, "word pos"], sites: Sequence[str]
    ) -> tuple[Float64[Tensor, "word pos token"], dict[str, Float[Tensor, "word pos d_model"]]]:
        """Log-probabilities of the process's next tokens, and activations at some sites, in one forward pass."""
        n_tokens = self.process.n_tokens
        # A few rows at a time: of all, in float64, they would take twice the memory that the model's own take.
        wanted = partial(log_probabilities, n_tokens=n_tokens)
        (batch,) = stream_activations(model, tokens, sites, batch_size=len(tokens), logits=wanted)
        if batch.output is None or batch.output.shape[-1] < n_tokens:
            got = "no logits" if batch.output is None else f"logits of {batch.output.shape[-1]} tokens"
            raise ValueError(
                f"The model returned {got}; interventions are judged by next-token logits [word, pos, token] over at "
                f"least {n_tokens} tokens."
            )
        return batch.output, batch.activations


class _After(Process):
    """A process after some tokens: its words are those that may follow them."""

    def __init__(self, process: Process, tokens: Int[Tensor, "pos"]) -> None:
        initial = filter_beliefs(process, tokens[None])[0, -1] if len(tokens) else process.initial
        super().__init__(
            process.transitions, name=process.name, states=process.states, tokens=process.tokens, initial=initial
        )
        self._whole = process

    def parts(self, beliefs: Float[Tensor, "*batch state"]) -> dict[str, Float[Tensor, "*batch part_state"]]:
        return self._whole.parts(beliefs)

    def join_parts(self, parts: Mapping[str, Float[Tensor, "*batch _"]]) -> Float[Tensor, "*batch state"]:
        return self._whole.join_parts(parts)


def bar_of_edits(title: str | None, total: int) -> tqdm:
    """A progress bar over edited sites, for what takes more than two seconds; none without a title."""
    return tqdm(total=total, desc=title, disable=title is None, unit="site", leave=False, delay=2)


def _table(
    measured: Mapping[tuple[str, int, str, float], Float64[Tensor, "quantity word later"]], writing: set[str]
) -> pd.DataFrame:
    """Averages over words, with standard errors, each compared with no edit, the placebo and the donor.

    The quantities are KL to the target, KL to the actual optimum, displacement along the way, the way squared, the
    distances of the edited activations and the donors' from real ones, and -log P(any symbol); `writing` names the
    edits that write the target.
    """
    records = []
    for (site, span, edit, strength), quantities in measured.items():
        for after in range(quantities.shape[2]):
            to_target, to_actual, moved, way, away, null, outside = quantities[:, :, after]
            left_alone = measured[site, span, "none", 1.0][:, :, after]
            compared = [quantities, *(measured[site, span, name, 1.0] for name in ("placebo", "donor"))]
            recovered, placebo, donor = (ratio(left_alone[0] - each[0, :, after], left_alone[0]) for each in compared)
            gain = donor[0] - placebo[0]
            acts = acts_on_belief(mean_and_error(left_alone[1])[0], mean_and_error(left_alone[0])[0])
            surely = acts and gain > 2 * math.hypot(placebo[1], donor[1])
            row = {"site": site, "edit": edit, "strength": strength, "span": span, "after": after}
            row["kl_to_target"], row["kl_to_target_error"] = mean_and_error(to_target)
            row["kl_to_actual"], row["kl_to_actual_error"] = mean_and_error(to_actual)
            row["recovery"], row["recovery_error"] = recovered
            row["above_placebo"] = (recovered[0] - placebo[0]) / gain if surely else math.nan
            row["displacement"], row["displacement_error"] = ratio(moved, way)
            known = ~(away + null).isnan()
            off_manifold = ratio(away[known], null[known]) if known.any() else (math.nan, math.nan)
            row["off_manifold"], row["off_manifold_error"] = off_manifold
            # As much of a placebo, on the same words.
            excess, error = mean_and_error(to_target - measured[site, span, "placebo", strength][0, :, after])
            row["worse_than_placebo"] = edit in writing and excess > 2 * error
            row["outside"] = mean_and_error(outside)[0]
            records.append(row | {"n": len(to_target)})
    table = pd.DataFrame(records)
    # Where symbols are all the tokens there are, nothing is outside.
    has_outside = any(row["outside"] > 1e-9 for row in records)
    return table if has_outside else table.drop(columns="outside")


def mean_and_error(values: Float64[Tensor, "word"]) -> tuple[float, float]:
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
