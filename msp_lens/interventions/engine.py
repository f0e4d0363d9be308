"""What the experiments share: how each begins, checked; edited runs; and ratios of means with their errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from msp_lens.data import BeliefDataset, TokenMap, words
from msp_lens.interventions.centroids import Centroids, belief_centroids
from msp_lens.interventions.edits import Edit, applying
from msp_lens.interventions.menu import EditMaker, resolve_edits
from msp_lens.interventions.targets import TargetMaker, resolve_targets
from msp_lens.models.activations import TOKENS_PER_BATCH, stream_activations
from msp_lens.models.hooked import HookedModel, check_fits, evaluating, find_sites, model_device, word_length
from msp_lens.models.model_files import model_fingerprint
from msp_lens.models.positions import Position, check_position
from msp_lens.probing.belief_probe import BeliefProbe
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.process import Process

TOGETHER = "all sites"

Probes = ProbeReport | BeliefProbe | Sequence[BeliefProbe]


@dataclass(frozen=True, eq=False)
class OverWords:
    """How an experiment over whole words begins: the words with their beliefs, and the probes of single sites."""

    dataset: BeliefDataset
    probes: list[BeliefProbe]
    seed: int

    @classmethod
    def begin(
        cls, model: HookedModel, process: Process | BeliefDataset, probes: Probes, *, max_words: int, seed: int
    ) -> OverWords:
        """Every possible word of the model's context, or `max_words` drawn; a `BeliefDataset` as it is.

        Raises:
            ValueError: if the model does not fit the process, or a probe is not of this model and process.
            KeyError: if the model lacks a probe's site.
        """
        if isinstance(process, BeliefDataset):
            dataset = process
        else:
            n_ctx = word_length(model, otherwise="a dataset")
            dataset = words(process, n_ctx=n_ctx, max_words=max_words, seed=seed)
        check_fits(model, dataset.process, dataset.n_ctx)
        return cls(dataset, single_site_probes(model, dataset.process, probes), seed)

    @property
    def description(self) -> str:
        """Which words they are, for a note."""
        count = "every possible word" if self.dataset.is_population else f"{len(self.dataset):,} distinct sampled words"
        return f"{self.dataset.process!r}; {count} of {self.dataset.n_ctx} tokens"

    @property
    def provenance(self) -> dict[str, Any]:
        """Process, words and seed."""
        return {
            "process": self.dataset.process.to_dict(),
            "words": len(self.dataset),
            "is_population": self.dataset.is_population,
            "seed": self.seed,
        }


@dataclass(frozen=True, eq=False)
class Writing:
    """How an experiment that writes beliefs begins: the probes, the edits and the targets, all by name."""

    probes: list[BeliefProbe]
    edits: dict[str, EditMaker]
    targets: dict[str, TargetMaker]
    centroids: Centroids | None

    @classmethod
    def begin(
        cls,
        model: HookedModel,
        process: Process,
        probes: Probes,
        *,
        edits: str | Sequence[str] | Mapping[str, EditMaker] | None,
        targets: str | Sequence[str] | Mapping[str, Any] | Tensor,
        length: int,
        n: int,
        seed: int,
        batch_size: int | None,
    ) -> Writing:
        """For `n` words of `length` tokens; centroids are gathered only where an edit wants them.

        Raises:
            ValueError: if the process is generalized, the model does not fit it, there are too few words, or a probe is
                not of this model and process.
            KeyError: if the model lacks a probe's site, or there is no edit or target of a name.
        """
        if process.is_generalized:
            raise ValueError(
                f"{process!r}: the beliefs of a generalized process are no distributions, and edits write "
                "distributions over hidden states. Probe it, or ask msp.necessity, "
                "msp.bayes_consistency, msp.prediction_consistency."
            )
        if n < 2:
            raise ValueError(f"n={n}: at least 2 pairs are needed for a standard error.")
        check_fits(model, process, length)
        chosen = single_site_probes(model, process, probes)
        makers, target_makers = resolve_edits(edits), resolve_targets(targets)
        centroids = None
        if "centroid" in makers:
            sites = [probe.sites[0] for probe in chosen]
            centroids = belief_centroids(model, words(process, n_ctx=length, seed=seed), sites, batch_size=batch_size)
        return cls(chosen, makers, target_makers, centroids)


def single_site_probes(model: HookedModel, process: Process, probes: Probes) -> list[BeliefProbe]:
    """The probes of single sites, of this model and process, in the order of the forward pass.

    Raises:
        ValueError: if there is none, one reads several sites, two read the same, or one is of another model or process.
        KeyError: if the model lacks a probe's site.
    """
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
    sites = find_sites(model, [probe.sites[0] for probe in chosen])
    fingerprint = model_fingerprint(model)
    for probe in chosen:
        check_probe(probe, process, fingerprint)
    order = _firing_order(model, sites)
    return sorted(chosen, key=lambda probe: order.index(probe.sites[0]))


def check_probe(probe: BeliefProbe, process: Process, fingerprint: str) -> None:
    """Raise `ValueError` if the probe is known to be of another model, or its beliefs of another process."""
    if probe.n_states != process.n_states or probe.provenance.get("process_fingerprint") not in (
        None,
        process.fingerprint,
    ):
        raise ValueError(f"{probe!r} was fitted on another process than {process!r}: fit it on this one.")
    if probe.provenance.get("model_fingerprint") not in (None, fingerprint):
        raise ValueError(
            f"{probe!r} was fitted on a model with other weights (fingerprint "
            f"{probe.provenance['model_fingerprint']}, this model's is {fingerprint}): probe this model first."
        )
    token_map = probe.provenance.get("token_map")
    if token_map is not None and not TokenMap.from_dict(token_map).is_identity:
        raise ValueError(
            f"{probe!r} was fitted through a token map, but experiments give a model the symbols themselves: steer it "
            "on tokens of its own instead, with probe.steer(model, belief, position=…)."
        )


def _firing_order(model: HookedModel, sites: Sequence[str]) -> list[str]:
    """The sites in the order in which a forward pass reaches them: found by making one."""
    fired: list[str] = []

    def note(name: str) -> Any:
        return lambda activation, hook: fired.append(name)

    with evaluating(model), model.hooks(fwd_hooks=[(site, note(site)) for site in sites]):
        model(torch.zeros(1, 1, dtype=torch.int64, device=model_device(model)))
    return [*dict.fromkeys(fired), *(site for site in sites if site not in fired)]


def chosen_positions(positions: int | Sequence[int] | None, n_ctx: int | None) -> list[int]:
    """The positions to edit, counted from the start; by default one three quarters into the context.

    Raises:
        ValueError: if one is outside the context, there is none, or no default.
    """
    if positions is None and n_ctx is None:
        raise ValueError("The model does not say how long its context is (cfg.n_ctx): give positions=.")
    if positions is None:
        positions = n_ctx * 3 // 4 if n_ctx else 0
    wanted = [positions] if isinstance(positions, int) else list(positions)
    check_position(wanted, n_ctx)
    if not wanted or (n_ctx is None and min(wanted) < 0):
        raise ValueError(f"positions={wanted}: give at least one, counted from the start.")
    return [position % n_ctx if n_ctx else position for position in wanted]


def batches(tokens: Int[Tensor, "word pos"], batch_size: int | None) -> Iterator[slice]:
    """The words of each forward pass; by default some 8,192 tokens' worth."""
    n_words, length = tokens.shape
    size = batch_size or max(1, TOKENS_PER_BATCH // length)
    if size < 1:
        raise ValueError(f"batch_size={batch_size}: a batch has at least 1 word.")
    return (slice(start, min(start + size, n_words)) for start in range(0, n_words, size))


def run_edited(
    model: HookedModel,
    tokens: Int[Tensor, "word pos"],
    edits: Sequence[Edit],
    belief: Tensor | None = None,
    *,
    position: Position = None,
    n_tokens: int,
    sites: Sequence[str] = (),
) -> tuple[Float64[Tensor, "word pos token"], dict[str, Float[Tensor, "word pos d_model"]]]:
    """Log-probabilities of the process's next tokens, and the activations of some sites, in one edited forward pass.

    Raises:
        ValueError: if the model does not return next-token logits.
    """
    context = applying(model, edits, belief, position=position) if edits else nullcontext()
    with context:
        (batch,) = stream_activations(model, tokens, sites, batch_size=len(tokens))
    logits = batch.output
    if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[-1] < n_tokens:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"The model returned {got}; interventions are judged by next-token logits [word, pos, token] over at least "
            f"{n_tokens} tokens."
        )
    return logits.cpu().double().log_softmax(dim=-1)[..., :n_tokens], batch.activations


def ratio(numerator: Float64[Tensor, "word"], denominator: Float64[Tensor, "word"]) -> tuple[float, float]:
    """The ratio of two means over the same words, and its standard error by the delta method.

    NaN where the denominator is no more than rounding.
    """
    below = float(denominator.mean())
    if abs(below) < 1e-12:
        return torch.nan, torch.nan
    value = float(numerator.mean()) / below
    residual = numerator - value * denominator
    return value, float(residual.std() / len(residual) ** 0.5) / abs(below)
