"""A logistic read-out: the probability of each class from some features, for targets that are classes.

    p(class | h) ∝ exp(h W + c),    fitted by  min Σ w (-log p(true class | h)) + |W|² / 2   on standardized features

Unlike least squares, it takes the rows themselves, so it is fitted to at most a few thousand of them. Its scores are
those of classes: how often it is right, how well it knows the classes' probabilities, and how far its confidence holds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, TypedDict

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from msp_lens._checks import AtLeast, Between, Share
from msp_lens._values import Value
from msp_lens.moments.scores import bootstrap_interval

# Bins of equal width in which calibration is measured.
N_BINS = 10


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows whose most probable class has a probability in a bin of equal width, `(low, high]`.

    Attributes:
        low: The bin's lower end.
        high: Its upper end.
        confidence: The mean probability of the most probable class.
        accuracy: How often that class is the true one; if the probabilities hold, as often as `confidence` says.
        share: The share of all rows that are here.
    """

    low: float
    high: float
    confidence: float
    accuracy: float
    share: float


class SavedBin(TypedDict):
    """A `ReliabilityBin` in a file."""

    low: Share
    high: Share
    confidence: Share
    accuracy: Share
    share: Share


@dataclass(frozen=True, eq=False)
class ClassScore(Value):
    """How well classes are predicted on some rows, which count by their weights.

    Attributes:
        accuracy: The share of rows whose most probable class is the true one.
        auc: The area under the ROC curve of each class against the rest, averaged over classes and, held out, over
            folds, whose predictions come from different maps; NaN if there is one class.
        cross_entropy: The mean of -log p(true class), in nats.
        balanced_accuracy: The accuracy within each class that occurs, averaged over classes: a guess that is always the
            same class has 1 / number of classes.
        n: Number of rows.
        accuracy_interval: 95 % bootstrap interval over sets of rows, without fitting again, as that of R²; NaN
            in-sample.
        cross_entropy_interval: The same for the cross-entropy.
        reliability: How often the most probable class is the true one, by its probability; bins without rows are left
            out.
    """

    accuracy: float
    auc: float
    cross_entropy: float
    balanced_accuracy: float
    n: int
    accuracy_interval: tuple[float, float] = (math.nan, math.nan)
    cross_entropy_interval: tuple[float, float] = (math.nan, math.nan)
    reliability: tuple[ReliabilityBin, ...] = field(default=(), repr=False)

    @property
    def calibration_error(self) -> float:
        """The expected calibration error, Σ share |accuracy - confidence| over the bins of `reliability`.

        With few rows it is above 0 by chance alone. Source: Guo et al. 2017 (arXiv 1706.04599), equation 3.
        """
        return sum(each.share * abs(each.accuracy - each.confidence) for each in self.reliability)


class SavedClassScore(TypedDict):
    """A `ClassScore` in a file."""

    accuracy: Share
    auc: Share | None
    cross_entropy: Annotated[float, Between(0, 1e3)]
    balanced_accuracy: Share
    n: Annotated[int, AtLeast(1)]
    accuracy_interval: tuple[Share | None, Share | None]
    cross_entropy_interval: tuple[float | None, float | None]
    reliability: list[SavedBin]


@dataclass(frozen=True, eq=False)
class LogisticMap(Value):
    """The log-odds of classes as an affine map of features: `predict` gives probabilities.

    Attributes:
        weights: `[feature, class]`.
        bias: `[class]`.
        classes: The classes' names.
    """

    weights: Float64[Tensor, "feature class"]
    bias: Float64[Tensor, "class"]
    classes: tuple[str, ...]

    def predict(self, features: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch class"]:
        """The probability of each class."""
        return (features @ self.weights.to(features) + self.bias.to(features)).softmax(dim=-1)


def fit_logistic(
    features: Float[Tensor, "row feature"],
    labels: Int[Tensor, "row"],
    classes: Sequence[str],
    *,
    weights: Float64[Tensor, "row"],
    fold: Int[Tensor, "row"],
    cell: Int[Tensor, "row"] | None = None,
) -> tuple[LogisticMap, ClassScore, ClassScore]:
    """The map on all rows, its score on them, and its score by cross-validation over the folds.

    Args:
        features: The rows.
        labels: The class of each, 0 … `len(classes)` - 1.
        classes: The classes' names.
        weights: How much each row counts.
        fold: What is held out together.
        cell: What is resampled together for intervals; parts of folds.
    """
    rows, truth, counts = features.double(), labels, weights / weights.mean()
    held_out = torch.empty(len(rows), len(classes), dtype=torch.float64)
    for k in fold.unique():
        inside = fold == k
        held_out[inside] = _fitted(rows[~inside], truth[~inside], counts[~inside], classes).predict(rows[inside])
    whole = _fitted(rows, truth, counts, classes)
    in_sample = class_score(whole.predict(rows), truth, counts)
    return whole, in_sample, class_score(held_out, truth, counts, fold, cell)


def _fitted(rows: Tensor, labels: Tensor, weights: Tensor, classes: Sequence[str]) -> LogisticMap:
    share = weights / weights.sum()
    mean = share @ rows
    scale = (share @ (rows - mean) ** 2).sqrt()
    # A constant feature, up to the rounding of float32, says nothing.
    unit = torch.where(scale > 1e-7 * mean.abs(), scale, torch.inf)
    seen = labels.unique()
    log_odds = torch.zeros(rows.shape[1], len(classes), dtype=torch.float64)
    # A class that is not among these rows is as improbable as one in as many rows and one more.
    bias = torch.full((len(classes),), -float(np.log(len(rows) + 1.0)), dtype=torch.float64)
    if len(seen) == 1:
        bias[seen] = 0.0
        return LogisticMap(log_odds, bias, tuple(classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(max_iter=300).fit(((rows - mean) / unit).numpy(), labels.numpy(), weights.numpy())
    coefficients, intercepts = torch.from_numpy(model.coef_).double(), torch.from_numpy(model.intercept_).double()
    if len(seen) == 2:
        # Scikit-learn gives the log-odds of the second class alone.
        coefficients = torch.cat([torch.zeros_like(coefficients), coefficients])
        intercepts = torch.cat([torch.zeros_like(intercepts), intercepts])
    log_odds[:, seen] = (coefficients / unit).T
    bias[seen] = intercepts - (coefficients / unit) @ mean
    return LogisticMap(log_odds, bias, tuple(classes))


def class_score(
    probabilities: Float64[Tensor, "row class"],
    labels: Int[Tensor, "row"],
    weights: Float64[Tensor, "row"],
    fold: Int[Tensor, "row"] | None = None,
    cell: Int[Tensor, "row"] | None = None,
) -> ClassScore:
    """The score of these predictions, made by one map or, held out, by one for each fold; intervals are over cells."""
    share = weights / weights.sum()
    right = (probabilities.argmax(dim=1) == labels).double()
    costs = -probabilities.gather(1, labels.unsqueeze(1)).squeeze(1).clamp(min=1e-300).log()
    areas, folds = [], torch.zeros_like(labels) if fold is None else fold
    for k in folds.unique():
        inside = folds == k
        for each in labels[inside].unique():
            is_class = labels[inside] == each
            if not is_class.all():
                predicted, counts = probabilities[inside, each].numpy(), weights[inside].numpy()
                areas.append(float(roc_auc_score(is_class.numpy(), predicted, sample_weight=counts)))
    of_class, right_of_class = _sums(share, labels), _sums(share * right, labels)
    intervals = {}
    if cell is not None:
        weight, wrong, cost = (_sums(each, cell) for each in (share, share * (1 - right), share * costs))
        low, high = bootstrap_interval(cost, weight)
        intervals["cross_entropy_interval"] = (1 - high, 1 - low)
        intervals["accuracy_interval"] = tuple(min(max(end, 0.0), 1.0) for end in bootstrap_interval(wrong, weight))
    return ClassScore(
        accuracy=min(float(share @ right), 1.0),
        auc=float(np.mean(areas)) if areas else math.nan,
        cross_entropy=float(share @ costs),
        balanced_accuracy=min(float((right_of_class / of_class).mean()), 1.0),
        n=len(labels),
        reliability=_reliability(probabilities, right, share),
        **intervals,
    )


def _sums(values: Float64[Tensor, "row"], which: Int[Tensor, "row"]) -> Float64[Tensor, "some"]:
    """Sums of the values over the rows of each number that occurs."""
    found, place = which.unique(return_inverse=True)
    return torch.zeros(len(found), dtype=torch.float64).index_add_(0, place, values)


def _reliability(
    probabilities: Float64[Tensor, "row class"], right: Float64[Tensor, "row"], share: Float64[Tensor, "row"]
) -> tuple[ReliabilityBin, ...]:
    """How often the most probable class is the true one, by its probability."""
    confidence, edges = probabilities.amax(dim=1), torch.linspace(0, 1, N_BINS + 1, dtype=torch.float64)
    which = torch.searchsorted(edges[1:-1].contiguous(), confidence.contiguous())
    weight = _sums(share, which)
    means = (_sums(share * each, which) / weight for each in (confidence, right))
    columns = (edges[which.unique()], edges[which.unique() + 1], *means, weight)
    return tuple(ReliabilityBin(*row) for row in torch.stack(columns, dim=1).clamp(0, 1).tolist())
