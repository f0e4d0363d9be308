"""How long the network acts on a belief that was written.

After an edit the following tokens are fed, and the model's predictions are compared with those of the belief filtered
on from the target:

    KL(b'_{t+k} E ‖ model's at t + k),    b'_{t+k} = the target after the k tokens that followed.

This is done once with the edit at position t alone, and once with the filtered beliefs written at every later position
too. A transformer's later positions attend to the past: where it was not edited, it speaks for the old belief. A
recurrent network carries a state on: what is written into it lasts by itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import pandas as pd

from msp_lens._checks import AtLeast, Count, Seed, checked
from msp_lens._tables import nats_text
from msp_lens.data import BeliefDataset
from msp_lens.interventions.engine import Engine
from msp_lens.interventions.intervention_report import InterventionReport, Layout, worse_than_placebo
from msp_lens.interventions.menu import Edits
from msp_lens.interventions.preparation import Probes, chosen_positions, map_provenance, reading, untrained_end
from msp_lens.interventions.targets import AskedTargets
from msp_lens.models.hooked import HookedModel, word_length
from msp_lens.processes.process import Process

ALONE, ONWARD = "one position", "trajectory"


@checked
def persistence(
    model: HookedModel,
    data: Process | BeliefDataset,
    *,
    probes: Probes,
    position: int | None = None,
    n_ctx: Annotated[int, AtLeast(2, "a token must follow the edit")] | None = None,
    edits: Edits = ("steer", "patch"),
    target: AskedTargets = "another word",
    n_words: Annotated[int, AtLeast(2, "a standard error needs two words")] | None = None,
    seed: Seed = 0,
    batch_size: Count | None = None,
    progress: bool = True,
) -> InterventionReport:
    """Edit at one position, or from it onward along the filtered trajectory, and follow the predictions.

    The tokens that follow are drawn as an observer with the target belief expects them, so they are possible. They are
    evidence for the target themselves: compare with no edit, whose predictions they move toward it too.

    `position` is where the edit is made or begins (by default three quarters into the words, no later than the last
    position but one), `n_ctx` the number of tokens in a word (by default that of the probes' words), `n_words` how many
    words are drawn (by default 1,000, or fewer long ones), and `target` a name, `{name: maker or belief}`, or a belief.
    The other arguments are as for `intervene`.

    Returns:
        A row for each site, edit, way of editing (`edited`: "one position" or "trajectory") and number of tokens
        since (`after`).

    Raises:
        ValueError, KeyError: as for `intervene`, and if no token follows the position.
    """
    model, process, longest = reading(model, data, probes)
    length = word_length(model, longest if n_ctx is None else n_ctx, otherwise="n_ctx=")
    default = max(0, min(length * 3 // 4, length - 2))
    (start,) = chosen_positions(default if position is None else position, length)
    n_after = length - start - 1
    if n_after < 1:
        raise ValueError(f"position={start} is the last of {length}: no token follows. Choose an earlier one.")
    engine = Engine(model, process, probes, edits, target, length, n_words, seed, batch_size, most=1000)
    if len(engine.targets) != 1:
        raise ValueError(f"target={list(engine.targets)}: give one target.")
    (target_name,) = engine.targets
    drawn = engine.draw(start, target_name, n_after)
    spans = {1: slice(start, start + 1), n_after + 1: slice(start, length)}
    title = "Following edits over later tokens" if progress else None
    table, regret = engine.run(drawn, [[probe] for probe in engine.probes], spans, [1.0], progress=title)
    # For one site and time, the two ways of editing stand together.
    table["edited"] = [ALONE if span == 1 else ONWARD for span in table["span"]]
    table["order"] = pd.factorize(table["site"])[0]
    table = table.sort_values(["order", "after", "span"]).drop(columns=["order", "span", "strength"])
    keys = ["site", "after", "edited", "edit"]
    table = table.set_index(keys).reset_index()
    words = int(table["n"].iloc[0])
    title = "KL(optimum filtered on from the target ‖ model), nats"
    notes = (
        _contrast(table),
        *untrained_end(regret, length - len(regret)),
        f"{words:,} words drawn from {process.name}, edited at position {start} towards {target_name}, "
        f"then fed {n_after} tokens drawn from the target's own future. KL in nats to the optimum of the belief "
        "filtered on from the target; after: tokens fed since the edit.",
        f"one position: the edit is made at position {start} alone. trajectory: the filtered beliefs are written at "
        f"every later position too. Shown are 0, 1 and {n_after} tokens after; to_dataframe() has all.",
        "The tokens that follow are themselves evidence for the target, so compare each edit with no edit: it lasts as "
        "long as its KL is lower. If an edit of one position fades, later positions read the unedited past; that does "
        "not show that the belief is unused.",
    )
    chosen = {"position": start, "target": target_name, "n_words": words, "seed": seed}
    options: dict[str, Any] = {
        "shade": "recovery",
        "mark": "worse_than_placebo",
        "across": "after",
        "xlabel": "tokens after the edit",
    }
    options |= {"panels": "edited", "chosen": {"site": _telling_site(table)}}
    layout = Layout(["site", "after", "edited"], "edit", "kl_to_target", title, **options)
    shown = {"after": sorted({0, 1, n_after})}
    provenance = {"process": process.to_dict(), **chosen, **map_provenance(model)}
    found = InterventionReport(title, table, tuple(keys), notes, provenance, layout, shown)
    contrast, *rest = notes
    return replace(found, notes=(contrast, *worse_than_placebo(found), *rest))


def _telling_site(table: pd.DataFrame) -> str:
    """The earliest site where the edit works about as well as anywhere."""
    kl, edit = _kl(table), _edit(table)
    sites = table["site"].unique().tolist()
    best = min(kl[edit, ALONE, 0, site] for site in sites)
    allowed = best + 0.1 * max(kl["none", ALONE, 0, sites[0]] - best, 0)
    return next(site for site in sites if kl[edit, ALONE, 0, site] <= allowed)


def _contrast(table: pd.DataFrame) -> str:
    """One position and the trajectory, at the site that tells most."""
    kl, edit, site = _kl(table), _edit(table), _telling_site(table)
    alone, written, onward = (
        [nats_text(kl[name, edited, after, site]) for after in (0, 1)]
        for name, edited in (("none", ALONE), (edit, ALONE), (edit, ONWARD))
    )
    return (
        f"{edit} at {site}: the KL is {written[0]} right after the edit ({alone[0]} without it). One token later it is "
        f"{written[1]} if only one position was written, and {onward[1]} if the next one was, too ({alone[1]} without "
        "an edit)."
    )


def _kl(table: pd.DataFrame) -> dict[tuple[Any, ...], float]:
    return table.set_index(["edit", "edited", "after", "site"])["kl_to_target"].to_dict()


def _edit(table: pd.DataFrame) -> str:
    return "steer" if "steer" in set(table["edit"]) else "donor"
