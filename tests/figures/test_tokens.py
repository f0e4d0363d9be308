import re
import urllib.request

import pytest
import torch

import msp_lens as msp
from msp_lens.figures.projections import belief_colors
from msp_lens.figures.tokens import attention_view, belief_view, readout_view, word_view

WORD = ["0", "1", "1"]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Nothing is fetched, nor is it tried."""

    def refuse(*args, **kwargs):
        raise AssertionError("a view opened an address")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def cells(html):
    return re.findall(
        r'<td title="([^"]*)" style="background:rgb\((\d+),(\d+),(\d+)\);color:(#\w+);.*?<b>(.*?)</b>', html
    )


def test_tokens_are_colored_by_belief():
    beliefs = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.2, 0.8]])
    view = word_view(WORD, {"true": beliefs, "3_post": beliefs.flip(0)}, states=["S0", "S1", "SR"])
    found = cells(view.html)
    assert [cell[5] for cell in found] == WORD * 2
    assert [tuple(map(int, cell[1:4])) for cell in found[:3]] == [(255, 0, 0), (0, 255, 0), (0, 51, 204)]
    assert found[3][1:4] == found[2][1:4]
    assert found[2][0] == "S0 0.000, S1 0.200, SR 0.800"
    assert [cell[4] for cell in found[:3]] == ["#fff", "#000", "#fff"]
    assert "SR .80" in view.html
    assert view._repr_html_() == view.html == str(view)
    assert "<th" in view.html
    assert "3_post" in view.html


def test_colors_of_many_states_mean_the_same_in_every_word():
    every = msp.data.all_words(msp.rrxor(), 5).prefix_beliefs
    some = every[[3, 17]]
    view = word_view(["0", "1"], {"true": some}, among=every)
    drawn = torch.tensor([[int(c) for c in cell[1:4]] for cell in cells(view.html)])
    assert torch.equal(drawn, (255 * belief_colors(every)[[3, 17]]).round().long())


def test_names_are_escaped():
    view = word_view(["<s>"], {"a & b": torch.tensor([[1.0, 0.0]])}, states=["x<y", "z"])
    assert "&lt;s&gt;" in view.html
    assert "a &amp; b" in view.html
    assert "x&lt;y" in view.html
    assert "<s>" not in view.html


def test_a_view_is_saved_as_a_page(tmp_path):
    view = word_view(WORD, {"true": torch.eye(3)}, theme="dark")
    page = view.save(tmp_path / "word.html").read_text()
    assert page.startswith("<!doctype html>")
    assert view.html in page
    assert "<title>0 1 1</title>" in page


def test_circuitsvis_views_hold_what_they_are_given():
    pattern = torch.tril(torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0)))
    view = attention_view(WORD, pattern)
    assert "AttentionPatterns" in view.html
    assert '"1: 1"' in view.html
    assert f"{float(pattern[1, 2, 0]):.6f}"[:6] in view.html
    readouts = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    view = readout_view(WORD, readouts, sites=["0_post", "1_post"], states=list("ABCD"))
    props = view.html[view.html.rindex("TextNeuronActivations") :]
    assert '["0_post", "1_post"]' in props
    assert '["A", "B", "C", "D"]' in props
    # By token, then site, then state.
    numbers = re.search(r'"activations": (\[\[\[.*?\]\]\])', props)[1]
    drawn = torch.tensor(eval(numbers, {}))
    torch.testing.assert_close(drawn, readouts.permute(1, 0, 2))
    view = belief_view(WORD, readouts[0], states=list("ABCD"))
    assert "ColoredTokensMulti" in view.html


def test_views_fetch_nothing_and_close_what_they_open():
    view = attention_view(WORD, torch.ones(1, 3, 3))
    assert "unpkg.com" not in view.html[-3000:]
    assert re.match(r'<div id="circuits-vis-[^>]*"></div>', view.html)


def test_a_mismatch_of_lengths_is_refused():
    with pytest.raises(ValueError, match=r"beliefs\['true'\] has length 2 and there are 3 tokens"):
        word_view(WORD, {"true": torch.eye(3)[:2]})
    with pytest.raises(ValueError, match="pattern's columns has length 2 and there are 3 tokens"):
        attention_view(WORD, torch.ones(1, 3, 2))
    with pytest.raises(ValueError, match="third axis has length 4 and there are 3 states"):
        readout_view(WORD, torch.ones(2, 3, 4), sites=["a", "b"], states=list("ABC"))
    with pytest.raises(ValueError, match="first axis has length 2 and there are 1 sites"):
        readout_view(WORD, torch.ones(2, 3, 4), sites=["a"], states=list("ABCD"))
    with pytest.raises(ValueError, match="first axis has length 2 and there are 3 tokens"):
        belief_view(WORD, torch.ones(2, 4), states=list("ABCD"))
