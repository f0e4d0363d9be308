import math

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from msp_lens.moments.logistic import class_score, fit_logistic


def problem(n_classes, n=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, n_classes, (n,), generator=generator)
    centers = torch.randn(n_classes, 4, generator=generator)
    features = centers[labels] + torch.randn(n, 4, generator=generator)
    return features * torch.tensor([1.0, 100.0, 0.01, 1.0]) + 3, labels, torch.arange(n) % 5


@pytest.mark.parametrize("n_classes", [2, 3])
def test_it_is_scikit_learns_read_out_with_its_scores(n_classes):
    features, labels, fold = problem(n_classes)
    names = tuple("abc"[:n_classes])
    fitted, in_sample, held_out = fit_logistic(features, labels, names, weights=torch.ones(300).double(), fold=fold)
    fold = fold.numpy()
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    rows = features.double().numpy()
    labels = labels.numpy()
    expected = pipeline.fit(rows, labels).predict_proba(rows)
    np.testing.assert_allclose(fitted.predict(features.double()), expected, atol=2e-3)
    outside = cross_val_predict(pipeline, rows, labels, cv=PredefinedSplit(fold), method="predict_proba")
    for found, predicted in ((in_sample, expected), (held_out, outside)):
        assert found.accuracy == pytest.approx(accuracy_score(labels, predicted.argmax(1)), abs=0.01)
        assert found.cross_entropy == pytest.approx(log_loss(labels, predicted), abs=2e-3)
        one_hot, apart = (
            np.eye(n_classes)[labels],
            [range(300)] if found is in_sample else np.arange(300).reshape(-1, 5).T,
        )
        areas = [roc_auc_score(one_hot[rows], predicted[rows], average="macro") for rows in apart]
        assert found.auc == pytest.approx(np.mean(areas), abs=2e-3)
        assert found.n == 300
    assert held_out.cross_entropy > in_sample.cross_entropy


@pytest.mark.parametrize("n_classes", [2, 4])
def test_calibration_and_balance_are_scikit_learns(n_classes):
    generator = torch.Generator().manual_seed(n_classes)
    labels = (torch.rand(500, generator=generator) ** 2 * n_classes).long()
    logits = torch.randn(500, n_classes, generator=generator).double() * 3
    logits[torch.arange(500), labels] += 1
    found = class_score(logits.softmax(dim=1), labels, torch.ones(500).double())
    guess, confidence = logits.argmax(dim=1), logits.softmax(dim=1).amax(dim=1)
    right = (guess == labels).numpy()
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, guess))
    accuracy, mean_confidence = calibration_curve(right, confidence.numpy(), n_bins=10)
    np.testing.assert_allclose([each.accuracy for each in found.reliability], accuracy)
    np.testing.assert_allclose([each.confidence for each in found.reliability], mean_confidence)
    counts, edges = np.histogram(confidence, bins=10, range=(0, 1))
    np.testing.assert_allclose([each.share for each in found.reliability], counts[counts > 0] / 500)
    np.testing.assert_allclose([each.low for each in found.reliability], edges[:-1][counts > 0])
    gaps = np.abs(accuracy - mean_confidence)
    assert found.calibration_error == pytest.approx(float(gaps @ counts[counts > 0]) / 500)
    # This is far too sure of itself; when the labels follow its probabilities, it is not.
    assert found.calibration_error > 0.15
    follow = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
    assert class_score(logits.softmax(dim=1), follow, torch.ones(500).double()).calibration_error < 0.06


def test_intervals_are_as_wide_as_independent_cells_allow():
    n, generator = 800, torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (n,), generator=generator)
    odds = torch.randn(n, 2, generator=generator).double()
    probabilities = odds.softmax(dim=1)
    costs = -probabilities[torch.arange(n), labels].log()
    alone = class_score(probabilities, labels, torch.ones(n).double(), cell=torch.arange(n))
    for interval, value, deviation in (
        (alone.accuracy_interval, alone.accuracy, math.sqrt(alone.accuracy * (1 - alone.accuracy))),
        (alone.cross_entropy_interval, alone.cross_entropy, float(costs.std())),
    ):
        low, high = interval
        assert low < value < high
        assert high - low == pytest.approx(2 * 1.96 * deviation / math.sqrt(n), rel=0.12)
    # Sixteen copies of each row in one cell tell no more than one.
    copies = torch.arange(n).repeat_interleave(16)
    repeated = class_score(probabilities[copies], labels[copies], torch.ones(len(copies)).double(), cell=copies)
    assert repeated.accuracy_interval == pytest.approx(alone.accuracy_interval)
    assert math.isnan(class_score(probabilities, labels, torch.ones(n).double()).accuracy_interval[0])


def test_weights_count_as_repetitions():
    _, labels, _ = problem(2, n=40)
    weights = torch.arange(40) % 3 + 1
    again = torch.arange(40).repeat_interleave(weights)
    probabilities = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)).double()
    found = class_score(probabilities, labels, weights.double())
    repeated = class_score(probabilities[again], labels[again], torch.ones(len(again)).double())
    for name in ("accuracy", "auc", "cross_entropy", "balanced_accuracy", "calibration_error"):
        assert getattr(found, name) == pytest.approx(getattr(repeated, name)), name


def test_one_class_and_classes_that_a_fold_lacks():
    features, labels, fold = problem(3, n=50)
    alone, in_sample, _ = fit_logistic(features, labels * 0, ("a", "b"), weights=torch.ones(50).double(), fold=fold)
    assert in_sample.accuracy == 1
    assert math.isnan(in_sample.auc)
    assert float(alone.predict(features.double()).sum(dim=1).max()) == pytest.approx(1)
    # The only row of the third class is in one fold: the other folds predict it as hardly probable, not impossible.
    labels = labels % 2
    labels[7] = 2
    _, _, held_out = fit_logistic(features, labels, ("a", "b", "c"), weights=torch.ones(50).double(), fold=fold)
    assert math.isfinite(held_out.cross_entropy)
    assert held_out.cross_entropy < 3
