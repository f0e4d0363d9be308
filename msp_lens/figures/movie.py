"""Movies of beliefs forming: one frame per checkpoint, as a GIF and as a page with a slider.

All frames share the *true* beliefs' projection, one area and one layout: only the network moves from frame to frame.
"""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from torch import Tensor

from msp_lens._checks import Between, checked
from msp_lens._files import write_atomically
from msp_lens._templates import render_template
from msp_lens.figures.formation_curves import plot_positive, positive, scale_tokens
from msp_lens.figures.projections import (
    Beliefs,
    Panels,
    area_around,
    arranged,
    check_drawable,
    density_image,
    without_outliers,
)
from msp_lens.figures.simplex import draw_simplex
from msp_lens.figures.style import LONGEST_LINE, THEMES, Picture, Theme, ThemeName, data_url, plain_text, shortened

# Drawn small and shown large, so that text can be read on a phone: pixels of the frames and of the page, to the inch.
DOTS_PER_INCH, SHOWN_PER_INCH = 190, 140
TRUE = "true beliefs"
Seconds = Annotated[float, Between(0.01, 600)]


@dataclass(frozen=True)
class Progress:
    """Curves beneath a movie, with a mark that runs along them.

    Attributes:
        tokens: Tokens seen at each frame.
        curves: Name to value at each frame, each on a logarithmic axis of its own; two at most.
        counted: What `tokens` are, if they are something else, such as steps.
    """

    tokens: Sequence[int]
    curves: Mapping[str, Sequence[float]]
    counted: str = "tokens seen"


@dataclass(frozen=True, eq=False)
class Movie:
    """Frames of one size with a caption each. A notebook shows it with a slider.

    Attributes:
        frames: `[frame, row, column, 3]`, red, green and blue.
        captions: What each frame shows.
        title: Of the movie.
        dark_frames: The same frames for dark pages, if they were drawn: the page then follows the reader's scheme.
        theme: Of `frames`.
    """

    frames: UInt8[np.ndarray, "frame row column 3"] = field(repr=False)
    captions: tuple[str, ...]
    title: str = "Movie"
    dark_frames: UInt8[np.ndarray, "frame row column 3"] | None = field(default=None, repr=False)
    theme: ThemeName = "light"

    def __len__(self) -> int:
        return len(self.frames)

    def __eq__(self, other: object) -> bool:
        """Whether both show the same frames under the same captions and title."""
        if not isinstance(other, Movie):
            return NotImplemented
        texts = (self.captions, self.title) == (other.captions, other.title)
        ours, theirs = self.dark_frames, other.dark_frames
        is_dark_alike = ours is theirs or (ours is not None and theirs is not None and np.array_equal(ours, theirs))
        return texts and is_dark_alike and np.array_equal(self.frames, other.frames)

    def __repr__(self) -> str:
        _, height, width, _ = self.frames.shape
        ends = f"{self.captions[0]} … {self.captions[-1]}"
        return f"Movie({self.title}: {len(self)} frames of {width} × {height}, {ends})"

    @checked
    def save_gif(
        self, path: str | Path, *, seconds_per_frame: Seconds = 0.6, last_frame_seconds: Seconds = 3.0
    ) -> Path:
        """Write an animated GIF that loops, atomically.

        Args:
            path: The file.
            seconds_per_frame: How long each frame is shown.
            last_frame_seconds: How long the last one is shown.

        Raises:
            ValueError: if a time is shorter than a GIF can show, or longer than ten minutes.
        """
        first, *others = _images(self.frames)
        durations = [round(1000 * seconds_per_frame)] * len(others) + [round(1000 * last_frame_seconds)]
        buffer = io.BytesIO()
        # Not optimized: that would merge identical frames, and the durations would no longer fit.
        first.save(buffer, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)
        write_atomically(path, buffer.getvalue())
        return Path(path)

    def to_html(self) -> str:
        """A self-contained page: the frames, a slider (arrow keys, Home, End), a play button (space bar)."""
        shown = list(map(_data_url, self.frames))
        dark = [None] * len(self) if self.dark_frames is None else list(map(_data_url, self.dark_frames))
        width = self.frames.shape[2] * SHOWN_PER_INCH // DOTS_PER_INCH
        schemes = [self.theme] if self.dark_frames is None else ["light", "dark"]
        colors = {"light": THEMES["light"], "dark": THEMES["dark"]}
        return render_template(
            "msp_lens.figures",
            "player.html",
            title=self.title,
            width=width,
            frames=list(zip(self.captions, shown, dark, strict=True)),
            schemes=schemes,
            colors=colors,
        )

    @checked
    def save_html(self, path: str | Path) -> Path:
        """Write `to_html()` to a file, atomically."""
        write_atomically(path, self.to_html())
        return Path(path)

    def _repr_html_(self) -> str:
        # A frame of its own keeps its script and styles apart from the notebook's.
        _, height, width, _ = self.frames.shape
        return (
            f'<div style="container-type:inline-size;max-width:{width * SHOWN_PER_INCH / DOTS_PER_INCH + 16:.0f}px">'
            f'<iframe title="{html.escape(self.title)}" srcdoc="{html.escape(self.to_html())}" '
            # As high as the frames at this width and the controls.
            f'style="display:block;width:100%;height:calc((100cqw - 16px) * {height / width:.4f} + 70px);border:0">'
            "</iframe></div>"
        )


def _images(frames: UInt8[np.ndarray, "frame row column 3"]) -> list[Image.Image]:
    """The frames in one palette made from all of them: a third of the size, and colors do not flicker."""
    # A GIF's frame has 256 colors: one is left for the encoder, and one is the paper's, which covers most of a frame.
    n_colors, paper = 254, frames[0, 0, 0]
    pixels = np.concatenate([frame[::2, ::2].reshape(-1, 3) for frame in frames])
    inked = pixels[(pixels != paper).any(axis=1)]
    colors = Image.fromarray(inked[None]).quantize(n_colors, method=Image.Quantize.MEDIANCUT)
    entries = [*(colors.getpalette() or ())[: 3 * n_colors], *paper.tolist()]
    palette = Image.new("P", (1, 1))
    palette.putpalette(entries)
    images = []
    for frame in frames:
        # Pillow finds near colors by coarse boxes: white may become a light gray.
        indices = np.array(Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE))
        indices[(frame == paper).all(axis=-1)] = n_colors
        image = Image.fromarray(indices)
        image.putpalette(entries)
        images.append(image)
    return images


def _data_url(frame: UInt8[np.ndarray, "row column 3"]) -> str:
    return data_url(Image.fromarray(frame), quality=85)


@checked
def beliefs_movie(
    true: Beliefs,
    represented: Mapping[str, Sequence[Beliefs]],
    captions: Sequence[str],
    *,
    weights: Float[Tensor, "prefix"] | None = None,
    states: Sequence[str] | None = None,
    progress: Progress | None = None,
    title: str = "Beliefs forming",
    theme: ThemeName | Literal["both"] = "light",
) -> Movie:
    """A movie of represented beliefs, a panel each, beside the true ones; every point in its true belief's color.

    The true beliefs stand on the left, as in `plot_beliefs`, and so do its arguments; but `represented` maps a panel's
    title to the beliefs read in each frame; `captions` are over each frame, and the curves of `progress` beneath, with
    a mark at the frame. With `theme="both"`, a page shows light or dark frames, as its reader's screen asks for.

    Raises:
        ValueError: if there is no frame, a belief is not finite, or panels, captions and curves differ in their number
            of frames.
    """
    curves = progress.curves if progress else {}
    lengths = {name: len(values) for name, values in {**represented, **curves}.items()}
    if not represented or not captions or any(length != len(captions) for length in lengths.values()):
        counts = f"{len(captions)} captions for frames {lengths}"
        raise ValueError(f"{counts}: give at least one frame, and a caption for each.")
    for name, frames in represented.items():
        for index, each in enumerate(frames):
            check_drawable(f"{name}, frame {index}", each)
            if each.shape != true.shape:
                shapes = f"{tuple(each.shape)}; the true beliefs are {tuple(true.shape)}"
                raise ValueError(f"{name}, frame {index}: {shapes}: give a row for each.")
    themes: tuple[ThemeName, ...] = ("light", "dark") if theme == "both" else (theme,)
    drawn = [
        _frames(arranged({TRUE: true}, weights, states, THEMES[each]), represented, captions, progress, each)
        for each in themes
    ]
    return Movie(drawn[0], tuple(captions), title, drawn[1] if theme == "both" else None, themes[0])


def _frames(
    shared: Panels,
    represented: Mapping[str, Sequence[Beliefs]],
    captions: Sequence[str],
    progress: Progress | None,
    theme: ThemeName,
) -> UInt8[np.ndarray, "frame row column 3"]:
    """The frames in one theme."""
    look, project, true_points = THEMES[theme], shared.project, shared.points[TRUE]
    points = {name: [project(beliefs) for beliefs in frames] for name, frames in represented.items()}
    corners = true_points if project.corners is None else project.corners
    # Early frames may spread beyond the simplex: all but the outermost percent of each is shown.
    spread = [without_outliers(each) for frames in points.values() for each in frames]
    x, y = bounds = area_around(torch.cat([corners, *spread]), margin=0.06)

    def image(of: Tensor) -> np.ndarray:
        return density_image(of, shared.colors, shared.weights, bounds)

    # Everything has a fixed place. In inches: a panel's width with its gap, the image in it, the room for the curves.
    panel, side, below = 2.95, 2.8, 1.4 if progress else 0.0
    tall = side * (y[1] - y[0]) / (x[1] - x[0])
    width, height = (len(points) + 1) * panel + 0.4, 0.75 + tall + below
    figure = Picture(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor=look.paper)
    canvas = FigureCanvasAgg(figure)
    text = figure.text(0.5, 1 - 0.3 / height, "", ha="center", va="center", fontsize=12, color=look.ink)
    firsts = {TRUE: true_points} | {name: frames[0] for name, frames in points.items()}
    shown = []
    for index, (name, first) in enumerate(firsts.items()):
        place = ((0.28 + index * panel) / width, below / height, side / width, tall / height)
        axis = figure.add_axes(place)
        axis.set_axis_off()
        shown.append(axis.imshow(image(first), extent=(*x, *y), origin="lower", interpolation="antialiased"))
        draw_simplex(axis, project, shared.states, look)
        axis.set(xlim=x, ylim=y, aspect="equal")
        axis.set_title(name, fontsize=11, color=look.soft, pad=4)
    marks = []
    if progress:
        place = (0.8 / width, 0.52 / height, 1 - 1.6 / width, (below - 0.68) / height)
        marks = _draw_curves(figure.add_axes(place), progress, look)
    plain_text(figure)
    frames = []
    for index, caption in enumerate(captions):
        text.set_text(shortened(caption, LONGEST_LINE))
        for picture, of in zip(shown[1:], points.values(), strict=True):
            picture.set_data(image(of[index]))
        for mark, tokens, heights in marks:
            mark.set_data([tokens[index]], [heights[index]])
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return np.stack(frames)


def _draw_curves(axis: Axes, progress: Progress, look: Theme) -> list[tuple[Any, np.ndarray, np.ndarray]]:
    """Draw the curves; each one's mark, and the coordinates that it runs along."""
    tokens, marks = np.asarray(progress.tokens, dtype=float), []
    for index, (name, values) in enumerate(progress.curves.items()):
        color, heights = look.color(index), positive(values)
        this = axis if index == 0 else axis.twinx()
        plot_positive(this, progress.tokens, values, color=color, linewidth=1.3, alpha=0.6)
        this.set_facecolor("none")
        this.set_ylabel(name, color=color, fontsize=9.5)
        this.tick_params(which="both", colors=look.soft)
        this.tick_params(axis="y", labelcolor=color, labelsize=9, which="major")
        this.tick_params(axis="y", which="minor", labelleft=False, labelright=False)
        this.spines["top"].set_visible(False)
        for spine in this.spines.values():
            spine.set_edgecolor(look.soft)
        if index == 0:
            this.spines["right"].set_visible(len(progress.curves) > 1)
        (mark,) = this.plot([], [], marker="o", markersize=7, color=color, clip_on=False, zorder=5)
        marks.append((mark, tokens, heights))
    axis.set_xlabel(progress.counted, fontsize=9.5, labelpad=1, color=look.ink)
    axis.tick_params(axis="x", labelsize=9, labelcolor=look.ink)
    scale_tokens(axis, progress.tokens)
    return marks
