"""The pages of `docs/papers`, from the folders that `msp-lens reproduce` makes; run it again after a reproduction.

    python docs/gallery.py --machine "two cores of an Intel Xeon" shai2024=runs/shai2024-small …

Each folder's record and page become a page of Markdown with a picture. The pages are kept in git, the folders are not.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup, Tag
from PIL import Image

from msp_lens.experiments.claims import number_text
from msp_lens.experiments.reproduce import PAPERS

HERE = Path(__file__).parent
# The section whose picture stands for the paper, by its number; the first by default.
PICTURED = {"factored2026": 1, "forcing2026": 2, "quantum2025": 1, "superposition": 1}
WIDTH = 1100


@dataclass(frozen=True)
class Section:
    """An experiment on a reproduction's page: what was done, what it shows, and its picture in both themes."""

    method: list[str]
    remarks: list[str]
    alt: str
    pictures: dict[str, bytes]


def read_page(path: Path) -> dict[str, Section]:
    """The experiments of `reproduction.html`, by title."""
    found = {}
    for heading in BeautifulSoup(path.read_text(), "html.parser").find_all("h2"):
        method, remarks, pictures, alt = [], [], {}, ""
        after_claims = False
        for each in heading.find_next_siblings():
            if each.name == "h2":
                break
            picture = each if each.name == "picture" else each.find("picture")
            if isinstance(picture, Tag) and not pictures:
                image, dark = picture.find("img"), picture.find("source")
                alt = image["alt"]
                pictures = {"light": decoded(image["src"]), "dark": decoded(dark["srcset"])}
            after_claims |= each.name == "div" and "claims" in each.get("class", [])
            if each.name == "p" and not each.get("class"):
                (remarks if after_claims else method).append(" ".join(each.get_text().split()))
        found[" ".join(heading.get_text().split())] = Section(method, remarks, alt, pictures)
    return found


def decoded(address: str) -> bytes:
    """The bytes of a data address."""
    return base64.b64decode(address.partition(",")[2])


def save_small(picture: bytes, path: Path) -> None:
    """At most `WIDTH` pixels wide."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    image.save(path, format="WEBP", quality=82, method=6)


def cell(value: Any) -> str:
    """A cell of a Markdown table, in one line."""
    return " ".join(number_text(value).split()).replace("|", "\\|")


def verdict_text(verdicts: dict[str, int]) -> str:
    """How many claims got each verdict."""
    counts = [f"{count} {verdict}" for verdict, count in verdicts.items() if count]
    return f"{sum(verdicts.values())} claims: {', '.join(counts)}."


def title_of(record: dict[str, Any]) -> str:
    """The paper's title, and whether its own weights were used."""
    loaded = any("loaded" in each["origin"] for each in record["networks"].values())
    return PAPERS[record["paper"]].title + (" (with the published weights)" if loaded else "")


def origin_text(origin: str) -> str:
    """Where a network comes from; of a folder of this machine only the name."""
    start, loaded, path = origin.partition("loaded from ")
    return f"{start}{loaded}the folder `{Path(path).name}`" if loaded else origin


def page_of(name: str, folder: Path, machine: str) -> str:
    """The page of one reproduction."""
    record = json.loads((folder / "reproduction.json").read_text())
    paper, sections = PAPERS[record["paper"]], read_page(folder / "reproduction.html")
    date = datetime.fromtimestamp((folder / "reproduction.json").stat().st_mtime, UTC)
    versions = ", ".join(f"{key} {value}" for key, value in record["versions"].items())
    trained = sum("loaded" not in each["origin"] for each in record["networks"].values())
    minutes = max(1, round(sum(record["seconds"].values()) / 60))
    lines = [
        f"# {title_of(record)}",
        "",
        f"*{paper.authors}, [{paper.source}]({paper.url})*",
        "",
        paper.claims,
        "",
        f"**{verdict_text(record['verdicts'])}**",
        "",
        f"Run at the {record['size']} size on {date:%-d %B %Y}, on {machine}, with {versions}. The measurements took "
        f"{minutes} minute{'s' * (minutes > 1)}, beside the training of {trained} network{'s' * (trained != 1)}. "
        "Each rule was fixed before the run.",
        "",
        "## What differs from the paper",
        "",
        *(f"- {each}" for each in record["differences"]),
        "",
    ]
    titles = list(dict.fromkeys(claim["section"] for claim in record["claims"]))
    titles = [each for each in sections if each in titles]
    with_picture = [each for each in titles if sections[each].pictures]
    chosen = titles[PICTURED.get(record["paper"], 0)]
    chosen = chosen if chosen in with_picture else with_picture[0]
    for each in titles:
        section = sections[each]
        lines += [f"## {each}", "", *(f"{text}\n" for text in section.method)]
        if each == chosen:
            for theme, picture in section.pictures.items():
                path = HERE / "_static" / "papers" / f"{name}-{theme}.webp"
                path.parent.mkdir(parents=True, exist_ok=True)
                save_small(picture, path)
                lines += [
                    f"```{{image}} ../_static/papers/{path.name}",
                    f":class: only-{theme}",
                    f":alt: {section.alt}",
                ]
                lines += ["```"]
            lines += [""]
        lines += ["| claim | published | measured | control | verdict | reproduced if |", "|---|---|---|---|---|---|"]
        for claim in record["claims"]:
            if claim["section"] == each:
                control = number_text(claim["control"])
                if claim["control"] is not None and claim["control_is"]:
                    control += f" ({claim['control_is']})"
                verdict = claim["verdict"] if claim["verdict"] == "reproduced" else f"**{claim['verdict']}**"
                published = f"{number_text(claim['published'])} ({claim['source']})"
                row = [claim["says"], published, claim["measured"], control, verdict, claim["rule"] or claim["beyond"]]
                lines.append(f"| {' | '.join(cell(part) for part in row)} |")
        lines += ["", *(f"{text}\n" for text in section.remarks)]
    networks = [f"- `{key}`: {origin_text(each['origin'])}" for key, each in record["networks"].items()]
    options = " --small" * (record["size"] == "small") + " --checkpoints FOLDER" * (trained < len(record["networks"]))
    lines += [
        "## The networks",
        "",
        *networks,
        "",
        "## Run it again",
        "",
        "```sh",
        f"msp-lens reproduce {paper.name}{options}",
        "```",
        "",
    ]
    return "\n".join(lines)


def index_of(names: dict[str, Path]) -> str:
    """The gallery's first page."""
    lines = [
        (HERE / "papers" / "about.txt").read_text().rstrip(),
        "",
        "| paper | size | claims | reproduced | not | beyond the run |",
    ]
    lines += ["|---|---|---|---|---|---|"]
    cards = ["", "::::{grid} 1 1 2 2", ":gutter: 3", ""]
    for name, folder in names.items():
        record = json.loads((folder / "reproduction.json").read_text())
        counts = list(record["verdicts"].values())
        lines.append(f"| [](<{name}.md>) | {record['size']} | {sum(counts)} | {' | '.join(map(str, counts))} |")
        cards += [f":::{{grid-item-card}} {record['source']}", f":link: {name}", ":link-type: doc", ""]
        for theme in ("light", "dark"):
            cards += [
                f"```{{image}} ../_static/papers/{name}-{theme}.webp",
                f":class: only-{theme}",
                f":alt: {title_of(record)}",
                "```",
            ]
        cards += [title_of(record), ":::", ""]
    cards += ["::::", "", "```{toctree}", ":hidden:", "", *names, "```", ""]
    return "\n".join([*lines, *cards])


def main() -> None:
    """Write every page and the gallery."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--machine", required=True, help="What the folders were made on, in words.")
    given = parser.parse_args()
    names = {name: Path(folder) for name, _, folder in (each.partition("=") for each in given.folders)}
    for name, folder in names.items():
        (HERE / "papers" / f"{name}.md").write_text(page_of(name, folder, given.machine))
    (HERE / "papers" / "index.md").write_text(index_of(names))


if __name__ == "__main__":
    main()
