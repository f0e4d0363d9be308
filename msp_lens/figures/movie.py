"""Movies of beliefs forming: one frame per checkpoint, as a GIF and as a page with a slider.

All frames share one projection, one area and one layout, taken from the *true* beliefs, so that nothing but the network
moves between two frames.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from msp_lens._files import write_atomically
from msp_lens._templates import render_template
from msp_lens.figures.formation_curves import positive, scale_tokens
from msp_lens.figures.projections import area_around, arranged, density_image, without_outliers
from msp_lens.figures.simplex import draw_simplex
from msp_lens.figures.style import THEMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 120


@dataclass(frozen=True)
class Progress:
    """Curves beneath a movie, with a mark that runs along them.

    Attributes:
        tokens: Tokens seen at each frame.
        curves: Name to value at each frame, drawn on logarithmic axes of their own; two at most.
    """

    tokens: Sequence[int]
    curves: Mapping[str, Sequence[float]]


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

    def __repr__(self) -> str:
        _, height, width, _ = self.frames.shape
        return (
            f"Movie({self.title}: {len(self)} frames of {width} × {height}, {self.captions[0]} … {self.captions[-1]})"
        )

    def save_gif(self, path: str | Path, *, seconds_per_frame: float = 0.6, last_frame_seconds: float = 3.0) -> Path:
        """Write an animated GIF that loops, atomically.

        Args:
            path: The file.
            seconds_per_frame: How long each frame is shown.
            last_frame_seconds: How long the last one is shown.

        Raises:
            ValueError: if a time is not positive.
        """
        if not (seconds_per_frame > 0 and last_frame_seconds > 0):
            raise ValueError(
                f"seconds_per_frame={seconds_per_frame}, last_frame_seconds={last_frame_seconds}: each must be > 0."
            )
        first, *others = self._images()
        durations = [round(1000 * seconds_per_frame)] * len(others) + [round(1000 * last_frame_seconds)]
        buffer = io.BytesIO()
        # Not optimized: that would merge identical frames, and the durations would no longer fit.
        first.save(buffer, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)
        write_atomically(path, buffer.getvalue())
        return Path(path)

    def _images(self) -> list[Image.Image]:
        """The frames in one palette made from all of them: a third of the size, and colors do not flicker."""
        # A GIF's frame has 256 colors; one is left for the encoder, and one is white.
        n_colors = 254
        pixels = np.concatenate([frame[::2, ::2].reshape(-1, 3) for frame in self.frames])
        # White covers most of a frame and must stay white: it has a color of its own and does not affect the others.
        inked = pixels[(pixels < 255).any(axis=1)]
        colors = Image.fromarray(inked[None]).quantize(n_colors, method=Image.Quantize.MEDIANCUT)
        entries = [*(colors.getpalette() or ())[: 3 * n_colors], 255, 255, 255]
        palette = Image.new("P", (1, 1))
        palette.putpalette(entries)
        images = []
        for frame in self.frames:
            # Pillow finds near colors by coarse boxes, so that white may become a light gray.
            indices = np.array(Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE))
            indices[(frame == 255).all(axis=-1)] = n_colors
            image = Image.fromarray(indices)
            image.putpalette(entries)
            images.append(image)
        return images

    def to_html(self) -> str:
        """A self-contained page: the frames, a slider, a play button.

        The slider takes the arrow keys, Home and End; the space bar presses the button. It does not play by itself.
        """
        frames = list(zip(self.captions, map(_png, self._images()), strict=True))
        width = self.frames.shape[2] * 96 // DOTS_PER_INCH
        return render_template("msp_lens.figures", "player.html", title=self.title, width=width, frames=frames)

    def save_html(self, path: str | Path) -> Path:
        """Write `to_html()` to a file, atomically."""
        write_atomically(path, self.to_html())
        return Path(path)

    def _repr_html_(self) -> str:
        # A frame of its own keeps its script and styles apart from the notebook's.
        _, height, width, _ = self.frames.shape
        return (
            f'<div style="container-type:inline-size;max-width:{width * 96 / DOTS_PER_INCH + 16:.0f}px">'
            f'<iframe title="{html.escape(self.title, quote=True)}" srcdoc="{html.escape(self.to_html(), quote=True)}" '
            # As high as the frames are at this width, and the controls.
            f'style="display:block;width:100%;height:calc((100cqw - 16px) * {height / width:.4f} + 70px);border:0">'
            "</iframe></div>"
        )


def beliefs_movie(
    true: Float[Tensor, "prefix state"],
    represented: Mapping[str, Sequence[Float[Tensor, "prefix state"]]],
    captions: Sequence[str],
    *,
    weights: Float[Tensor, "prefix"] | None = None,
    states: Sequence[str] | None = None,
    progress: Progress | None = None,
    title: str = "Beliefs forming",
) -> Movie:
    """A movie of represented beliefs, a panel each, next to the true ones; every point in its true belief's color.

    Args:
        true: The optimal observer's beliefs.
        represented: Panel title to the beliefs read in each frame, row by row those of `true`.
        captions: Over each frame.
        weights: How much each row counts where rows share a grid cell; all alike by default.
        states: Names of the states, for the corners.
        progress: Curves to draw beneath, with a mark at the frame.
        title: Of the movie.

    Raises:
        ValueError: if there is no frame, or panels, captions and curves differ in their number of frames.
    """
    series = {**represented, **(progress.curves if progress else {})}
    lengths = {name: len(values) for name, values in series.items()}
    if not represented or not captions or any(length != len(captions) for length in lengths.values()):
        raise ValueError(
            f"{len(captions)} captions for frames {lengths}: give at least one frame, and a caption for each."
        )
    look, true_title = THEMES["light"], "true beliefs"
    shared = arranged({true_title: true}, weights, states, look)
    project = shared.project
    points = {name: [project(beliefs) for beliefs in frames] for name, frames in represented.items()}
    true_points = shared.points[true_title]
    corners = true_points if project.corners is None else project.corners
    # Early frames may spread beyond the simplex: there is room for all but the outermost percent of each.
    spread = [without_outliers(each) for frames in points.values() for each in frames]
    bounds = area_around(torch.cat([corners, *spread]), margin=0.06)

    def image(of: Tensor) -> np.ndarray:
        return density_image(of, shared.colors, shared.weights, bounds)

    (left, right), (bottom, top) = bounds
    stage = _Stage(len(points) + 1, (top - bottom) / (right - left), progress)
    firsts = {name: frames[0] for name, frames in points.items()} | {true_title: true_points}
    shown = []
    for axis, (name, first) in zip(stage.panels, firsts.items(), strict=True):
        extent = (left, right, bottom, top)
        shown.append(axis.imshow(image(first), extent=extent, origin="lower", interpolation="antialiased"))
        draw_simplex(axis, project, shared.states, look)
        axis.set(xlim=bounds[0], ylim=bounds[1], aspect="equal")
        axis.set_title(name, fontsize=11, color="0.25", pad=4)
    frames = []
    for index, caption in enumerate(captions):
        for picture, of in zip(shown, points.values(), strict=False):
            picture.set_data(image(of[index]))
        frames.append(stage.render(index, caption))
    return Movie(np.stack(frames), tuple(captions), title)


class _Stage:
    """The figure that all frames are drawn on: everything has a fixed place, so that nothing shifts between frames."""

    def __init__(self, n_panels: int, aspect: float, progress: Progress | None) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        # Inches: a panel's width with its gap, the image in it, and the room for the curves.
        panel, side, below = 4.6, 4.4, 1.5 if progress else 0.0
        width, height = n_panels * panel + 0.5, 0.8 + side * aspect + below
        self.figure: Figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)
        self.caption = self.figure.text(0.5, 1 - 0.3 / height, "", ha="center", va="center", fontsize=13)
        self.panels: list[Axes] = []
        for index in range(n_panels):
            left = (0.35 + index * panel) / width
            axis = self.figure.add_axes((left, below / height, side / width, side * aspect / height))
            axis.set_axis_off()
            self.panels.append(axis)
        # Each mark with the curve that it runs along.
        self.marks: list[tuple[Any, np.ndarray, np.ndarray]] = []
        if progress:
            box = (0.95 / width, 0.52 / height, 1 - 1.9 / width, (below - 0.62) / height)
            self._draw_curves(self.figure.add_axes(box), progress)

    def _draw_curves(self, axis: Axes, progress: Progress) -> None:
        tokens = np.asarray(progress.tokens, dtype=float)
        for index, (name, values) in enumerate(progress.curves.items()):
            color = THEMES["light"].color(index)
            this = axis if index == 0 else axis.twinx()
            heights = positive(values)
            this.plot(tokens, heights, color=color, linewidth=1.3, alpha=0.6)
            if np.isfinite(heights).any():
                this.set_yscale("log")
            this.set_ylabel(name, color=color, fontsize=9)
            this.tick_params(axis="y", labelcolor=color, labelsize=8, which="major")
            this.tick_params(axis="y", which="minor", labelleft=False, labelright=False)
            this.spines["top"].set_visible(False)
            if index == 0:
                this.spines["right"].set_visible(len(progress.curves) > 1)
            (mark,) = this.plot([], [], marker="o", markersize=7, color=color, clip_on=False, zorder=5)
            self.marks.append((mark, tokens, heights))
        axis.set_xlabel("tokens seen", fontsize=9, labelpad=1)
        axis.tick_params(axis="x", labelsize=8)
        scale_tokens(axis, progress.tokens)

    def render(self, index: int, caption: str) -> UInt8[np.ndarray, "row column 3"]:
        """The frame as pixels."""
        self.caption.set_text(caption)
        for mark, tokens, heights in self.marks:
            mark.set_data([tokens[index]], [heights[index]])
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
