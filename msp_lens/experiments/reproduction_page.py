"""The page of a reproduction: one self-contained HTML file, published beside measured beside control."""

from __future__ import annotations

from msp_lens._tables import nats_text
from msp_lens._templates import render_template
from msp_lens.experiments.claims import number_text
from msp_lens.experiments.reproduction import Reproduction
from msp_lens.models.build import versions
from msp_lens.page.pictures import themed


def reproduction_page(found: Reproduction) -> str:
    """The page as HTML."""
    sections = []
    for section in found.sections:
        picture = themed(section.picture).embedded() if section.picture is not None else None
        tables = [table._repr_html_() for table in section.tables]
        shown = {"paragraphs": section.paragraphs, "picture": picture, "tables": tables}
        sections.append(vars(section) | shown)
    networks = [
        {
            "name": name,
            "process": repr(each.process).partition(": ")[0],
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
        number=number_text,
        networks=networks,
        command=f"msp-lens reproduce {found.paper.name}{' --small' if found.small else ''}",
        seconds=f"{sum(found.seconds):.0f} s",
        versions=versions(),
    )


def verdict_text(verdicts: dict[str, int]) -> str:
    """How many claims got each verdict, in a sentence.

    Example:
        >>> verdict_text({"reproduced": 11, "not reproduced": 1, "beyond what was run": 0})
        '11 of 12 claims reproduced, 1 not reproduced.'
    """
    total = sum(verdicts.values())
    others = "".join(f", {count} {verdict}" for verdict, count in list(verdicts.items())[1:] if count)
    return f"{verdicts['reproduced']} of {total} claims reproduced{others}."
