"""The page of a run as a reader meets it: in a browser, from disk, without a network."""

import functools
import shutil

import pytest
from PIL import Image

import msp_lens as msp
from msp_lens.experiments import infer_run
from msp_lens.experiments import study as studies
from msp_lens.page import pictures
from msp_lens.training import PRESETS, Recipe
from tests.conftest import blank_picture
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


PROBES = ".msp-lens-table:has(caption span:text-is('Belief probes')) table"


def unfold(page):
    """Open everything that is folded."""
    page.locator("main details").evaluate_all("all => all.forEach(each => { each.open = true; })")


def test_every_picture_is_drawn(opened):
    page = opened()
    for frame in page.frames:
        frame.wait_for_load_state()
        images = frame.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
        if frame == page.main_frame:
            assert len(images) >= 9
        assert images
        assert min(images) > 100
    assert len(page.frames) == 2, "the page and its movie"


def test_headings_sort_by_mouse_and_by_keyboard(opened):
    page = opened()
    table = page.locator(PROBES)
    assert not table.is_visible(), "its picture shows it already"
    page.locator("details:has(table)", has=table).locator("summary").click()
    assert table.is_visible()
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
    shown = movie.locator("picture:not([hidden]) img")
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
    movie.locator(f"img[alt='{captions[2]}']").wait_for(timeout=5_000)
    movie.locator(f"img[alt='{captions[3]}']").wait_for(timeout=5_000)
    assert slider.input_value() == "3"


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_overflows_the_page(opened, viewport, inferred_page):
    page = opened(viewport, path=inferred_page)
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    boxes = page.locator(".picture > button").evaluate_all("all => all.map(i => i.getBoundingClientRect().right)")
    assert max(boxes) <= viewport["width"]
    movie = page.frames[1]
    height, room = (movie.evaluate(f"document.documentElement.{of}") for of in ("scrollHeight", "clientHeight"))
    assert height <= room, "the movie's controls are cut off"
    assert movie.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_text_in_pictures_can_be_read_on_a_phone(opened):
    """Text of 8 points, the smallest, is at least 8 pixels high; a graph, which has no narrow version, scrolls."""
    page = opened(PHONE)
    sizes = page.locator(".picture img").evaluate_all(
        """all => Promise.all(all.map(async image => {
            await image.decode();
            const figure = image.closest("figure"), isGraph = figure.classList.contains("graph");
            const inches = Number(getComputedStyle(figure).getPropertyValue("--inches"));
            // Narrow versions have 160 dots an inch.
            return image.getBoundingClientRect().width / (isGraph ? inches : image.naturalWidth / 160) / 72 * 8;
        }))"""
    )
    assert len(sizes) >= 9
    assert min(sizes) >= 8
    wide = opened().locator(".picture img").evaluate_all("all => all.map(image => image.currentSrc === image.src)")
    assert all(wide), "a desktop has the wide ones"


def test_a_picture_is_enlarged_in_a_window_of_its_own(opened, study):
    page = opened(PHONE)
    picture = page.locator(".picture:has(img[alt^='R squared at each site'])")
    width = picture.locator("img").bounding_box()["width"]
    picture.get_by_role("button").click()
    dialog = page.get_by_role("dialog")
    image = dialog.locator("img")
    page.wait_for_function("document.querySelector('dialog img').style.width !== ''")
    fitted = image.bounding_box()["width"]
    assert fitted <= PHONE["width"]
    image.click()
    assert image.bounding_box()["width"] > 2 * fitted
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.keyboard.press("0")
    assert image.bounding_box()["width"] == fitted
    dialog.get_by_role("button", name="Larger").click()
    assert image.bounding_box()["width"] == pytest.approx(1.5 * fitted, abs=2)
    # Its files lie beside the page.
    assert dialog.locator("a").evaluate_all("all => all.map(each => each.getAttribute('href'))") == [
        "pictures/sites.svg",
        "pictures/sites.pdf",
    ]
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert picture.locator("img").bounding_box()["width"] == width


def test_every_link_leads_somewhere(opened, study):
    page = opened()
    links = page.locator("a").evaluate_all("all => all.map(each => each.getAttribute('href'))")
    files = [link for link in links if link.startswith("pictures/")]
    assert len(files) == 2 * page.locator(".picture").count() > 18
    for link in files:
        start = (study.folder / link).read_bytes()[:5]
        assert start == (b"%PDF-" if link.endswith("pdf") else b"<?xml")
    anchors = [link for link in links if link.startswith("#")]
    assert all(page.locator(f"[id='{link[1:]}']").count() == 1 for link in anchors)
    assert set(links) - {*files, *anchors} == {"https://arxiv.org/abs/2405.15943"}


def test_pictures_of_a_run_can_be_printed(study):
    with Image.open(study.folder / "fractal.png") as picture:
        assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert picture.width > 3000


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_contents_stay_in_view(opened, viewport):
    page = opened(viewport)
    is_wide = viewport is DESKTOP
    contents = page.get_by_role("navigation", name="Contents")
    links = contents.get_by_role("link")
    assert links.first.is_visible() == is_wide
    titles = contents.locator("a").all_text_contents()
    headings = page.locator("main h2").all_text_contents()
    assert titles == ["The answer", *headings], "a heading has no entry"
    if not is_wide:
        contents.locator("summary").click()
    links.filter(has_text="How far to trust").click()
    heading = page.locator("#trust")
    page.wait_for_function("document.querySelector('#trust').getBoundingClientRect().top < 200")
    assert heading.bounding_box()["y"] >= (0 if is_wide else contents.bounding_box()["height"] - 1)
    assert contents.bounding_box()["y"] == 0
    if is_wide:
        contents.locator("[aria-current]", has_text="How far to trust").wait_for(timeout=5_000)
    else:
        assert not links.first.is_visible(), "it closes once something was chosen"


def test_the_answer_comes_first_then_the_fractal(opened):
    page = opened()
    order = page.locator("h1, .lead, .picture img, .numbers, .trust, h2").evaluate_all(
        "all => all.slice(0, 6).map(each => each.alt || each.className || each.tagName)"
    )
    assert order == ["H1", "lead", "True beliefs, and the beliefs read at the best site", "numbers", "trust", "H2"]


def test_tables_have_captions(opened):
    page = opened()
    tables = page.locator(".msp-lens-table table")
    captions = tables.evaluate_all("all => all.map(each => each.caption ? each.caption.textContent : '')")
    assert len(captions) >= 8
    assert all(captions)


def test_the_movie_is_dark_on_dark_pages(opened):
    for scheme in ("light", "dark"):
        page = opened(color_scheme=scheme)
        movie = page.frames[1]
        corner = movie.evaluate(
            """async () => {
                const image = document.querySelector("picture:not([hidden]) img");
                const canvas = document.createElement("canvas");
                await image.decode();
                const context = canvas.getContext("2d");
                context.drawImage(image, 0, 0);
                return "rgb(" + [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).join(", ") + ")";
            }"""
        )
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert contrast(corner, paper) < 1.05
        assert contrast(movie.evaluate("getComputedStyle(document.body).backgroundColor"), paper) < 1.05


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


def test_the_page_can_be_made_again_from_its_folder(study, tmp_path, opened, monkeypatch):
    # That pictures are drawn is seen on the run's own page.
    monkeypatch.setattr(pictures, "themed", lambda *_, **__: blank_picture())
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
    unfold(page)
    heading = table.locator("thead th:nth-child(2)")
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
