"""Attention by lag on networks that are built to do exactly what theory says, on trained ones and on random ones."""

import math

import pytest
import torch

import msp_lens as msp
from msp_lens.representation import attention_by_lag
from msp_lens.representation.attention_decay import by_lag, fit_decay

N_CTX = 7
RATE = 0.55


def says(process):
    """What each token says by itself: the belief after it alone, less the stationary one."""
    alone = msp.filter_beliefs(process, torch.arange(process.n_tokens).unsqueeze(1))[:, 0]
    return alone - process.stationary


def additive_network(process, patterns, signs=(1.0,)):
    """One layer of attention with a given unnormalized pattern over lags for each head; BOS takes what is left.

    The residual stream is the token, the position and the sum of what tokens say; head h adds `signs[h]` of it.
    """
    n_tokens, n_states, n_pos = process.n_tokens, process.n_states, N_CTX + 1
    d_model, bos = n_tokens + 1 + n_pos + n_states, n_tokens
    config = {"d_vocab": n_tokens + 1, "n_layers": 1, "d_model": d_model, "n_heads": len(patterns), "d_head": n_pos}
    config |= {"n_ctx": n_pos, "normalization_type": None, "attn_only": True, "act_fn": "relu"}
    model = msp.build_model(config, seed=0)
    eye, heads = torch.eye(d_model), torch.zeros(len(patterns), d_model, n_pos)
    position, output = slice(n_tokens + 1, n_tokens + 1 + n_pos), slice(d_model - n_states, d_model)
    room = 1.1 * max(sum(pattern) for pattern in patterns)
    query, key, value, out = heads.clone(), heads.clone(), heads.clone(), heads.clone().transpose(1, 2).contiguous()
    for h, (pattern, sign) in enumerate(zip(patterns, signs, strict=True)):
        attended = torch.zeros(n_pos, n_pos)
        for d in range(1, n_pos):
            attended[d, 1 : d + 1] = torch.tensor([pattern[d - s] for s in range(1, d + 1)])
        attended[:, 0] = room - attended.sum(dim=1)
        query[h, position] = attended.clamp(min=1e-20).log() * math.sqrt(n_pos)
        key[h, position] = torch.eye(n_pos)
        value[h, :bos, :n_states] = sign * room * says(process).float()
        out[h, :n_states, output] = torch.eye(n_states)
    attention = {"W_Q": query, "W_K": key, "W_V": value, "W_O": out, "b_O": torch.zeros(d_model)}
    attention |= {f"b_{name}": torch.zeros(len(patterns), n_pos) for name in "QKV"}
    state = {f"blocks.0.attn.{name}": tensor for name, tensor in attention.items()}
    state |= {"embed.W_E": eye[: n_tokens + 1], "pos_embed.W_pos": eye[position]}
    state |= {"unembed.W_U": torch.zeros(d_model, n_tokens + 1), "unembed.b_U": torch.zeros(n_tokens + 1)}
    msp.models.load_weights(model, state)
    return model, msp.words(process, n_ctx=N_CTX, token_map=msp.TokenMap.identity(n_tokens, bos=bos))


@pytest.fixture(scope="module")
def exact():
    process = msp.mess3(x=0.15, a=0.6)
    return attention_by_lag(*additive_network(process, [[RATE**m for m in range(N_CTX)]]))


def test_a_network_that_does_what_theory_says_is_found_to(exact):
    head, together = exact.trained.heads
    room = 1.1 * sum(RATE**m for m in range(N_CTX))
    expected = torch.tensor([RATE**m / room for m in range(N_CTX)], dtype=torch.float64)
    torch.testing.assert_close(head.attention[:N_CTX], expected, atol=1e-6, rtol=1e-4)
    assert head.decay == pytest.approx(RATE, abs=1e-5) == exact.rate
    assert head.decay_fit == pytest.approx(1, abs=1e-9)
    assert head.first == pytest.approx(float(1 - torch.stack([expected[:d].sum() for d in range(1, N_CTX + 1)]).mean()))
    # What is added is what constrained beliefs ask for, at lag 0 too.
    powers = torch.tensor([RATE**m for m in range(N_CTX)], dtype=torch.float64)
    torch.testing.assert_close(exact.asked, powers)
    torch.testing.assert_close(together.effective[:N_CTX], powers, atol=1e-4, rtol=1e-3)
    assert together.effective_decay == pytest.approx(RATE, abs=1e-4)
    assert (together.alignment, together.gram) == pytest.approx((1, 1), abs=1e-5)
    assert exact.heads_needed == 1


def test_it_holds_the_constrained_beliefs_and_the_true_ones_only_as_far_as_they_agree(exact):
    site = exact.trained.site("0_post")
    assert site.constrained > 0.99999
    assert 0.97 < site.belief < 0.99
    assert site.constrained_everywhere > 0.99999
    # The published R² of Mess3(.15, .6), here for words of seven tokens.
    assert 0.97 < site.belief_everywhere < 0.99


def test_a_network_with_random_weights_does_not_pass(exact):
    (twin,) = exact.untrained
    (head, _), site = twin.heads, twin.site("0_post")
    assert abs(head.decay - RATE) > 0.1
    assert 1 - site.constrained > 0.3 * (1 - site.belief)
    assert twin.network == "untrained 1"


def test_a_negative_rate_takes_two_heads_whose_outputs_have_opposite_signs():
    process = msp.processes.golden_mean(p=0.5)
    even, odd = ([0.5**m * (m % 2 == parity) for m in range(N_CTX)] for parity in (0, 1))
    found = attention_by_lag(*additive_network(process, [even, odd], signs=(1.0, -1.0)), untrained=0)
    assert found.heads_needed == 2
    assert found.rate == pytest.approx(-0.5)
    together = found.trained.head("layer 0")
    expected = torch.tensor([(-0.5) ** m for m in range(N_CTX)], dtype=torch.float64)
    torch.testing.assert_close(together.effective[:N_CTX], expected, atol=1e-4, rtol=1e-3)
    assert together.effective_decay == pytest.approx(-0.5, abs=1e-4)
    assert found.trained.head("L0H0").alignment == pytest.approx(1, abs=1e-5)
    assert found.trained.head("L0H1").alignment == pytest.approx(-1, abs=1e-5)


def test_tables_summary_and_picture(exact):
    table = exact.to_dataframe()
    assert len(table) == 4 * (N_CTX)
    assert list(exact.by_head()["head"]) == ["L0H0", "layer 0"] * 2
    assert list(exact.by_site()["site"]) == ["0_attn_out", "0_post"] * 2
    text = "\n".join(exact.summary())
    assert "ζ = 0.550" in text
    assert "L0H0 0.550" in text
    assert "untrained 1" in repr(exact)
    assert len(exact.plot(theme="dark").axes) == 3
    with pytest.raises(KeyError, match="there are L0H0"):
        exact.trained.head("L9H9")
    with pytest.raises(KeyError, match="there are 0_attn_out"):
        exact.trained.site("9_post")


def test_layers_are_read_one_by_one(mess3):
    model = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, n_heads=2, d_model=8, d_head=4, d_mlp=8, n_ctx=5))
    found = attention_by_lag(model, mess3, untrained=[model])
    assert [head.head for head in found.trained.heads] == ["L0H0", "L0H1", "layer 0", "L1H0", "L1H1", "layer 1"]
    assert [site.site for site in found.trained.sites] == ["0_attn_out", "0_mid", "1_attn_out", "1_mid", "1_post"]
    assert found.untrained[0].heads == found.trained.heads


def test_mean_attention_is_that_of_every_word_by_its_probability(mess3):
    model = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=1, n_heads=2, d_model=8, d_head=4, d_mlp=8, n_ctx=5))
    found = attention_by_lag(model, mess3, untrained=0)
    dataset = msp.words(mess3, n_ctx=5)
    seen = {}
    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", lambda x, hook: seen.update(pattern=x.detach()))]):
        model(dataset.tokens)
    for h in (0, 1):
        for lag in range(4):
            pairs = [(s + lag, s) for s in range(1, 5 - lag)]
            each = [float(dataset.word_weights @ seen["pattern"][:, h, d, s].double()) for d, s in pairs]
            assert float(found.trained.heads[h].attention[lag]) == pytest.approx(sum(each) / len(each), abs=1e-6)


@pytest.mark.parametrize("rate", [0.3, 0.9, 1.2, -0.6])
def test_a_rate_is_found_whatever_the_heights_of_keys(rate):
    heights = torch.tensor([5.0, 1.0, 3.0, 0.2, 0.0, 1.0], dtype=torch.float64)
    lags = torch.arange(6.0, dtype=torch.float64)
    matrix = (heights * rate ** (lags.unsqueeze(1) - lags)).tril()
    matrix.fill_diagonal_(7.0)
    matrix[:, 0] = 9.0
    assert fit_decay(matrix, 1) == pytest.approx((rate, 1.0), abs=1e-6)
    assert fit_decay(matrix, 0)[0] != pytest.approx(rate, abs=1e-3)
    torch.testing.assert_close(by_lag(matrix, 1)[0], torch.tensor(7.0, dtype=torch.float64))
    assert by_lag(matrix, 1)[5].isnan()


def test_what_cannot_be_measured_is_refused(mess3):
    model = msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=1, d_model=8, d_head=4, d_mlp=8, n_ctx=3))
    with pytest.raises(ValueError, match="at least 4"):
        attention_by_lag(model, mess3)
    spaced = msp.words(mess3, n_ctx=2, token_map=msp.TokenMap((0, 1, 2), separator=(0,)))
    with pytest.raises(ValueError, match="separators"):
        attention_by_lag(model, spaced)


def test_a_small_network_trained_here_follows_the_constrained_beliefs_after_attention():
    process = msp.mess3(x=0.15, a=0.6)
    config = msp.ModelConfig(d_vocab=3, n_layers=1, d_model=32, d_head=8, d_mlp=64, n_ctx=8)
    training = msp.TrainingConfig(steps=900, batch_size=128, optimizer="muon", learning_rate=5e-3)
    model = msp.train(process, config, config=training, progress=False).model
    found = attention_by_lag(model, process)
    (head, _), (twin, _) = found.trained.heads, found.untrained[0].heads
    assert abs(head.decay - RATE) < 0.1 < abs(twin.decay - RATE)
    after, random = found.trained.site("0_mid"), found.untrained[0].site("0_mid")
    assert 1 - after.constrained < 0.6 * (1 - after.belief)
    assert 1 - random.constrained > 0.75 * (1 - random.belief)
