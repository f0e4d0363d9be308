"""Mixtures, products, leaks and BOS tokens against their parts."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import msp_lens as msp
from msp_lens.processes import Factored, Mixture
from tests import brute_force

small = brute_force.random_processes(max_states=3, max_tokens=2)


def possible_words(process, length):
    """All words of probability above 0."""
    words = torch.tensor(list(brute_force.words(process, length)))
    return words[process.word_probabilities(words) > process.negligible]


def states_along(process, word):
    """The state vectors before and along a word, one multiplication at a time; None once it is impossible."""
    vector = process.initial
    yield vector
    for token in word:
        vector = vector @ process.transitions[token]
        total = float(vector @ process.right_eigenvector)
        if total <= 1e-12:
            yield None
            return
        vector = vector / total
        yield vector


@given(st.lists(small, min_size=1, max_size=3), st.lists(st.floats(0.05, 1), min_size=3, max_size=3))
def test_a_mixtures_words_have_the_weighted_probabilities(components, weights):
    weights = torch.tensor(weights[: len(components)], dtype=torch.float64)
    mixed = msp.processes.mixture(components, weights / weights.sum())
    for word in brute_force.words(mixed, 3):
        expected = 0.0
        for component, weight in zip(components, mixed.weights, strict=True):
            if max(word) < component.n_tokens:  # its tokens are called 0 and 1, as everybody's
                expected += float(weight) * sum(brute_force.joint(component, word))
        assert float(mixed.word_probabilities(torch.tensor([word]))) == pytest.approx(expected, abs=1e-12)


@given(small, small, st.floats(0.05, 0.95))
def test_a_mixtures_beliefs_are_those_of_its_components(first, second, weight):
    mixed = msp.processes.mixture([first, second], [weight, 1 - weight])
    words = possible_words(mixed, 3)
    belief = msp.filter_beliefs(mixed, words)[:, -1]
    which = mixed.component_beliefs(belief)
    likelihoods = torch.zeros(2, len(words), dtype=torch.float64)
    for k, component in enumerate([first, second]):
        within = mixed.state_beliefs(belief, k)
        for w, word in enumerate(words.tolist()):
            is_known = max(word) < component.n_tokens
            joint = torch.tensor(brute_force.joint(component, word) if is_known else [0.0], dtype=torch.float64)
            likelihoods[k, w] = joint.sum()
            expected = joint / joint.sum() if joint.sum() > 0 else torch.zeros(component.n_states).double()
            torch.testing.assert_close(within[w], expected, atol=1e-10, rtol=0)
            if joint.sum() > 0:
                alone = msp.filter_beliefs(component, words[w : w + 1])[0, -1]
                torch.testing.assert_close(within[w], alone, atol=1e-10, rtol=0)
    shares = (mixed.weights[:, None] * likelihoods).T
    torch.testing.assert_close(which, shares / shares.sum(dim=1, keepdim=True), atol=1e-10, rtol=0)


def test_components_share_the_tokens_of_equal_names():
    mixed = msp.processes.mixture(
        [msp.processes.days_of_week(), msp.processes.mr_name(), msp.processes.days_of_week()], [0.5, 0.25, 0.25]
    )
    assert mixed.tokens == (*msp.processes.days_of_week().tokens, *msp.processes.mr_name().tokens)
    assert mixed.states[0] == "days_of_week_0.Mo"
    assert mixed.states[-1] == "days_of_week_2.Su"
    beliefs = msp.filter_beliefs(mixed, torch.tensor([[11]]))[0, 0]
    assert mixed.tokens[11] == "Mr."
    torch.testing.assert_close(mixed.component_beliefs(beliefs), torch.tensor([0.0, 1, 0], dtype=torch.float64))
    assert mixed.state_beliefs(beliefs, 0).tolist() == [0.0] * 7


def test_words_impossible_for_all_components_are_impossible_for_the_mixture():
    mixed = msp.processes.mixture([msp.processes.z1r(), msp.processes.golden_mean(p=0.5)], [0.5, 0.5])
    assert mixed.states == ("z1r.0", "z1r.1", "z1r.R", "golden_mean.A", "golden_mean.B")
    # 11 then 0 rules out the golden mean, and after 110 the next token of z1r is 1.
    assert mixed.word_probabilities(torch.tensor([[1, 1, 0, 0]])).item() == 0
    with pytest.raises(ValueError, match="impossible for mixture: token 0 at position 3"):
        msp.filter_beliefs(mixed, torch.tensor([[1, 1, 0, 0]]))
    assert mixed.component_beliefs(msp.filter_beliefs(mixed, torch.tensor([[1, 1]])))[0, 1].tolist() == [1.0, 0.0]


def test_a_mixture_is_not_ergodic_but_sampled_all_the_same(global_state):
    mixed = msp.processes.mixture([msp.processes.coin(p=1.0), msp.processes.coin(p=0.0)], [0.25, 0.75])
    words = mixed.sample(20_000, 5, seed=0)
    assert (words == words[:, :1]).all()
    assert float(words[:, 0].double().mean()) == pytest.approx(0.75, abs=0.02)
    assert not mixed.is_irreducible
    assert msp.processes.mixture([msp.mess3()], [1.0]).word_probabilities(
        torch.tensor([[0, 1]])
    ).item() == pytest.approx(msp.mess3().word_probabilities(torch.tensor([[0, 1]])).item())


@given(small, small)
def test_a_products_words_and_beliefs_are_those_of_its_factors(first, second):
    joint = msp.processes.product([first, second])
    assert joint.n_tokens == first.n_tokens * second.n_tokens
    words = possible_words(joint, 3)
    split = joint.split_tokens(words)
    assert torch.equal(joint.join_tokens(split), words)
    torch.testing.assert_close(
        joint.word_probabilities(words),
        first.word_probabilities(split[..., 0]) * second.word_probabilities(split[..., 1]),
        atol=1e-12,
        rtol=0,
    )
    beliefs = msp.filter_beliefs(joint, words)
    for factor, part in enumerate([first, second]):
        alone = msp.filter_beliefs(part, split[..., factor])
        torch.testing.assert_close(joint.factor_beliefs(beliefs, factor), alone, atol=1e-9, rtol=0)


def test_three_factors_keep_their_order():
    parts = [msp.processes.z1r(), msp.mess3(), msp.processes.golden_mean(p=0.3)]
    joint = msp.processes.product(parts)
    assert joint.tokens[:4] == ("0,A,0", "0,A,1", "0,B,0", "0,B,1")
    assert joint.states[-1] == "R,C,B"
    words = joint.sample(30, 6, seed=0)
    split = joint.split_tokens(words)
    beliefs = msp.filter_beliefs(joint, words)
    for factor, part in enumerate(parts):
        alone = msp.filter_beliefs(part, split[..., factor])
        torch.testing.assert_close(joint.factor_beliefs(beliefs, factor), alone, atol=1e-12, rtol=0)


def test_a_product_is_impossible_where_a_factor_is():
    joint = msp.processes.product([msp.processes.golden_mean(p=0.5), msp.processes.coin()])
    both = joint.join_tokens(torch.tensor([[[1, 0], [1, 1]]]))
    assert joint.word_probabilities(both).item() == 0
    with pytest.raises(ValueError, match="impossible for product"):
        msp.filter_beliefs(joint, both)


@pytest.mark.parametrize("other", [msp.processes.frdn(), msp.mess3()], ids=["frdn", "mess3"])
def test_products_and_mixtures_of_generalized_processes(other):
    # Another scale of the eigenvector, so that nothing goes without it.
    walk = msp.processes.bloch_walk()
    walk = msp.Process(walk.transitions, right_eigenvector=5 * walk.right_eigenvector, tokens=walk.tokens)
    joint, mixed = msp.processes.product([walk, other]), msp.processes.mixture([walk, other], [0.3, 0.7])
    assert joint.is_generalized
    assert mixed.is_generalized
    for word in itertools.product(range(4), repeat=3):
        pair = [(t, t % other.n_tokens) for t in word]
        token_numbers = joint.join_tokens(torch.tensor(pair)).tolist()
        joint_states, walk_states, other_states = (
            list(states_along(process, tokens))
            for process, tokens in ((joint, token_numbers), (walk, word), (other, [p[1] for p in pair]))
        )
        for both, one, two in zip(joint_states, walk_states, other_states, strict=False):
            if one is not None and two is not None:
                torch.testing.assert_close(joint.factor_beliefs(both, 0), one, atol=1e-9, rtol=0)
                torch.testing.assert_close(joint.factor_beliefs(both, 1), two, atol=1e-9, rtol=0)
    word = torch.tensor([[0, 1, 0, 1]])
    likelihoods = [
        float(part.word_probabilities(torch.tensor([[part.tokens.index(mixed.tokens[t]) for t in word[0].tolist()]])))
        if all(mixed.tokens[t] in part.tokens for t in word[0].tolist())
        else 0.0
        for part in (walk, other)
    ]
    expected = 0.3 * likelihoods[0] + 0.7 * likelihoods[1]
    assert float(mixed.word_probabilities(word)) == pytest.approx(expected, abs=1e-12)
    *_, last = states_along(mixed, word[0].tolist())
    assert mixed.component_beliefs(last)[0].item() == pytest.approx(0.3 * likelihoods[0] / expected, abs=1e-10)
    if likelihoods[1] == 0:
        assert mixed.state_beliefs(last, 1).tolist() == [0.0] * other.n_states
    *_, alone = states_along(walk, word[0].tolist())
    torch.testing.assert_close(mixed.state_beliefs(last, 0), alone, atol=1e-9, rtol=0)


def test_leaky():
    leaked = msp.processes.leaky(msp.processes.z1r(), epsilon=0.12)
    torch.testing.assert_close(leaked.transitions, 0.88 * msp.processes.z1r().transitions + 0.12 / 6)
    torch.testing.assert_close(leaked.initial, leaked.stationary)
    assert leaked.is_irreducible
    assert repr(leaked) == "leaky_z1r(p=0.5, epsilon=0.12): 3 states, 2 tokens"
    assert msp.processes.leaky(msp.processes.z1r(), epsilon=0.0) == msp.processes.z1r()
    # What starts elsewhere still does.
    started = msp.Process(msp.processes.z1r().transitions, initial=[1.0, 0, 0])
    assert msp.processes.leaky(started, epsilon=0.1).initial.tolist() == [1.0, 0, 0]
    # A mixture in its own stationary state becomes ergodic.
    mixed = msp.processes.leaky(
        msp.processes.mixture([msp.processes.coin(p=0.2), msp.processes.coin(p=0.7)], [0.9, 0.1]), epsilon=0.1
    )
    torch.testing.assert_close(mixed.initial, torch.tensor([0.5, 0.5], dtype=torch.float64))


@pytest.mark.parametrize(
    "build",
    [
        msp.rrxor,
        msp.processes.bloch_walk,
        lambda: msp.processes.mixture([msp.processes.coin(), msp.processes.z1r()], [0.5, 0.5]),
        lambda: msp.processes.product([msp.processes.coin(), msp.processes.z1r()]),
    ],
)
def test_bos_carries_the_prior(build):
    process = build()
    begun = msp.processes.with_bos(process)
    bos = process.n_tokens
    assert begun.tokens[bos] == "BOS"
    words = torch.tensor(list(brute_force.words(process, 3)))
    with_bos = torch.cat([torch.full((len(words), 1), bos), words], dim=1)
    torch.testing.assert_close(begun.word_probabilities(with_bos), process.word_probabilities(words))
    assert (begun.word_probabilities(words) == 0).all(), "BOS comes first, always"
    assert begun.word_probabilities(with_bos[:, [0, 0]]).max() == 0, "and never again"
    _, after = states_along(begun, [bos])
    torch.testing.assert_close(after, torch.cat([process.initial, torch.zeros(1, dtype=torch.float64)]))
    sampled = begun.sample(200, 4, seed=0)
    assert (sampled[:, 0] == bos).all()
    assert (sampled[:, 1:] != bos).all()
    with pytest.raises(ValueError, match=r"tokens=.*distinct names"):
        msp.processes.with_bos(begun, state="START2")
    assert msp.processes.with_bos(begun, token="BOS2", state="START2").tokens[-1] == "BOS2"


@pytest.mark.parametrize(
    "process",
    [
        msp.processes.mixture([msp.mess3(), msp.mess3(x=0.15, a=0.6)], [1 / 3, 2 / 3], name="two"),
        msp.processes.product([msp.processes.z1r(), msp.processes.bloch_walk()]),
        msp.processes.mixture(
            [msp.processes.product([msp.processes.coin(p=0.1), msp.processes.z1r()]), msp.processes.frdn()], [0.7, 0.3]
        ),
        msp.processes.with_bos(msp.processes.moon()),
        msp.processes.leaky(msp.processes.mr_name(), 0.1),
        msp.processes.random_process(4, 3, seed=1, sparsity=0.3),
    ],
    ids=lambda process: process.name,
)
def test_round_trip_through_json_is_exact(process):
    copy = msp.Process.from_json(process.to_json())
    assert type(copy) is type(process)
    assert copy == process
    assert (repr(copy), copy.name, copy.states, copy.tokens) == (
        repr(process),
        process.name,
        process.states,
        process.tokens,
    )
    for part in ("transitions", "initial", "right_eigenvector"):
        assert torch.equal(getattr(copy, part), getattr(process, part))
    if isinstance(process, Mixture):
        assert copy.components == process.components
        assert torch.equal(copy.weights, process.weights)
    if isinstance(process, Factored):
        assert copy.factors == process.factors


def test_reprs_name_the_parts():
    two = msp.processes.product(
        [msp.processes.z1r(), msp.processes.mixture([msp.processes.coin(), msp.mess3()], [0.5, 0.5])], name="pair"
    )
    assert repr(two) == "pair(z1r(p=0.5) × mixture(0.5 coin(p=0.5), 0.5 mess3(x=0.05, a=0.85))): 12 states, 10 tokens"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: msp.processes.mixture([], []), ValueError, "give at least one process"),
        (lambda: msp.processes.product([]), ValueError, "0 factors: give at least one process"),
        (
            lambda: msp.processes.mixture([msp.processes.coin(), msp.processes.z1r()], [0.5]),
            ValueError,
            r"weights has shape \(1,\)",
        ),
        (
            lambda: msp.processes.mixture([msp.processes.coin(), msp.processes.z1r()], [0.5, 0.6]),
            ValueError,
            r"weights=.* sums to 1\.1",
        ),
        (
            lambda: msp.processes.mixture([msp.processes.coin(), msp.processes.z1r()], [1.5, -0.5]),
            ValueError,
            "weights=.* not a distribution",
        ),
        (
            lambda: msp.processes.mixture([msp.processes.coin(), msp.processes.z1r()], [1.0, 0.0]),
            ValueError,
            "weight 0 never occurs; leave it out",
        ),
        (
            lambda: msp.processes.product([msp.mess3()] * 7).transitions,
            ValueError,
            "2187 matrices of 2187 × 2187 states, .* use fewer",
        ),
        (lambda: msp.processes.leaky(msp.processes.frdn(), 0.1), ValueError, "frdn is a generalized process"),
        (
            lambda: msp.processes.leaky(msp.processes.z1r(), 1.5),
            ValueError,
            r"epsilon=1\.5: give a number from 0 to 1",
        ),
        (lambda: msp.processes.random_process(0, 2, seed=0), ValueError, "n_states=0: give at least 1"),
        (
            lambda: msp.processes.random_process(2, 2, seed=0, sparsity=1.5),
            ValueError,
            r"sparsity=1\.5: give a number from 0 to 1",
        ),
        (lambda: msp.Process.from_dict({"kind": "melange"}), ValueError, "'melange'.*factored, mixture, with_bos"),
    ],
)
def test_what_does_not_fit_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_parts_that_are_not_there_are_refused():
    mixed, joint = (
        msp.processes.mixture([msp.processes.coin(), msp.processes.z1r()], [0.5, 0.5]),
        msp.processes.product([msp.processes.coin(), msp.processes.z1r()]),
    )
    with pytest.raises(ValueError, match="2: mixture has components 0 to 1"):
        mixed.state_beliefs(mixed.initial, 2)
    with pytest.raises(ValueError, match="-1: product has factors 0 to 1"):
        joint.factor_beliefs(joint.initial, -1)
    with pytest.raises(ValueError, match="Token 4: the 4 tokens of product"):
        joint.split_tokens(torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="Token 2: factor 1 of product has tokens 0 to 1"):
        joint.join_tokens(torch.tensor([[0, 1], [0, 2]]))
    with pytest.raises(ValueError, match="last axis has 3 tokens; product has 2 factors"):
        joint.join_tokens(torch.tensor([[0, 1, 0]]))


@pytest.mark.parametrize(
    "process",
    [
        msp.processes.mixture([msp.processes.coin(p=0.1), msp.processes.coin(p=0.6)], [0.25, 0.75]),
        msp.processes.product([msp.processes.z1r(), msp.processes.golden_mean(p=0.5)]),
        Factored([msp.processes.coin(p=0.5), [msp.processes.bloch_walk()] * 2], parents="chain", noise=0.1),
    ],
    ids=lambda process: process.name,
)
def test_what_follows_bos_keeps_its_parts_and_takes_the_same_steps(process):
    begun = msp.processes.with_bos(process)
    plain = msp.Process(
        begun.transitions,
        initial=begun.initial,
        right_eigenvector=begun.right_eigenvector if begun.is_generalized else None,
        states=begun.states,
        tokens=begun.tokens,
    )
    for name in ("emissions", "state_transitions", "stationary"):
        if name != "stationary" or not isinstance(process, Mixture):
            torch.testing.assert_close(getattr(begun, name), getattr(plain, name), rtol=0, atol=1e-12)
    words = begun.sample(30, 4, seed=0)
    beliefs = msp.filter_beliefs(begun, words)
    torch.testing.assert_close(beliefs, msp.filter_beliefs(plain, words), rtol=0, atol=1e-12)
    before = torch.cat([begun.initial.unsqueeze(0), beliefs[:, 0], beliefs[:, -1]])
    for found, expected in zip(begun.bayes_children(before), plain.bayes_children(before), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12, equal_nan=True)
    inside = process.parts(msp.filter_beliefs(process, words[:, 1:]))
    assert list(begun.parts(beliefs)) == list(inside)
    for label, part in begun.parts(beliefs).items():
        torch.testing.assert_close(part[:, 1:], inside[label], rtol=0, atol=1e-12)
        torch.testing.assert_close(part[0, 0], process.parts(process.initial)[label], rtol=0, atol=1e-12)
    copy = msp.Process.from_json(begun.to_json())
    assert (type(copy), copy.process, copy.tokens, copy) == (type(begun), process, begun.tokens, begun)
    torch.testing.assert_close(
        msp.beliefs.myopic_entropies(begun, 3), msp.beliefs.myopic_entropies(plain, 3), rtol=0, atol=1e-10
    )


def test_a_process_with_bos_read_from_an_older_file_is_the_same():
    begun = msp.processes.with_bos(msp.processes.z1r())
    assert msp.Process(begun.transitions, initial=begun.initial, states=begun.states, tokens=begun.tokens) == begun


def test_parts_are_what_each_says_by_itself():
    a, b = msp.processes.rrxor(), msp.processes.golden_mean(p=0.5)
    both, either = msp.processes.product([a, b]), msp.processes.mixture([a, a], [0.25, 0.75])
    beliefs = msp.filter_beliefs(both, both.sample(5, 6, seed=0))
    assert {name: part.shape[-1] for name, part in both.parts(beliefs).items()} == {"rrxor": 5, "golden_mean": 2}
    torch.testing.assert_close(both.parts(beliefs)["golden_mean"], both.factor_beliefs(beliefs, 1))
    beliefs = msp.filter_beliefs(either, either.sample(5, 6, seed=0))
    parts = either.parts(beliefs)
    assert list(parts) == ["component", "rrxor_0", "rrxor_1"]
    torch.testing.assert_close(parts["component"], either.component_beliefs(beliefs))
    torch.testing.assert_close(parts["rrxor_1"], either.state_beliefs(beliefs, 1))
    assert a.parts(a.initial) == {}
