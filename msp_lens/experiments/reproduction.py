"""Papers, the networks that reproducing them needs, what a reproduction found, and its page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import Seed, checked
from msp_lens._tables import TableView, json_records, nats_text
from msp_lens._templates import render_template
from msp_lens._values import Value
from msp_lens.beliefs.information import optimal_losses
from msp_lens.experiments.claims import VERDICTS, Claim, Section, number_text
from msp_lens.models.architecture import RecurrentConfig
from msp_lens.models.build import ModelConfig, untrained_like, versions
from msp_lens.models.hooked import HookedModel
from msp_lens.models.model_files import model_fingerprint
from msp_lens.page.folding import shown_table
from msp_lens.page.pictures import ThemedPicture, themed
from msp_lens.processes.process import Process
from msp_lens.training.config import TrainingConfig
from msp_lens.training.regret import evaluation_words, regret_by_position
from msp_lens.training.training_run import TrainingRun, loss_ratio

REPRODUCTION_FILE, REPRODUCTION_PAGE = "reproduction.json", "reproduction.html"


@checked
@dataclass(frozen=True, kw_only=True)
class Network:
    """A network to train: on what, which one, how, and from which seed."""

    process: Process
    model: ModelConfig | RecurrentConfig
    training: TrainingConfig
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained(Value):
    """A network of a reproduction, trained here or loaded.

    Attributes:
        name: Its name in the reproduction.
        model: The model.
        process: The process that it predicts.
        regret: E KL(optimal ‖ model) at each position, in nats.
        origin: Where it comes from, in words.
        training: The record of its training, if it was trained here.
    """

    name: str
    model: HookedModel
    process: Process
    regret: Float64[Tensor, "pos"]
    origin: str
    training: TrainingRun | None = None

    @property
    def loss_ratio(self) -> float:
        """The expected loss over the least possible one, both averaged over positions."""
        return loss_ratio(self.regret, optimal_losses(self.process, len(self.regret)))

    def untrained(self) -> HookedModel:
        """A network like this one, with new weights."""
        return untrained_like(self.model, seed=1)

    def untrained_regret(self) -> Float64[Tensor, "pos"]:
        """The regret of such a network."""
        drawn = evaluation_words(self.process, len(self.regret), seed=0)
        return regret_by_position(self.untrained(), drawn)


Networks = Mapping[str, Trained]


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper, and how to reproduce it at two sizes: small, in minutes, and full, the paper's own where it is known.

    Attributes:
        name: The name to reproduce it by.
        title: The paper's title.
        authors: The paper's authors.
        source: Where to read it, such as `"arXiv:2405.15943"`.
        claims: What it says, in two or three sentences.
        networks: The networks to train, by name, at the small size or not.
        sections: The experiments, in order; each is given the networks and whether the size is small.
        differences: What differs from the paper's own setting, at the small size or not.
        small_minutes: Minutes that the small size takes on two cores, training included.
        full_cost: What the full size costs, in words.
        address: Where to find it on the web, if it is not on arXiv.
    """

    name: str
    title: str
    authors: str
    source: str
    claims: str
    networks: Callable[[bool], dict[str, Network]]
    sections: tuple[Callable[[Networks, bool], Section], ...]
    differences: Callable[[bool], tuple[str, ...]]
    small_minutes: int
    full_cost: str
    address: str = ""

    @property
    def url(self) -> str:
        """The paper's address."""
        return self.address or f"https://arxiv.org/abs/{self.source.removeprefix('arXiv:')}"


@dataclass(frozen=True, eq=False, repr=False)
class Reproduction(Value, TableView):
    """What a reproduction of a paper found: every claim, published beside measured beside control.

    Attributes:
        paper: The paper.
        small: Whether it was run at the small size.
        networks: The networks, by name.
        sections: The experiments.
        seconds: Wall time of the measurements, by section.
        folder: The folder of the page and of the networks.
    """

    paper: Paper
    small: bool
    networks: Networks
    sections: tuple[Section, ...]
    seconds: tuple[float, ...]
    folder: Path

    @property
    def page(self) -> Path:
        """The page to open in a browser."""
        return self.folder / REPRODUCTION_PAGE

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The claims of all sections."""
        return tuple(claim for section in self.sections for claim in section.claims)

    @property
    def verdicts(self) -> dict[str, int]:
        """How many claims got each verdict."""
        return {verdict: sum(claim.verdict == verdict for claim in self.claims) for verdict in VERDICTS}

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each claim."""
        rows = [{"section": section.title} | claim.to_dict() for section in self.sections for claim in section.claims]
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, as JSON-ready values."""
        networks = {
            name: {
                "origin": each.origin,
                "process": each.process.to_dict(),
                "model_fingerprint": model_fingerprint(each.model),
                "regret_nats": each.regret.tolist(),
            }
            for name, each in self.networks.items()
        }
        return {
            "paper": self.paper.name,
            "title": self.paper.title,
            "source": self.paper.source,
            "size": "small" if self.small else "full",
            "differences": list(self.paper.differences(self.small)),
            "verdicts": self.verdicts,
            "networks": networks,
            "claims": json_records(self.to_dataframe().to_dict("records")),
            "seconds": dict(zip((section.title for section in self.sections), self.seconds, strict=True)),
            "versions": versions(),
        }

    def summary(self) -> list[str]:
        """How many claims were reproduced, what differs from the paper, and where the page is."""
        counts = ", ".join(f"{count} {verdict}" for verdict, count in self.verdicts.items() if count)
        return [f"{len(self.claims)} claims: {counts}.", *self.paper.differences(self.small), f"Page: {self.page}"]

    def _title(self) -> str:
        return f"{self.paper.title} ({self.paper.source})"

    _prose = ("verdict", "reproduced if")

    def _display(self) -> pd.DataFrame:
        return claims_table(self.claims)


def claims_table(claims: tuple[Claim, ...]) -> pd.DataFrame:
    """Claims as they are shown: published, measured, control, verdict, and the rule behind it."""
    rows = []
    for claim in claims:
        control = number_text(claim.control)
        named = f"{control} ({claim.control_is})" if claim.control_is and claim.control is not None else control
        rows.append(
            {
                "claim": claim.says,
                "published": number_text(claim.published),
                "measured": number_text(claim.measured),
                "control": named,
                "verdict": claim.verdict,
                "reproduced if": claim.rule.text if claim.rule is not None else claim.beyond,
            }
        )
    return pd.DataFrame(rows).set_index("claim")


def section_pictures(found: Reproduction) -> dict[str, ThemedPicture]:
    """The pictures of the sections, by the names under which the page links them."""
    drawn = {name: section.picture for name, section in zip(_names(found), found.sections, strict=True)}
    return {name: themed(draw) for name, draw in drawn.items() if draw is not None}


def reproduction_page(found: Reproduction, pictures: Mapping[str, ThemedPicture]) -> str:
    """The page as one self-contained HTML file: published beside measured beside control, with these pictures."""
    sections = []
    for name, section in zip(_names(found), found.sections, strict=True):
        picture = pictures[name].embedded(name) if name in pictures else None
        shown: dict[str, Any] = {"id": name, "paragraphs": section.paragraphs, "picture": picture}
        shown |= {"tables": list(map(shown_table, section.tables))}
        shown |= {"caption": f"{section.alt[:1].upper()}{section.alt[1:]}{'.' * bool(section.alt)}"}
        sections.append(vars(section) | shown)
    titles = [(name, section.title) for name, section in zip(_names(found), found.sections, strict=True)]
    networks = [
        {
            "name": name,
            "process": each.process.title,
            "regret": nats_text(each.regret.mean()),
            "origin": each.origin,
        }
        for name, each in found.networks.items()
    ]
    return render_template(
        "msp_lens.page",
        "reproduction.html",
        paper=found.paper,
        small=found.small,
        verdict=verdict_text(found.verdicts),
        differences=found.paper.differences(found.small),
        sections=sections,
        entries=[("claims", "The verdict"), *titles, ("networks", "The networks"), ("again", "Run it again")],
        number=number_text,
        networks=networks,
        command=f"msp-lens reproduce {found.paper.name}{' --small' if found.small else ''}",
        seconds=f"{sum(found.seconds):.0f} s",
        versions=versions(),
    )


def _names(found: Reproduction) -> list[str]:
    return [f"section-{number}" for number in range(1, len(found.sections) + 1)]


def verdict_text(verdicts: dict[str, int]) -> str:
    """How many claims got each verdict, in a sentence.

    Example:
        >>> verdict_text({"reproduced": 11, "not reproduced": 1, "beyond what was run": 0})
        '11 of 12 claims reproduced, 1 not reproduced.'
    """
    total = sum(verdicts.values())
    others = "".join(f", {count} {verdict}" for verdict, count in list(verdicts.items())[1:] if count)
    return f"{verdicts['reproduced']} of {total} claims reproduced{others}."
