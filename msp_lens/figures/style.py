"""How all figures look: a light and a dark theme in Okabe & Ito's colors, which all kinds of color vision tell apart.

Nothing here touches matplotlib's global settings.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from PIL import Image

ThemeName = Literal["light", "dark"]
# Numbers in order, such as a curve's heights; and curves by name.
Values = Sequence[float]
Curves = Mapping[str, Values]


@dataclass(frozen=True)
class Theme:
    """The colors of a figure."""

    paper: str  # background
    ink: str  # text and axes
    soft: str  # secondary text
    faint: str  # outlines and grids
    wash: str  # areas in the background, such as controls
    lift: float  # how far colors that encode data move toward white, to be visible on this paper
    palette: tuple[str, ...]  # colors of series, in order of use
    shades: tuple[float, float]  # the range of viridis for things that come in an order

    def color(self, index: int) -> str:
        """The color of a series; colors repeat when there are more series."""
        return self.palette[index % len(self.palette)]


_LIGHT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#595959", "#999999", "#cccccc")
_DARK = ("#56B4E9", "#E69F00", "#00B386", "#CC79A7", "#F0E442", "#E8743B", "#ffffff", "#b3b3b3", "#808080", "#555a63")
THEMES = {
    "light": Theme("#ffffff", "#1a1a1a", "#595959", "#bfbfbf", "#dedede", lift=0.0, palette=_LIGHT, shades=(0.0, 0.85)),
    "dark": Theme("#14161a", "#ececec", "#b3b3b3", "#555a63", "#3a3f47", lift=0.3, palette=_DARK, shades=(0.3, 1.0)),
}


class Picture(Figure):
    """A matplotlib figure that a notebook shows as a picture, whether or not pyplot was imported."""

    def _repr_png_(self) -> bytes:
        """In 256 colors: a third of the bytes, in every notebook that keeps it."""
        drawn, small = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png", dpi=120)
        Image.open(drawn).convert("RGB").quantize(256).save(small, format="PNG", optimize=True)
        return small.getvalue()


def theme_named(name: str) -> Theme:
    """The theme of that name; raises ValueError if there is none."""
    if name not in THEMES:
        raise ValueError(f"theme={name!r}: there are {' and '.join(map(repr, THEMES))}.")
    return THEMES[name]


def new_figure(
    width: float, height: float, theme: str, *, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Picture, list[Axes], Theme]:
    """An empty figure of that size in inches, its axes row by row, and its theme; options are those of `subplots`."""
    look = theme_named(theme)
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08)
    figure = Picture(figsize=(width, height), layout=layout, facecolor=look.paper)
    return figure, figure.subplots(rows, columns, squeeze=False, **options).flatten().tolist(), look


def finished(figure: Picture, look: Theme) -> Picture:
    """The figure without spare spines, its axes in the theme's colors, and its text too unless colored already."""
    for axis in figure.axes:
        axis.set_facecolor("none")
        axis.tick_params(which="both", colors=look.soft, labelcolor=look.ink)
        axis.spines[["top", "right"]].set_visible(False)
        for spine in axis.spines.values():
            spine.set_edgecolor(look.soft)
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_color() == "black":
            text.set_color(look.ink)
    return figure


def legend_beside(axis: Axes, handles: Sequence[Any] = (), labels: Sequence[str] = ()) -> None:
    """A legend to the right of the axes, where it hides nothing; by default of all labeled artists."""
    given = (handles, labels) if handles else axis.get_legend_handles_labels()
    axis.legend(*given, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def write_centered(axis: Axes, place: tuple[float, float], text: str, *, size: float, color: str, **more: Any) -> None:
    """Write text centered at a place; `$` stands for itself."""
    axis.text(*place, text, ha="center", va="center", fontsize=size, color=color, parse_math=False, **more)


def marker(index: int) -> str:
    """The marker of a series, so that series differ by more than their color."""
    return "os^DvPX"[index % 7]


def ordered_colors(count: int, look: Theme) -> list[str]:
    """Colors for things that come in an order, such as layers: along viridis, from dark to light."""
    low, high = look.shades
    return [to_hex(colormaps["viridis"](low + (high - low) * i / max(count - 1, 1))) for i in range(count)]
