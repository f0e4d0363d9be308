"""What is held beyond the belief: networks that hoard, with and without need, and scikit-learn on all rows."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch import nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

import msp_lens as msp
from msp_lens.beliefs import smoothed_beliefs
from msp_lens.data.splits import deal
from msp_lens.representation import beyond_belief
from msp_lens.representation import folded_moments as folded
from msp_lens.representation.inert_past import directions_beyond, random_beyond
from tests.hooked_models import Observer, activation_at

STATE = "hook_state"
N_CTX = 6


class Hoarder(HookedRootModule):
    """Holds the belief, the last two tokens and whatever else, mixed at random.

    It predicts from the belief; or from a copy whose states are shifted by the token before the last, which it needs.
    """

    def __init__(self, process, *, shifts=False, n_other=0):
        super().__init__()
        self.process, self.shifts = process, shifts
        self.sizes = [process.n_states, process.n_tokens, process.n_tokens, process.n_states * shifts, n_other]
        generator, width = torch.Generator().manual_seed(0), sum(self.sizes)
        self.mixing = nn.Parameter(torch.randn(width, width, dtype=torch.float64, generator=generator))
        self.other = nn.Parameter(3 * torch.randn(process.n_tokens, n_other, dtype=torch.float64, generator=generator))
        self.hook_state = HookPoint()
        self.setup()

    def forward(self, tokens):
        beliefs, n_tokens = msp.filter_beliefs(self.process, tokens), self.process.n_tokens
        before = nn.functional.pad(tokens[:, :-1], (1, 0))
        last, second = (nn.functional.one_hot(each, n_tokens).double() for each in (tokens, before))
        rolled = torch.stack([beliefs.roll(k, dims=-1) for k in range(n_tokens)], dim=2)
        shifted = torch.einsum("wtk,wtks->wts", second, rolled)[..., : self.sizes[3]]
        other = (last.cumsum(dim=1) @ self.other).sin()
        state = self.hook_state(torch.cat([beliefs, last, second, shifted, other], dim=-1) @ self.mixing)
        belief, _, second, shifted, _ = (state @ self.mixing.inverse()).split(self.sizes, dim=-1)
        if self.shifts:
            back = torch.stack([shifted.roll(-k, dims=-1) for k in range(n_tokens)], dim=2)
            belief = torch.einsum("wtk,wtks->wts", second, back)
        return (belief @ self.process.emissions).clamp(min=1e-9).log()


@pytest.fixture(scope="module")
def words():
    return msp.words(msp.mess3(x=0.15, a=0.6), n_ctx=N_CTX)


@pytest.fixture(scope="module")
def hoarded(words):
    return beyond_belief(Hoarder(words.process), words, STATE, longest=3, untrained=0)


def test_what_is_held_is_found_by_its_lag(hoarded):
    partial = hoarded.to_dataframe().set_index(["what", "lag"])["partial"]
    assert partial["token", 0] == pytest.approx(1, abs=1e-5)
    assert partial["token", 1] == pytest.approx(1, abs=1e-5)
    assert partial["token", 2] < 0.7
    assert partial["token", 3] < partial["token", 2]
    quadratic = hoarded.to_dataframe().set_index(["what", "lag"])["partial_quadratic"]
    assert quadratic["token", 1] == pytest.approx(1, abs=1e-5)
    assert max(hoarded.to_dataframe()["shuffled"].abs().tolist()) < 0.1


def test_erasing_what_is_not_needed_costs_nothing(hoarded):
    erased = hoarded.erasures().set_index("what")
    assert min(erased["rank"].tolist()) > 0
    assert erased["regret"].tolist() == pytest.approx([0] * 3, abs=1e-9)
    assert erased["alone"].tolist() == pytest.approx([0] * 3, abs=1e-9)
    # A network that reads the belief alone does not mind random directions that leave it alone, either.
    assert erased["at_random"].tolist() == pytest.approx([0] * 3, abs=1e-9)


def test_erasing_what_is_needed_costs_more_than_random_directions(words):
    model = Hoarder(words.process, shifts=True, n_other=40)
    found = beyond_belief(model, words, STATE, longest=1, untrained=0).erasures().set_index("what")
    assert found["alone"].tolist() == pytest.approx([0] * 3, abs=1e-9)
    assert min(found["share_lost"].tolist()) > 0.1
    assert min((found["regret"] / found["at_random"]).tolist()) > 2


def test_nothing_is_found_in_the_belief_itself(words):
    observer = Observer(words.process)
    found = beyond_belief(observer, words, "hook_beliefs", longest=2, untrained=[observer])
    table = found.to_dataframe()
    assert max(table["partial"].abs().tolist()) < 1e-6
    assert table["untrained 1"].tolist() == table["partial"].tolist()
    assert found.erasures()["rank"].tolist() == [0, 0, 0]
    assert found.erasures()["regret"].tolist() == found.erasures()["alone"].tolist()
    # Nor in the products of a belief's entries beside it, which are no part of the past but of the belief.
    assert max(table["partial_quadratic"].abs().tolist()) < 1e-6


@pytest.fixture(scope="module")
def random_network():
    config = msp.ModelConfig(d_vocab=3, n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=16, n_ctx=N_CTX)
    return msp.build_model(config, seed=3)


def test_partial_r2_is_that_of_scikit_learn_on_all_rows(words, random_network):
    found = beyond_belief(random_network, words, "0_post", longest=2, untrained=0, seed=4)
    scored = words.tokens.shape[1] - 1  # 729 and 243 prefixes, at the last two positions; before them fewer than 200.
    rows, is_first = words.is_first.clone(), words.is_first
    rows[:, : scored - 1] = False
    ids = words.prefix_ids[rows]
    fold = deal(ids, 5, n_groups=words.n_prefixes, seed=4).numpy()
    weights = words.prefix_weights("probability")[ids].numpy()
    held = activation_at(random_network, words.tokens, "blocks.0.hook_resid_post").double()[rows].numpy()
    beliefs = words.beliefs[rows].numpy()
    position = np.eye(N_CTX)[rows.nonzero()[:, 1].numpy()][:, scored - 1 :]
    targets = {
        ("token", 0): nn.functional.one_hot(words.tokens, 3).double()[rows],
        ("token", 2): nn.functional.one_hot(words.tokens, 3).double().roll(2, dims=1)[rows],
        ("state", 2): smoothed_beliefs(words.process, words.tokens, 2)[rows],
    }
    pairs = [beliefs[:, i] * beliefs[:, j] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert is_first.sum() > len(ids) > 900

    def errors(features, target):
        total = 0.0
        for k in range(5):
            inside = fold == k
            fit = LinearRegression(fit_intercept=False).fit(features[~inside], target[~inside], weights[~inside])
            total += (weights[inside, None] * (fit.predict(features[inside]) - target[inside]) ** 2).sum()
        return total

    rows_of = {(each.what, each.lag): each for each in found.decodable}
    for key, target in targets.items():
        plain, quadratic = [beliefs, position], [beliefs, position, np.stack(pairs, axis=1)]
        for given, measured in ((plain, rows_of[key].partial), (quadratic, rows_of[key].partial_quadratic)):
            without, within = (np.concatenate(each, axis=1) for each in (given, [*given, held]))
            expected = 1 - errors(within, target.numpy()) / errors(without, target.numpy())
            assert measured == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("kind", ["read", "random"])
def test_the_belief_read_stays_the_same_and_the_rest_is_gone(words, random_network, kind):
    site, model = "blocks.0.hook_resid_post", random_network
    token = nn.functional.one_hot(words.tokens, 3).double().roll(1, dims=1)
    token[:, 0] = 0
    data = msp.LabelledTokens.from_beliefs(words, targets={"token": token})
    cells = folded.folded_moments(model, data, [site], n_folds=2, seed=0, by_position=True)
    moments = folded.within_positions(folded.at_positions(cells[site]))
    read = directions_beyond(moments, site, ["token"])
    assert 1 <= read.shape[1] <= 2
    if kind == "random":
        read = random_beyond(moments, site, 2, torch.Generator().manual_seed(0))
    covariance = moments.covariance(site, site)
    of_belief = torch.linalg.pinv(covariance, rtol=1e-10) @ moments.covariance(site, "belief")
    kept = torch.eye(8, dtype=torch.float64) - read @ torch.linalg.inv(read.T @ covariance @ read) @ read.T @ covariance
    scale = float(of_belief.abs().max())
    torch.testing.assert_close(kept @ of_belief, of_belief, atol=1e-5 * scale, rtol=0)
    # What the activations now have in common with the token follows from the belief read.
    after = kept.T @ moments.covariance(site, "token")
    read_belief = of_belief.T @ covariance @ of_belief
    through = covariance @ of_belief @ torch.linalg.pinv(read_belief, rtol=1e-9) @ of_belief.T
    expected = through @ moments.covariance(site, "token")
    is_gone = torch.allclose(after, expected, atol=1e-3 * float(moments.covariance(site, "token").abs().max()))
    assert is_gone == (kind == "read")


def test_table_summary_and_picture(hoarded):
    assert list(hoarded.to_dataframe()["lag"]) == [0, 1, 2, 3, 1, 2, 3]
    text = "\n".join(hoarded.summary())
    assert "partial R² 1.000" in text
    assert "every possible word of 6 tokens" in text
    assert "–" not in repr(hoarded)
    assert len(hoarded.plot(theme="dark").axes) == 3
    assert hoarded.erased[0].share_lost == pytest.approx(0, abs=1e-6)


def test_words_with_a_start_token_and_a_generalized_process_are_read_too():
    process = msp.processes.bloch_walk()
    dataset = msp.words(process, n_ctx=4, token_map=msp.TokenMap.identity(process.n_tokens, bos=process.n_tokens))
    config = msp.ModelConfig(d_vocab=process.n_tokens + 1, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=5)
    found = beyond_belief(msp.build_model(config, seed=0), dataset, longest=2)
    assert set(found.to_dataframe()["what"]) == {"token"}
    assert found.erasures()["site"].iloc[-1] == "all sites"
    assert math.isfinite(found.erasures()["regret"].iloc[-1])


def test_what_cannot_be_measured_is_refused(words, random_network):
    with pytest.raises(ValueError, match="longest=6: words have 6 tokens"):
        beyond_belief(random_network, words, longest=6)
    with pytest.raises(ValueError, match="20 distinct prefixes"):
        beyond_belief(random_network, msp.words(words.process, n_ctx=2), longest=1)
