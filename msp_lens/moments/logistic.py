"""A logistic read-out: the probability of each class from some features, for targets that are classes.

    p(class | h) ∝ exp(h W + c),    fitted by  min Σ w (-log p(true class | h)) + |W|² / 2   on standardized features

Unlike least squares, it takes the rows themselves, so it is fitted to at most a few thousand of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class ClassScore(Value):
    """How well classes are predicted on some rows, which count by their weights.

    Attributes:
        accuracy: The share of rows whose most probable class is the true one.
        auc: The area under the ROC curve of each class against the rest, averaged over classes and, held out, over
            folds, whose predictions come from different maps; NaN if there is one class.
        cross_entropy: The mean of -log p(true class), in nats.
        n: Number of rows.
    """

    accuracy: float
    auc: float
    cross_entropy: float
    n: int


class SavedClassScore(TypedDict):
    """A `ClassScore` in a file."""

    accuracy: Share
    auc: Share | None
    cross_entropy: Annotated[float, Between(0, 1e3)]
    n: Annotated[int, AtLeast(1)]


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
) -> tuple[LogisticMap, ClassScore, ClassScore]:
    """The map on all rows, its score on them, and its score by cross-validation over the folds.

    Args:
        features: The rows.
        labels: The class of each, 0 … `len(classes)` - 1.
        classes: The classes' names.
        weights: How much each row counts.
        fold: What is held out together.
    """
    rows, truth, counts = features.double(), labels, weights / weights.mean()
    held_out = torch.empty(len(rows), len(classes), dtype=torch.float64)
    for k in fold.unique():
        inside = fold == k
        held_out[inside] = _fitted(rows[~inside], truth[~inside], counts[~inside], classes).predict(rows[inside])
    whole = _fitted(rows, truth, counts, classes)
    return whole, class_score(whole.predict(rows), truth, counts), class_score(held_out, truth, counts, fold)


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
) -> ClassScore:
    """The score of these predictions, made by one map or, held out, by one for each fold."""
    share = weights / weights.sum()
    right = (probabilities.argmax(dim=1) == labels).double()
    of_truth = probabilities.gather(1, labels.unsqueeze(1)).squeeze(1).clamp(min=1e-300)
    areas, folds = [], torch.zeros_like(labels) if fold is None else fold
    for k in folds.unique():
        inside = folds == k
        for each in labels[inside].unique():
            is_class = labels[inside] == each
            if not is_class.all():
                predicted, counts = probabilities[inside, each].numpy(), weights[inside].numpy()
                areas.append(float(roc_auc_score(is_class.numpy(), predicted, sample_weight=counts)))
    auc = float(np.mean(areas)) if areas else float("nan")
    return ClassScore(float(share @ right), auc, float(-(share @ of_truth.log())), len(labels))
