import dataclasses

import pytest
import torch

import msp_lens as msp
from msp_lens.data import LabelledTokens, TokenMap
from msp_lens.data.belief_dataset import prefix_hashes
from msp_lens.probing.fit_rows import probe_rows
from msp_lens.probing.rows import batch_rows, cache_rows, model_rows, sampled_rows
from tests.hooked_models import KINDS, TRANSFORMERS, build

SITES = ["embed", "0_post", "L1H1"]
# Symbols 0, 1, 2 as tokens 2, 3, 4, after a BOS token and with token 1 between two symbols.
SPACED = TokenMap([2, 3, 4], bos=0, separator=[1], include_prior=True)


@pytest.fixture(scope="module")
def words(mess3):
    return msp.data.all_words(mess3, 4)


def joined(rows):
    """All batches as one, as dictionaries of tensors."""
    batches = list(rows)
    whole = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in ("weights", "groups", "words")}
    whole["positions"] = torch.cat([batch.positions for batch in batches])
    whole |= {f"target {name}": torch.cat([b.targets[name] for b in batches]) for name in batches[0].targets}
    return whole | {name: torch.cat([b.features[name] for b in batches]) for name in batches[0].features}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("token_map", [None, SPACED])
def test_each_row_is_the_activation_after_its_prefix(words, kind, token_map):
    """Oracle: each prefix alone through the model, its last activation."""
    model = build(kind)
    name = "hook_state.1" if kind == "own" else "blocks.1.hook_resid_post"
    data = LabelledTokens.from_beliefs(dataclasses.replace(words, token_map=token_map))
    whole = joined(model_rows(model, data, name, batch_size=7))
    assert len(whole["weights"]) == words.n_prefixes + (token_map is not None)
    for row in range(0, len(whole["weights"]), 11):
        symbols = words.tokens[whole["words"][row], : whole["positions"][row] + 1]
        prefix = symbols.unsqueeze(0) if token_map is None else spaced(symbols)
        seen = []
        with (
            torch.no_grad(),
            model.hooks(fwd_hooks=[(name, lambda activation, hook, seen=seen: seen.append(activation))]),
        ):
            model(prefix)
        torch.testing.assert_close(whole[name][row], seen[0][0, -1], atol=1e-5, rtol=1e-4)
        belief = (
            msp.filter_beliefs(words.process, symbols.unsqueeze(0))[0, -1] if len(symbols) else words.process.initial
        )
        torch.testing.assert_close(whole["target belief"][row], belief)


def spaced(symbols):
    """A word as `SPACED` has it, written out."""
    tokens = [0]
    for t, symbol in enumerate(symbols.tolist()):
        tokens += [1] * bool(t) + [symbol + 2]
    return torch.tensor([tokens])


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_cache_gives_the_models_rows(words, kind):
    model = build(kind)
    data = LabelledTokens.from_beliefs(dataclasses.replace(words, positions=slice(1, None)), weighting="sequence")
    expected = joined(model_rows(model, data, SITES))
    with torch.no_grad():
        _, cache = model.run_with_cache(words.tokens)
    assert_same(joined(cache_rows(cache, data, SITES, batch_size=10)), expected)
    plain = {name: cache[name] for name in ("hook_embed", "blocks.0.hook_resid_post", "blocks.1.attn.hook_z")}
    assert_same(joined(cache_rows(plain, data, SITES)), expected)
    # Twin names of a bridge are one place in its cache as well.
    every = cache_rows(cache, data, lambda name: name.startswith("blocks.0.hook_")).sites
    assert len({cache[name].data_ptr() for name in every}) == len(every)
    assert cache_rows(cache, data).sites == msp.models.residual_sites(model)


def test_ones_own_batches_are_the_models_rows(words):
    model = build("bridge")
    data = LabelledTokens.from_beliefs(words)
    expected = joined(model_rows(model, data, SITES))
    names = msp.find_sites(model, SITES)

    def own():
        for batch in model_rows(model, data, SITES, batch_size=5):
            yield batch.features, batch.targets, batch.weights, batch.groups

    found = joined(batch_rows(own()))
    assert batch_rows(own()).sites == names
    for name in (*names, "target belief", "weights", "groups"):
        torch.testing.assert_close(found[name], expected[name])


def test_batches_of_words_are_held_out_by_word():
    activations, targets = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3)
    batches = [({"h": a}, b, torch.ones(4)) for a, b in zip(activations, targets, strict=True)]
    whole = joined(batch_rows(batches))
    assert whole["words"].tolist() == whole["groups"].tolist() == [w for w in range(8) for _ in range(3)]
    assert whole["positions"].tolist() == [0, 1, 2] * 8
    torch.testing.assert_close(whole["h"], activations.reshape(-1, 5))
    torch.testing.assert_close(whole["target belief"], targets.double().reshape(-1, 1))
    flat = batch_rows([({"h": a.flatten(0, 1)}, b.reshape(-1, 1)) for a, b in zip(activations, targets, strict=True)])
    assert flat.description["groups"] == "row"
    assert joined(flat)["groups"].tolist() == list(range(24))


H, B = torch.randn(6, 4), torch.randn(6, 2)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (({"h": H}, B[:5]), r"Batch 1: target 'belief' has shape \(5, 2\)"),
        (({"h": H}, {"belief": B, "more": B}), "Batch 1 has widths"),
        (({"h": H[:, :3]}, B), r"Batch 1 has widths {'h': 3"),
        (({"h": H.log()}, B), "h in batch 1"),
        (({"h": H}, B.log()), "target 'belief' in batch 1"),
        (({"h": H}, B.long()), "one_hot"),
        (({"h": H}, B, torch.ones(5)), r"Batch 1: weights has shape \(5,\)"),
        (({"h": H}, B, -torch.ones(6)), r"Batch 1: weights holds -1"),
        (({"h": H}, B, torch.full((6,), torch.nan)), "weights in batch 1"),
        (({"h": H}, B, None, torch.zeros(2)), "Batch 1: groups has shape"),
    ],
)
def test_bad_batches_are_refused_by_number(batch, message):
    rows = batch_rows(iter([({"h": H}, B), batch]))
    with pytest.raises(ValueError, match=message):
        list(rows)


def test_batches_that_are_none_are_refused_at_once():
    with pytest.raises(ValueError, match="batches is empty"):
        batch_rows([])
    with pytest.raises(TypeError, match="Batch 0 is a Tensor"):
        batch_rows(iter([H]))
    with pytest.raises(TypeError, match="ActivationCache, not a Tensor"):
        batch_rows(iter([(H, B)]))
    with pytest.raises(ValueError, match="the same at all sites"):
        batch_rows([({"h": H, "g": H[:5]}, B)])
    with pytest.raises(KeyError, match="no activations of 'h'"):
        list(batch_rows([({"h": H}, B), ({"g": H}, B)]))
    rows = batch_rows([({"h": H}, B)])
    list(rows)
    with pytest.raises(ValueError, match="has been used up"):
        list(rows)


def test_a_cache_of_other_words_is_refused(words):
    data = LabelledTokens.from_beliefs(words)
    with pytest.raises(ValueError, match=r"shape \(3, 4, 8\) in the cache.*\(81, 4, d_model\)"):
        cache_rows({"h": torch.randn(3, 4, 8)}, data)
    with pytest.raises(KeyError, match="no site 'g'"):
        cache_rows({"h": torch.randn(81, 4, 8)}, data, "g")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_name_site_and_words(words, bad):
    model = msp.build_model(msp.ModelConfig(d_vocab=5, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=8))
    forward, calls = model.hook_dict["blocks.1.hook_resid_post"], []

    def spoil(activation, hook):
        calls.append(len(activation))
        return activation.index_fill(1, torch.tensor(3), bad) if len(calls) == 2 else activation

    rows = model_rows(model, words, "all", batch_size=30)
    name = "blocks.1.hook_resid_post"
    with (
        model.hooks(fwd_hooks=[(name, spoil)]),
        pytest.raises(ValueError, match=r"blocks\.1\.hook_resid_post in batch 1 \(words 30 to 59\), row \d+ of"),
    ):
        probe_rows(rows)
    assert len(calls) == 2
    assert not forward._forward_hooks


def test_sums_that_overflow_are_no_infinity():
    big = torch.full((6, 4), 3e38)
    assert len(list(batch_rows([({"h": big}, B)]))) == 1


def test_models_that_cannot_read_the_words_are_refused_before_they_run(words, mess3):
    narrow = msp.build_model(msp.ModelConfig(d_vocab=2, n_layers=1, n_ctx=4))
    with pytest.raises(ValueError, match="has 2 tokens, mess3 emits 3"):
        model_rows(narrow, words)
    tokens = torch.tensor([[0, 1, 5]])
    with pytest.raises(ValueError, match=r"run from 0 to 5; the model's are 0 to 1"):
        model_rows(narrow, LabelledTokens.from_tokens(tokens, torch.zeros(1, 3, 2)))
    with pytest.raises(ValueError, match=r"5 tokens are longer than the model's context of 4"):
        model_rows(narrow, LabelledTokens.from_tokens(torch.zeros(1, 5).long(), torch.zeros(1, 5, 2)))
    with pytest.raises(KeyError, match="no site 'nowhere'"):
        model_rows(narrow, words, "nowhere")
    with pytest.raises(ValueError, match="does not say how long"):
        sampled_rows(build("own"), mess3, 10, seed=0, sites="embed")


def test_drawn_words_give_the_rows_of_the_sample(mess3):
    model, seed = build("bridge"), 4
    rows = sampled_rows(model, mess3, 90, seed=seed, n_ctx=4, sites="1_post", chunk_size=90)
    whole = joined(rows)
    sample = msp.data.sampled_words(mess3, 90, 4, seed=seed)
    expected = joined(model_rows(model, sample, "1_post"))
    groups = expected.pop("groups"), whole.pop("groups")
    assert_same(whole, expected)
    # Hashes for numbers, one for one.
    assert (
        len(set(zip(*(g.tolist() for g in groups), strict=True))) == len(groups[0].unique()) == len(groups[1].unique())
    )
    in_parts = joined(sampled_rows(model, mess3, 90, seed=seed, n_ctx=4, sites="1_post", chunk_size=20))
    assert float(in_parts["weights"].sum()) == pytest.approx(1)
    assert int(in_parts["words"].max()) > len(sample)


def test_a_prefix_keeps_its_group_across_chunks(mess3):
    whole = joined(
        sampled_rows(build("bridge"), mess3, 60, seed=1, n_ctx=3, sites="embed", chunk_size=10, token_map=SPACED)
    )
    by_belief = {}
    for position, group, belief in zip(
        whole["positions"].tolist(), whole["groups"].tolist(), whole["target belief"].tolist(), strict=True
    ):
        by_belief.setdefault((position, tuple(round(x, 9) for x in belief)), set()).add(group)
    # Of Mess3 no two of these prefixes share a belief.
    assert all(len(groups) == 1 for groups in by_belief.values())
    assert sum(position == -1 for position, _ in by_belief) == 1
    assert float(whole["weights"][whole["positions"] == -1].sum()) == pytest.approx(1 / 3)
    assert set(whole["groups"].tolist()) <= {0, *prefix_hashes(msp.data.all_words(mess3, 3).tokens).flatten().tolist()}


def test_drawing_is_lazy_and_may_stop(mess3, global_state):
    model, calls = build("bridge"), []
    rows = sampled_rows(model, mess3, 10**9, seed=0, sites="embed", chunk_size=8)
    assert rows.description["words"] == 10**9
    with model.hooks(fwd_hooks=[("hook_embed", lambda activation, hook: calls.append(len(activation)))]):
        first = next(iter(rows))
    assert len(first) <= 8 * 8
    assert len(calls) == 1
    again = next(iter(rows))
    torch.testing.assert_close(again.features["hook_embed"], first.features["hook_embed"])


def test_batches_say_which_words_their_output_is_of(words):
    model = build("bridge")
    for batch in model_rows(model, words, "embed", batch_size=30, logits=True):
        torch.testing.assert_close(batch.output, model(words.tokens[batch.batch_words]))
        assert len(words.tokens[batch.batch_words]) == len(batch.output)


def test_all_rows_are_a_view_of_the_activation():
    model = build("bridge")
    tokens = torch.randint(0, 5, (6, 8), generator=torch.Generator().manual_seed(0))
    seen = []
    with model.hooks(fwd_hooks=[("hook_embed", lambda activation, hook: seen.append(activation.data_ptr()))]):
        (batch,) = model_rows(model, LabelledTokens.from_tokens(tokens, torch.zeros(6, 8, 1)), "embed")
    assert batch.features["hook_embed"].data_ptr() == seen[0]


def test_descriptions_are_json_ready(words, mess3):
    import json

    model = build("bridge")
    data = LabelledTokens.from_beliefs(dataclasses.replace(words, positions=slice(1, 3)))
    found = model_rows(model, data).description
    assert (found["words"], found["n_ctx"], found["positions"], found["is_population"]) == (81, 4, "1:3", True)
    assert found["rows"] == len(data) == 9 + 27
    for rows in (
        model_rows(model, words),
        cache_rows({"h": torch.zeros(81, 4, 2)}, data),
        sampled_rows(model, mess3, 9, seed=0, token_map=SPACED, n_ctx=3),
        batch_rows([({"h": H}, B)]),
    ):
        json.dumps(dict(rows.description), allow_nan=False)
        assert rows.description["source"] in repr(rows)
    assert dataclasses.replace(data).description == data.description
