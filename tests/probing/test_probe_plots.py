import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import msp_lens as msp
from msp_lens.figures.projections import TRIANGLE
from msp_lens.probing.probe_plots import window_scores


@pytest.fixture(scope="module")
def model():
    return msp.build_model(msp.ModelConfig(d_vocab=3, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=5), seed=1)


@pytest.fixture(scope="module")
def report(model, mess3):
    return msp.probe(model, mess3, by_position="own", progress=False)


def lines(figure):
    return {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}


def test_curves_are_the_tables(report):
    for table, figure in (
        (report.by_rank(), report.plot.by_rank()),
        (report.by_rank(in_sample=True), report.plot.by_rank(in_sample=True)),
        (report.by_position(), report.plot.by_position(theme="dark")),
        (report.by_position(own=True), report.plot.by_position(own=True)),
    ):
        assert lines(figure) == {site: row.tolist() for site, row in table.iterrows()}
    assert report.plot.by_rank(in_sample=True).axes[0].get_ylabel() == "R² of beliefs, in-sample"


def test_bars_are_the_report(report):
    table = report.to_dataframe()
    (axis, *_) = report.plot.scores(theme="dark").axes
    marks = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    assert marks["held out"] == table["R² held out"].tolist()
    assert marks["in-sample"] == table["R² in-sample"].tolist()
    (bars,) = [bars for bars in axis.containers if bars.get_label() == "best control, held out"]
    tops = [bar.get_y() + bar.get_height() for bar in bars]
    assert tops == pytest.approx(table["R² best control"].tolist())


def test_the_crossover_is_of_the_controls_and_the_sites(report):
    windows = window_scores(report.controls)
    assert list(windows.index) == [1, 2, 3, 4]
    assert list(windows) == ["window of k tokens", "window and position", "tokens added up, and position"]
    for k in windows.index:
        assert windows.loc[k, "window of k tokens"] == report.controls.select(f"window {k}").held_out.r2
        assert windows.loc[k, "window and position"] == report.controls.select(f"window {k} × pos").held_out.r2
    drawn = lines(report.plot.crossover())
    assert drawn["window of k tokens"] == windows["window of k tokens"].tolist()
    with pytest.raises(ValueError, match="probe with controls=True"):
        window_scores(type(report.controls)())


def test_losses_are_those_of_the_model(report, model, mess3):
    """The model's mean loss over all words with the token that follows, by torch's own cross-entropy."""
    dataset = msp.data.all_words(mess3, 6)
    with torch.no_grad():
        logits = model(dataset.tokens[:, :-1])
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), dataset.tokens[:, 1:], reduction="none")
    expected = dataset.word_weights @ losses.double()
    drawn = lines(report.plot.regret())["model's loss"]
    np.testing.assert_allclose(drawn, expected, atol=1e-5)
    with pytest.raises(ValueError, match="has no regret"):
        replace(report, regret=None).plot.regret()


def test_a_words_way_through_true_and_represented_beliefs(report, model, mess3):
    word = "BACAB"
    tokens = torch.tensor([[1, 0, 2, 0, 1]])
    true = msp.filter_beliefs(mess3, tokens)[0]
    _, cache = model.run_with_cache(tokens)
    read = report["1_post"].predict(cache["blocks.1.hook_resid_post"])[0].detach().double()
    figure = report.plot("1_post", word=word)
    for axis, beliefs in zip(figure.axes, (true, read), strict=True):
        np.testing.assert_allclose(axis.collections[0].get_offsets(), beliefs @ TRIANGLE, atol=1e-5)
    written = [text.get_text() for text in figure.axes[0].texts if text.get_text()]
    assert written[3:] == ["B₀", "A₁", "C₂", "A₃", "B₄"]
    with pytest.raises(ValueError, match="'ABD' is not made of tokens after 'AB'; the tokens are A, B, C"):
        report.plot(word="ABD")
    with pytest.raises(ValueError, match="begins none of the 243 words of 5 tokens"):
        report.plot(word="AAAAAA")
    with pytest.raises(ValueError, match="give one word, not 2"):
        report.plot(word=["AB", "BA"])
    with pytest.raises(ValueError, match="give one word, not 2"):
        report.plot.word(["AB", "BA"])
    with pytest.raises(TypeError, match=r"no parameter 'words'.* word"):
        report.plot(words="AB")


def test_positions_and_words_to_explore(report):
    figure = report.plot.positions("0_post", "1_post", positions=[1, 4])
    assert len(figure.axes) == 6
    assert figure.axes[1].get_title() == "position 4: 243"
    explored = report.plot.explore("1_post")
    dataset = report.dataset
    hover = explored.data[0].hovertext
    spelled = {text.split("</b>")[0].removeprefix("<b>") for text in hover}
    assert len(spelled) == len(hover) == dataset.n_prefixes
    row = int(dataset.prefix_ids[77, 2])
    assert hover[row].startswith("<b>" + "".join("ABC"[t] for t in dataset.tokens[77, :3].tolist()) + "<")


def test_a_word_is_shown_by_true_and_by_read_belief(report, model):
    view = report.plot.word("ABCA", "1_post", "concatenated")
    assert [name for name in ("true", "1_post", "concatenated") if f">{name}</th>" in view.html] == [
        "true",
        "1_post",
        "concatenated",
    ]
    told = re.findall(r'title="A (-?[\d.]+), B (-?[\d.]+), C (-?[\d.]+)"', view.html)
    beliefs = torch.tensor([[float(p) for p in belief] for belief in told])
    tokens = torch.tensor([[0, 1, 2, 0]])
    torch.testing.assert_close(beliefs[:4], msp.filter_beliefs(msp.mess3(), tokens)[0].float(), atol=6e-4, rtol=0)
    _, cache = model.run_with_cache(tokens)
    read = report["1_post"].predict(cache["blocks.1.hook_resid_post"])[0].detach()
    torch.testing.assert_close(beliefs[4:8], read, atol=6e-4, rtol=0)
    assert report.plot.word([0, 1, 2, 0], "1_post", "concatenated").html == view.html
    with pytest.raises(ValueError, match="word is empty"):
        report.plot.word([])


def test_a_word_is_read_through_the_token_map(mess3):
    """The same word in the model's own ids, with a separator between symbols."""
    network = msp.build_model(msp.ModelConfig(d_vocab=9, n_layers=1, d_model=16, d_head=8, d_mlp=32, n_ctx=8), seed=1)
    token_map = msp.TokenMap([5, 3, 7], bos=0, separator=[8])
    found = msp.probe(network, msp.words(mess3, n_ctx=4, token_map=token_map), sites="0_post", progress=False)
    word = (found.dataset.tokens[:, :3] == torch.tensor([0, 2, 1])).all(dim=1).nonzero()[0, 0]
    (read,) = msp.probing.read_beliefs(network, found.dataset, [found["0_post"]])
    told = re.findall(r'title="A (-?[\d.]+), B (-?[\d.]+), C (-?[\d.]+)"', found.plot.word("ACB", "0_post").html)
    shown = torch.tensor([[float(p) for p in belief] for belief in told[3:6]]).double()
    torch.testing.assert_close(shown, read[found.dataset.prefix_ids[word, :3]], atol=6e-4, rtol=0)


def test_readouts_of_every_site(report):
    view = report.plot.readouts("ABCA")
    props = view.html[view.html.rindex("TextNeuronActivations") :]
    assert str(list(report)).replace("'", '"') in props


def test_pictures_leave_the_model_as_it_was(report, model, global_state):
    before = {name: len(module._forward_hooks) for name, module in model.named_modules()}
    report.plot.positions("1_post")
    report.plot.word("ABC")
    report.distances()
    assert {name: len(module._forward_hooks) for name, module in model.named_modules()} == before
