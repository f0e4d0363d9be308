"""The site builds without a warning, every link within it leads somewhere, and reading it fetches nothing."""

import importlib
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("sphinx", reason="the site needs pip install -e .[docs]")
bs4 = pytest.importorskip("bs4")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# What a page loads by itself, and the attribute that says from where. A link with rel=canonical is not followed.
LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "srcset",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
ELSEWHERE = r"['\"]?(?:https?:)?//"
FETCHED = re.compile(
    rf"@import\s+(?:url\()?{ELSEWHERE}|url\(\s*{ELSEWHERE}|\b(?:import|require|fetch)\s*\(\s*\[?{ELSEWHERE}"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site's folder, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-d", folder / "trees"]
    built = subprocess.run([*command, ROOT / "docs", folder / "html"], capture_output=True, text=True, cwd=ROOT)
    assert built.returncode == 0, built.stderr[-6000:]
    return folder / "html"


@cache
def parsed(path):
    return bs4.BeautifulSoup(path.read_text(), "html.parser")


@cache
def anchors(path):
    return {
        tag.get("id") or tag.get("name") for tag in parsed(path).find_all(lambda tag: tag.get("id") or tag.get("name"))
    }


def pages(site):
    return sorted(site.rglob("*.html"))


def test_every_link_within_the_site_leads_somewhere(site):
    broken, checked = [], 0
    for page in pages(site):
        for tag in parsed(page).find_all(["a", "link", *LOADED]):
            address = tag.get("href") or tag.get(LOADED.get(tag.name, "href"))
            if not address or (parts := urlsplit(address)).scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            checked += 1
            if not target.exists():
                broken.append(f"{page.relative_to(site)}: {address}")
            elif (
                parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in anchors(target) | {"top"}
            ):
                broken.append(f"{page.relative_to(site)}: {address} (no such anchor)")
    assert broken == []
    assert checked > 2_000


def test_reading_the_site_fetches_nothing(site):
    fetched = []
    for page in pages(site):
        for tag in parsed(page).find_all(["link", *LOADED]):
            followed = tag.name != "link" or set(tag.get("rel", [])) & {"stylesheet", "preload", "icon", "preconnect"}
            address = tag.get("href") or tag.get(LOADED.get(tag.name, "href")) or ""
            if followed and urlsplit(address).netloc:
                fetched.append(f"{page.relative_to(site)}: {address}")
        texts = [tag.get_text() for tag in parsed(page).find_all(["script", "style"])]
        fetched += [f"{page.relative_to(site)}: {found[0]}" for text in texts for found in FETCHED.finditer(text)]
    for path in [*site.rglob("*.css"), *site.rglob("*.js")]:
        fetched += [f"{path.relative_to(site)}: {found[0]}" for found in FETCHED.finditer(path.read_text())]
    assert fetched == []


def test_the_search_knows_the_pages(site):
    index = (site / "searchindex.js").read_text()
    found = json.loads(index[index.index("(") + 1 : index.rindex(")")])
    assert "placebo" in str(found["terms"].keys())
    assert {"start", "guides/your_model", "concepts/belief", "api/probing"} <= set(found["docnames"])


def test_every_public_name_has_an_entry(site):
    # The page of a run is no room that users enter.
    rooms = {folder.parent.name for folder in (ROOT / "msp_lens").glob("*/__init__.py")} - {"page"}
    assert {page.stem for page in (site / "api").glob("*.html")} == rooms | {"index", "command_line"}
    for room in rooms:
        module = importlib.import_module(f"msp_lens.{room}")
        for name in module.__all__:
            # What a room hands on from another has its entry there.
            homes = {room, *getattr(getattr(module, name), "__module__", "").split(".")} & rooms
            entries = {f"msp_lens.{home}.{name}" for home in homes}
            assert entries & set().union(*(anchors(site / "api" / f"{home}.html") for home in homes)), entries


def test_signatures_read_as_they_are_written(site):
    texts = [parsed(page).get_text() for page in sorted((site / "api").glob("*.html"))]
    assert any(
        "Float64[Tensor, 'word pos state']" in text or 'Float64[Tensor, "word pos state"]' in text for text in texts
    )
    assert not any("Annotated[" in text or "msp_lens._" in text for text in texts)
    links = {tag["href"] for tag in parsed(site / "api" / "probing.html").find_all("a", href=True)}
    assert "https://docs.pytorch.org/docs/stable/tensors.html#torch.Tensor" in links
    assert "processes.html#msp_lens.processes.Process" in links


def test_pictures_have_a_text_and_both_themes(site):
    for name in ("index.html", "start.html", "concepts/belief.html", "concepts/regret.html"):
        pictures = parsed(site / name).find_all("img", class_=["only-light", "only-dark"])
        assert len(pictures) >= 2, name
        assert all(len(picture["alt"]) > 40 for picture in pictures)
        light = {picture["src"].replace("-light", "") for picture in pictures if "only-light" in picture["class"]}
        assert light == {picture["src"].replace("-dark", "") for picture in pictures if "only-dark" in picture["class"]}
