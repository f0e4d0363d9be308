import copy
import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

import msp_lens as msp
from tests import brute_force


@given(brute_force.random_processes())
def test_word_probabilities_are_sums_over_hidden_paths(process):
    words = list(brute_force.words(process, 3))
    expected = [sum(brute_force.joint(process, word)) for word in words]
    assert process.word_probabilities(torch.tensor(words)).tolist() == pytest.approx(expected, abs=1e-14)
    assert sum(expected) == pytest.approx(1)


@given(brute_force.random_processes())
def test_stationary_state_is_invariant(process):
    torch.testing.assert_close(process.stationary @ process.state_transitions, process.stationary)
    assert float(process.stationary.sum()) == pytest.approx(1)
    assert (process.stationary >= 0).all()


def test_long_words_do_not_underflow(mess3):
    word = torch.zeros(1, 5000, dtype=torch.int64)
    log_probability = mess3.word_log_probabilities(word)
    # For a constant word the belief settles, and each further token costs the same.
    further = mess3.word_log_probabilities(torch.zeros(1, 5001, dtype=torch.int64)) - log_probability
    assert torch.isfinite(log_probability).all()
    assert float(log_probability) == pytest.approx(float(further) * 5000, rel=1e-3)


def test_transient_states_have_no_stationary_weight():
    process = msp.Process([[[0.0, 1.0], [0.0, 1.0]]])
    assert process.stationary.tolist() == [0.0, 1.0]


def test_reducible_chain_needs_an_initial_distribution():
    two_coins = [[[0.5, 0], [0, 0.9]], [[0.5, 0], [0, 0.1]]]
    with pytest.raises(ValueError, match=r"reducible.*\{0\}; \{1\}.*initial="):
        msp.Process(two_coins)
    process = msp.Process(two_coins, initial=[0.25, 0.75])
    assert process.word_probabilities(torch.tensor([[0]])).item() == pytest.approx(0.25 * 0.5 + 0.75 * 0.9)


@pytest.mark.parametrize(
    ("transitions", "message"),
    [
        ([[[0.5]], [[0.4]]], r"state 0 sum to 0\.9 .*not to 1"),
        ([[[1.5]], [[-0.5]]], r"transitions\[1, 0, 0\] = -0\.5"),
        ([[[float("nan")]]], r"transitions=\[\[\[nan\]\]\]: give real numbers.*without NaN"),
        ([[[1 + 0j]]], r"not complex ones"),
        (torch.tensor([[[1 + 1j]]]), r"not complex ones"),
        (np.full((1, 1, 1), 1 + 0j), r"not complex ones"),
        ([[[0.5], [0.5, 0.5]]], "every row needs the same length"),
        (msp.rrxor().transitions.permute(1, 2, 0), r"another order\? np.transpose\(transitions, \(2, 0, 1\)\) is one"),
        (msp.rrxor().transitions.permute(1, 0, 2), r"np.transpose\(transitions, \(1, 0, 2\)\) is one"),
        (msp.processes.even(0.3).transitions.permute(0, 2, 1), r"not to 1: .*transpose\(transitions, \(0, 2, 1\)\) is"),
        ([[0.5, 0.5]], r"shape \(1, 2\)"),
        ([[[0.5, 0.5]]], r"shape \(1, 1, 2\)"),
    ],
)
def test_matrices_that_are_no_process_are_refused(transitions, message):
    with pytest.raises(ValueError, match=message):
        msp.Process(transitions)


@pytest.mark.parametrize(
    ("initial", "message"),
    [([0.5, 0.2], "sums to 0.7"), ([1.0], r"shape \(1,\)"), ([1.5, -0.5], "not a distribution")],
)
def test_initial_distributions_are_checked(initial, message):
    with pytest.raises(ValueError, match=message):
        msp.Process(torch.full((2, 2, 2), 0.25), initial=initial)


def test_names_are_checked():
    with pytest.raises(ValueError, match="1 distinct names"):
        msp.Process([[[1.0]]], states=("A", "B"))
    with pytest.raises(ValueError, match="2 distinct names"):
        msp.Process([[[0.5]], [[0.5]]], tokens=("x", "x"))


@pytest.mark.parametrize("build", [msp.mess3, msp.processes.z1r, msp.rrxor, msp.processes.even, msp.processes.sns])
def test_samples_have_the_processs_word_frequencies(build, global_state):
    process = build()
    table = brute_force.word_probabilities(process, 3)
    n = 40_000
    sampled = process.sample(n, 3, seed=5)
    observed = brute_force.Counter(map(tuple, sampled.tolist()))
    assert set(observed) <= set(table), "an impossible word was drawn"
    expected = [probability * n for probability in table.values()]
    assert chisquare([observed[word] for word in table], expected).pvalue > 1e-3


def test_sampling_starts_from_the_initial_distribution():
    process = msp.Process([[[0, 1.0], [0, 0]], [[0, 0], [1.0, 0]]], initial=[1.0, 0.0])
    assert process.sample(50, 4, seed=0).unique(dim=0).tolist() == [[0, 1, 0, 1]]


@given(brute_force.random_processes(max_states=3, max_tokens=3))
def test_samples_invert_the_cumulative_distributions_exactly(process):
    """The same words as a plain search through each state's outcomes, with the same uniform numbers."""
    uniform = torch.rand(5, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).tolist()
    rows = process.transitions.permute(1, 0, 2).flatten(1).tolist()

    def draw(probabilities, u):
        cumulative, last = 0.0, None
        for outcome, probability in enumerate(probabilities):
            cumulative += probability
            last = outcome if probability > 0 else last
            if probability > 0 and u < cumulative:
                break
        return last

    expected = []
    for word in range(50):
        state, tokens = draw(process.initial.tolist(), uniform[0][word]), []
        for position in range(4):
            token, state = divmod(draw(rows[state], uniform[position + 1][word]), process.n_states)
            tokens.append(token)
        expected.append(tokens)
    assert process.sample(50, 4, seed=1).tolist() == expected


def test_sampling_with_more_states_than_bits_to_spare():
    """A cycle of 1,100 states, of which the last ten emit 1 and state 0 either token."""
    n_states = 1100
    transitions = torch.zeros(2, n_states, n_states, dtype=torch.float64)
    here = torch.arange(n_states)
    transitions[(here >= 1090).long(), here, here.roll(-1)] = 1.0
    transitions[:, 0, 1] = 0.5
    start = torch.zeros(n_states, dtype=torch.float64)
    start[1095] = 1.0
    words = msp.Process(transitions, initial=start).sample(2000, 12, seed=0)
    assert words[:, :5].unique().tolist() == [1]
    assert float(words[:, 5].double().mean()) == pytest.approx(0.5, abs=0.05)
    assert words[:, 6:].unique().tolist() == [0]


def test_sampling_is_reproducible_and_advances_its_generator(mess3):
    assert torch.equal(mess3.sample(20, 5, seed=3), mess3.sample(20, 5, seed=3))
    generator = torch.Generator().manual_seed(3)
    first, second = (mess3.sample(20, 5, generator=generator) for _ in range(2))
    assert torch.equal(first, mess3.sample(20, 5, seed=3))
    assert not torch.equal(first, second)


def test_sampling_wants_one_source_of_randomness(mess3):
    with pytest.raises(ValueError, match="exactly one"):
        mess3.sample(1, 1)
    with pytest.raises(ValueError, match="exactly one"):
        mess3.sample(1, 1, seed=0, generator=torch.Generator())
    with pytest.raises(ValueError, match="n_words=0"):
        mess3.sample(0, 1, seed=0)


@given(brute_force.random_processes())
def test_round_trip_through_a_dict_is_exact(process):
    copy = msp.Process.from_dict(process.to_dict())
    assert copy == process
    assert torch.equal(copy.transitions, process.transitions)
    assert torch.equal(copy.initial, process.initial)


def test_fingerprint_tells_processes_apart():
    assert msp.mess3(x=0.05, a=0.85) == msp.mess3(x=0.05, a=0.85)
    assert msp.mess3(x=0.05, a=0.85) != msp.mess3(x=0.05, a=0.86)
    assert len({msp.mess3(), msp.mess3(), msp.processes.z1r()}) == 2


def test_a_process_is_a_plain_value(mess3):
    strange = msp.Process(
        mess3.transitions, name="<b>$x$\n", tokens=["[red]", "$", "ä\n"], states=[" ", "</script>", "x,y"]
    )
    for process in (
        mess3,
        strange,
        msp.processes.product([mess3, strange]),
        msp.processes.mixture([mess3, strange], [0.5, 0.5]),
    ):
        process.sample(2, 3, seed=0)
        for same in (copy.copy(process), copy.deepcopy(process), pickle.loads(pickle.dumps(process))):
            assert same == process
            assert type(same) is type(process)
            assert repr(same) == repr(process)
            assert torch.equal(same.sample(5, 3, seed=1), process.sample(5, 3, seed=1))
        assert msp.Process.from_json(process.to_json()) == process


@pytest.mark.parametrize("default", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_numbers_are_equal_processes_however_they_come_in(mess3, default):
    values = mess3.transitions
    containers = (
        values.tolist(),
        tuple(map(tuple, values.tolist())),
        values.numpy(),
        list(values.numpy()),
        list(values),
        [[[np.float64(x) for x in row] for row in matrix] for matrix in values.tolist()],
        [[[torch.tensor(x, dtype=torch.float64) for x in row] for row in matrix] for matrix in values.tolist()],
        values.clone().requires_grad_(),
        values.to_sparse(),
        np.asfortranarray(values.numpy()),
    )
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)
        for container in containers:
            for initial in (None, [1 / 3] * 3, np.full(3, 1 / 3)):
                process = msp.Process(
                    container, tokens=np.array(["A", "B", "C"]), states=("A", "B", "C"), initial=initial
                )
                assert process.transitions.dtype == torch.float64
                assert torch.equal(process.transitions, values)
                assert process.fingerprint == mess3.fingerprint
    finally:
        torch.set_default_dtype(before)


@given(st.integers(1, 2**13 - 1), st.integers(-8, 8))
def test_the_last_bits_of_a_number_do_not_change_the_fingerprint(numerator, n_bits):
    """Not even of one that has a 5 behind the decimals that count."""
    p = numerator / 2**13
    near = p + n_bits * float(np.spacing(p))
    assert msp.processes.coin(p).fingerprint == msp.processes.coin(near).fingerprint
    assert msp.processes.coin(p).fingerprint != msp.processes.coin(p + 1e-11).fingerprint


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=3),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=8,
)
DEFINITIONS = [
    msp.processes.golden_mean(p=0.3).to_dict(),
    msp.processes.bloch_walk().to_dict(),
    msp.processes.mixture([msp.processes.coin(), msp.processes.z1r()], [0.5, 0.5]).to_dict(),
    msp.processes.product([msp.processes.coin(), msp.processes.z1r()]).to_dict(),
]


@settings(max_examples=300)
@given(st.sampled_from(DEFINITIONS), st.data())
def test_a_damaged_definition_is_refused_or_is_another_process(definition, data):
    field = data.draw(st.sampled_from([*definition, "another"]))
    damaged = dict(definition)
    if data.draw(st.booleans()):
        damaged.pop(field, None)
    else:
        damaged[field] = data.draw(JSON)
    for read in (lambda: msp.Process.from_dict(damaged), lambda: msp.Process.from_json(json.dumps(damaged))):
        # Nothing but a ValueError, in a few lines.
        message = ""
        try:
            assert isinstance(read(), msp.Process)
        except ValueError as error:
            message = str(error)
        assert len(message) < 600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", r"\$=.*: give a mapping"),
        ("{}", r"transitions=.missing.: this field is required"),
        ('{"transitions": [[[NaN]]]}', "NaN is no JSON number"),
        ('{"transitions": [[[1]]], "name": 3}', r"name=3: give text"),
        ('{"transitions": [[[1]]], "states": "A"}', r"states='A': give a list"),
        ('{"transitions": [[["1"]]]}', r"transitions=.*give real numbers"),
        ('{"transitions": [[[1]]], "transition": 1}', "there is no such field; there are transitions, name"),
        ('{"transitions": [[[1]]], "parameters": {"p": "x"}}', r"parameters\['p'\]='x': give a number"),
        ('{"kind": []}', r"definition.kind=\[\]: give text"),
        ('{"kind": "blend"}', "'blend' is not a kind of process"),
        (
            '{"kind": "factored", "name": "p", "factors": [[3]], "parents": [[]], "noise": 0}',
            r"factors\[0\]\[0\]=3: give a",
        ),
        ('{"kind": "factored", "name": "p"}', r"factors=.missing.: this field is required"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_what_is_no_definition_is_refused_by_its_field(text, message):
    with pytest.raises(ValueError, match=message):
        msp.Process.from_json(text)


def test_a_definition_may_not_be_nested_without_end():
    definition = msp.processes.coin().to_dict()
    for _ in range(3_000):
        definition = {"kind": "factored", "name": "p", "factors": [[definition]], "parents": [[]], "noise": 0.0}
    with pytest.raises(ValueError, match="too deep"):
        msp.Process.from_dict(definition)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: msp.mess3().sample(10**12, 10, seed=0), "10\\d* words of 10 tokens would take .* GB"),
        (lambda: msp.processes.random_process(10**6, 3, seed=0), "would take .* GB"),
        (lambda: msp.beliefs.attractor(msp.mess3(), 10**12, seed=0), "n_points=10.* would take"),
        (lambda: msp.data.all_words(msp.mess3(), 10**12), "n_ctx=10.* would take"),
        (lambda: msp.TokenMap.identity(10**12), "n_symbols=10.* would take"),
        (lambda: msp.mess3().sample(1, 1, seed=2**70), "seed=.*fits 64 bits"),
        (lambda: msp.mess3().sample(1, 1, seed=-1), "seed=-1"),
        (lambda: msp.mess3().sample(2.5, 1, seed=0), "n_words=2.5: give a whole number"),
        (lambda: msp.beliefs.mixed_states(msp.mess3(), 1.5), "depth=1.5: give a whole number"),
        (lambda: msp.beliefs.walk_levels(msp.mess3(), 1.5), "depth=1.5: give a whole number"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused_before_any_work(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "as_number", [np.int64, np.int32, float, torch.tensor, lambda n: torch.tensor(n, dtype=torch.uint8)]
)
def test_whole_numbers_of_any_type_mean_the_same(mess3, as_number):
    two, three = as_number(2), as_number(3)
    assert torch.equal(mess3.sample(two, three, seed=three), mess3.sample(2, 3, seed=3))
    assert len(msp.words(mess3, n_ctx=two)) == 9
    assert msp.beliefs.mixed_states(mess3, two).depth == 2
    assert msp.processes.random_process(two, three, seed=two) == msp.processes.random_process(2, 3, seed=2)
    assert msp.processes.matching_parens(depth=two).to_json() == msp.processes.matching_parens(depth=2).to_json()
