import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

import msp_lens as msp
from msp_lens.figures.interactive import explore_beliefs
from msp_lens.figures.projections import TETRAHEDRON, TRIANGLE, png


def parts(process, length):
    dataset = msp.data.all_words(process, length)
    words, positions = dataset.is_first.nonzero(as_tuple=True)
    order = dataset.prefix_ids[dataset.is_first].argsort()
    return dataset, dataset.tokens[words[order]], positions[order]


def test_hover_tells_the_word_and_both_beliefs(mess3):
    dataset, words, positions = parts(mess3, 3)
    true = dataset.prefix_beliefs
    read = true.flip(1)
    figure = explore_beliefs(
        true, {"3_post": read}, words, positions, states=mess3.states, tokens=mess3.tokens, theme="dark"
    )
    first, second = figure.data
    assert len(first.x) == len(true) == 39
    torch.testing.assert_close(torch.tensor(np.stack([second.x, second.y], axis=1)), read @ TRIANGLE)
    row = int(dataset.prefix_ids[5, 2])
    spelled = "".join(mess3.tokens[token] for token in dataset.tokens[5].tolist())
    belief = ", ".join(f"{name} {p:.3f}" for name, p in zip("ABC", true[row].tolist(), strict=True))
    backwards = ", ".join(f"{name} {p:.3f}" for name, p in zip("ABC", read[row].tolist(), strict=True))
    assert first.hovertext[row] == f"<b>{spelled}</b><br>belief {belief}"
    assert second.hovertext[row] == f"<b>{spelled}</b><br>belief {belief}<br>read {backwards}"
    assert first.hovertext[int(dataset.prefix_ids[0, 0])].startswith("<b>A</b>")
    assert figure.layout.paper_bgcolor == "#14161a"


def test_the_image_holds_all_and_the_weightiest_can_be_hovered_over(mess3):
    dataset, words, positions = parts(mess3, 5)
    weights = dataset.prefix_weights("probability")
    figure = explore_beliefs(dataset.prefix_beliefs, {}, words, positions, weights=weights, max_points=20)
    shortest = {hover.split("</b>")[0].removeprefix("<b>") for hover in figure.data[0].hovertext}
    kept = weights.argsort(descending=True, stable=True)[:20]
    expected = {"".join(map(str, words[k, : positions[k] + 1].tolist())) for k in kept.tolist()}
    assert shortest == expected
    source = figure.layout.images[0].source
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,")))))
    assert (picture[..., 3] > 0).sum() > len(dataset.prefix_beliefs)
    # The upper corner is above.
    image = figure.layout.images[0]
    assert image.y == figure.layout.yaxis.range[1]
    assert image.y - image.sizey == pytest.approx(figure.layout.yaxis.range[0])


def test_an_image_stands_upright():
    image = np.zeros((2, 2, 4))
    image[1, 0] = (1, 0, 0, 1)
    picture = np.asarray(Image.open(io.BytesIO(png(image))))
    assert picture[0, 0].tolist() == [255, 0, 0, 255]
    assert picture[1].max() == 0


def test_four_states_make_a_tetrahedron_to_be_turned():
    process = msp.processes.random_process(4, 2, seed=0)
    dataset, words, positions = parts(process, 4)
    figure = explore_beliefs(dataset.prefix_beliefs, {"noisy": dataset.prefix_beliefs}, words, positions)
    outline, points = figure.data[:2]
    placed = torch.tensor(np.stack([points.x, points.y, points.z], axis=1))
    torch.testing.assert_close(placed, dataset.prefix_beliefs @ TETRAHEDRON)
    assert [text for text in outline.text if text] == list("0123")
    corners = np.stack([outline.x, outline.y, outline.z], axis=1)
    drawn = {frozenset(map(tuple, corners[[k, k + 1]].round(6))) for k in range(len(corners) - 1)}
    assert len(drawn) == 6


def test_names_are_escaped_and_many_states_are_told_by_the_likeliest():
    beliefs = torch.softmax(torch.arange(8.0).repeat(2, 1), dim=1)
    figure = explore_beliefs(
        beliefs, {}, torch.tensor([[0], [1]]), torch.tensor([0, 0]), tokens=["<s>", "ab"], states=list("abcdefgh")
    )
    hover = figure.data[0].hovertext[0]
    assert hover.startswith("<b>&lt;s&gt;</b><br>belief h 0.")
    assert hover.endswith(", …")
    with pytest.raises(ValueError, match="max_points=0"):
        explore_beliefs(beliefs, {}, torch.tensor([[0], [1]]), torch.tensor([0, 0]), max_points=0)
