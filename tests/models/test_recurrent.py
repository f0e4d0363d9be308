"""Recurrent networks: their states against loops of torch's cells, what is written into them, files and training."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import msp_lens as msp
from msp_lens._files import read_header
from msp_lens.controls.untrained_twins import untrained_twins
from msp_lens.interventions import persistence
from msp_lens.models import RecurrentConfig
from msp_lens.models.model_files import MODEL_FILE, state_fingerprint
from msp_lens.models.recurrent import scan
from msp_lens.training.presets import PRESETS, Recipe
from msp_lens.training.regret import regret_by_position
from tests.trained.make import load

KINDS = ("rnn", "gru", "lstm", "ssm")
TOKENS = torch.tensor([[0, 1, 2, 0, 1, 1, 2], [2, 2, 0, 1, 0, 2, 1], [1, 0, 0, 0, 2, 1, 2]])
N_WORDS, LENGTH, WIDTH = *TOKENS.shape, 6


def built(kind, n_layers=2, **options):
    config = RecurrentConfig(kind=kind, d_vocab=3, n_layers=n_layers, d_model=WIDTH, n_ctx=LENGTH)
    return msp.build_model(config, seed=3, **options).double()


def by_step(model, tokens, writes):
    """The network one position and word at a time: logits, and each layer's hidden and cell states.

    `writes` are by hook's name: values `[word, pos, d_model]`, and where they replace the state.
    """
    seen = {}

    def put(name, word, position, state):
        values, where = writes.get(name, (None, None))
        state = values[word, position] if where is not None and where[word, position] else state
        seen.setdefault(name, torch.zeros(*tokens.shape, WIDTH, dtype=torch.float64))[word, position] = state
        return state

    read = model.embed(tokens)
    for number, layer in enumerate(model.blocks):
        left = torch.zeros_like(read)
        for word in range(len(tokens)):
            hidden, cell = read.new_zeros(WIDTH), read.new_zeros(WIDTH)
            for position in range(tokens.shape[1]):
                x, names = read[word, position], [f"blocks.{number}.hook_{part}" for part in ("cell", "hidden")]
                if model.cfg.kind == "ssm":
                    x = layer.ln1(x)
                    kept = layer.decay(x).sigmoid()
                    hidden = kept * hidden + (1 - kept) * layer.value(x)
                else:
                    step = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}[model.cfg.kind](WIDTH, WIDTH)
                    step.double().load_state_dict(
                        {name.removesuffix("_l0"): each for name, each in layer.rnn.state_dict().items()}
                    )
                    if model.cfg.kind == "lstm":
                        before = hidden
                        hidden, cell = step(x, (hidden, cell))
                        written = put(names[0], word, position, cell)
                        if written is not cell:
                            gate = (step.weight_ih @ x + step.bias_ih + step.weight_hh @ before + step.bias_hh)[-WIDTH:]
                            hidden, cell = gate.sigmoid() * written.tanh(), written
                    else:
                        hidden = step(x, hidden)
                hidden = put(names[1], word, position, hidden)
                if model.cfg.kind == "ssm":
                    stream = read[word, position] + layer.out(nn.functional.silu(layer.gate(x)) * hidden)
                    left[word, position] = stream + layer.mlp(layer.ln2(stream))
                else:
                    left[word, position] = hidden
        read = left
    return model.unembed(model.ln_final(read)), seen


def with_writes(model, tokens, writes):
    def hook(values, where):
        return lambda state, hook: torch.where(where.unsqueeze(-1), values, state)

    with torch.no_grad(), model.hooks(fwd_hooks=[(name, hook(*write)) for name, write in writes.items()]):
        return model(tokens)


def states_of(model):
    return [name for name in model.hook_dict if name.endswith(("hook_cell", "hook_hidden"))]


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_a_loop(kind):
    model = built(kind)
    with torch.no_grad():
        expected, states = by_step(model, TOKENS, {})
        logits, cache = model.run_with_cache(TOKENS)
    torch.testing.assert_close(logits, expected)
    assert sorted(states) == sorted(states_of(model))
    for name, state in states.items():
        torch.testing.assert_close(cache[name], state)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_writes_go_on_as_in_a_loop(kind, seed):
    """Any states, at one position or several, in other words at other positions, in both layers at once."""
    model, generator = built(kind), torch.Generator().manual_seed(seed)
    writes = {}
    for name in states_of(model):
        density = float(torch.rand((), generator=generator)) ** 2
        where = torch.rand(N_WORDS, LENGTH, generator=generator) < density
        writes[name] = torch.randn(N_WORDS, LENGTH, WIDTH, generator=generator, dtype=torch.float64), where
    with torch.no_grad():
        expected, _ = by_step(model, TOKENS, writes)
    torch.testing.assert_close(with_writes(model, TOKENS, writes), expected)


@pytest.mark.parametrize(("kind", "part"), [*((kind, "hidden") for kind in KINDS), ("lstm", "cell")])
def test_a_write_persists_and_touches_nothing_else(kind, part):
    model, name = built(kind, n_layers=1), f"blocks.0.hook_{part}"
    where = torch.zeros(N_WORDS, LENGTH, dtype=torch.bool)
    where[1, 2] = True
    values = torch.ones(N_WORDS, LENGTH, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        before = model(TOKENS)
        expected, _ = by_step(model, TOKENS, {name: (values, where)})
    after = with_writes(model, TOKENS, {name: (values, where)})
    torch.testing.assert_close(after, expected)
    # Other words, and what came before, bit for bit.
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    torch.testing.assert_close(after[1, :2], before[1, :2], rtol=1e-12, atol=1e-12)
    assert ((after - before)[1, 2:].abs().amax(dim=-1) > 1e-6).all()
    # What leaves a layer is read by no later step of it.
    out = "blocks.0.hook_output" if kind != "ssm" else "blocks.0.hook_resid_post"
    after = with_writes(model, TOKENS, {out: (values, where)})
    assert torch.equal(after[1, 3:], before[1, 3:])
    assert not torch.equal(after[1, 2], before[1, 2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_write_in_place_is_a_write(kind):
    model = built(kind, n_layers=1)

    def overwrite(state, hook):
        state[:, 1] = 0.5

    where = torch.zeros(N_WORDS, LENGTH, dtype=torch.bool)
    where[:, 1] = True
    half = torch.full((N_WORDS, LENGTH, WIDTH), 0.5, dtype=torch.float64)
    with torch.no_grad(), model.hooks(fwd_hooks=[("blocks.0.hook_hidden", overwrite)]):
        in_place = model(TOKENS)
    assert torch.equal(in_place, with_writes(model, TOKENS, {"blocks.0.hook_hidden": (half, where)}))


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_unwritten_layers_are_torchs_fused_ones(kind, monkeypatch):
    """One call for each layer, read or not, and its result bit for bit."""
    model = built(kind)
    layers = [block.rnn for block in model.blocks]
    with torch.no_grad():
        expected = model.unembed(layers[1](layers[0](model.embed(TOKENS))[0])[0])
    calls, run = [], type(layers[0]).forward
    monkeypatch.setattr(type(layers[0]), "forward", lambda self, *args: calls.append(self) or run(self, *args))
    with torch.no_grad():
        assert torch.equal(model(TOKENS), expected)
        assert calls == layers
        assert torch.equal(model.run_with_cache(TOKENS)[0], expected)
    assert calls == 2 * layers


def test_cells_are_computed_only_for_those_who_look(monkeypatch):
    model = built("lstm")
    monkeypatch.setattr(type(model.blocks[0]), "cells", lambda *args: pytest.fail("nobody asked for the cells"))
    with torch.no_grad(), model.hooks(fwd_hooks=[("blocks.0.hook_hidden", lambda state, hook: None)]):
        model(TOKENS)


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 20), seed=st.integers(0, 2**31), starts=st.booleans())
def test_a_scan_is_a_loop(length, seed, starts):
    generator = torch.Generator().manual_seed(seed)
    factors, added = torch.randn(2, 3, length, 2, generator=generator, dtype=torch.float64)
    start = torch.randn(3, 2, generator=generator, dtype=torch.float64) if starts else None
    state, states = torch.zeros(3, 2, dtype=torch.float64) if start is None else start, []
    for position in range(length):
        state = factors[:, position] * state + added[:, position]
        states.append(state)
    torch.testing.assert_close(scan(factors, added, start), torch.stack(states, dim=1))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_what_was_written(kind):
    """The last logits' gradient by a state written at the second position, against finite differences."""
    model = built(kind, n_layers=1)
    written = torch.full((WIDTH,), 0.3, dtype=torch.float64, requires_grad=True)

    def last(value):
        def write(state, hook):
            return torch.cat([state[:, :1], value.expand(N_WORDS, 1, WIDTH), state[:, 2:]], dim=1)

        with model.hooks(fwd_hooks=[("blocks.0.hook_hidden", write)]):
            return model(TOKENS)[:, -1].square().sum()

    assert torch.autograd.gradcheck(last, written)
    (gradient,) = torch.autograd.grad(last(written), written)
    assert gradient.abs().min() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_stands_in_the_way_of_reading_and_editing(kind):
    model = built(kind)
    found = msp.check_model(model, sites="blocks.*")
    assert not found.problems
    assert found.is_causal
    assert found.identity_is_exact
    states = {
        "lstm": ["embed", "0_cell", "0_hidden", "1_cell", "1_hidden"],
        "ssm": ["0_pre", "0_hidden", "0_post", "1_hidden", "1_post"],
    }.get(kind, ["embed", "0_hidden", "1_hidden"])
    assert [msp.models.site_label(name) for name in msp.find_sites(model, None)] == states
    assert msp.find_sites(model, "final_post") == (f"blocks.1.hook_{'resid_post' if kind == 'ssm' else 'output'}",)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_holds_it(kind, tmp_path, mess3):
    model = msp.build_model({"kind": kind, "d_vocab": 3, "n_layers": 2, "d_model": WIDTH, "n_ctx": 7}, seed=1)
    msp.save_checkpoint(tmp_path, model, process=mess3)
    loaded = msp.load_checkpoint(tmp_path)
    assert loaded.model.cfg == model.cfg
    assert loaded.process == mess3
    assert torch.equal(loaded.model(TOKENS), model(TOKENS))
    assert torch.equal(msp.load_model(tmp_path)(TOKENS), model(TOKENS))
    ((_, twin),) = untrained_twins(model, 1, ["0_hidden"], seed=1)
    assert twin.cfg == model.cfg
    assert not torch.equal(twin(TOKENS), model(TOKENS))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "perceptron"}, "model.kind"),
        ({"kind": "gru"}, "blocks.0.rnn.weight_ih_l0"),
        ({"kind": None}, "model.n_heads is missing"),
        ({"n_layers": 2}, "n_layers=2, but there are the weights of 1 layers"),
        ({"d_model": 10**6}, "need at least"),
        ({"d_vocab": 0}, "model.d_vocab"),
        ({"n_ctx": None}, "model.n_ctx is missing"),
    ],
)
def test_a_file_that_says_what_its_weights_are_not(change, told, tmp_path):
    msp.save_checkpoint(tmp_path, built("lstm", n_layers=1))
    path = tmp_path / MODEL_FILE
    described = json.loads(read_header(path)["msp_lens"])
    described["model"] |= change
    state = load_file(path)
    assert described["fingerprint"] == state_fingerprint(state)
    save_file(state, path, {"msp_lens": json.dumps(described)})
    with pytest.raises(ValueError, match=told):
        msp.load_checkpoint(tmp_path)


def test_configs_that_are_refused():
    with pytest.raises(ValueError, match="'n_heads', which no recurrent network has"):
        msp.build_model({"kind": "lstm", "d_vocab": 3, "d_model": 4, "n_layers": 1, "n_ctx": 4, "n_heads": 2})
    with pytest.raises(ValueError, match="config has no n_layers"):
        msp.build_model({"kind": "lstm", "d_vocab": 3, "d_model": 4, "n_ctx": 4})
    with pytest.raises(ValueError, match="A model of n_layers=1, d_model=1000000"):
        msp.build_model(RecurrentConfig(kind="lstm", d_vocab=3, d_model=10**6))
    with pytest.raises(ValueError, match="kind='mamba'"):
        RecurrentConfig(kind="mamba", d_vocab=3)


@pytest.mark.parametrize("kind", KINDS)
def test_training_moves_every_weight_and_resumes(kind, tmp_path, mess3):
    config = RecurrentConfig(kind=kind, d_vocab=3, d_model=WIDTH, n_ctx=4)
    optimizer = "muon" if kind == "gru" else "adamw"
    training = msp.TrainingConfig(steps=6, batch_size=16, warmup_steps=1, optimizer=optimizer, checkpoints=(0, 6))
    run = msp.train(mess3, config, config=training, out=tmp_path, progress=False)
    assert run.model.cfg == config
    initial = dict(msp.build_model(config, seed=0).named_parameters())
    assert all(not torch.equal(weight, initial[name]) for name, weight in run.model.named_parameters())
    # Of an ended training, the same.
    again = msp.train(mess3, config, config=training, out=tmp_path, progress=False)
    assert torch.equal(again.regret, run.regret)
    other = RecurrentConfig(kind="rnn" if kind == "gru" else "gru", d_vocab=3, d_model=WIDTH, n_ctx=4)
    with pytest.raises(ValueError, match="another training"):
        msp.train(mess3, other, config=training, out=tmp_path, progress=False)


def test_a_steer_of_a_state_lasts_and_one_of_what_leaves_it_does_not(mess3):
    """A trained LSTM: KL to the optimum filtered on from the target, a token after one position was steered."""
    model, words = load("mess3_lstm"), msp.words(mess3, n_ctx=8)
    assert regret_by_position(model, words).max() < 1e-3
    options = {"split": msp.probing.Split(n_folds=2), "controls": False, "progress": False}
    probes = msp.probe(model, words, sites=["0_cell", "0_hidden", "0_output"], concatenate=False, **options)
    assert probes["0_hidden"].scores.held_out.r2 > 0.99
    found = persistence(model, mess3, probes=probes, edits="steer", position=4, n_words=100)
    table = found.to_dataframe().set_index(["after", "edited", "site", "edit"])["kl_to_target"].sort_index()
    at_once, later = (table.loc[after, "one position"] for after in (0, 1))
    for site in ("0_cell", "0_hidden", "0_output"):
        assert at_once[site, "steer"] < 0.05 * at_once[site, "none"]
    assert later["0_cell", "steer"] < 0.05 * later["0_cell", "none"]
    # The cell that was not written still speaks for the old belief.
    assert 0.2 < later["0_hidden", "steer"] / later["0_hidden", "none"] < 0.9
    assert later["0_output", "steer"] == pytest.approx(later["0_output", "none"], rel=1e-9)


def test_a_sweep_over_what_the_presets_network_has(tmp_path, monkeypatch, mess3):
    config, training = RecurrentConfig(kind="gru", d_vocab=3, d_model=8, n_ctx=4), msp.TrainingConfig(steps=4)
    monkeypatch.setitem(PRESETS, "tiny", lambda process: Recipe(config, training))
    options = {"preset": "tiny", "controls": False, "out": tmp_path, "n_jobs": 1, "progress": False}
    found = msp.sweep(mess3, {"d_model": [2, 4], "batch_size": 8}, sites="0_hidden", **options)
    assert found.to_dataframe()[["d_model", "status"]].to_numpy().tolist() == [[2, "done"], [4, "done"]]
    for run in found.runs:
        assert msp.load_checkpoint(run.folder).model.cfg == replace(config, d_model=run.settings["d_model"])
    with pytest.raises(KeyError, match="No setting 'n_heads'; there are kind, d_vocab"):
        msp.sweep(mess3, {"n_heads": 2}, **options)
    with pytest.raises(KeyError, match="no site '0_post'"):
        msp.sweep(mess3, {"d_model": 2}, sites="0_post", **options)


def test_checkpoints_of_one_training_are_of_one_kind(mess3):
    models = {0: msp.build_model(RecurrentConfig(kind="gru", d_vocab=3, d_model=4, n_ctx=4))}
    models[5] = msp.build_model(RecurrentConfig(kind="rnn", d_vocab=3, d_model=4, n_ctx=4))
    with pytest.raises(ValueError, match="another architecture than the model of step 0: kind is rnn, not gru"):
        msp.emergence(models, data=mess3, progress=False)


def test_what_asks_for_attention_says_so(mess3):
    with pytest.raises(ValueError, match="no attention to read"):
        msp.representation.attention_by_lag(built("gru"), mess3)
