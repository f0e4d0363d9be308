"""A probe fitted on one model, read on another: another checkpoint, another seed, other words."""

from __future__ import annotations

from dataclasses import dataclass

from msp_lens.data import BeliefDataset, Weighting
from msp_lens.models.hooked import HookedModel
from msp_lens.moments.scores import ratio
from msp_lens.probing.belief_probe import BeliefProbe, read_beliefs


@dataclass(frozen=True)
class TransferScore:
    """A probe's score on a model or words that it was not fitted on.

    Attributes:
        label: The probe's.
        r2: 1 - MSE / variance of the beliefs there. NaN if they do not vary.
        mse: Mean squared error per coordinate.
        n: Distinct prefixes.
        notes: What to bear in mind.
    """

    label: str
    r2: float
    mse: float
    n: int
    notes: tuple[str, ...]


def score_probe(
    probe: BeliefProbe,
    model: HookedModel,
    dataset: BeliefDataset,
    *,
    weighting: Weighting = "probability",
    batch_size: int | None = None,
) -> TransferScore:
    """How well a probe reads another model, another checkpoint or other words, as it is.

    Raises:
        KeyError: if the model lacks a site.
        ValueError: if a width or the process differs.
    """
    notes = probe.check_applies(model, dataset.process)
    (read,) = read_beliefs(model, dataset, [probe], batch_size=batch_size)
    shares, true = dataset.prefix_weights(weighting), dataset.prefix_beliefs
    mse = float((shares @ (read - true) ** 2).mean())
    variance = float((shares @ (true - shares @ true) ** 2).mean())
    return TransferScore(probe.label, ratio(mse, variance), mse, dataset.n_prefixes, tuple(notes))
