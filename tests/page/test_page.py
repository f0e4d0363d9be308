"""The page of a run as a reader meets it: in a browser, from disk, without a network."""

import functools
import shutil

import pytest

import msp_lens as msp
from msp_lens.experiments import infer_run
from msp_lens.experiments import study as studies
from msp_lens.training import PRESETS, Recipe
from tests.page.browsing import DESKTOP, PHONE, contrast, luminance


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A whole run in seconds: a small network, few steps, some checkpoints."""

    def small(process):
        model = msp.ModelConfig(d_vocab=process.n_tokens, n_layers=2, d_model=16, d_head=8, d_mlp=32, n_ctx=4)
        return Recipe(model, msp.TrainingConfig(steps=60, batch_size=64, learning_rate=1e-2, warmup_steps=10))

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(PRESETS, "small", small)
        patched.setattr(studies, "CHECKPOINTS", 4)
        few = {name: functools.partial(experiment, n_words=100) for name, experiment in studies.EXPERIMENTS.items()}
        patched.setattr(studies, "EXPERIMENTS", few)
        yield msp.run(msp.mess3(), preset="small", out=tmp_path_factory.mktemp("run"), progress=False)


@pytest.fixture(scope="module")
def inferred_page(study, tmp_path_factory):
    """The page of the same run once its process has been inferred, too."""
    folder = shutil.copytree(study.folder, tmp_path_factory.mktemp("inferred") / "run")
    infer_run(folder, n_states=[1, 2, 3], n_starts=2, progress=False)
    return folder / "report.html"


@pytest.fixture
def opened(visit, study):
    """Open the run's page, or another."""

    def open_page(viewport=DESKTOP, color_scheme="light", path=study.page):
        return visit(path, viewport, color_scheme)

    return open_page


def column(page, table, index):
    return page.locator(table).first.locator(f"tbody tr > *:nth-child({index})").all_text_contents()


PROBES = ".msp-lens-table:has(h3:text-is('Belief probes')) table"


def test_every_picture_is_drawn(opened):
    page = opened()
    for frame in page.frames:
        frame.wait_for_load_state()
        images = frame.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
        assert images
        assert min(images) > 100
    assert len(page.frames) == 2, "the page and its movie"


def test_headings_sort_by_mouse_and_by_keyboard(opened):
    page = opened()
    before = column(page, PROBES, 1)
    scores = [float(text) for text in column(page, PROBES, 2)]
    assert scores != sorted(scores), "there is nothing to sort"
    heading = page.locator(f"{PROBES} thead th:nth-child(2)")
    heading.get_by_role("button").click()
    assert [float(text) for text in column(page, PROBES, 2)] == sorted(scores)
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert [float(text) for text in column(page, PROBES, 2)] == sorted(scores, reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    page.keyboard.press("Space")
    assert column(page, PROBES, 1) == before
    assert heading.get_attribute("aria-sort") is None


def test_the_movie_is_moved_by_its_slider_and_plays(opened, study):
    page = opened()
    movie = page.frame_locator(".movie iframe")
    shown = movie.locator("img:not([hidden])")
    captions = movie.locator("img").evaluate_all("images => images.map(image => image.alt)")
    assert len(captions) == len(study.emergence) == 4
    assert shown.get_attribute("alt") == captions[-1]
    slider = movie.get_by_role("slider")
    slider.focus()
    page.keyboard.press("Home")
    assert shown.get_attribute("alt") == captions[0]
    page.keyboard.press("ArrowRight")
    assert shown.get_attribute("alt") == captions[1]
    movie.get_by_role("button").click()
    movie.locator(f"img[alt='{captions[2]}']:not([hidden])").wait_for(timeout=5_000)
    movie.locator(f"img[alt='{captions[3]}']:not([hidden])").wait_for(timeout=5_000)
    assert slider.input_value() == "3"


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_overflows_the_page(opened, viewport, inferred_page):
    page = opened(viewport, path=inferred_page)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    images = page.locator(".picture img").evaluate_all("images => images.map(i => i.getBoundingClientRect().right)")
    assert max(images) <= viewport["width"]
    movie = page.frames[1]
    height, room = (movie.evaluate(f"document.documentElement.{of}") for of in ("scrollHeight", "clientHeight"))
    assert height <= room, "the movie's controls are cut off"
    assert movie.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_a_picture_is_enlarged_and_fitted_again(opened):
    page = opened(PHONE)
    picture = page.locator(".picture").nth(2)
    width = picture.locator("img").bounding_box()["width"]
    picture.click()
    assert picture.locator("img").bounding_box()["width"] > 2 * width
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    picture.click()
    assert picture.locator("img").bounding_box()["width"] == width


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_texts_stand_out_from_the_page(opened, color_scheme):
    page = opened(color_scheme=color_scheme)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(paper) < 0.1) == (color_scheme == "dark")
    colors = page.locator("h1, h2, p, td, th, dt, dd, li, a, thead button").evaluate_all(
        "all => [...new Set(all.map(each => getComputedStyle(each).color))]"
    )
    assert len(colors) >= 3
    assert min(contrast(color, paper) for color in colors) >= 4.5
    code = page.locator("pre").first
    assert contrast(*(code.evaluate(f"each => getComputedStyle(each).{of}") for of in ("color", "backgroundColor"))) > 7
    # Pictures are those of the scheme: as dark at the corner as the page.
    corner = """image => {
        const canvas = document.createElement("canvas");
        canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
        const context = canvas.getContext("2d");
        context.drawImage(image, 0, 0);
        return "rgb(" + [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).join(", ") + ")";
    }"""
    corners = page.locator(".picture img").evaluate_all(f"all => all.map({corner})")
    assert max(contrast(each, paper) for each in corners) < 1.02


def test_what_is_said_is_what_was_found(opened, study):
    page = opened()
    numbers = page.locator(".numbers").inner_text()
    best = study.report.best_site
    assert f"{best.scores.held_out.r2:.4f} at {best.label}" in numbers
    assert f"{study.report.controls.best(best.label).held_out.r2:.4f} best control" in numbers
    untrained = study.emergence.snapshots[0].report[best.label].scores.held_out.r2
    assert untrained > 0, "the page would show a bound"
    assert f"{untrained:.4f} before training" in numbers
    steered = study.interventions.select(site=best.label, edit="steer").kl_to_target
    assert f"KL {steered:.4f} nats" in numbers
    trust = page.locator(".caveats li").all_text_contents()
    assert any("affine function of its next-token probabilities" in caveat for caveat in trust)
    assert any("seed 0" in caveat for caveat in trust)


def test_the_page_can_be_made_again_from_its_folder(study, tmp_path, opened):
    folder = tmp_path / "copy"
    shutil.copytree(study.folder, folder)
    for file in ("report.html", "report.json", "movie.gif", "config.json"):
        (folder / file).unlink()
    again = studies.report(folder, emergence=False, progress=False)
    assert again.report.best_site.label == study.report.best_site.label
    expected = study.interventions.to_dataframe()["kl_to_target"].tolist()
    assert again.interventions.to_dataframe()["kl_to_target"].tolist() == pytest.approx(expected, rel=1e-3)
    assert again.emergence is None
    page = opened(path=again.page)
    assert len(page.frames) == 1, "there is no movie"
    assert not (folder / "movie.gif").exists()


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_what_was_inferred_is_shown_and_sorted(opened, inferred_page, color_scheme):
    page = opened(color_scheme=color_scheme, path=inferred_page)
    section = page.locator("#inference")
    picture = section.locator("img")
    shown, fallback = picture.evaluate("i => i.decode().then(() => [i.currentSrc, i.src])")
    assert (shown == fallback) == (color_scheme == "light")
    found = msp.Inference.load(inferred_page.parent / "inference.json")
    assert section.locator(".doubts li").all_text_contents() == found.doubts
    table = section.locator("table").first
    rows = [f"{'→ ' * (each is found.chosen)}{each.process.n_states}" for each in found.candidates]
    assert table.locator("tbody tr > *:nth-child(2)").all_text_contents() == rows
    heading = table.locator("thead th:nth-child(2)")
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
