"""The page's section on the process that was inferred from the network; it can be renewed alone."""

from __future__ import annotations

import re

from msp_lens._templates import render_template
from msp_lens.inference import Inference
from msp_lens.page.folding import shown_table
from msp_lens.page.pictures import ThemedPicture
from msp_lens.processes.process import Process

# From its tag to the end of the template; sections are not nested.
_SECTION = re.compile(r'<section id="inference">.*?</section>', re.DOTALL)


def inference_section(
    found: Inference | None, process: Process | None = None, picture: ThemedPicture | None = None
) -> str:
    """The section as HTML: what was inferred, how far to trust it, and beside it the process of the run.

    Args:
        found: What was inferred; if nothing was, the section says how to do it.
        process: The process that the network was trained on, if it is known.
        picture: From `pictures.inference_picture`.
    """
    compared = refusal = None
    if found is not None and process is not None:
        try:
            compared = shown_table(found.compare(process))
        except ValueError as error:
            refusal = str(error)
    return render_template(
        "msp_lens.page",
        "inference.html",
        found=found,
        process=process,
        table=shown_table(found) if found is not None else None,
        compared=compared,
        refusal=refusal,
        picture=picture.embedded("inference") if picture is not None else None,
    )


def renewed(page: str, section: str) -> str | None:
    """The page with this section in the place of its own; `None` if it has none."""
    after, count = _SECTION.subn(lambda _: section, page, count=1)
    return after if count else None
