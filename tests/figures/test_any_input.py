"""Whatever numbers and names a figure is given, it draws a picture or says what is wrong, without a warning."""

import copy
import html
import io
import json
import pickle
import re
import warnings
from xml.etree import ElementTree

import jaxtyping
import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import mathtext
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from msp_lens.figures.curves import plot_inference, plot_learning, plot_regret, plot_sites, plot_sweep, plot_training
from msp_lens.figures.edit_bars import plot_edits, plot_heat_map, plot_persistence, plot_strengths
from msp_lens.figures.formation_curves import (
    plot_emergence,
    plot_inferred,
    plot_measures,
    plot_regret_against_error,
    plot_use,
)
from msp_lens.figures.graphs import plot_generator, plot_presentation
from msp_lens.figures.interactive import explore_beliefs
from msp_lens.figures.movie import Movie, Progress, beliefs_movie
from msp_lens.figures.representation_curves import (
    plot_attention_by_lag,
    plot_beyond_belief,
    plot_compared,
    plot_factor_geometry,
    plot_lens,
)
from msp_lens.figures.score_curves import (
    plot_classes,
    plot_crossover,
    plot_distances,
    plot_learning_curves,
    plot_parts,
    plot_r2,
    plot_score_columns,
)
from msp_lens.figures.simplex import plot_belief_columns, plot_belief_rows, plot_beliefs, plot_positions
from msp_lens.figures.style import Picture, for_phones
from msp_lens.figures.tokens import Html, attention_view, belief_view, readout_view, word_view

NAN, INF = float("nan"), float("inf")
SCRIPT = "</script><script>alert(1)</script>"
NAMES = {
    "mathematics": r"$x_1^2$ \alpha_{\$ $\frac{",
    "html": f"{SCRIPT} <b>&amp; [/red] :smile:",
    "private": "_private\n状态 🎲",
    "nothing": "",
    "long": "long " * 200,
}
NUMBERS = {
    "one": [0.5],
    "zero": [0.0] * 4,
    "negative, with a gap": [-1.0, NAN, -0.5, -3.0],
    "gaps": [NAN] * 4,
    "infinite": [0.2, INF, -INF, 0.1],
    "huge": [1e300, 1.0, -1e300, 1e-300],
    "close": [1.0, 1.0 - 1e-16, 1.0, 1.0 + 1e-16],
    "almost one": [0.95, 0.999, 0.9999999, 1.0],
}


def of_numbers(name, v):
    """All figures of numbers, with these values in every place that takes some."""
    places = list(range(1, len(v) + 1))
    tokens = [100 * place for place in places]
    labels, ends = [f"{name}{place}" for place in places], ([*v, NAN][0], [NAN, *v][-1])
    yield lambda: plot_training(tokens, v, v)
    yield lambda: plot_training(v, v)
    yield lambda: plot_regret(v, v)
    yield lambda: plot_learning(v, v, v, title=name)
    yield lambda: plot_learning(v, [0.0] * len(v))
    yield lambda: plot_learning(v, [0.0] * len(v), networks={name: v, "other": v})
    of_panels = {name: {name: v, "other": v}, "other": {"other": v}}
    yield lambda: plot_measures(places, of_panels, levels={name: {name: ends[0]}}, logarithmic=[name], counted=name)
    yield lambda: plot_sites(labels, v, v, v)
    yield lambda: plot_sites(labels, v, v, v, control=v, intervals=[(x, x) for x in v], rivals={name: v, "other": v})
    yield lambda: plot_parts(labels, {name: v, "other": v}, controls={name: v}, intervals={name: [(x, x) for x in v]})
    reliability = {name: [(x, x, x) for x in v]}
    of_classes = {"accuracy_intervals": [(x, x) for x in v], "entropy": max(v, default=0.0)}
    yield lambda: plot_classes(labels, {name: v}, {name: v}, reliability, **of_classes)
    yield lambda: plot_sweep({name: (labels, v), "other": (labels, v)}, xlabel=name, ylabel=name)
    yield lambda: plot_sweep({name: (v, v)}, xlabel=name, ylabel=name, is_error=True)
    yield lambda: plot_edits(labels, {name: dict(zip(labels, v, strict=True))}, ylabel=name, title=name)
    shares = {"errors": {name: dict(zip(labels, v, strict=True))}, "is_share": True, "placebo": name}
    yield lambda: plot_edits(labels, {name: dict(zip(labels, v, strict=True))}, ylabel=name, **shares)
    ways = {name: {name: (places, v), "none": (v, v)}, "other": {name: (places, v)}}
    yield lambda: plot_persistence(ways, ylabel=name, xlabel=name, title=name)
    yield lambda: plot_lens(labels, {name: v, "other": v}, {name: v}, levels={name: ends[0], "other": ends[1]})
    scored = {"labels": labels, "held_out": v, "control": v, "intervals": [(x, x) for x in v]}
    yield lambda: plot_score_columns({name: scored, "other": {"labels": labels, "held_out": v}}, title=name)
    yield lambda: plot_heat_map(np.array([v]), [name], labels, title=name)
    yield lambda: plot_heat_map(np.array([v]), [name], labels, xlabel=name, ylabel=name, lowest=0)
    yield lambda: plot_strengths({name: (places, v), "other": (v, v)}, ylabel=name, xlabel=name, title=name)
    yield lambda: plot_emergence(tokens, {name: v}, {name: v}, v, scored=name)
    yield lambda: plot_emergence([0, *tokens[1:]], {name: v}, {name: v}, v)
    yield lambda: plot_regret_against_error(tokens, v, {name: v}, scored=name)
    yield lambda: plot_use(tokens, *({name: v} for _ in range(4)))
    yield lambda: plot_inference(v, 0.1, 1, dict(zip(places, v, strict=True)), chosen=1, ylabel=name)
    yield lambda: plot_inferred(tokens, v, v, v, {1: v, 2: v}, is_trusted=[True] * len(v), counted=name)
    yield lambda: plot_r2(places, {name: v}, xlabel=name, title=name, ylabel=name)
    spread, ranges = [(x, y) for x, y in zip(v, v[::-1], strict=True)], [(place, 2 * place) for place in places]
    yield lambda: plot_learning_curves(ranges, {name: v, "other": v}, intervals={name: spread}, title=name, ylabel=name)
    yield lambda: plot_learning_curves([(place, place) for place in places], {name: v})
    yield lambda: plot_attention_by_lag({name: v}, {name: v}, v, dict.fromkeys(labels, ends), rate=ends[0])
    pairs = dict(zip(labels, zip(v, v[::-1], strict=True), strict=True))
    spans = {label: [(x, y), (y, x)] for label, (x, y) in pairs.items()}
    yield lambda: plot_compared(pairs, [name, "other"], ylabel=name, title=name)
    yield lambda: plot_compared(pairs, [name, "other"], intervals=spans, ylabel=name)
    kinds = {name: {name: v}, "other": {name: v, "other": v}}
    yield lambda: plot_beyond_belief(places, kinds, pairs, alone=ends[0], worth=ends[1])
    yield lambda: plot_attention_by_lag({name: v, "other": v}, {}, v, {name: (0.5, 0.4)})
    yield lambda: plot_factor_geometry({name: v, "other": v}, {name: v}, labels, {name: v}, chance=v)
    yield lambda: plot_crossover(places, {name: v}, dict(zip(labels, v, strict=True)))
    yield lambda: plot_distances(
        np.array(v), {name: (np.array(v), None if np.isnan(v[:1]).any() else v[0])}, ylabel=name
    )


def of_beliefs(name, true):
    """All figures of beliefs, with the same beliefs read everywhere."""
    n_states = true.shape[1]
    states, last = [f"{name}{k}" for k in range(n_states)], torch.arange(len(true))
    words = torch.zeros(len(true), len(true) + 1, dtype=torch.int64)
    tokens = [name] * len(true)
    yield lambda: plot_beliefs(true, {name: true}, states=states, path=[0], path_tokens=[name], title=name)
    yield lambda: plot_positions(true, {name: true}, last, states=states, title=name)
    yield lambda: plot_belief_rows({name: {"": true, name: true}, "other": {"": true, name: true}}, title=name)
    columns = {name: {"": true, name: true}, "other": {name: true}}
    yield lambda: plot_belief_columns(columns, states={name: states}, title=name)
    yield lambda: explore_beliefs(true, {name: true}, words, last, states=states, tokens=[name])
    progress = Progress([0, 10], {name: [0.1, 0.1]})
    yield lambda: beliefs_movie(true, {name: [true, true]}, [name, name], states=states, progress=progress, title=name)
    yield lambda: word_view(tokens, {name: true}, states=states)
    yield lambda: attention_view(tokens, torch.ones(1, len(true), len(true)))
    yield lambda: readout_view(tokens, true[None], sites=[name], states=states)
    yield lambda: belief_view(tokens, true, states=states)


def of_graphs(name):
    move = np.array([[[0.5, 0.0], [0.0, 0.0]], [[0.0, 0.5], [1.0, 0.0]]])
    names = [name, f"{name}2"]
    yield lambda: plot_generator(move, states=names, tokens=names, is_recurrent=[True, True], title=name)
    edges = ([0, 0, 1], [0, 1, 0], [name, "1", name], [0.5, 0.5, 1.0])
    yield lambda: plot_presentation(names, *edges, depths=[0, 1], classes=[0, 0], title=name)


def drawn(figure):
    """The figure as an SVG file, with every warning an error."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # `savefig` would draw twice.
        FigureCanvasSVG(figure()).print_svg(content)
    return content.getvalue().decode()


# Numbers that the layout of a figure may depend on: those with long labels, and those that leave points out.
NEED_LAYOUT = ("infinite", "huge")


def laid_out(figure, *, by_layout=True):
    """Everything is drawn but for the pixels, with every warning an error. The layout takes half of the time."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = figure()
        if not by_layout:
            made.set_layout_engine("none")
        made.draw_without_rendering()


@pytest.mark.slow
@pytest.mark.parametrize("numbers", NUMBERS)
def test_numbers_of_any_kind_are_drawn(numbers):
    *figures, distances = of_numbers("a", NUMBERS[numbers])
    by_layout = numbers in NEED_LAYOUT
    for figure in figures:
        laid_out(figure, by_layout=by_layout)
    if numbers == "gaps":
        with pytest.raises(ValueError, match=r"against\['a'\]: no pair has finite distances"):
            laid_out(distances)
    else:
        laid_out(distances, by_layout=by_layout)


def test_no_numbers_at_all_are_refused_by_name():
    training, more, *figures = of_numbers("a", [])
    # A training of no steps is a training.
    assert [text.get_text() for text in training().axes[0].texts] == ["no finite values"]
    drawn(more)
    refusals = []
    for figure in figures[:-1]:
        with pytest.raises(ValueError, match=r"=\[\]: give at least one|has 1 entries and regret 0") as refused:
            figure()
        refusals.append(str(refused.value))
    assert len(set(refusals)) > 5
    with pytest.raises(ValueError, match=r"represented=\[\]"):
        plot_distances(np.zeros(0), {"a": (np.zeros(0), 0.0)})


def test_one_logged_record_can_be_seen():
    figure = plot_training([128], [0.25])
    (line,) = figure.axes[0].lines
    assert (line.get_marker(), line.get_markevery()) == ("o", [0])
    gaps = plot_training([1, 2, 3, 4], [0.1, NAN, 0.2, 0.3]).axes[0].lines[0]
    assert gaps.get_markevery() == [0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [NAMES["private"] + NAMES["mathematics"] + NAMES["html"], NAMES["nothing"], NAMES["long"]],
    ids=["every sign", "nothing", "long"],
)
def test_names_are_text_in_every_figure(name, monkeypatch):
    parsed = []
    original = mathtext.MathTextParser.parse
    monkeypatch.setattr(
        mathtext.MathTextParser, "parse", lambda self, s, *a, **k: parsed.append(s) or original(self, s, *a, **k)
    )
    for figure in [*of_numbers(name, [0.1, 0.2]), *list(of_beliefs(name, torch.eye(3)))[:2], *of_graphs(name)]:
        laid_out(figure, by_layout=len(name) > 500)
    # Only the numbers of a logarithmic axis are set by matplotlib's mathematics.
    assert [text for text in parsed if not re.fullmatch(r"\$\\mathdefault\{[-−\d.e^{}\\times ]*\}\$", text)] == []


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_are_text_on_phones_too(name):
    heights = {name: {f"{name}0": 0.5, f"{name}1": -1.0}, "placebo": {f"{name}0": 0.9}}
    for figure in (
        lambda: plot_sites([f"{name}0", f"{name}1"], [0.5, 0.6], [0.7, 0.8], [0.1, 0.2], rivals={name: [0.1, 0.2]}),
        lambda: plot_edits([f"{name}0", f"{name}1"], heights, ylabel=name, is_share=True),
        lambda: plot_beliefs(torch.eye(3), {name: torch.eye(3)}, states=[name] * 3),
    ):
        with for_phones():
            picture = drawn(figure)
        assert not [tag for tag in ElementTree.fromstring(picture).iter() if "script" in str(tag.tag)]


def test_names_are_shown_as_they_stand():
    figure = plot_edits(["$a_b$"], {"$c^d$": {"$a_b$": 1.0}, "_e": {"$a_b$": 1.0}}, ylabel="$f$", title=r"\$g$")
    figure.draw_without_rendering()
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["$c^d$", "\u200a_e"]
    texts = [axis.title, axis.yaxis.label, *axis.get_xticklabels()]
    assert [text.get_text() for text in texts] == [r"\$g$", "$f$", "$a_b$"]
    assert not any(text.get_parse_math() or text.get_usetex() for text in texts)
    with matplotlib.rc_context({"text.usetex": True}):
        assert not plot_edits(["a_b"], {"c": {"a_b": 1.0}}, ylabel="y").axes[0].get_xticklabels()[0].get_usetex()


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_views_for_browsers_show_names_as_text(name, tmp_path):
    _, _, _, _, explored, movie, *views = (figure() for figure in of_beliefs(name, torch.eye(3)))
    pages = [view.save(tmp_path / "view.html").read_text(encoding="utf-8") for view in views]
    pages += [movie.to_html(), movie._repr_html_(), explored.to_html(include_plotlyjs=False)]
    for page in pages:
        assert "<script>alert" not in page
        assert "</script><script" not in page
    for page, shown in zip(pages[1:4], (f"0: {name}", name, name), strict=True):
        properties = json.loads(page[: page.rindex("</script>")].split("\n")[-3])
        assert properties["tokens"][0] == shown
    shown = [*explored.data[0].hovertext, *(note.text for note in explored.layout.annotations)]
    for text in shown:
        rest = re.sub(r"</?b>|<br>", "", text)
        assert "<" not in rest
        assert "$" not in rest
    assert name in html.unescape(" ".join(shown)) or not name


@pytest.mark.parametrize(
    ("beliefs", "message"),
    [
        (torch.tensor([[1.0, 0.0], [NAN, 0.0]]), "without NaN and infinity"),
        (torch.tensor([[INF, 0.0]]), "without NaN and infinity"),
        (torch.eye(3).double() * 1e200, "has no place in a picture"),
        (torch.ones(0, 3), r"shape \(0, 3\)"),
        (torch.ones(3, 0), r"shape \(3, 0\)"),
    ],
    ids=["nan", "infinite", "huge", "no rows", "no states"],
)
def test_beliefs_that_have_no_place_are_refused(beliefs, message):
    words = torch.zeros(len(beliefs), 1, dtype=torch.int64)
    for figure in (
        lambda: plot_beliefs(beliefs, {}),
        lambda: plot_positions(beliefs, {}, words[:, 0]),
        lambda: plot_belief_rows({"a": {"true": beliefs}}),
        lambda: plot_belief_columns({"a": {"true": beliefs}}),
        lambda: explore_beliefs(beliefs, {}, words, words[:, 0]),
        lambda: beliefs_movie(beliefs, {"a": [beliefs]}, ["a"]),
        lambda: word_view(["a"] * len(beliefs), {"a": beliefs}),
        lambda: belief_view(["a"] * len(beliefs), beliefs, states=["a"] * beliefs.shape[1]),
    ):
        with pytest.raises(ValueError, match=message):
            figure()


@pytest.mark.parametrize("beliefs", [torch.eye(3)[:1], torch.eye(5)[[0, 0]], torch.ones(2, 1), torch.eye(4)[[1, 1]]])
def test_one_belief_is_drawn(beliefs):
    one, positions, *_ = of_beliefs("a", beliefs)
    for figure in (one, positions):
        drawn(figure)
        assert figure().axes[0].get_images()[0].get_array()[..., 3].max() == 1


def test_mismatches_are_refused_by_name():
    true = torch.eye(3)
    for figure, message in (
        (lambda: plot_beliefs(true, {}, states=["a"]), "states has 1 names and the beliefs are over 3 states"),
        (lambda: plot_beliefs(true, {}, weights=torch.ones(2)), r"weights=\[1.0, 1.0\]: give one for each of the 3"),
        (lambda: plot_beliefs(true, {}, weights=torch.zeros(3)), "not all 0"),
        (lambda: plot_beliefs(true, {}, path=[3]), "path has the row 3: give rows of the true beliefs, 0 to 2"),
        (lambda: plot_beliefs(true, {}, columns=0), "columns=0"),
        (lambda: plot_positions(true, {}, torch.zeros(2, dtype=torch.int64)), "positions has 2 entries"),
        (lambda: plot_positions(true, {}, torch.zeros(3, dtype=torch.int64), shown=[]), r"shown=\[\]"),
        (lambda: plot_belief_rows({}), r"rows=\[\]: give at least one"),
        (lambda: plot_belief_rows({"a": {}}), r"rows\['a'\] has \[\]"),
        (lambda: plot_belief_rows({"a": {"b": true}, "c": {"d": true}}), r"rows\['c'\] has \['d'\], the first row"),
        (lambda: plot_belief_columns({}), r"columns=\[\]: give at least one"),
        (lambda: plot_belief_columns({"a": {}}), r"columns\['a'\]=\[\]"),
        (lambda: plot_score_columns({"a": {"labels": ["b"], "held_out": []}}), r"columns\['a'\] held_out 0"),
        (lambda: plot_persistence({"a": {"b": ([1], [])}}, ylabel=""), "its heights 0"),
        (lambda: plot_lens(["a"], {"b": []}, {"c": [1.0]}), r"predictions\['b'\] 0"),
        (lambda: word_view(["a"], {}), r"beliefs=\[\]"),
        (lambda: word_view(["a"] * 3, {"a": true}, states=["a"]), "states has 1 names"),
        (lambda: plot_sites(["a"], [0.1, 0.2], [0.1], [0.1]), "labels has 1 entries and held_out 2"),
        (lambda: plot_sites(["a"], [0.1], [0.1], [0.1], rivals={"b": []}), r"rivals\['b'\] 0"),
        (lambda: plot_parts(["a"], {"b": [0.1, 0.2]}), r"labels has 1 entries and held_out\['b'\] 2"),
        (lambda: plot_parts(["a"], {}), r"held_out"),
        (
            lambda: plot_classes(["a"], {"b": [0.1, 0.2]}, {"b": [0.1]}, {}),
            r"labels has 1 entries and accuracy\['b'\] 2",
        ),
        (lambda: plot_classes(["a"], {"b": [0.1]}, {}, {}), r"cross_entropy"),
        (lambda: plot_use([1], {}, {"a": [0.1]}, {}, {}), "read has no curve of 'a'"),
        (lambda: plot_sweep({"a": ([1], [0.1, 0.2])}, xlabel="", ylabel=""), "the places of 'a' has 1 entries"),
        (lambda: plot_learning_curves([(0, 0)], {"a": [0.1, 0.2]}), r"ranges has 1 entries and curves\['a'\] 2"),
        (lambda: plot_learning_curves([(3, 1)], {"a": [0.1]}), r"ranges=\[\(3, 1\)\]: give pairs of a first position"),
        (lambda: plot_learning([1.0], [0.5], networks={"a": [0.1, 0.2]}), r"networks\['a'\] 2"),
        (lambda: plot_measures([1], {"a": {"b": [0.1, 0.2]}}), r"tokens has 1 entries and a: b 2"),
        (lambda: plot_measures([1], {"a": {}}), r"panels\['a'\]"),
        (lambda: plot_r2([1, 2], {"a": [0.1]}, xlabel=""), r"places has 2 entries and curves\['a'\] 1"),
    ):
        # Where annotated calls are checked, axes that differ are refused by these checks.
        with pytest.raises((ValueError, jaxtyping.TypeCheckError), match=f"{message}|Type-check error"):
            figure()


def test_figures_and_records_can_be_copied_pickled_and_compared():
    every = [*of_numbers(SCRIPT, [0.5, 0.99]), *of_graphs(SCRIPT), *list(of_beliefs("a", torch.eye(3)))]
    for figure in every:
        made = figure()
        # A figure is copied by the state that it is pickled by.
        copies = [copy.copy(made)] if isinstance(made, Figure) else [copy.deepcopy(made), copy.copy(made)]
        for again in (pickle.loads(pickle.dumps(made)), *copies):
            assert type(again) is type(made)
            if isinstance(made, Movie | Html):
                assert again == made
    assert type(copy.deepcopy(every[0]())) is Picture
    first, second = (beliefs_movie(torch.eye(3), {"a": [torch.eye(3)]}, [caption]) for caption in "ab")
    assert first != second


def test_any_container_is_read_and_what_cannot_be_is_refused():
    column = pd.Series([0.1, NAN, 0.3])
    for values in (column, column.to_numpy(), torch.tensor(column), column.tolist(), tuple(column)):
        (line,) = plot_r2(np.arange(3), {"a": values}, xlabel="rank").axes[0].lines
        np.testing.assert_array_equal(line.get_ydata(), column)
    for beliefs in (np.eye(3), np.eye(3).tolist(), torch.eye(3, dtype=torch.int32)):
        drawn(lambda beliefs=beliefs: plot_beliefs(beliefs, {"a": beliefs}, path=np.array([0, 1])))
    for figure, message in (
        (lambda: plot_training([1, 2], ["a", "b"]), r"\['a', 'b'\]: give numbers"),
        (lambda: plot_training([1, 2], [0.1, 0.2], theme="sepia"), "theme='sepia': choose one of 'light', 'dark'"),
        (lambda: plot_training([1, 2], [0.1, 0.2], them="dark"), "no parameter 'them'.*Did you mean theme"),
        (lambda: plot_sites("ab", [0.1, 0.2], [0.1, 0.2], [0.1, 0.2]), "labels='ab': give a list"),
        (lambda: plot_beliefs("mess3", {}), "true='mess3': give real numbers"),
        (lambda: plot_beliefs(torch.eye(3), {}, columns=2.5), "columns=2.5: give a whole number"),
        (lambda: plot_beliefs(torch.eye(3) * 1j, {}), "true=.*: give real numbers"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            figure()


def test_an_edit_that_does_worse_than_its_placebo_is_seen_to():
    heights = {"none": [0.6, 0.6], "placebo": [0.5, 0.5], "steer": [0.55, 0.1], "donor": [0.0, NAN]}
    values = {edit: dict(zip(["early", "late"], row, strict=True)) for edit, row in heights.items()}
    (axis,) = plot_edits(["early", "late"], values, ylabel="KL", placebo="placebo").axes
    hatched = {
        bars.get_label(): [bool(bar.get_hatch()) for bar in bars] for bars in axis.containers if len(bars.patches)
    }
    assert hatched == {"none": [False] * 2, "placebo": [False] * 2, "steer": [True, False], "donor": [False] * 2}
    assert axis.get_legend().get_texts()[-1].get_text() == "worse than placebo"
    (axis,) = plot_edits(["late"], values, ylabel="KL", placebo="placebo").axes
    assert axis.get_legend().get_texts()[-1].get_text() == "donor"
    # A share recovered far below the panel is marked at its foot.
    figure = plot_use([1, 2], {"a": [0.1, 0.2]}, {"a": [-3.0, 0.5]}, {"a": [0.0, 0.0]}, {"a": [0.9, 0.9]})
    marks = [line.get_xydata().tolist() for line in figure.axes[0].lines if line.get_marker() == "v"]
    assert [mark for mark in marks if mark] == [[[1.0, -0.55]]]
