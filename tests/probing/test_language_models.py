"""What a report says of a model with a vocabulary of its own: regret in parts, how it reads, whether it can be read."""

import pytest
import torch

import msp_lens as msp
from msp_lens.data import LabelledTokens
from tests import hooked_models

OPTIONS = {"sites": "0_post", "controls": False, "by_position": False, "progress": False}


def network(d_vocab=9, n_ctx=12, **config):
    shape = {"n_layers": 1, "d_model": 16, "d_head": 8, "d_mlp": 32} | config
    return msp.build_model(msp.ModelConfig(d_vocab=d_vocab, n_ctx=n_ctx, **shape), seed=1)


def said(report):
    return " ".join(" ".join(report.summary()).split())


@pytest.mark.parametrize(
    "token_map",
    [
        msp.TokenMap([5, 3, 7]),
        msp.TokenMap([5, 3, 7], bos=0, prompt=[2, 2], separator=[8]),
        msp.TokenMap([5, [3, 4], 7], separator=[8, 1]),
        msp.TokenMap([5, [3, 4], 7], bos=0, include_prior=True),
    ],
    ids=["one token", "prompt and separator", "several tokens, separator", "several tokens, prior"],
)
def test_the_pass_measures_regret_and_what_of_it_is_outside_the_alphabet(mess3, token_map, tmp_path):
    model = network(n_ctx=20)
    words = msp.words(mess3, n_ctx=3, token_map=token_map)
    report = msp.probe(model, words, batch_size=5, **OPTIONS)
    # Another road: the model as a reader of symbols.
    torch.testing.assert_close(report.regret, msp.training.regret_by_position(model, words))
    torch.testing.assert_close(report.regret_outside, msp.training.outside_by_position(model, words))
    assert float(report.regret_outside.min()) > 0.5
    mean = float(report.regret_outside.mean())
    assert f"Of it, {mean:.4f} nats are due to tokens that are not symbols" in said(report)
    assert msp.ProbeReport.load(report.save(tmp_path / "report.safetensors"), model=model) == report
    assert report.to_dict()["regret_outside_nats"] == report.regret_outside.tolist()
    # The rows are those of the words without what comes after the last symbol.
    assert report["0_post"].scores.in_sample.n == words.n_prefixes + token_map.include_prior


def test_where_there_are_no_other_tokens_regret_has_one_part(mess3):
    report = msp.probe(network(3), msp.words(mess3, n_ctx=3), **OPTIONS)
    assert report.regret is not None
    assert report.regret_outside is None
    assert "no symbols" not in said(report)


def test_why_regret_was_not_measured_is_said(mess3):
    alike = msp.words(mess3, n_ctx=3, token_map=msp.TokenMap([[5, 1], [5, 2], 7]))
    report = msp.probe(network(), alike, **OPTIONS)
    assert report.regret is None
    assert "regret was not measured: two symbols begin with the same token" in said(report)
    # Three symbols and two separators fill the context.
    full = msp.words(mess3, n_ctx=3, token_map=msp.TokenMap([5, 3, 7], separator=[8]))
    report = msp.probe(network(n_ctx=5), full, **OPTIONS)
    assert report.regret is None
    assert "regret was not measured: the separator after the last symbol" in said(report)


def test_the_summary_says_how_the_model_reads_and_which_positions_are_rows(mess3):
    token_map = msp.TokenMap([5, [3, 4], 7], bos=0, prompt=[2], separator=[8])
    words = msp.words(mess3, n_ctx=3, token_map=token_map, positions=slice(1, None))
    report = msp.probe(network(), words, **OPTIONS)
    read = "reads the symbols as tokens 5, 3+4, 7 after BOS 0 and a prompt of 1 tokens, with 8 between them."
    assert read in said(report)
    assert "Rows are the positions 1: of each word." in said(report)
    assert "Rows are" not in said(msp.probe(network(3), mess3, **OPTIONS | {"sites": "0_pre"}))


class SeesAhead(hooked_models.Averager):
    """What it adds to the first state is the mean of the whole word."""

    def forward(self, tokens):
        embedded = self.hook_embed(self.embed(tokens))
        return self.unembed(self.hook_state[1](embedded + embedded.mean(dim=1, keepdim=True)))


def test_a_model_that_sees_the_future_is_refused_where_rows_are_prefixes(mess3):
    model = SeesAhead()
    words = msp.words(mess3, n_ctx=3)
    with pytest.raises(ValueError, match=r"not causal: At position 0, hook_state\.1 changes .*LabelledTokens"):
        msp.probe(model, words, **OPTIONS | {"sites": "hook_state.1"})
    tokens = torch.randint(0, 5, (40, 4), generator=torch.Generator().manual_seed(0))
    labelled = LabelledTokens.from_tokens(tokens, tokens.double().unsqueeze(2))
    report = msp.probe(model, labelled, **OPTIONS | {"sites": "hook_state.1"})
    assert report.model_check["causality"].verdict == "to know"
    assert "later tokens do" in report.model_check["causality"].told


def test_what_a_check_of_the_model_found_is_in_the_report(mess3, tmp_path):
    class Overwriting(hooked_models.Averager):
        """Its first state is written over after the hook, so that a probe would read something else."""

        def forward(self, tokens):
            state = self.hook_embed(self.embed(tokens))
            state.add_(1.0)
            return self.unembed(state)

    model = Overwriting()
    report = msp.probe(model, msp.words(mess3, n_ctx=3), **OPTIONS | {"sites": "hook_embed"})
    (problem,) = report.model_check.problems
    assert "embed written over after the hook" in problem
    assert f"Check of the model (report.model_check): {problem}" in said(report)
    loaded = msp.ProbeReport.load(report.save(tmp_path / "report.safetensors"))
    assert loaded == report
    assert loaded.model_check.problems == (problem,)
    fine = msp.probe(network(3), mess3, **OPTIONS)
    assert fine.model_check.problems == ()
    assert "Check of the model" not in said(fine)


def test_a_model_that_cannot_read_other_words_is_probed_all_the_same():
    """An observer of z1r refuses the impossible words that a check of causality would try."""
    process = msp.processes.z1r()
    report = msp.probe(
        hooked_models.Observer(process), msp.words(process, n_ctx=4), **OPTIONS | {"sites": "hook_beliefs"}
    )
    assert report.model_check is None
    assert report["hook_beliefs"].scores.in_sample.r2 > 0.999


def test_checks_are_made_once_for_the_same_weights(mess3):
    model, passes = network(3, n_ctx=5), []
    with model.hooks(fwd_hooks=[("hook_embed", lambda embedded, hook: passes.append(embedded.shape[:2]))]):
        msp.probe(model, mess3, **OPTIONS)
        first = len(passes)
        msp.probe(model, mess3, **OPTIONS)
    # A look at one token, and one batch.
    assert len(passes) - first == 2
    with torch.no_grad():
        model.embed.W_E.mul_(2) if hasattr(model.embed, "W_E") else next(model.parameters()).mul_(2)
    again = msp.probe(model, mess3, **OPTIONS)
    assert again.model_check is not None
