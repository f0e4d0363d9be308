"""The catalog against matrices written out by hand from the definitions in the literature."""

import inspect
import math

import numpy as np
import pytest
import torch

import msp_lens as msp
from msp_lens.processes import CATALOG, catalog_entry
from tests import brute_force

MATRICES = {
    "mess3": (
        {"x": 0.1, "a": 0.6},
        [
            [[0.48, 0.02, 0.02], [0.06, 0.16, 0.02], [0.06, 0.02, 0.16]],
            [[0.16, 0.06, 0.02], [0.02, 0.48, 0.02], [0.02, 0.06, 0.16]],
            [[0.16, 0.02, 0.06], [0.02, 0.16, 0.06], [0.02, 0.02, 0.48]],
        ],
    ),
    "z1r": ({"p": 0.3}, [[[0, 1, 0], [0, 0, 0], [0.7, 0, 0]], [[0, 0, 0], [0, 0, 1], [0.3, 0, 0]]]),
    "rrxor": (
        {"p1": 0.3, "p2": 0.2},
        [
            [[0, 0.3, 0, 0, 0], [0, 0, 0, 0, 0.2], [0, 0, 0, 0.8, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]],
            [[0, 0, 0.7, 0, 0], [0, 0, 0, 0.8, 0], [0, 0, 0, 0, 0.2], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
        ],
    ),
    "golden_mean": ({"p": 0.3}, [[[0.7, 0], [1, 0]], [[0, 0.3], [0, 0]]]),
    "even": ({"p": 0.3}, [[[0.7, 0], [0, 0]], [[0, 0.3], [1, 0]]]),
    "coin": ({"p": 0.3}, [[[0.3]], [[0.7]]]),
    "sns": ({"p": 0.3, "q": 0.2}, [[[0.7, 0.3], [0, 0.8]], [[0, 0], [0.2, 0]]]),
    "leaky_rrxor": (
        {"p1": 0.3, "p2": 0.2, "epsilon": 0.1},
        [
            [
                [0.01, 0.28, 0.01, 0.01, 0.01],
                [0.01, 0.01, 0.01, 0.01, 0.19],
                [0.01, 0.01, 0.01, 0.73, 0.01],
                [0.01, 0.01, 0.01, 0.01, 0.01],
                [0.91, 0.01, 0.01, 0.01, 0.01],
            ],
            [
                [0.01, 0.01, 0.64, 0.01, 0.01],
                [0.01, 0.01, 0.01, 0.73, 0.01],
                [0.01, 0.01, 0.01, 0.01, 0.19],
                [0.91, 0.01, 0.01, 0.01, 0.01],
                [0.01, 0.01, 0.01, 0.01, 0.01],
            ],
        ],
    ),
    "matching_parens": (
        {"open_prob": 0.3, "depth": 3},
        [
            [[0, 1, 0, 0], [0, 0, 0.3, 0], [0, 0, 0, 0.3], [0, 0, 0, 0]],
            [[0, 0, 0, 0], [0.7, 0, 0, 0], [0, 0.7, 0, 0], [0, 0, 1, 0]],
        ],
    ),
    "mr_name": (
        {"p": 0.3, "q": 0.2},
        [
            [[0, 0, 0, 0], [0.2, 0, 0, 0], [0.2, 0, 0, 0], [0, 0, 0, 0]],
            [[0, 0, 0, 0], [0, 0.5, 0, 0], [0, 0.3, 0, 0], [0, 0.5, 0, 0]],
            [[0, 0, 0, 0], [0, 0, 0.3, 0], [0, 0, 0.5, 0], [0, 0, 0.5, 0]],
            [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        ],
    ),
    "days_of_week": (
        {},
        (
            torch.stack(
                [
                    *torch.diag_embed(
                        torch.tensor(
                            [
                                [1, 5, 1, 1, 1, 1, 1],
                                [1, 1, 5, 1, 1, 1, 1],
                                [1, 1, 1, 5, 1, 1, 1],
                                [1, 1, 1, 1, 5, 1, 1],
                                [1, 1, 1, 1, 1, 5, 1],
                                [1, 1, 1, 1, 1, 1, 5],
                                [5, 1, 1, 1, 1, 1, 1],
                            ]
                        )
                    ).movedim(2, 0),
                    torch.tensor(
                        [
                            [0, 1, 0, 0, 0, 0, 0],
                            [0, 0, 1, 0, 0, 0, 0],
                            [0, 0, 0, 1, 0, 0, 0],
                            [0, 0, 0, 0, 1, 0, 0],
                            [0, 0, 0, 0, 0, 1, 0],
                            [0, 0, 0, 0, 0, 0, 1],
                            [1, 0, 0, 0, 0, 0, 0],
                        ]
                    ),
                    torch.tensor(
                        [
                            [0, 0, 0, 0, 0, 0, 1],
                            [1, 0, 0, 0, 0, 0, 0],
                            [0, 1, 0, 0, 0, 0, 0],
                            [0, 0, 1, 0, 0, 0, 0],
                            [0, 0, 0, 1, 0, 0, 0],
                            [0, 0, 0, 0, 1, 0, 0],
                            [0, 0, 0, 0, 0, 1, 0],
                        ]
                    ),
                    torch.tensor([[0, 0, 0, 0, 0, 0.5, 0.5]] * 7),
                    torch.tensor([[0.2, 0.2, 0.2, 0.2, 0.2, 0, 0]] * 7, dtype=torch.float64),
                ]
            )
            / 15
        ).tolist(),
    ),
    "bloch_walk": (
        {"alpha": 1.0, "beta": 2.0},
        [
            [[0.25, 0, 0.2], [0, -0.15, 0], [0.2, 0, 0.25]],
            [[0.25, 0, -0.2], [0, -0.15, 0], [-0.2, 0, 0.25]],
            [[0.25, 0.2, 0], [0.2, 0.25, 0], [0, 0, -0.15]],
            [[0.25, -0.2, 0], [-0.2, 0.25, 0], [0, 0, -0.15]],
        ],
    ),
    "frdn": (
        {"alpha": math.pi / 2, "lam": 0.5},
        [
            [[0.4, 1, -0.3, -0.1], [0.2, 0.5, -0.15, -0.05], [0.6, 1.5, -0.45, -0.15], [0.2, 0.5, -0.15, -0.05]],
            [[0, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 0, -0.5], [0, 0, 0.5, 0]],
        ],
    ),
    # The sum of the unscaled matrices is [[3.5, -1, -1], [1, 1, -1], [0, 0, 2]], with eigenvalues 3, 2, 1.5.
    "moon": (
        {"alpha": 2.0, "beta": 0.5},
        [
            [[1 / 3, -1 / 3, -1 / 3], [1 / 3, -1 / 3, -1 / 3], [0, 0, 0]],
            [[2 / 3, 0, 0], [0, 1 / 3, 0], [0, math.log(2) / 3, 1 / 3]],
            [[1 / 6, 0, 0], [0, 1 / 3, 0], [0, -math.log(2) / 3, 1 / 3]],
        ],
    ),
}

# Parameters of each process that are illegal, and the range that the message must give.
UNIT = r"must lie in \[0, 1\], since it is a probability"
ILLEGAL = [
    ("mess3", {"x": 0.0}, r"x=0\): x must lie in \(0, 0\.5\]"),
    ("mess3", {"x": 0.6}, r"x=0\.6\): x must lie in \(0, 0\.5\]"),
    ("mess3", {"x": -0.1}, r"x must lie in \(0, 0\.5\]"),
    ("mess3", {"a": 1.1}, f"a=1.1.: a {UNIT}"),
    *(
        (name, {parameter: value}, rf"{parameter}={value}\): {parameter} {UNIT}")
        for name, parameters in {
            "mess3": ["a"],
            "z1r": ["p"],
            "rrxor": ["p1", "p2"],
            "golden_mean": ["p"],
            "even": ["p"],
            "coin": ["p"],
            "sns": ["p", "q"],
            "leaky_rrxor": ["p1", "p2", "epsilon"],
            "mr_name": ["p", "q"],
        }.items()
        for parameter in parameters
        for value in (-0.1, 1.1, math.inf)
    ),
    *((name, {"p": math.nan}, "p=nan: give a number, not NaN") for name in ("z1r", "coin")),
    ("sns", {"p": 0.0, "q": 0.0}, r"p=0, q=0\): p and q must lie in \[0, 1\] and not both be 0"),
    ("mr_name", {"p": 0.6, "q": 0.5}, r"p=0\.6, q=0\.5\): p \+ q must lie in \(0, 1\]"),
    ("mr_name", {"p": 0.0, "q": 0.0}, r"p \+ q must lie in \(0, 1\]"),
    *(("matching_parens", {"open_prob": p}, r"open_prob must lie in \(0, 1\)") for p in (0.0, 1.0, -1.0)),
    *(("matching_parens", {"depth": depth}, r"depth=-?\d: give at least 1") for depth in (0, -1)),
    *(("matching_parens", {"depth": depth}, r"depth=.*: give a whole number") for depth in (2.5, math.inf)),
    ("matching_parens", {"depth": 10**6}, r"depth=1000000 would take .* Give a smaller depth"),
    ("matching_parens", {"open_prob": [1, 1.2, 0]}, r"open_prob must lie in \(0, 1\)"),
    (
        "matching_parens",
        {"open_prob": [0.5, 0.5, 0]},
        r"open_prob=\(0.5, 0.5, 0\)\): a sequence is p_0 … p_depth, of which the first",
    ),
    ("matching_parens", {"open_prob": [1, 0.5, 0], "depth": 3}, "depth=3.: a sequence is p_0"),
    ("matching_parens", {"open_prob": []}, "a sequence is p_0"),
    ("matching_parens", {"open_prob": [1, 0.5, 0.5], "depth": 2}, "a sequence is p_0"),
    *(("bloch_walk", {p: math.nan}, rf"{p}=nan: give a number, not NaN") for p in ("alpha", "beta")),
    ("bloch_walk", {"alpha": math.inf}, r"alpha must lie in \(-∞, ∞\)"),
    ("bloch_walk", {"beta": 0.0}, r"beta=0\): beta must lie in \(-∞, 0\) or \(0, ∞\)"),
    ("frdn", {"alpha": math.inf}, r"alpha must lie in \(-∞, ∞\)"),
    ("frdn", {"lam": 1.0}, r"lam must lie in \[0, 1\)"),
    ("frdn", {"lam": -0.1}, r"lam must lie in \[0, 1\)"),
    ("frdn", {"alpha": math.pi, "lam": 0.63}, r"lam must lie in \[0, 1\) and .* sum to at most 1, not to 1\.04"),
    *(("moon", {p: v}, rf"{p} must lie in \(0, ∞\)") for p in ("alpha", "beta") for v in (0.0, -1.0, math.inf)),
    ("moon", {"alpha": 1.0, "beta": 1.0}, r"alpha and beta must lie in \(0, ∞\) and not both be 1"),
]


def test_every_process_is_checked_here():
    assert set(MATRICES) == set(CATALOG)


@pytest.mark.parametrize("name", MATRICES)
def test_matrices(name):
    parameters, expected = MATRICES[name]
    process = msp.processes.build_process(name, parameters)
    torch.testing.assert_close(process.transitions, torch.tensor(expected, dtype=torch.float64))
    assert process.parameters == parameters


def test_stationary_states():
    torch.testing.assert_close(msp.mess3().stationary, torch.full((3,), 1 / 3, dtype=torch.float64))
    torch.testing.assert_close(msp.rrxor().stationary, torch.tensor([2, 1, 1, 1, 1], dtype=torch.float64) / 6)
    torch.testing.assert_close(
        msp.processes.golden_mean(p=0.5).stationary, torch.tensor([2, 1], dtype=torch.float64) / 3
    )


@pytest.mark.parametrize(("name", "parameters", "message"), ILLEGAL)
def test_illegal_parameters_are_refused_with_their_range(name, parameters, message):
    with pytest.raises(ValueError, match=message) as error:
        msp.processes.build_process(name, parameters)
    assert str(error.value).startswith((f"{name}(", *parameters))


def test_every_parameter_is_tried_with_illegal_values():
    tried = {(name, parameter) for name, parameters, _ in ILLEGAL for parameter in parameters}
    assert tried == {(n, p) for n, build in CATALOG.items() for p in inspect.signature(build).parameters}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mess3", {"x": 0.5, "a": 1.0}),
        ("mess3", {"x": 1e-6, "a": 0.0}),
        *((name, {"p": p}) for name in ("z1r", "golden_mean", "even", "coin") for p in (0.0, 1.0)),
        *(("rrxor", {"p1": p1, "p2": p2}) for p1 in (0.0, 1.0) for p2 in (0.0, 1.0)),
        *(("sns", {"p": p, "q": q}) for p, q in ((0.0, 1.0), (1.0, 0.0), (1.0, 1.0))),
        *(("leaky_rrxor", {"epsilon": epsilon}) for epsilon in (0.0, 1.0)),
        *(("mr_name", {"p": p, "q": q}) for p, q in ((0.0, 1.0), (1.0, 0.0), (0.0, 0.01), (0.01, 0.0))),
        ("matching_parens", {"depth": 1}),
        ("matching_parens", {"open_prob": 0.01, "depth": 9.0}),
        *(("bloch_walk", {"alpha": a, "beta": b}) for a, b in ((0.0, 1.0), (1.0, 1.0), (-3.0, 0.1), (1e6, -1e5))),
        *(("frdn", {"alpha": a, "lam": lam}) for a, lam in ((0.0, 0.9), (math.pi, 0.6), (-7.0, 0.5), (1.0, 0.0))),
        *(("moon", {"alpha": a, "beta": b}) for a, b in ((1.0, 0.9), (0.01, 0.01), (50.0, 50.0), (1e-3, 1e3))),
    ],
)
def test_the_ends_of_the_ranges_are_processes(name, parameters):
    process = msp.processes.build_process(name, parameters)
    length = 3 if process.n_tokens > 2 else 6
    probabilities = process.word_probabilities(torch.tensor(list(brute_force.words(process, length))))
    assert (probabilities >= 0).all()
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", [name for name in CATALOG if name not in ("bloch_walk", "frdn", "moon")])
@pytest.mark.parametrize("is_default", [True, False], ids=["default", "other"])
def test_brute_force_over_hidden_paths_agrees(name, is_default):
    process = msp.processes.build_process(name, {} if is_default else MATRICES[name][0])
    length = max(n for n in range(1, 6) if process.n_states ** (n + 1) * process.n_tokens**n <= 60_000)
    table = {word: brute_force.joint(process, word) for word in brute_force.words(process, length)}
    expected = torch.tensor(list(table.values()), dtype=torch.float64)
    words = torch.tensor(list(table))
    probabilities = process.word_probabilities(words)
    torch.testing.assert_close(probabilities, expected.sum(dim=1), rtol=0, atol=1e-12)
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-12)
    possible = expected.sum(dim=1) > 0
    assert ((probabilities > 0) == possible).all()
    beliefs = msp.filter_beliefs(process, words[possible])[:, -1]
    posteriors = expected[possible] / expected[possible].sum(dim=1, keepdim=True)
    torch.testing.assert_close(beliefs, posteriors, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["bloch_walk", "frdn", "moon"])
def test_matrix_products_agree_for_generalized_processes(name):
    process = msp.processes.build_process(name)
    for length in (1, 3, 5):
        table = brute_force.matrix_products(process, length)
        probabilities = process.word_probabilities(torch.tensor(list(table)))
        assert probabilities.tolist() == pytest.approx(list(table.values()), abs=1e-12)
        assert float(probabilities.sum()) == pytest.approx(1, abs=1e-12)


def test_bloch_walk_is_a_measured_qubit():
    """Its words have the probabilities of quantum mechanics: density matrix, Kraus operators, trace."""
    alpha, beta = 1.0, math.sqrt(51)
    x, z, one = (torch.tensor(m, dtype=torch.float64) for m in ([[0, 1], [1, 0]], [[1, 0], [0, -1]], [[1, 0], [0, 1]]))
    scale = 1 / math.sqrt(4 * (alpha**2 + beta**2))
    kraus = [scale * (alpha * one + sign * beta * axis) for axis in (z, x) for sign in (1, -1)]
    process = msp.processes.bloch_walk(alpha, beta)
    words = list(brute_force.words(process, 4))
    for word, probability in zip(words, process.word_probabilities(torch.tensor(words)), strict=True):
        density = one / 2
        for token in word:
            density = kraus[token] @ density @ kraus[token].T
        assert float(probability) == pytest.approx(float(density.trace()), abs=1e-14)


@pytest.mark.parametrize(("alpha", "lam"), [(2000.0, 0.49), (1.0, 0.3), (3.0, 0.6)])
def test_frdns_runs_have_their_lengths(alpha, lam):
    process = msp.processes.frdn(alpha, lam)
    # After a 0, a run of n 1s and a 0: the probability of 0 1…1 0 over that of 0.
    zero = float(process.word_probabilities(torch.tensor([[0]])))
    for n in range(1, 12):
        word = torch.tensor([[0, *[1] * n, 0]])
        expected = lam**n * math.sin(n * alpha / 2) ** 2
        assert float(process.word_probabilities(word)) / zero == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize(("alpha", "beta"), [(math.e, 0.5), (3.0, 2.0), (0.4, 0.4)])
def test_moons_words_between_zeros_have_their_probabilities(alpha, beta):
    """In proportion to v - 1 - ln v, with v = α^i β^j for i 1s and j 2s."""
    process = msp.processes.moon(alpha, beta)
    chain = [[1 + alpha + beta, -1, -1], [1, 1, -1], [0, math.log(alpha * beta), 2]]
    radius = float(torch.linalg.eigvals(torch.tensor(chain, dtype=torch.float64)).abs().max())
    zero = float(process.word_probabilities(torch.tensor([[0]])))
    for word in [(1,), (2,), (1, 2), (1, 1, 2), (2, 1, 2, 2), (2, 2, 2)]:
        v = alpha ** word.count(1) * beta ** word.count(2)
        probability = float(process.word_probabilities(torch.tensor([[0, *word, 0]])))
        assert probability / zero == pytest.approx((v - 1 - math.log(v)) / radius ** (len(word) + 1), abs=1e-12)
    assert float(process.word_probabilities(torch.tensor([[0, 0]]))) == 0


@pytest.mark.parametrize("name", CATALOG)
def test_mixed_states_are_finite_where_the_catalog_says_so(name):
    """New beliefs, to nine digits, stop coming within 14 tokens, or do not."""
    process = msp.processes.build_process(name)
    known, newest = set(), [process.initial]
    for _ in range(14):
        joint = torch.einsum("bi,xij->bxj", torch.stack(newest), process.transitions)
        probability = joint @ process.right_eigenvector
        possible = probability > process.negligible
        beliefs = joint[possible] / probability[possible][:, None]
        keys = (beliefs.round(decimals=9) + 0.0).tolist()
        fresh = {tuple(key): belief for key, belief in zip(keys, beliefs, strict=True)}
        newest = [belief for key, belief in fresh.items() if key not in known]
        known |= set(fresh)
        if not newest or len(known) > 1000:
            break
    assert catalog_entry(name).has_finite_mixed_states == (not newest)


@pytest.mark.parametrize("name", CATALOG)
def test_entries_say_what_a_listing_needs(name):
    entry = catalog_entry(name)
    assert entry.name == entry.process.name == name
    assert entry.process == msp.processes.build_process(name, entry.defaults)
    assert entry.summary.endswith(".")
    assert len(entry.source) > 10


@pytest.mark.parametrize("name", CATALOG)
def test_round_trip_through_json_is_exact(name):
    process = msp.processes.build_process(name, MATRICES[name][0])
    copy = msp.Process.from_json(process.to_json())
    assert copy == process
    assert repr(copy) == repr(process)
    assert copy.parameters == process.parameters
    for part in ("transitions", "initial", "right_eigenvector", "emissions"):
        assert torch.equal(getattr(copy, part), getattr(process, part))


def test_fingerprints_stay_what_they_are():
    """Checkpoints and probes on people's disks hold them."""
    assert msp.mess3(x=0.05, a=0.85).fingerprint == "5744143f331a9b3f"
    assert msp.rrxor(p1=0.5, p2=0.5).fingerprint == "f103794c5b89b8ac"


def test_matching_parens_takes_a_probability_for_each_depth():
    process = msp.processes.matching_parens([1, 0.3, 0.6, 0])
    assert repr(process) == "matching_parens(open_prob=(1, 0.3, 0.6, 0), depth=3): 4 states, 2 tokens"
    assert process.emissions[:, 0].tolist() == [1, 0.3, 0.6, 0]
    assert process == msp.processes.build_process("matching_parens", process.parameters)
    assert msp.processes.matching_parens(0.3, 3) == msp.processes.matching_parens([1, 0.3, 0.3, 0], 3)
    assert process.tokens == ("(", ")")
    # As simplexity writes it: the last probability, 0, is understood.
    for opens in (
        [1, 0.3, 0.6],
        (1.0, 0.3, 0.6),
        np.array([1, 0.3, 0.6]),
        torch.tensor([1, 0.3, 0.6], dtype=torch.float64),
    ):
        assert msp.processes.matching_parens(opens) == process
        assert msp.processes.matching_parens(opens, depth=3).parameters == process.parameters


@pytest.mark.parametrize("name", CATALOG)
def test_a_parameter_that_is_not_there_is_named_with_those_that_are(name):
    entry = msp.processes.catalog_entry(name)
    with pytest.raises(TypeError, match=f"{name}.* has no parameter 'lamb': choose from {', '.join(entry.defaults)}"):
        CATALOG[name](lamb=0.3)


def test_the_nearest_parameter_is_meant():
    with pytest.raises(TypeError, match=r"Did you mean lam\?"):
        msp.processes.frdn(lamb=0.3)


@pytest.mark.parametrize("name", sorted(set(CATALOG) - {"days_of_week"}))
def test_parameters_are_numbers(name):
    first, value = next(iter(msp.processes.catalog_entry(name).defaults.items()))
    for bad, error in (("0.5", TypeError), (None, TypeError), (True, TypeError), (0.5j, TypeError), ({}, TypeError)):
        with pytest.raises(error, match=f"{first}=.*: give a "):
            CATALOG[name](**{first: bad})
    plain = CATALOG[name](**{first: value})
    for same in (np.float64(value), torch.tensor(value, dtype=torch.float64)):
        found = CATALOG[name](**{first: same})
        assert found == plain
        assert found.to_json() == plain.to_json()


def test_names_of_words_and_days():
    assert msp.processes.mr_name().tokens == msp.processes.mr_name().states == ("Mr.", "Something", "Blah", "name")
    torch.testing.assert_close(msp.processes.mr_name().stationary, torch.tensor([1, 2, 2, 1], dtype=torch.float64) / 6)
    assert msp.processes.days_of_week().states == ("Mo", "Tu", "We", "Th", "Fr", "Sa", "Su")
    assert msp.processes.days_of_week().tokens[7:] == ("tomorrow", "yesterday", "weekend", "weekday")


def test_lookup_by_name():
    assert msp.processes.build_process("mess3") == msp.mess3(x=0.05, a=0.85)
    with pytest.raises(KeyError, match=r"'mess4'.*mess3"):
        msp.processes.build_process("mess4")
    with pytest.raises(ValueError, match="no parameter 'y'; it has x, a"):
        msp.processes.build_process("mess3", {"y": 1.0})


def test_repr_names_the_parameters():
    assert repr(msp.mess3()) == "mess3(x=0.05, a=0.85): 3 states, 3 tokens"
    assert repr(msp.processes.coin()) == "coin(p=0.5): 1 state, 2 tokens"
