import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.patches import Ellipse, FancyArrowPatch

import msp_lens as msp
from msp_lens.figures.graphs import plot_presentation
from msp_lens.figures.placement import Box, around, crossings, first_free, layered_layout, spread_out, spring_layout

GENERATORS = [
    *(
        msp.processes.z1r(),
        msp.rrxor(),
        msp.mess3(),
        msp.processes.even(),
        msp.processes.golden_mean(),
        msp.processes.days_of_week(),
        msp.processes.coin(),
    ),
    msp.processes.mixture([msp.processes.golden_mean(), msp.processes.even()], [0.5, 0.5]),
]
PRESENTATIONS = [
    msp.processes.z1r(),
    msp.rrxor(),
    msp.processes.even(),
    msp.processes.golden_mean(),
    msp.processes.coin(),
]


def names(process):
    return process.name


def nodes(figure):
    """Name to center and line width of each node."""
    (axis,) = figure.axes
    places = {text.get_position(): text.get_text() for text in axis.texts}
    ellipses = [patch for patch in axis.patches if isinstance(patch, Ellipse)]
    return {places[tuple(patch.center)]: patch for patch in ellipses}


def arrows(figure):
    return [patch for patch in figure.axes[0].patches if isinstance(patch, FancyArrowPatch)]


def labels(figure):
    """Those of arrows, without the caption."""
    texts = [text.get_text() for text in figure.axes[0].texts]
    return sorted(text for text in texts if ":" in text and ": " not in text)


def assert_legible(figure):
    """No text lies on another, on a node that is not its own, or outside the figure."""
    figure.canvas.draw()
    (axis,) = figure.axes
    boxes = {text: text.get_window_extent() for text in axis.texts}
    frame = figure.bbox
    for box in boxes.values():
        assert frame.x0 <= box.x0 <= box.x1 <= frame.x1
        assert frame.y0 <= box.y0 <= box.y1 <= frame.y1
    for (one, first), (other, second) in itertools.combinations(boxes.items(), 2):
        across = min(first.x1, second.x1) - max(first.x0, second.x0)
        along = min(first.y1, second.y1) - max(first.y0, second.y0)
        covered = max(across, 0) * max(along, 0) / min(first.width * first.height, second.width * second.height)
        assert covered < 0.2, f"{one.get_text()!r} and {other.get_text()!r} overlap"


@pytest.mark.parametrize("process", GENERATORS, ids=names)
def test_generators_show_every_state_and_edge_legibly(process):
    figure = process.plot()
    assert set(nodes(figure)) == set(process.states)
    pairs = process.state_transitions.nonzero()
    assert len(arrows(figure)) == len(pairs)
    expected = sorted(
        "\n".join(
            f"{process.tokens[x]}:{float(process.transitions[x, i, j]):.3g}"
            for x in range(process.n_tokens)
            if process.transitions[x, i, j] > 0
        )
        for i, j in pairs.tolist()
    )
    if process.name == "days_of_week":
        # Each day leads to each other: only what follows with some probability is labeled, the next day.
        assert len(labels(figure)) == process.n_states
        assert "42 arrows without labels: those of probability below 0.25" in figure.axes[0].texts[-1].get_text()
    else:
        assert labels(figure) == expected
    assert set(labels(figure)) <= set(expected)
    assert_legible(figure)


def test_many_arrows_of_few_tokens_are_told_apart_by_color():
    found = msp.beliefs.presentation(msp.rrxor())
    figure = found.plot(theme="dark")
    assert labels(figure) == []
    assert_legible(figure)
    named = {text.get_text(): text.get_color() for text in figure.axes[0].texts if text.get_text().startswith("→")}
    assert list(named) == ["→ 0", "→ 1"]
    drawn = [to_hex(arrow.get_edgecolor()) for arrow in arrows(figure)]
    # One arrow points to the start.
    by_token = Counter(named[f"→ {token}"].lower() for token in map(str, found.tokens.tolist()))
    assert {color: drawn.count(color) for color in by_token} == dict(by_token)


@pytest.mark.parametrize("process", PRESENTATIONS, ids=names)
def test_presentations_show_every_mixed_state_and_edge_legibly(process):
    found = msp.beliefs.presentation(process)
    figure = found.plot()
    assert set(nodes(figure)) == set(found.labels)
    pairs = {(int(i), int(j)) for i, j in zip(found.sources, found.targets, strict=True)}
    # One more: the arrow that points to the start.
    assert len(arrows(figure)) == len(pairs) + 1
    is_colored = any(text.get_text().startswith("→") for text in figure.axes[0].texts)
    assert len(labels(figure)) == (0 if is_colored else len(pairs))
    assert is_colored == (process.name == "rrxor")
    assert_legible(figure)


def test_the_posts_figure_of_z1r():
    """η at the left, four transient states, and the three certain phases as a ring at the right."""
    figure = msp.beliefs.presentation(msp.processes.z1r()).plot()
    drawn = nodes(figure)
    bold = {name for name, patch in drawn.items() if patch.get_linewidth() > 1.5}
    assert bold == {"η₀₀", "η₀₁", "η₁₁"}
    x = {name: patch.center[0] for name, patch in drawn.items()}
    assert x["η"] < x["η₀"] == x["η₁"] < x["η₁₀"] < min(x[name] for name in bold)
    assert drawn["η₀"].center[1] > drawn["η₁"].center[1]
    assert labels(figure).count("0:0.5\n1:0.5") == 1
    assert {"0:0.333", "1:0.667", "1:1", "0:1"} <= set(labels(figure))


def test_states_that_are_left_for_ever_are_thin():
    process = msp.Process([[[0.5, 0.5], [0.0, 1.0]]], states=("passing", "staying"))
    widths = {name: patch.get_linewidth() for name, patch in nodes(process.plot()).items()}
    assert widths["passing"] < widths["staying"]


def test_where_a_presentation_was_cut_off_it_shows():
    found = msp.beliefs.presentation(msp.mess3(), max_states=5)
    broken = {name for name, patch in nodes(found.plot()).items() if patch.get_linestyle() == "--"}
    assert broken == {label for label, whole in zip(found.labels, found.is_expanded, strict=True) if not whole}
    with pytest.raises(ValueError, match=r"mixed states are more than a picture .* lower max_states"):
        msp.beliefs.presentation(msp.mess3(), max_states=200).plot()


def test_recurrent_classes_are_numbered():
    found = msp.beliefs.presentation(
        msp.processes.mixture([msp.processes.golden_mean(), msp.processes.even()], [0.5, 0.5])
    )
    classes = found.recurrent_class
    assert sorted(classes.unique().tolist()) == [-1, 0, 1]
    assert (found.is_recurrent == (classes >= 0)).all()
    for source, target in zip(found.sources, found.targets, strict=True):
        assert classes[source] in (-1, classes[target])


def test_a_generalized_process_is_no_chain():
    with pytest.raises(ValueError, match="generalized process: its matrices are not probabilities"):
        msp.processes.bloch_walk().plot()
    assert msp.beliefs.presentation(msp.processes.bloch_walk(), max_states=6).plot(theme="dark").axes


def test_parallel_and_opposite_arrows_lie_apart():
    figure = plot_presentation(
        ["a", "b"], [0, 0, 1], [1, 1, 0], ["x", "y", "x"], [0.4, 0.6, 1.0], depths=[0, 1], classes=[0, 0]
    )
    figure.canvas.draw()
    assert labels(figure) == ["x:0.4\ny:0.6", "x:1"]
    middles = [text.get_position()[1] for text in figure.axes[0].texts if ":" in text.get_text()]
    assert abs(middles[0] - middles[1]) > 0.2


def test_a_wheel_is_drawn_without_crossings():
    spokes, rim = [(0, k) for k in range(1, 5)], [(1, 2), (2, 3), (3, 4), (4, 1)]
    places = spring_layout(5, spokes + rim, gap=2.0)
    assert crossings(places, spokes + rim) == 0
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)[~np.eye(5, dtype=bool)]
    assert apart.min() >= 0.8
    np.testing.assert_allclose(places.max(axis=0) + places.min(axis=0), 0, atol=1e-9)


def test_a_tree_stands_in_columns_its_parents_amid_their_children():
    edges = [(0, 1), (0, 2), (1, 3), (1, 4), (2, 5), (2, 6)]
    places = layered_layout([0, 1, 1, 2, 2, 2, 2], edges, across=2.0, along=0.5)
    assert places[:, 0].tolist() == [0, 2, 2, 4, 4, 4, 4]
    for parent, first, second in ((0, 1, 2), (1, 3, 4), (2, 5, 6)):
        assert places[parent, 1] == pytest.approx((places[first, 1] + places[second, 1]) / 2)
    assert (np.diff(places[3:, 1]) <= -0.5 + 1e-9).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.3))
def test_heights_spread_out_keep_order_and_distance(heights, gap):
    placed = spread_out(np.array(heights), gap=gap)
    order = np.argsort(heights, kind="stable")
    assert (np.diff(placed[order]) >= gap - 1e-9).all()
    assert placed.mean() == pytest.approx(np.mean(heights), abs=1e-9)


def test_labels_go_where_there_is_room():
    taken = [Box(1.0, 0.0, 1.0, 1.0)]
    places = around((0.0, 0.0), Box(0, 0, 0.5, 0.5), gap=0.2, away_from=(-1.0, 0.0))
    assert places[0].overlap(taken[0]) > 0
    assert places[first_free(places, taken)].overlap(taken[0]) == 0
    assert Box(0, 0, 2, 2).overlap(Box(1, 1, 2, 2)) == 1
    assert Box(0, 0, 4, 4).overlap(Box(0.5, 0, 1, 1)) == 1
