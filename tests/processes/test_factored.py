"""Factored worlds against a process with the joint matrices, made with loops over joint tokens."""

import itertools
import math
from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msp_lens.beliefs import entropy_rate, factor_entropies, filter_beliefs, myopic_entropies, next_token_probabilities
from msp_lens.processes import Factored, Process, bloch_walk, coin, golden_mean, mess3, product, random_process
from tests import brute_force

CALM, WILD = mess3(x=0.05, a=0.85), mess3(x=0.15, a=0.6)


def joint_matrices(world):
    """The definition, one joint token at a time: Kronecker products of the variants that the parents' tokens choose."""
    sizes = [part.n_tokens for part in world.factors]
    matrices = []
    for tokens in itertools.product(*map(range, sizes)):
        chosen = []
        for k, token in enumerate(tokens):
            combinations = list(itertools.product(*(range(sizes[parent]) for parent in world.parents[k])))
            variant = combinations.index(tuple(tokens[parent] for parent in world.parents[k]))
            chosen.append(world.variants[k][variant].transitions[token])
        matrices.append(reduce(torch.kron, chosen))
    clean = torch.stack(matrices)
    noisy = []
    for n in range(len(clean)):
        shares = [(1 - world.noise) * (n == k) + world.noise / len(clean) for k in range(len(clean))]
        noisy.append(sum(share * matrix for share, matrix in zip(shares, clean, strict=True)))
    return torch.stack(noisy)


def flat(world):
    """The same world as a process that knows of no factors."""
    weights = reduce(torch.kron, [part.right_eigenvector for part in world.factors])
    return Process(
        joint_matrices(world),
        initial=reduce(torch.kron, [part.initial for part in world.factors]),
        right_eigenvector=weights if world.is_generalized else None,
    )


def with_these_emissions(process, seed):
    """Another process of the same emissions, which moves elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    moves = torch.rand(process.transitions.shape, generator=generator, dtype=torch.float64)
    moves = moves / moves.sum(dim=2, keepdim=True)
    return Process(process.emissions.T.unsqueeze(2) * moves, initial=process.initial)


@st.composite
def worlds(draw, noise=True):
    """Two or three small factors: some parents choose emissions, without a circle, and any choose where these lead."""
    count = draw(st.integers(2, 3))
    sizes = [(draw(st.integers(1, 2)), 2) for _ in range(count)]
    place, seeds = draw(st.permutations(range(count))), itertools.count(draw(st.integers(0, 10_000)))
    parents, factors = [], []
    for k, (n_states, n_tokens) in enumerate(sizes):
        parents.append([j for j in range(count) if j != k and draw(st.booleans())])
        sparsity, initial = draw(st.sampled_from([0.0, 0.3])), None
        if draw(st.booleans()):
            initial = [1.0] + [0.0] * (n_states - 1)
        emitting, variants = {}, []
        for tokens in itertools.product(*(range(sizes[parent][1]) for parent in parents[-1])):
            shown = tuple(token for token, j in zip(tokens, parents[-1], strict=True) if place[j] < place[k])
            if shown not in emitting:
                made = random_process(n_states, n_tokens, seed=next(seeds), sparsity=sparsity)
                emitting[shown] = Process(made.transitions, initial=initial)
            variants.append(with_these_emissions(emitting[shown], next(seeds)) if variants else emitting[shown])
        factors.append(variants)
    return Factored(factors, parents=parents, noise=draw(st.sampled_from([0.0, 0.3])) if noise else 0.0)


def close(found, expected, atol=1e-12):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def possible_words(process, length):
    words = torch.tensor(list(brute_force.words(process, length)))
    return words[process.word_probabilities(words) > 1e-12]


@given(worlds())
def test_a_world_is_the_process_of_its_joint_matrices(world):
    plain = flat(world)
    assert (world.n_tokens, world.n_states) == (plain.n_tokens, plain.n_states)
    for name in ("transitions", "initial", "right_eigenvector", "emissions", "state_transitions"):
        close(getattr(world, name), getattr(plain, name))
    everything = torch.tensor(list(brute_force.words(plain, 2)))
    close(world.word_probabilities(everything), plain.word_probabilities(everything))
    expected = [sum(brute_force.joint(plain, word)) for word in everything[:5].tolist()]
    close(world.word_probabilities(everything[:5]), torch.tensor(expected, dtype=torch.float64))
    words = possible_words(plain, 2)
    close(filter_beliefs(world, words), filter_beliefs(plain, words), atol=1e-10)
    beliefs = filter_beliefs(plain, words)[:, -1]
    for found, expected in zip(world.bayes_children(beliefs), plain.bayes_children(beliefs), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10, equal_nan=True)
    close(myopic_entropies(world, 3), myopic_entropies(plain, 3), atol=1e-10)


@given(worlds())
def test_each_factors_beliefs_are_the_marginals_of_the_joint_ones(world):
    words = possible_words(world, 2)
    alone, joint = world.filter_factors(words), filter_beliefs(flat(world), words)
    assert list(alone) == list(world.labels)
    for k, label in enumerate(world.labels):
        others = [1 + axis for axis in range(len(world.factors)) if axis != k]
        marginal = joint.flatten(0, 1).unflatten(1, [part.n_states for part in world.factors]).sum(dim=others)
        close(alone[label].flatten(0, 1), marginal, atol=1e-10)
    expected = world.token_marginals(next_token_probabilities(world, joint))
    if not world.noise:
        close(world.join_beliefs([alone[label] for label in world.labels]), joint, atol=1e-10)
    if not world.noise or not any(world.parents):
        for label, found in world.factor_predictions(alone).items():
            close(found, expected[label], atol=1e-10)
    split = world.split_tokens(words)
    assert torch.equal(world.join_tokens(split), words)


def conditional_entropy(table, asked, given_):
    """H(asked | given) of a table from outcomes to probabilities; both are functions of an outcome."""
    both, alone = {}, {}
    for outcome, probability in table.items():
        key, more = given_(outcome), asked(outcome)
        both[key, more] = both.get((key, more), 0.0) + probability
        alone[key] = alone.get(key, 0.0) + probability
    total = lambda found: sum(-p * math.log(p) for p in found.values() if p > 0)  # noqa: E731
    return total(both) - total(alone)


@settings(max_examples=30)
@given(worlds(noise=False))
def test_the_entropies_of_factors_are_those_of_enumerated_words_and_add_up(world):
    length = 2
    table = brute_force.matrix_products(flat(world), length)
    found = factor_entropies(world, length)
    for position in range(length):
        for k in range(len(world.factors)):
            expected = conditional_entropy(
                table,
                lambda word, k=k, p=position: int(world.split_tokens(torch.tensor(word[p]))[k]),
                lambda word, k=k, p=position: (
                    word[:p],
                    tuple(world.split_tokens(torch.tensor(word[p]))[list(world.emission_parents[k])].tolist()),
                ),
            )
            assert float(found[k, position]) == pytest.approx(expected, abs=1e-10)
    close(found.sum(dim=0), myopic_entropies(flat(world), length), atol=1e-10)


MOVED = [golden_mean(p=0.5), with_these_emissions(golden_mean(p=0.5), 1)]
SAMPLED = {
    "chain": Factored([golden_mean(p=0.5), [coin(p=0.2), coin(p=0.9)]], parents="chain"),
    "backward chain": Factored([[coin(p=0.2), coin(p=0.9)], golden_mean(p=0.5)], parents=[[1], []]),
    "circle": Factored([MOVED, MOVED], parents="conditional transitions"),
    "noise": Factored([golden_mean(p=0.5), [coin(p=0.2), coin(p=0.9)]], parents="chain", noise=0.4),
    "generalized": Factored([coin(p=0.3), [bloch_walk(), bloch_walk()]], parents="chain"),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_words_are_sampled_as_often_as_they_are_probable(name):
    world, n_words = SAMPLED[name], 40_000
    plain = flat(world)
    words = torch.tensor(list(brute_force.words(plain, 2)))
    expected = plain.word_probabilities(words)
    sampled = world.sample(n_words, 2, seed=3)
    counts = torch.bincount(sampled[:, 0] * world.n_tokens + sampled[:, 1], minlength=len(words)).double()
    assert counts[expected < 1e-12].sum() == 0
    possible = expected > 1e-12
    deviations = (counts - n_words * expected)[possible] ** 2 / (n_words * expected)[possible]
    assert float(deviations.sum()) < 2 * int(possible.sum()) + 20
    assert torch.equal(world.sample(50, 4, generator=torch.Generator().manual_seed(5)), world.sample(50, 4, seed=5))


@pytest.mark.parametrize("factor", [0, 1])
@pytest.mark.parametrize("name", ["chain", "backward chain", "circle"])
def test_one_factor_is_drawn_anew_given_the_tokens_of_its_parents(name, factor):
    """Its stream has the probabilities of its own filter along the kept tokens; the others' are kept to the letter."""
    world, n_words = SAMPLED[name], 20_000
    word = world.sample(1, 3, seed=0)
    redrawn = world.redraw(word.expand(n_words, -1), factor, seed=1)
    before, after = world.split_tokens(word[0]), world.split_tokens(redrawn)
    other = 1 - factor
    assert (after[..., other] == before[:, other]).all()
    part, total = world.factors[factor], 0.0
    for stream in itertools.product(range(part.n_tokens), repeat=3):
        vector = part.initial
        for position, token in enumerate(stream):
            variant = int(before[position, other]) if world.parents[factor] else 0
            vector = vector @ world.variants[factor][variant].transitions[token]
        probability = float(vector.sum())
        total += probability
        share = float((after[..., factor] == torch.tensor(stream)).all(dim=1).double().mean())
        assert share == pytest.approx(probability, abs=4 * math.sqrt(0.25 / n_words))
    assert total == pytest.approx(1)


def test_drawing_anew_is_intervening_and_not_conditioning():
    """A parent is drawn as if its child had said nothing, and the kept child may then be impossible."""
    tell_tale = Factored([coin(p=0.5), [coin(p=1.0), coin(p=0.0)]], parents="chain")
    words = tell_tale.sample(2_000, 1, seed=0)
    drawn = tell_tale.redraw(words, 0, seed=1)
    assert float((drawn == words).double().mean()) == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ValueError, match=r"impossible for factored: at position 0 the token of coin_1"):
        tell_tale.filter_factors(drawn)
    with pytest.raises(ValueError, match="impossible for factored"):
        filter_beliefs(tell_tale, drawn)
    assert torch.equal(tell_tale.redraw(words, 1, seed=1), words)


def test_a_large_world_is_made_sampled_filtered_and_measured_without_its_matrices():
    world = product([WILD] * 7)
    assert (world.n_states, world.n_tokens) == (2187, 2187)
    words = world.sample(40, 6, seed=0)
    beliefs = world.filter_factors(words)
    close(beliefs["mess3_3"], filter_beliefs(WILD, world.split_tokens(words)[..., 3]))
    close(myopic_entropies(world, 8), 7 * myopic_entropies(WILD, 8), atol=1e-10)
    assert entropy_rate(world).value == pytest.approx(7 * entropy_rate(WILD).value)
    expected = sum(WILD.word_log_probabilities(world.split_tokens(words)[..., k]) for k in range(7))
    close(world.word_log_probabilities(words), expected, atol=1e-10)
    joint = filter_beliefs(world, words[:3])
    close(world.join_beliefs([each[:3] for each in beliefs.values()]), joint)
    assert Process.from_json(world.to_json()) == world
    chained = Factored([WILD, *[[CALM, WILD, CALM]] * 6], parents="chain", name="chained")
    assert chained != world
    assert chained.filter_factors(chained.redraw(words, 2, seed=0))["mess3_6"].shape == (40, 6, 3)
    made = {"transitions", "state_transitions", "emissions", "stationary"}
    assert not made & (set(vars(world)) | set(vars(chained)))
    with pytest.raises(ValueError, match="2187 matrices of 2187 × 2187 states"):
        chained.transitions  # noqa: B018


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_generalized_factors(noise):
    walk = bloch_walk(1, 3)
    published = product([WILD] * 3 + [walk] * 2)
    assert (published.n_tokens, published.n_states, published.is_generalized) == (432, 243, True)
    small = Factored([coin(p=0.4), walk, [golden_mean(p=0.5)] * 4], parents=[[], [], [1]], noise=noise)
    plain = flat(small)
    words = small.sample(30, 4, seed=0)
    close(small.word_probabilities(words), plain.word_probabilities(words))
    close(filter_beliefs(small, words), filter_beliefs(plain, words), atol=1e-10)
    table = brute_force.matrix_products(plain, 2)
    everything = torch.tensor(list(table))
    close(small.word_probabilities(everything), torch.tensor(list(table.values()), dtype=torch.float64), atol=1e-11)
    assert float(small.word_probabilities(everything).sum()) == pytest.approx(1, abs=1e-10)


def test_parts_that_hang_together_are_measured_together():
    one = Factored([coin(p=0.5), [golden_mean(p=0.5), golden_mean(p=0.1)], coin(p=0.3)], parents=[[], [0], []])
    assert [part.n_states for part in one.independent_parts] == [2, 1]
    assert one.independent_parts[1] == coin(p=0.3)
    close(myopic_entropies(one, 4), myopic_entropies(flat(one), 4), atol=1e-10)
    whole = entropy_rate(flat(one))
    assert entropy_rate(one).value == pytest.approx(whole.value, abs=whole.upper - whole.lower + 1e-9)
    noisy = Factored(one.variants, parents=one.parents, noise=0.1)
    assert noisy.independent_parts == (noisy,)
    close(myopic_entropies(noisy, 3), myopic_entropies(flat(noisy), 3), atol=1e-10)


def test_structures_by_name():
    three = [[coin(p=0.5)], [coin(p=0.5)] * 2, [coin(p=0.5)] * 2]
    assert Factored(three, parents="chain").parents == ((), (0,), (1,))
    assert Factored([*three[:2], three[2] * 2], parents="fully conditional").parents == ((), (0,), (0, 1))
    assert Factored([each[:1] * 4 for each in three], parents="conditional transitions").parents == (
        (1, 2),
        (0, 2),
        (0, 1),
    )
    assert Factored([coin(p=0.5), coin(p=0.2)]).parents == ((), ())


def test_what_it_shows_and_keeps():
    world = Factored([golden_mean(p=0.5), [CALM, WILD]], parents="chain", noise=0.25, name="world")
    expected = "world(golden_mean(p=0.5) × 2 variants of mess3(x=0.05, a=0.85) given golden_mean, noise=0.25)"
    assert repr(world) == f"{expected}: 6 states, 6 tokens"
    copy = Process.from_json(world.to_json())
    assert isinstance(copy, Factored)
    assert (copy, copy.variants, copy.parents, copy.noise) == (world, world.variants, world.parents, 0.25)
    assert copy.fingerprint != Factored(world.variants, parents="chain").fingerprint
    assert world.fingerprint != Factored([world.variants[0], world.variants[1][::-1]], parents="chain", noise=0.25)
    assert world.tokens[:2] == ("0,A", "0,B")


COIN = coin(p=0.5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Factored([]), ValueError, "0 factors: give at least one"),
        (lambda: Factored([COIN] * 18), ValueError, "18 factors: .* at most 17"),
        (lambda: Factored([COIN, []]), ValueError, "give at least one process"),
        (
            lambda: Factored([COIN, COIN], parents="chain"),
            ValueError,
            "factor 1 of factored: 1 given, .* 2 comb",
        ),
        (lambda: Factored([COIN, [COIN] * 2], parents=[[], [1]]), ValueError, r"parents\[1\]=\[1\]: .*other factors"),
        (lambda: Factored([COIN, [COIN] * 2], parents=[[], [2]]), ValueError, r"parents\[1\]=\[2\]: .*0 to 1"),
        (lambda: Factored([COIN, COIN], parents=[[]]), ValueError, "2 factors; give the parents of each"),
        (lambda: Factored([COIN, COIN], parents="ring"), ValueError, "parents='ring'"),
        (lambda: Factored([COIN, [COIN, CALM]], parents="chain"), ValueError, "differ in size"),
        (lambda: Factored([COIN], noise=1.5), ValueError, "noise=1.5: give a number from 0 to 1"),
        (
            lambda: Factored([[COIN, coin(p=0.1)], [COIN, coin(p=0.1)]], parents="conditional transitions"),
            ValueError,
            "emissions of coin_0 → coin_1 → coin_0 depend on each other's .* would not sum to 1",
        ),
        (
            lambda: Factored(
                [COIN, [bloch_walk(), Process(bloch_walk().transitions, right_eigenvector=[2.0, 0, 0])]],
                parents="chain",
            ),
            ValueError,
            "different right eigenvectors",
        ),
        (lambda: Factored([COIN], noise=0.1).redraw([[0]], 0, seed=0), ValueError, "noise=0.1: which tokens"),
        (lambda: product([COIN]).redraw([[0]], 1, seed=0), ValueError, "1: product has factors 0 to 0"),
        (lambda: factor_entropies(Factored([COIN], noise=0.1), 3), ValueError, "noise=0.1"),
        (lambda: factor_entropies(product([CALM]), 9, max_level=100), ValueError, "more than 100 different beliefs"),
        (lambda: product([COIN]).token_marginals(torch.ones(3)), ValueError, "has 2 tokens"),
        (lambda: product([COIN]).factor_predictions({}), KeyError, "none about 'coin'"),
        (
            lambda: Factored([COIN, [COIN] * 2], parents="chain", noise=0.1).factor_predictions({}),
            ValueError,
            "ties its factors' beliefs together",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
