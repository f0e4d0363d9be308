"""The experiment: write another belief into the residual stream, and see whether the network acts on it.

Words are drawn from the process, each with a target belief. After an edit at the last position of the word, the
network's next-token distribution there is compared with that of an optimal observer

- who holds the *target* belief: KL(target's optimum ‖ model), small if the network acts on what was written;
- who holds the word's *actual* belief: KL(actual optimum ‖ model), small if the network ignores it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import pandas as pd
from jaxtyping import Int
from torch import Tensor

from msp_lens._checks import AtLeast, Count, Seed, checked
from msp_lens._tables import nats_text, percent
from msp_lens.beliefs.filtering import filter_beliefs
from msp_lens.data import BeliefDataset
from msp_lens.interventions.engine import Engine
from msp_lens.interventions.intervention_report import (
    InterventionReport,
    Layout,
    acts_on_belief,
    effect_text,
    worse_than_placebo,
)
from msp_lens.interventions.menu import Edits
from msp_lens.interventions.preparation import Probes, chosen_positions, map_provenance, reading, untrained_end
from msp_lens.interventions.targets import AskedTargets
from msp_lens.models.hooked import HookedModel
from msp_lens.processes.process import Process


@checked
def intervene(
    model: HookedModel,
    data: Process | BeliefDataset,
    *,
    probes: Probes,
    positions: int | Sequence[int] | None = None,
    spans: Count | Sequence[Count] = 1,
    context: Int[Tensor, "*context pos"] | None = None,
    edits: Edits = None,
    targets: AskedTargets = "another word",
    strengths: float | Sequence[float] = 1.0,
    together: bool = False,
    n_words: Annotated[int, AtLeast(2, "a standard error needs two words")] | None = None,
    seed: Seed = 0,
    batch_size: Count | None = None,
    progress: bool = True,
) -> InterventionReport:
    """Write beliefs into the residual stream and measure whether the network acts on them: layer × position × edit.

    The edits asked for are compared with no edit, a placebo as long as `steer`'s step, a wrong belief, and a donor.
    What comes before the edits is read once, if the model has a cache of keys and values: `msp.models.CachedBeginning`.

    Args:
        model: The model that the probes were fitted on.
        data: The process it was trained on, or a `BeliefDataset`, taken for its process and the length of its words.
        probes: A report (its single sites are taken) or probes of single sites. The probe of the latest site reads
            the displacement caused at the others.
        positions: Positions to edit, one at a time, and to predict from; by default one, three quarters into the words,
            or the last of a context.
        spans: How many positions to edit, the last of them that position: the target is written at each. Several are
            compared.
        context: One long context, or several, in place of words drawn. Each target is that of another ending: a donor
            is the same context with other tokens in place of its last 20, as its past lets expect them.
        edits: Names from `msp_lens.interventions.EDITS`, or a mapping of names to your own makers.
        targets: Names from `msp_lens.interventions.TARGETS`, a mapping of names to makers or to beliefs, or a belief.
        strengths: How much of each edit to make, λ; several give curves.
        together: Whether also to edit all the sites at once.
        n_words: Words to draw, or targets of the contexts; by default 2,000, or fewer of more than 100 tokens.
        seed: Seed of the words, the targets and the placebo's directions.
        batch_size: Words in one forward pass.
        progress: Whether to show a progress bar, if it takes more than two seconds.

    Returns:
        A row for each site, position, edit, target and strength, and for each span if there are several.

    Raises:
        ValueError: if a position or option is invalid, a context is impossible, a probe reads several sites or belongs
            to another model, a target is no belief, or the model does not fit the process.
        KeyError: if the model lacks a probe's site, or there is no edit or target of a name.
    """
    model, process, n_ctx = reading(model, data, probes)
    contexts = None if context is None else _contexts(process, context)
    if contexts is not None:
        n_ctx, positions = contexts.shape[1], -1 if positions is None else positions
    wanted = chosen_positions(positions, n_ctx)
    lengths = [spans] if isinstance(spans, int) else list(spans)
    if not lengths or len(set(lengths)) < len(lengths) or max(lengths) > min(wanted) + 1:
        raise ValueError(
            f"spans={lengths}: give at least one and none twice, each at most {min(wanted) + 1}, the number of "
            f"positions up to {min(wanted)}."
        )
    scales = [float(each) for each in ([strengths] if isinstance(strengths, int | float) else strengths)]
    if not scales or not all(map(math.isfinite, scales)) or len(set(scales)) < len(scales):
        raise ValueError(f"strengths={scales}: give at least one finite number, and none twice.")
    n_read = max(wanted) + 1
    engine = Engine(model, process, probes, edits, targets, n_read, n_words, seed, batch_size, contexts=contexts)
    # All is drawn before the model runs: what cannot be drawn is refused at once.
    draws = [
        engine.draw(position, target, first=position + 1 - max(lengths))
        for position in wanted
        for target in engine.targets
    ]
    chosen = engine.probes
    groups = [[probe] for probe in chosen] + ([chosen] if together and len(chosen) > 1 else [])
    tables, cautions = [], []
    for drawn in draws:
        last = drawn.position + 1
        ends = {span: slice(last - span, last) for span in lengths}
        title = f"Writing beliefs at position {drawn.position}" if progress else None
        table, regret = engine.run(drawn, groups, ends, scales, progress=title)
        tables.append(table.assign(position=drawn.position, target=drawn.target))
        cautions += untrained_end(regret, last - len(regret))
    keys = ["site", "position", *(["span"] if lengths != [1] else []), "edit", "target", "strength"]
    table = pd.concat(tables, ignore_index=True).set_index(keys).reset_index()
    table = table.drop(columns=["after", *({"span"} - {*keys})])
    reader = chosen[-1].label if len(chosen) > 1 else None
    provenance = {"process": process.to_dict(), "n_words": engine.n_words, "seed": seed, "positions": wanted}
    provenance |= {"spans": lengths, "contexts": 0 if contexts is None else len(contexts)}
    makers = {"edits": list(engine.edits), "targets": list(engine.targets)}
    provenance |= {**makers, **map_provenance(model), "strengths": scales, "reader": reader}
    notes = [
        *dict.fromkeys(cautions),
        f"{_words_text(engine)}, each with a target belief ({', '.join(engine.targets)}). "
        "KL(target's optimum ‖ model) in nats after each edit: 0 if the network acts as if it held the target belief.",
        "none: the network left alone. placebo: a step of the same length in a random direction. wrong belief: steered "
        "to the belief of a third word. donor: the activation of a run that held the target belief, a natural "
        "reference but no bound.",
        "An edit that works shows that the belief there is enough to change what the network says, not that nothing "
        "else is used. One that fails may be the wrong edit: the pseudo-inverse makes the smallest change that the "
        "probe sees, the decoder (steer, patch) moves everything that varies with the belief.",
    ]
    alone = table.loc[table["edit"] == "none"]
    if not all(map(acts_on_belief, alone["kl_to_actual"], alone["kl_to_target"])):
        notes.append(
            "Left alone, the model is hardly nearer to the actual optimum than to the target's: it does not act on the "
            "belief (or the two beliefs predict alike), and recoveries mean nothing, whatever their sign."
        )
    if "outside" in table:
        cost = nats_text(float(alone["outside"].to_numpy().mean()))
        notes.append(
            f"The model has other tokens than symbols. Left alone, that costs {cost} nats of each KL (outside: "
            "-log P(any symbol)); kl_to_target - outside is the KL among the symbols."
        )
    if reader is not None:
        notes.append(f"Displacement is read at {reader}, by its own probe.")
    # What is the same in every row is said once, in the title.
    said = [key for key in ("position", "span", "target") if key in keys]
    varying = [key for key in (*said, "strength") if len(set(table[key])) > 1]
    constant = [f"{key} {table[key].iloc[0]}" for key in said if key not in varying]
    title = "; ".join(["KL(target's optimum ‖ model), nats", *constant])
    # Many edits stand one below the other.
    rows, columns = ("site", "edit") if len(engine.edits) <= 8 else ("edit", "site")
    shown = {"position": wanted[0], "target": next(iter(engine.targets)), "strength": 1.0}
    shown |= {"span": lengths[0]} if "span" in keys else {}
    label = "KL to the target's optimum (nats)"
    cells = {"shade": "recovery", "mark": "worse_than_placebo"}
    layout = Layout([rows, *varying], columns, "kl_to_target", label, chosen=shown, **cells)
    found = InterventionReport(title, table, tuple(keys), tuple(notes), provenance, layout)
    return replace(found, notes=(*_contrast(found), *worse_than_placebo(found), *notes))


def _contexts(process: Process, context: Tensor) -> Int[Tensor, "context pos"]:
    """The contexts, checked to be words of the process."""
    contexts = context.cpu() if context.ndim == 2 else context.cpu()[None]
    if context.ndim not in (1, 2) or contexts.numel() == 0:
        raise ValueError(f"context has shape {tuple(context.shape)}: give one context [pos] or several [context, pos].")
    contexts = process.read_words(contexts, what="context")
    # An impossible one has no belief.
    filter_beliefs(process, contexts)
    return contexts


def _words_text(engine: Engine) -> str:
    if engine.contexts is None:
        return f"{engine.n_words:,} words drawn from {engine.process.name}"
    count, length = engine.contexts.shape
    contexts = f"One context of {length:,} tokens" if count == 1 else f"{count:,} contexts of {length:,} tokens"
    return f"{contexts} of {engine.process.name}, {engine.n_words:,} times"


def _contrast(found: InterventionReport) -> list[str]:
    """The edits side by side where steering, or else the donor, recovers most, and what that shows."""
    whole = [row for row in found.table.to_dict(orient="records") if row["strength"] == 1]
    edit = "steer" if any(row["edit"] == "steer" for row in whole) else "donor"
    best = min((row for row in whole if row["edit"] == edit), key=lambda row: row["kl_to_target"])
    keys = [key for key in ("site", "position", "span", "target") if key in best]
    numbers = []
    for row in whole:
        if all(row[key] == best[key] for key in keys):
            numbers.append(f"{row['edit']} {nats_text(row['kl_to_target'])} ({percent(row['recovery'])})")
    where = f"At {best['site']}, position {best['position']}"
    where += f", the last {best['span']} positions edited" if best.get("span", 1) > 1 else ""
    contrast = f"{where}, KL to the target and share recovered: {', '.join(numbers)}."
    place = {key: best[key] for key in keys}
    effect = [effect_text(found, **place)] if edit == "steer" else []
    return [contrast, *effect, _off_manifold_text(found, **place)]


def _off_manifold_text(found: InterventionReport, **where: Any) -> str:
    """A sentence on how far each edit at a place leaves the cloud of real activations."""
    rows = [row for row in found.table.to_dict(orient="records") if row["strength"] == 1]
    rows = [row for row in rows if all(row[key] == value for key, value in where.items())]
    # The donor's distance is the unit.
    far = [(row["edit"], row["off_manifold"]) for row in rows if row["edit"] != "donor"]
    if not far or any(math.isnan(ratio) for _, ratio in far):
        return "How far the edits leave the cloud of real activations is not known: too few words differ there."
    told = ", ".join(f"{edit} {ratio:.2f}" for edit, ratio in far)
    return (
        f"Distance from the nearest real activation, as a multiple of a donor's (off_manifold): {told}. An activation "
        "far from all real ones may have effects that no word has."
    )
