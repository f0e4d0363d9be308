"""How all figures look: a light and a dark theme in Okabe & Ito's colors, which all kinds of color vision tell apart.

Nothing here touches matplotlib's global settings.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, LogFormatter, ScalarFormatter
from matplotlib.transforms import ScaledTranslation
from PIL import Image

from msp_lens._checks import shown

ThemeName = Literal["light", "dark"]
# Numbers in order, such as a curve's heights, with NaN where there is none; and curves by name. `drawable` checks them.
Values = Sequence[float | Any]
Curves = Mapping[str, Values]
# In characters, of titles and of other names; longer ones would leave no room for the figure itself.
LONGEST_LINE, LONGEST_NAME = 120, 40
# A larger number overflows where matplotlib squares it or takes it to another scale.
LARGEST = 1e100
# Width in inches of figures for phones, whose screens show them a little smaller.
PHONE_WIDTH = 4.4
_IS_FOR_PHONES: ContextVar[bool] = ContextVar("is_for_phones", default=False)


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


@contextmanager
def _as_well_as_can_be() -> Iterator[None]:
    """Draw what can't be drawn well without a warning."""
    with warnings.catch_warnings():
        for message in (r"Glyph \d+ .* missing from", "constrained_layout not applied"):
            warnings.filterwarnings("ignore", message=message, category=UserWarning)
        yield


class Picture(Figure):
    """A matplotlib figure that a notebook shows as a picture, whether or not pyplot was imported.

    A name that is too long for the figure, or has letters which the font lacks, is drawn as well as it can be, without
    a warning.
    """

    def draw(self, renderer: Any) -> None:
        """Draw everything; for SVG and PDF the renderer is a stand-in for matplotlib's own class."""
        with _as_well_as_can_be():
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        """In 256 colors: a third of the bytes, in every notebook that keeps it."""
        small = io.BytesIO()
        rendered(self, 120).quantize(256).save(small, format="PNG")
        return small.getvalue()


def rendered(figure: Figure, dots_per_inch: float) -> Image.Image:
    """The figure as an image, laid out and drawn once; `savefig` would lay it out twice."""
    canvas, dots_before = figure.canvas, figure.dpi
    try:
        figure.set_dpi(dots_per_inch)
        drawn = FigureCanvasAgg(figure)
        drawn.draw()
        return Image.fromarray(np.asarray(drawn.buffer_rgba())[..., :3])
    finally:
        figure.set_canvas(canvas)
        figure.set_dpi(dots_before)


def data_url(image: Image.Image, *, quality: int) -> str:
    """The image in WebP, a third of what PNG takes, as a URL that holds it."""
    buffer = io.BytesIO()
    # Method 2 is twice as fast as the default, for a hundredth more bytes.
    image.save(buffer, format="WEBP", quality=quality, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


@contextmanager
def for_phones() -> Iterator[None]:
    """Figures made within are as narrow as a phone's screen: panels, and legends, stand one below the other."""
    token = _IS_FOR_PHONES.set(True)
    try:
        yield
    finally:
        _IS_FOR_PHONES.reset(token)


def is_for_phones() -> bool:
    """Whether figures are being made for phones."""
    return _IS_FOR_PHONES.get()


def new_figure(
    width: float, height: float, theme: str, *, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Picture, list[Axes], Theme]:
    """An empty figure of that size in inches, its axes row by row, and its theme; options are those of `subplots`.

    For phones, panels that would stand in one row stand in one column.
    """
    look = THEMES[theme]
    if is_for_phones():
        width = min(width, PHONE_WIDTH)
        if rows == 1 and columns > 1:
            rows, columns, height = columns, 1, 0.9 * height * columns
            options = {key: value for key, value in options.items() if key not in ("width_ratios", "gridspec_kw")}
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08)
    figure = Picture(figsize=(width, height), layout=layout, facecolor=look.paper)
    return figure, figure.subplots(rows, columns, squeeze=False, **options).flatten().tolist(), look


def finished(figure: Picture, look: Theme) -> Picture:
    """The figure without spare spines, its axes in the theme's colors, and its text too unless colored already.

    All names in it stand for themselves (`plain_text`).
    """
    for axis in figure.axes:
        axis.set_facecolor("none")
        axis.tick_params(which="both", colors=look.soft, labelcolor=look.ink)
        axis.spines[["top", "right"]].set_visible(False)
        for spine in axis.spines.values():
            spine.set_edgecolor(look.soft)
    plain_text(figure)
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_color() == "black":
            text.set_color(look.ink)
    return figure


def plain_text(figure: Figure) -> None:
    r"""Let every text stand for itself: `$`, `_`, `^` and `\` in a name are neither mathematics nor TeX.

    Only numbers along an axis, which matplotlib writes itself, are left to it. Lines too long for any figure are cut.
    """
    axes = [each for axis in figure.axes for each in (axis.xaxis, axis.yaxis)]
    numbers, names = {id(each.offsetText) for each in axes}, set()
    for each in axes:
        ticks = [*each.get_major_ticks(), *each.get_minor_ticks()]
        labels = {id(label) for tick in ticks for label in (tick.label1, tick.label2)}
        is_of_numbers = isinstance(each.get_major_formatter(), EngFormatter | LogFormatter | ScalarFormatter)
        (numbers if is_of_numbers else names).update(labels)
    for legend in filter(None, (axis.get_legend() for axis in figure.axes)):
        names |= set(map(id, legend.get_texts()))
    for text in figure.findobj(Text):
        if isinstance(text, Text) and id(text) not in numbers:
            text.set(parse_math=False, usetex=False)
            text.set_text(shortened(text.get_text(), LONGEST_NAME if id(text) in names else LONGEST_LINE))


def shortened(text: str, most: int) -> str:
    """The text with an ellipsis in the middle of every line longer than `most` characters.

    Example:
        >>> shortened("a very long name", 9)
        'a ve…name'
    """
    half = most // 2
    lines = (line if len(line) <= most else f"{line[:half]}…{line[half + 1 - most :]}" for line in text.split("\n"))
    return "\n".join(lines)


def drawable(values: Values | np.ndarray) -> np.ndarray:
    """The values as numbers, with NaN, which leaves a gap, for those that no axis has a place for.

    `TypeError` if they are no numbers.
    """
    try:
        numbers = np.array(values, dtype=float)
    except (TypeError, ValueError):
        raise TypeError(f"{shown(values)}: give numbers, with NaN where there is none.") from None
    return np.where(np.abs(numbers) < LARGEST, numbers, np.nan)


def one_for_each(**values: Sized) -> None:
    """Raise `ValueError` unless there is at least one of each of these, and as many of one as of another."""
    (first, given), *others = values.items()
    if len(given) == 0:
        raise ValueError(f"{first}=[]: give at least one, there is nothing to draw.")
    for name, other in others:
        if len(other) != len(given):
            raise ValueError(f"{first} has {len(given)} entries and {name} {len(other)}: give one for each.")


def draw_curve(axis: Axes, places: Values | np.ndarray, heights: np.ndarray, **style: Any) -> None:
    """Draw a line with gaps at NaN, and a dot for a point that no line reaches."""
    known = np.concatenate([[False], np.isfinite(heights), [False]])
    alone = np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:])
    axis.plot(places, heights, **({"marker": "o", "markersize": 4, "markevery": alone.tolist()} | style))


def say_if_empty(axis: Axes, *values: Values | np.ndarray) -> None:
    """Write into the axes that they show nothing, if none of the values is finite."""
    if not any(np.isfinite(np.asarray(each, dtype=float)).any() for each in values):
        axis.text(0.5, 0.5, "no finite values", ha="center", va="center", transform=axis.transAxes)


def series_label(name: str) -> str:
    """The name as a label for a legend, which would omit one that is empty or begins with an underscore."""
    return name if name and not name.startswith("_") else f"\u200a{name}"


def legend_beside(axis: Axes, handles: Sequence[Any] = (), labels: Sequence[str] = ()) -> None:
    """A legend beside the axes, or below them for phones, where it hides nothing; by default of all labeled artists."""
    given = (handles, labels) if handles else axis.get_legend_handles_labels()
    if not is_for_phones():
        axis.legend(*given, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        return
    figure = axis.get_figure(root=True)
    assert figure is not None
    # It is drawn before it is finished.
    plain_text(figure)
    with _as_well_as_can_be():
        figure.draw_without_rendering()
        around = axis.get_tightbbox()
    assert around is not None
    # Just below the names of the axis, whatever the layout makes of its height.
    below = (around.y0 - axis.get_window_extent().y0) / figure.dpi - 0.04
    place = axis.transAxes + ScaledTranslation(0, below, figure.dpi_scale_trans)
    columns = 1 if max(map(len, given[1]), default=0) > 24 else 2
    options: Any = {"loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": place, "borderaxespad": 0}
    axis.legend(*given, frameon=False, ncols=columns, fontsize=9, **options)


def name_places(axis: Axes, places: Values | np.ndarray, names: Sequence[str], *, width: float) -> None:
    """Put names along the axis, turned if they would not fit side by side into `width` inches."""
    is_tight = (max(map(len, names)) + 1) * len(names) > 11 * width
    turn: Any = (
        {"rotation": 40 if is_for_phones() else 25, "ha": "right", "rotation_mode": "anchor"} if is_tight else {}
    )
    axis.set_xticks(places, names, **turn)


def write_centered(axis: Axes, place: tuple[float, float], text: str, *, size: float, color: str, **more: Any) -> None:
    """Write text centered at a place."""
    axis.text(*place, text, ha="center", va="center", fontsize=size, color=color, **more)


def marker(index: int) -> str:
    """The marker of a series, so that series differ by more than their color."""
    return "os^DvPX"[index % 7]


def ordered_colors(count: int, look: Theme) -> list[str]:
    """Colors for things that come in an order, such as layers: along viridis, from dark to light."""
    low, high = look.shades
    return [to_hex(colormaps["viridis"](low + (high - low) * i / max(count - 1, 1))) for i in range(count)]
