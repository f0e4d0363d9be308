import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

import msp_lens as msp
from msp_lens.figures.movie import Movie, Progress, beliefs_movie


@pytest.fixture(scope="module")
def true(mess3):
    return msp.data.all_words(mess3, 4).prefix_beliefs


@pytest.fixture(scope="module")
def movie(true):
    """From a single point to the true beliefs."""
    middle = true.mean(dim=0)
    frames = [middle + share * (true - middle) for share in (0.0, 0.5, 1.0)]
    progress = Progress([0, 100, 10_000], {"MSE": [0.1, 0.01, 0.001], "regret": [0.4, 0.1, 0.0]})
    captions = ["step 0", "step 1 & <more>", "step 100"]
    return beliefs_movie(true, {"a site": frames}, captions, states=("A", "B", "C"), progress=progress)


def panels(movie):
    """The true and the represented panel's pixels without the curves beneath and the captions above."""
    _, height, width, _ = movie.frames.shape
    inner = movie.frames[:, int(0.18 * height) : int(0.7 * height)]
    return inner[:, :, : width // 2], inner[:, :, width // 2 :]


def test_only_the_represented_beliefs_move(movie):
    true, represented = panels(movie)
    assert (true[0] == true[1]).all()
    assert (true[0] == true[2]).all()
    assert (represented[0] != represented[1]).any()
    assert (represented[1] != represented[2]).any()


def test_a_perfect_frame_looks_like_the_true_beliefs(movie):
    true, represented = panels(movie)

    def ink(pixels):
        return (pixels < 250).any(axis=-1).sum()

    assert ink(represented[2]) == pytest.approx(ink(true[2]), rel=0.05)
    # All beliefs in one point leave little but the triangle.
    assert ink(represented[0]) < 0.7 * ink(represented[2])


def test_more_states_share_the_true_beliefs_projection():
    beliefs = msp.data.all_words(msp.rrxor(), 5).prefix_beliefs
    shrunk = beliefs.mean(dim=0) + 0.5 * (beliefs - beliefs.mean(dim=0))
    movie = beliefs_movie(beliefs, {"x": [shrunk, beliefs], "y": [beliefs, shrunk]}, ["one", "two"])
    width = movie.frames.shape[2]
    true, x, y = (movie.frames[:, 100:-5, int(width * k / 3) + 30 : int(width * (k + 1) / 3) - 30] for k in range(3))
    assert (x[0] != x[1]).any()
    assert (true[0] == true[1]).all()
    # The same beliefs lie in the same place, in whichever frame.
    n = min(x.shape[2], y.shape[2])
    assert (x[1, :, :n] != y[0, :, :n]).any(axis=-1).mean() < 0.02


def test_a_gif_repeats_its_frames(movie, tmp_path):
    path = movie.save_gif(tmp_path / "movie.gif", seconds_per_frame=0.5, last_frame_seconds=2)
    with Image.open(path) as image:
        assert image.n_frames == 3
        assert image.info["loop"] == 0
        durations = []
        for index in range(3):
            image.seek(index)
            durations.append(image.info["duration"])
            shown = np.asarray(image.convert("RGB")).astype(int)
            assert np.abs(shown - movie.frames[index]).mean() < 1
            assert (shown[0, 0] == 255).all()
    assert durations == [500, 500, 2000]
    with pytest.raises(ValueError, match="seconds_per_frame=0"):
        movie.save_gif(path, seconds_per_frame=0)


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def named(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def decoded(url):
    content = base64.b64decode(url.removeprefix("data:image/webp;base64,"))
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def test_a_movie_of_both_themes_follows_the_reader(true):
    frames = {"a site": [true, true.flip(0)]}
    both = beliefs_movie(true, frames, ["one", "two"], theme="both")
    light, dark = (beliefs_movie(true, frames, ["one", "two"], theme=theme) for theme in ("light", "dark"))
    assert (both.frames == light.frames).all()
    assert (both.dark_frames == dark.frames).all()
    assert both != light
    assert (light.frames[:, 0, 0] == 255).all()
    assert (dark.frames[:, 0, 0] < 40).all()
    page = Page()
    page.feed(both.to_html())
    sources = page.named("source")
    assert [source["media"] for source in sources] == ["(prefers-color-scheme: dark)"] * 2
    for source, frame in zip(sources, dark.frames, strict=True):
        assert np.abs(decoded(source["srcset"]) - frame).mean() < 2
    assert "source" not in light.to_html()


def test_the_page_stands_alone_and_takes_the_keyboard(movie, tmp_path):
    path = movie.save_html(tmp_path / "movie.html")
    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    images = page.named("img")
    assert [image["alt"] for image in images] == list(movie.captions)
    assert ["hidden" in picture for picture in page.named("picture")] == [True, True, False]
    for image, frame in zip(images, movie.frames, strict=True):
        assert np.abs(decoded(image["src"]) - frame).mean() < 2
    (slider,) = page.named("input")
    assert (slider["type"], slider["max"], slider["aria-label"]) == ("range", "2", "Checkpoint")
    assert len(page.named("button")) == 1
    assert not re.findall(r'(?:src|href)="(?!data:)', text), "the page fetches something"
    assert not re.search(r"\{\{|\{%", text), "a placeholder is left"


def test_in_a_notebook_it_is_a_page_in_a_frame_of_its_own(movie):
    page = Page()
    page.feed(movie._repr_html_())
    (frame,) = page.named("iframe")
    assert frame["srcdoc"] == movie.to_html()
    assert [name for name, _ in page.tags] == ["div", "iframe"]
    assert "3 frames" in repr(movie)


def test_bad_requests(true):
    with pytest.raises(ValueError, match=r"2 captions for frames \{'x': 1\}"):
        beliefs_movie(true, {"x": [true]}, ["one", "two"])
    with pytest.raises(ValueError, match="0 captions"):
        beliefs_movie(true, {}, [])
    assert isinstance(beliefs_movie(true, {"x": [true.float()]}, ["one"]), Movie)
    assert torch.is_tensor(true)
