"""The pictures of the concept pages, each in a light and a dark theme, from the library itself.

    python docs/pictures.py [NAME …]

Run it again when a picture should change, with the names of some or for all; the pictures are kept in git. The network
is the published one of Shai et al. 2024, which is downloaded once, or read where MSP_LENS_ORACLES says.
"""

from __future__ import annotations

import io
import os
import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

import msp_lens as msp
from msp_lens.controls import markov_regret
from msp_lens.figures.projections import belief_colors, projection
from msp_lens.figures.simplex import draw_simplex, plot_beliefs
from msp_lens.figures.style import Theme, finished, new_figure
from msp_lens.models import HookedModel
from msp_lens.probing import read_beliefs

HERE = Path(__file__).parent / "_static"
README = HERE.parents[1] / "demos" / "fractal.png"
THEMES = ("light", "dark")
MESS3 = msp.mess3(x=0.05, a=0.85)


def save(figure: Figure, name: str, *, dpi: int = 170, text: float = 1.0, photo: bool = False) -> None:
    """Write the figure; `text` enlarges its text, so that it can be read on a phone."""
    for each in figure.findobj(Text):
        if isinstance(each, Text):
            each.set_fontsize(each.get_fontsize() * text)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    image = Image.open(drawn).convert("RGB")
    options = {"quality": 84} if photo else {"lossless": True}
    image.save(HERE / f"{name}.webp", format="WEBP", method=6, **options)


def colors_of(beliefs: torch.Tensor, look: Theme) -> np.ndarray:
    """The colors of beliefs, on this theme's paper."""
    colors = belief_colors(beliefs).numpy()
    return colors + look.lift * (1 - colors)


def fractal(report: msp.ProbeReport, theme: str) -> None:
    """The true beliefs, and those read from all sites of the published network together."""
    model, dataset = report.run_on()
    (read,) = read_beliefs(model, dataset, [report["concatenated"]])
    r2 = report["concatenated"].scores.held_out.r2
    title = f"Read in the residual stream: R² {r2:.4f}"
    figure = plot_beliefs(dataset.prefix_beliefs, {title: read}, states=MESS3.states, theme=theme)
    figure.axes[0].set_title("What an optimal observer believes")
    save(figure, f"fractal-{theme}", dpi=110, text=1.5, photo=True)


def readme(report: msp.ProbeReport) -> None:
    """The picture of the README: the true beliefs, and those read at the embedding, halfway and at all sites."""
    drawn = io.BytesIO()
    report.plot("0_pre", "1_post", "concatenated").savefig(drawn, format="png", dpi=120)
    Image.open(drawn).convert("RGB").quantize(256).save(README, optimize=True)


def start(model: HookedModel, report: msp.ProbeReport, theme: str) -> None:
    """The true beliefs, and those read after no, one and three layers."""
    dataset = msp.words(MESS3, n_ctx=10)
    sites = {"0_pre": "At the embedding", "0_post": "After the first layer", "2_post": "After the third layer"}
    read = read_beliefs(model, dataset, [report[site] for site in sites])
    titled = {
        f"{title}: R² {report[site].scores.held_out.r2:.3f}": beliefs
        for (site, title), beliefs in zip(sites.items(), read, strict=True)
    }
    figure = plot_beliefs(
        dataset.prefix_beliefs,
        titled,
        weights=dataset.prefix_weights("probability"),
        states=MESS3.states,
        columns=2,
        theme=theme,
    )
    figure.axes[0].set_title("True beliefs")
    save(figure, f"start-{theme}", dpi=90, text=1.6, photo=True)


def belief(theme: str) -> None:
    """The belief from the start and after each token of a word."""
    word = torch.tensor([[0, 0, 1, 0, 2]])
    beliefs = torch.cat([MESS3.initial[None], msp.filter_beliefs(MESS3, word)[0]])
    names = ["start", *(f"after {''.join(MESS3.tokens[t] for t in word[0, : k + 1])}" for k in range(5))]
    figure, axes, look = new_figure(6.4, 3.6, theme, rows=2, columns=3, sharey=True)
    for number, (axis, row, name) in enumerate(zip(axes, beliefs, names, strict=True)):
        axis.bar(MESS3.states, row, color=colors_of(torch.eye(3), look), width=0.75)
        for state, value in enumerate(row.tolist()):
            axis.text(state, value + 0.03, f"{value:.3f}".removeprefix("0"), ha="center", fontsize=9, color=look.ink)
        axis.set_title(name, fontsize=11)
        axis.set(ylim=(0, 1.15), yticks=[0, 0.5, 1])
        if number % 3 == 0:
            axis.set_ylabel("probability")
    save(finished(figure, look), f"belief-{theme}")


def mixed_states(theme: str) -> None:
    """All beliefs after words of at most 1, 2, 4 and 9 tokens."""
    figure, axes, look = new_figure(6.4, 5.9, theme, rows=2, columns=2)
    for axis, length, size in zip(axes, (1, 2, 4, 9), (90, 45, 14, 0.5), strict=True):
        beliefs = msp.words(MESS3, n_ctx=length).prefix_beliefs
        project = projection(beliefs, torch.ones(len(beliefs), dtype=torch.float64))
        points = project(beliefs)
        axis.scatter(points[:, 0], points[:, 1], c=colors_of(beliefs, look), s=size, linewidths=0, rasterized=True)
        draw_simplex(axis, project, MESS3.states, look)
        axis.set_aspect("equal")
        axis.set_axis_off()
        plural = "one token" if length == 1 else f"{length} tokens"
        axis.set_title(f"words of up to {plural}: {len(beliefs):,}", pad=16)
    save(finished(figure, look), f"mixed-states-{theme}", photo=True)


def tree(axis: Axes, look: Theme, title: str, held: set[str], both: set[str]) -> None:
    """The tree of words of three tokens, with what is held out filled and what is on both sides crossed."""
    places = {"": (3.5, 0.0)}
    for depth in (1, 2, 3):
        for number in range(2**depth):
            name = f"{number:0{depth}b}"
            width = 8 / 2**depth
            places[name] = (width * (number + 0.5) - 0.5, -depth)
            axis.plot(*zip(places[name[:-1]], places[name], strict=True), color=look.faint, linewidth=1.2, zorder=0)
    for name, (x, y) in places.items():
        if not name:
            axis.text(
                x,
                y,
                "start",
                ha="center",
                va="center",
                fontsize=9,
                color=look.soft,
                bbox={"fc": look.paper, "ec": "none"},
            )
            continue
        fill = look.color(1) if name in held | both else look.paper
        axis.scatter(
            x, y, s=190, c=fill, edgecolors=look.color(1) if name in held | both else look.color(0), linewidths=1.6
        )
        if name in both:
            axis.scatter(x, y, s=90, c=look.paper, marker="x", linewidths=2.2)
        else:
            axis.text(
                x, y, name[-1], ha="center", va="center", fontsize=9, color=look.paper if name in held else look.ink
            )
    axis.set(xlim=(-0.9, 7.9), ylim=(-3.5, 0.4))
    axis.set_axis_off()
    axis.set_title(title, fontsize=11, loc="left")


def held_out(theme: str) -> None:
    """What is held out by sequence, by prefix and by subtree."""
    figure, axes, look = new_figure(6.0, 7.2, theme, rows=3)
    tree(
        axes[0],
        look,
        "by sequence: the word 011 is held out, and so are the\nactivations on its way, which other words have too",
        {"011"},
        {"0", "01"},
    )
    tree(axes[1], look, "by prefix: single activations are held out", {"01", "100", "111"}, set())
    tree(
        axes[2],
        look,
        "by subtree: everything that begins with 1 is held out",
        {"1", "10", "11", "100", "101", "110", "111"},
        set(),
    )
    save(finished(figure, look), f"held-out-{theme}")


def controls(report: msp.ProbeReport, theme: str) -> None:
    """R² of the network and of its controls, and what each leaves."""
    best, found = report["3_post"], report.controls
    untrained = [each for each in found if each.kind == "untrained" and each.site == "3_post"]
    rows = {
        "shuffled beliefs": best.scores.shuffled.r2,
        "last token": found.select("window 1").held_out.r2,
        "untrained network": float(np.mean([each.held_out.r2 for each in untrained])),
        "last 2 tokens": found.select("window 2").held_out.r2,
        "last 3 tokens": found.select("window 3").held_out.r2,
        "last 4 tokens": found.select("window 4").held_out.r2,
        "trained network": best.scores.held_out.r2,
    }
    figure, (left, right), look = new_figure(6.6, 3.2, theme, columns=2, sharey=True)
    colors = [look.color(1) if name == "trained network" else look.color(8) for name in rows]
    for axis, values, form in (
        (left, list(rows.values()), "{:.4f}"),
        (right, [1 - value for value in rows.values()], "{:.4f}"),
    ):
        axis.barh(list(rows), values, color=colors, height=0.7)
        for place, value in enumerate(values):
            axis.text(value, place, " " + form.format(value).lstrip("0"), va="center", fontsize=9, color=look.ink)
    left.set(xlim=(0, 1.3), xticks=[0, 0.5, 1], title="R²")
    right.set(xscale="log", xlim=(5e-4, 6), title="left unexplained, 1 - R²")
    left.invert_yaxis()
    save(finished(figure, look), f"controls-{theme}")


def edits(result: msp.InterventionReport, theme: str) -> None:
    """What each edit does at one site: distance to the target's optimum, and share recovered."""
    names = ["none", "placebo", "wrong belief", "pseudo-inverse", "steer", "patch", "donor"]
    distance = [float(result.select(site="3_post", edit=name).kl_to_target) for name in names]
    share = [100 * (1 - value / distance[0]) for value in distance]
    figure, (left, right), look = new_figure(6.6, 3.2, theme, columns=2, sharey=True)
    colors = [look.color(8)] * 4 + [look.color(1)] * 2 + [look.color(0)]
    left.barh(names, distance, color=colors, height=0.7)
    right.barh(names, share, color=colors, height=0.7)
    for place, (value, recovered) in enumerate(zip(distance, share, strict=True)):
        left.text(value, place, f" {value:.4f}".replace("0.", "."), va="center", fontsize=9, color=look.ink)
        right.text(max(recovered, 0), place, f" {recovered:.1f} %", va="center", fontsize=9, color=look.ink)
    left.set(xlim=(0, 0.85), title="distance to the target, nats")
    right.set(xlim=(min(0, *share), 140), xticks=[0, 50, 100], title="share recovered, %")
    left.invert_yaxis()
    save(finished(figure, look), f"edits-{theme}")


def regret(report: msp.ProbeReport, theme: str) -> None:
    """Losses by position, and regrets by position."""
    n_ctx = len(report.regret)
    optimum, places = msp.beliefs.optimal_losses(MESS3, n_ctx), np.arange(1, n_ctx + 1)
    figure, (left, right), look = new_figure(6.6, 3.3, theme, columns=2)
    left.plot(
        places,
        [float(msp.beliefs.myopic_entropies(MESS3, 1)[0])] * n_ctx,
        color=look.color(8),
        linestyle="--",
        label="token frequencies",
    )
    left.plot(places, optimum, color=look.color(0), linewidth=4, alpha=0.55, label="optimal observer")
    left.plot(
        places, optimum + report.regret, color=look.color(1), marker="o", markersize=4, linestyle="", label="network"
    )
    left.set(title="loss, nats", xlabel="tokens seen", ylim=(0.7, 1.35))
    for order, style in ((1, ":"), (2, "--"), (3, "-.")):
        values = markov_regret(MESS3, order, n_ctx).numpy()
        label = "last token" if order == 1 else f"last {order} tokens"
        right.plot(places[order:], values[order:], color=look.color(8), linestyle=style, label=label)
    right.plot(places, report.regret, color=look.color(1), marker="o", markersize=4, label="network")
    right.set(title="regret, nats", xlabel="tokens seen", yscale="log", ylim=(2e-6, 30))
    for axis in (left, right):
        axis.set_xticks([2, 4, 6, 8, 10])
        axis.legend(frameon=False, fontsize=9, ncols=1 if axis is left else 2, loc="upper right")
    save(finished(figure, look), f"regret-{theme}")


def main() -> None:
    """Draw everything, or the pictures named."""
    where = os.environ.get("MSP_LENS_ORACLES")

    @cache
    def model() -> HookedModel:
        return msp.models.published_mess3(Path(where) / "shai2024_mess3" if where else None).model

    @cache
    def report() -> msp.ProbeReport:
        return msp.probe(model(), MESS3, untrained=3, concatenate=False, progress=False)

    @cache
    def by_sequence() -> msp.ProbeReport:
        dataset = msp.words(MESS3, n_ctx=10)
        return msp.probe(model(), dataset, weighting="sequence", controls=False, by_position=False, progress=False)

    @cache
    def result() -> msp.InterventionReport:
        return msp.intervene(model(), MESS3, probes=report()["3_post"])

    z1r = msp.beliefs.presentation(msp.processes.z1r())
    drawn = {
        "belief": belief,
        "mixed-states": mixed_states,
        "z1r": lambda theme: save(z1r.plot(theme=theme), f"z1r-{theme}", dpi=130),
        "held-out": held_out,
        "controls": lambda theme: controls(report(), theme),
        "edits": lambda theme: edits(result(), theme),
        "regret": lambda theme: regret(report(), theme),
        "start": lambda theme: start(model(), report(), theme),
        "fractal": lambda theme: fractal(by_sequence(), theme),
        "readme": lambda theme: readme(by_sequence()) if theme == "light" else None,
    }
    for name in sys.argv[1:] or drawn:
        for theme in THEMES:
            drawn[name](theme)


if __name__ == "__main__":
    main()
