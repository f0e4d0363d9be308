"""Movies of beliefs forming: one frame per checkpoint, as a GIF and as a page with a slider.

All frames share the *true* beliefs' projection, one area and one layout: only the network moves from frame to frame.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

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
from msp_lens.figures.projections import Beliefs, area_around, arranged, check_drawable, density_image, without_outliers
from msp_lens.figures.simplex import draw_simplex
from msp_lens.figures.style import LONGEST_LINE, THEMES, Picture, plain_text, shortened

DOTS_PER_INCH = 120
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
    """

    frames: UInt8[np.ndarray, "frame row column 3"] = field(repr=False)
    captions: tuple[str, ...]
    title: str = "Movie"

    def __len__(self) -> int:
        return len(self.frames)

    def __eq__(self, other: object) -> bool:
        """Whether both show the same frames under the same captions and title."""
        if not isinstance(other, Movie):
            return NotImplemented
        texts = (self.captions, self.title) == (other.captions, other.title)
        return texts and np.array_equal(self.frames, other.frames)

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
        first, *others = self._images()
        durations = [round(1000 * seconds_per_frame)] * len(others) + [round(1000 * last_frame_seconds)]
        buffer = io.BytesIO()
        # Not optimized: that would merge identical frames, and the durations would no longer fit.
        first.save(buffer, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)
        write_atomically(path, buffer.getvalue())
        return Path(path)

    def _images(self) -> list[Image.Image]:
        """The frames in one palette made from all of them: a third of the size, and colors do not flicker."""
        # A GIF's frame has 256 colors: one is left for the encoder, and one is white, which covers most of a frame.
        n_colors = 254
        pixels = np.concatenate([frame[::2, ::2].reshape(-1, 3) for frame in self.frames])
        inked = pixels[(pixels < 255).any(axis=1)]
        colors = Image.fromarray(inked[None]).quantize(n_colors, method=Image.Quantize.MEDIANCUT)
        entries = [*(colors.getpalette() or ())[: 3 * n_colors], 255, 255, 255]
        palette = Image.new("P", (1, 1))
        palette.putpalette(entries)
        images = []
        for frame in self.frames:
            # Pillow finds near colors by coarse boxes: white may become a light gray.
            indices = np.array(Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE))
            indices[(frame == 255).all(axis=-1)] = n_colors
            image = Image.fromarray(indices)
            image.putpalette(entries)
            images.append(image)
        return images

    def to_html(self) -> str:
        """A self-contained page: the frames, a slider (arrow keys, Home, End), a play button (space bar)."""
        frames = list(zip(self.captions, map(_png, self._images()), strict=True))
        width = self.frames.shape[2] * 96 // DOTS_PER_INCH
        return render_template("msp_lens.figures", "player.html", title=self.title, width=width, frames=frames)

    @checked
    def save_html(self, path: str | Path) -> Path:
        """Write `to_html()` to a file, atomically."""
        write_atomically(path, self.to_html())
        return Path(path)

    def _repr_html_(self) -> str:
        # A frame of its own keeps its script and styles apart from the notebook's.
        _, height, width, _ = self.frames.shape
        return (
            f'<div style="container-type:inline-size;max-width:{width * 96 / DOTS_PER_INCH + 16:.0f}px">'
            f'<iframe title="{html.escape(self.title)}" srcdoc="{html.escape(self.to_html())}" '
            # As high as the frames at this width and the controls.
            f'style="display:block;width:100%;height:calc((100cqw - 16px) * {height / width:.4f} + 70px);border:0">'
            "</iframe></div>"
        )


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
) -> Movie:
    """A movie of represented beliefs, a panel each, next to the true ones; every point in its true belief's color.

    Args as for `plot_beliefs`, but `represented` maps a panel's title to the beliefs read in each frame; `captions` are
    over each frame, and the curves of `progress` beneath, with a mark at the frame.

    Raises:
        ValueError: if there is no frame, a belief is not finite, or panels, captions and curves differ in their number
            of frames.
    """
    curves = progress.curves if progress else {}
    lengths = {name: len(values) for name, values in {**represented, **curves}.items()}
    if not represented or not captions or any(length != len(captions) for length in lengths.values()):
        counts = f"{len(captions)} captions for frames {lengths}"
        raise ValueError(f"{counts}: give at least one frame, and a caption for each.")
    look, true_title = THEMES["light"], "true beliefs"
    shared = arranged({true_title: true}, weights, states, look)
    project, true_points = shared.project, shared.points[true_title]
    for name, frames in represented.items():
        for index, each in enumerate(frames):
            check_drawable(f"{name}, frame {index}", each)
            if each.shape != true.shape:
                shapes = f"{tuple(each.shape)}; the true beliefs are {tuple(true.shape)}"
                raise ValueError(f"{name}, frame {index}: {shapes}: give a row for each.")
    points = {name: [project(beliefs) for beliefs in frames] for name, frames in represented.items()}
    corners = true_points if project.corners is None else project.corners
    # Early frames may spread beyond the simplex: all but the outermost percent of each is shown.
    spread = [without_outliers(each) for frames in points.values() for each in frames]
    x, y = bounds = area_around(torch.cat([corners, *spread]), margin=0.06)

    def image(of: Tensor) -> np.ndarray:
        return density_image(of, shared.colors, shared.weights, bounds)

    # Everything has a fixed place. In inches: a panel's width with its gap, the image in it, the room for the curves.
    panel, side, below = 4.6, 4.4, 1.5 if progress else 0.0
    tall = side * (y[1] - y[0]) / (x[1] - x[0])
    width, height = (len(points) + 1) * panel + 0.5, 0.8 + tall + below
    figure = Picture(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    text = figure.text(0.5, 1 - 0.3 / height, "", ha="center", va="center", fontsize=13)
    firsts = {name: frames[0] for name, frames in points.items()} | {true_title: true_points}
    shown = []
    for index, (name, first) in enumerate(firsts.items()):
        place = ((0.35 + index * panel) / width, below / height, side / width, tall / height)
        axis = figure.add_axes(place)
        axis.set_axis_off()
        shown.append(axis.imshow(image(first), extent=(*x, *y), origin="lower", interpolation="antialiased"))
        draw_simplex(axis, project, shared.states, look)
        axis.set(xlim=x, ylim=y, aspect="equal")
        axis.set_title(name, fontsize=11, color="0.25", pad=4)
    marks = []
    if progress:
        place = (0.95 / width, 0.52 / height, 1 - 1.9 / width, (below - 0.62) / height)
        marks = _draw_curves(figure.add_axes(place), progress)
    plain_text(figure)
    frames = []
    for index, caption in enumerate(captions):
        text.set_text(shortened(caption, LONGEST_LINE))
        for picture, of in zip(shown, points.values(), strict=False):
            picture.set_data(image(of[index]))
        for mark, tokens, heights in marks:
            mark.set_data([tokens[index]], [heights[index]])
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return Movie(np.stack(frames), tuple(captions), title)


def _draw_curves(axis: Axes, progress: Progress) -> list[tuple[Any, np.ndarray, np.ndarray]]:
    """Draw the curves; each one's mark, and the coordinates that it runs along."""
    tokens, marks = np.asarray(progress.tokens, dtype=float), []
    for index, (name, values) in enumerate(progress.curves.items()):
        color, heights = THEMES["light"].color(index), positive(values)
        this = axis if index == 0 else axis.twinx()
        plot_positive(this, progress.tokens, values, color=color, linewidth=1.3, alpha=0.6)
        this.set_ylabel(name, color=color, fontsize=9)
        this.tick_params(axis="y", labelcolor=color, labelsize=8, which="major")
        this.tick_params(axis="y", which="minor", labelleft=False, labelright=False)
        this.spines["top"].set_visible(False)
        if index == 0:
            this.spines["right"].set_visible(len(progress.curves) > 1)
        (mark,) = this.plot([], [], marker="o", markersize=7, color=color, clip_on=False, zorder=5)
        marks.append((mark, tokens, heights))
    axis.set_xlabel(progress.counted, fontsize=9, labelpad=1)
    axis.tick_params(axis="x", labelsize=8)
    scale_tokens(axis, progress.tokens)
    return marks


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
