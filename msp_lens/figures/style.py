"""How all figures look: a light and a dark theme, and a figure that belongs to no window.

Colors come from Okabe & Ito's palette, told apart by readers with any kind of color vision. Nothing here touches
matplotlib's global settings.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from PIL import Image

ThemeName = Literal["light", "dark"]
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Theme:
    """The colors of a figure.

    Attributes:
        paper: Background.
        ink: Text and axes.
        soft: Secondary text.
        faint: Outlines and grids.
        wash: Areas behind what matters, as controls are.
        lift: How far colors that are data are moved towards white, to be seen on this paper.
        palette: Series, in the order in which they are taken; the first two are the main ones.
    """

    paper: str
    ink: str
    soft: str
    faint: str
    wash: str
    lift: float
    palette: tuple[str, ...]

    def color(self, index: int) -> str:
        """The series' color; they come round again when there are more series than colors."""
        return self.palette[index % len(self.palette)]


THEMES = {
    "light": Theme(
        paper="#ffffff",
        ink="#1a1a1a",
        soft="#595959",
        faint="#bfbfbf",
        wash="#dedede",
        lift=0.0,
        palette=(
            *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
            *("#000000", "#595959", "#999999", "#cccccc"),
        ),
    ),
    "dark": Theme(
        paper="#14161a",
        ink="#ececec",
        soft="#b3b3b3",
        faint="#555a63",
        wash="#3a3f47",
        lift=0.3,
        palette=(
            *("#56B4E9", "#E69F00", "#00B386", "#CC79A7", "#F0E442", "#E8743B"),
            *("#ffffff", "#b3b3b3", "#808080", "#555a63"),
        ),
    ),
}


class Picture(Figure):
    """A matplotlib figure that a notebook shows as a picture, whether or not pyplot was ever imported."""

    def _repr_png_(self) -> bytes:
        """In 256 colors: a third of the bytes, in every notebook it is kept in."""
        drawn, small = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png", dpi=120)
        Image.open(drawn).convert("RGB").quantize(256).save(small, format="PNG", optimize=True)
        return small.getvalue()


def theme_named(name: str) -> Theme:
    """The theme of that name.

    Raises:
        ValueError: if there is none.
    """
    if name not in THEMES:
        raise ValueError(f"theme={name!r}: there are {' and '.join(map(repr, THEMES))}.")
    return THEMES[name]


def new_figure(width: float, height: float, theme: Theme) -> Picture:
    """An empty figure of that size, in inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08)
    return Picture(figsize=(width, height), layout=layout, facecolor=theme.paper)


def finish(figure: Figure, theme: Theme) -> None:
    """Give axes and text the theme's colors, where they were not given others, and take off the spare spines."""
    for axis in figure.axes:
        _finish_axis(axis, theme)
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_color() == "black":
            text.set_color(theme.ink)


def _finish_axis(axis: Axes, theme: Theme) -> None:
    axis.set_facecolor("none")
    axis.tick_params(which="both", colors=theme.soft, labelcolor=theme.ink)
    axis.spines[["top", "right"]].set_visible(False)
    for spine in axis.spines.values():
        spine.set_edgecolor(theme.soft)


def legend_beside(axis: Axes, handles: Sequence[Any] = (), labels: Sequence[str] = ()) -> None:
    """A legend to the right of the axes, where it hides nothing; of these artists, or else of the axes' own."""
    given = (handles, labels) if handles else axis.get_legend_handles_labels()
    axis.legend(*given, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def marker(index: int) -> str:
    """The mark of a series' points, so that series differ by more than their color."""
    return MARKERS[index % len(MARKERS)]


def ordered_colors(count: int, theme: Theme) -> list[str]:
    """Colors for things that come in an order, as layers do: along viridis, from far off the paper to nearer it."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    low, high = (0.0, 0.85) if theme is THEMES["light"] else (0.3, 1.0)
    return [to_hex(colormaps["viridis"](low + (high - low) * i / max(count - 1, 1))) for i in range(count)]
