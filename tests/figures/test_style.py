import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from msp_lens.figures.curves import plot_regret, plot_sites
from msp_lens.figures.style import THEMES, ordered_colors, rendered

BARS = (["a", "b"], [0.5, 0.6], [0.7, 0.8], [0.1, 0.2])


def luminance(color):
    channels = np.array(matplotlib.colors.to_rgb(color))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(first, second):
    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", THEMES)
def test_text_and_series_can_be_seen_on_their_paper(name):
    theme = THEMES[name]
    assert contrast(theme.ink, theme.paper) > 12
    assert contrast(theme.soft, theme.paper) > 4.5
    assert all(contrast(color, theme.paper) > 1.9 for color in theme.palette[:7])
    shades = [luminance(color) for color in ordered_colors(7, theme)]
    assert shades == sorted(shades)


def test_a_theme_colors_paper_text_and_axes_and_no_global_setting():
    before = dict(matplotlib.rcParams)
    figure = plot_sites(*BARS, theme="dark")
    assert dict(matplotlib.rcParams) == before
    dark = THEMES["dark"]
    assert matplotlib.colors.to_hex(figure.get_facecolor()) == dark.paper
    (axis,) = figure.axes
    assert axis.yaxis.label.get_color() == dark.ink
    assert {text.get_color() for text in axis.get_legend().get_texts()} == {dark.ink}
    assert {label.get_color() for label in axis.get_xticklabels()} == {dark.ink}
    with pytest.raises(ValueError, match="theme='sepia': choose one of 'light', 'dark'"):
        plot_sites(*BARS, theme="sepia")


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_figures_are_exported_without_a_browser(kind, tmp_path):
    plot_regret([0.1, 0.2], [1.0, 0.9], theme="dark").savefig(tmp_path / f"figure.{kind}")
    content = (tmp_path / f"figure.{kind}").read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])


@pytest.mark.parametrize("theme", THEMES)
def test_what_is_rendered_is_what_matplotlib_saves(theme, tmp_path):
    figure = plot_sites(*BARS, theme=theme)
    canvas, dots = figure.canvas, figure.dpi
    image = rendered(figure, 90)
    assert (figure.canvas, figure.dpi) == (canvas, dots)
    figure.savefig(tmp_path / "figure.png", dpi=90)
    with Image.open(tmp_path / "figure.png") as saved:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(saved.convert("RGB")))


def test_a_notebook_shows_a_figure_that_pyplot_does_not_know():
    image = Image.open(io.BytesIO(plot_sites(*BARS, theme="dark")._repr_png_()))
    assert image.convert("RGB").getpixel((1, 1)) == (0x14, 0x16, 0x1A)
