"""The page of a reproduction as a reader meets it."""

import pytest
import torch

import msp_lens as msp
from msp_lens.experiments.claims import Claim, Section, at_least
from msp_lens.experiments.papers import PAPERS
from msp_lens.experiments.reproduction import Reproduction, Trained, reproduction_page, section_pictures
from msp_lens.figures.curves import plot_regret
from msp_lens.page.pictures import save_files
from tests.page.browsing import DESKTOP, PHONE, contrast, luminance

CLAIMS = (
    Claim(says="The belief is read", source="Fig. 6", published=0.95, measured=0.93, rule=at_least(0.93, 0.9)),
    Claim(
        says="It is read better than in an untrained network, and this sentence is long enough to need several lines",
        source="Fig. 7",
        published="much better",
        measured=0.2,
        control=0.9,
        control_is="untrained",
        rule=at_least(0.2, 0.9, "the untrained network’s"),
    ),
    Claim(says="Five factors", source="Fig. 8", published=11.0, beyond="it takes the paper’s own size"),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    process = msp.processes.z1r()
    model = msp.build_model(msp.ModelConfig(d_vocab=2, n_layers=1, d_model=8, d_head=4, d_mlp=16, n_ctx=4))
    network = Trained(name="z1r", model=model, process=process, regret=torch.full((4,), 0.25).double(), origin="here")
    sections = (
        Section(
            title="A picture and claims",
            method="A paragraph of the paper's.\n\nAnother.",
            claims=CLAIMS,
            picture=lambda theme: plot_regret([0.1, 0.2], [0.6, 0.5], theme=theme),
            alt="regret by position",
            remark="A remark.",
        ),
        Section(title="Words alone", method="No more.", claims=()),
    )
    folder = tmp_path_factory.mktemp("page")
    found = Reproduction(PAPERS["shai2024"], True, {"z1r": network}, sections, (1.0, 2.0), folder)
    pictures = section_pictures(found)
    found.page.write_text(reproduction_page(found, pictures))
    save_files(pictures, folder)
    return found.page


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_overflows_and_pictures_are_drawn(visit, path, viewport):
    page = visit(path, viewport)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    widths = page.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
    assert len(widths) == 1
    assert widths[0] > 100
    assert page.locator(".picture img").bounding_box()["width"] <= viewport["width"]
    if viewport is PHONE:
        page.locator(".contents summary").click()
    page.get_by_role("link", name="Words alone").click()
    assert page.locator("#section-2").inner_text() == "Words alone"
    page.get_by_role("button", name="regret by position").click()
    assert page.get_by_role("dialog").locator("a").first.get_attribute("href") == "pictures/section-1.svg"
    assert (path.parent / "pictures" / "section-1.pdf").exists()


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_texts_stand_out_and_verdicts_differ(visit, path, color_scheme):
    page = visit(path, color_scheme=color_scheme)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(paper) < 0.1) == (color_scheme == "dark")
    colors = page.locator("h1, h2, p, td, th, a, .source, .verdict").evaluate_all(
        "all => [...new Set(all.map(each => getComputedStyle(each).color))]"
    )
    assert min(contrast(color, paper) for color in colors) >= 4.5
    verdicts = page.locator(".verdict").evaluate_all("all => all.map(each => getComputedStyle(each).color)")
    assert len(set(verdicts)) == 3


def test_a_reader_sees_published_beside_measured_beside_control(visit, path):
    page = visit(path)
    rows = page.locator(".claims tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(c => c.innerText))"
    )
    assert rows == [
        ["The belief is read", "0.95\nFig. 6", "0.93", "–", "reproduced", "at least 0.9"],
        [CLAIMS[1].says, "much better\nFig. 7", "0.2", "0.9\nuntrained", "not reproduced", CLAIMS[1].rule.text],
        ["Five factors", "11\nFig. 8", "–", "–", "beyond what was run", "it takes the paper’s own size"],
    ]
    assert page.locator(".lead").inner_text() == "1 of 3 claims reproduced, 1 not reproduced, 1 beyond what was run."
    assert page.get_by_text("A paragraph of the paper’s.").count() == 1
    assert page.locator("main a").first.get_attribute("href") == "https://arxiv.org/abs/2405.15943"
    assert page.locator(".numbers tbody tr").inner_text().split("\t") == ["z1r", "z1r(p=0.5)", "0.2500", "here"]


def test_on_a_phone_every_number_has_its_name(visit, path):
    page = visit(path, PHONE)
    names = (
        page.locator(".claims tbody tr")
        .first.locator("td")
        .evaluate_all("cells => cells.map(cell => getComputedStyle(cell, '::before').content)")
    )
    assert names == [f'"{name}: "' for name in ("published", "measured", "control", "verdict", "reproduced if")]
