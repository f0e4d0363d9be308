import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
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


def test_weights_count_as_repetitions():
    _, labels, _ = problem(2, n=40)
    weights = torch.arange(40) % 3 + 1
    again = torch.arange(40).repeat_interleave(weights)
    probabilities = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)).double()
    found = class_score(probabilities, labels, weights.double())
    repeated = class_score(probabilities[again], labels[again], torch.ones(len(again)).double())
    assert (found.accuracy, found.auc, found.cross_entropy) == pytest.approx(
        (repeated.accuracy, repeated.auc, repeated.cross_entropy)
    )


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
