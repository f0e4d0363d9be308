"""The notes under a report's table: what the numbers were measured on, what they say, and how far to trust them."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import Count, Seed
from msp_lens._files import parsed_json
from msp_lens._tables import nats_text, skill_text
from msp_lens.controls.control_scores import interval_text
from msp_lens.data import BeliefDataset, LabelledTokens, TokenMap
from msp_lens.data.labelled import BELIEF
from msp_lens.models.checking import ModelCheck
from msp_lens.moments.grid import bytes_text
from msp_lens.moments.scores import HeldOutScore
from msp_lens.probing.belief_probe import BeliefProbe
from msp_lens.probing.probe_tables import ClassReadouts, ProbeTables
from msp_lens.processes.process import Process


def probe_notes(
    tables: ProbeTables,
    provenance: dict[str, Any],
    *,
    process: Process | None,
    regret: Float64[Tensor, "pos"] | None,
    classes: ClassReadouts | None,
    parts: Mapping[str, ProbeTables],
    to_oracle: Float64[Tensor, "pos"] | None,
    outside: Float64[Tensor, "pos"] | None = None,
    model_check: ModelCheck | None = None,
) -> list[str]:
    """One sentence or two in each note."""
    given, reads = provenance, tables.probes[0].reads
    by = {
        "prefix": "by prefix. None is both fitted and scored, but prefixes one token longer or shorter may be fitted",
        "sequence": "by word. Words share their beginnings, so rows at early positions are both fitted and scored",
        "subtree": f"by {given.get('groups')}. Words that begin alike are held out together",
        "block": f"by {given.get('groups')}. Gaps between them are left out: no neighbor of a held-out row is fitted",
        "position": "by position. Neighboring rows are nearly the same row; split='block' holds them out together",
    }.get(given.get("split", ""), "by the rows' groups")
    lines = [_data_note(tables, given, process), *_reading_notes(given)]
    if model_check is not None:
        lines += [f"Check of the model (report.model_check): {problem}" for problem in model_check.problems]
    if math.isnan(tables.probes[0].scores.in_sample.r2):
        lines.append(
            f"The {reads.name} never varies on these rows, so there is nothing to read: R² is not defined and shown as "
            f"–. Probe other words{', or a process whose belief changes' * reads.is_belief}."
        )
    else:
        lines += [
            "The table shows R² held out, with its 95 % interval, and R² in-sample; MSE is held out, per coordinate.",
            f"Held out: {given['n_folds']} folds {by}. The interval is a bootstrap over {given['n_cells']} sets of "
            "rows; the probes are not fitted again.",
            *_constant_notes(tables, process),
            *_overfitting_notes(tables),
            *_control_notes(tables),
        ]
        lines += _rival_notes(tables)
    lines += _part_notes(parts, given)
    if process is not None and reads.name == BELIEF:
        lines.append(str(process.degeneracy()))
    if given.get("unused_tokens"):
        names = ", ".join(given["unused_tokens"])
        lines.append(f"Never emitted in these words: {names}. Nothing here says what the network does there.")
    if given.get("always_first") is not None:
        n_ctx = given["n_ctx"]
        lines.append(
            f"All words begin with {given['always_first']}: the belief after it is a single row, of 1/{n_ctx} of the "
            "weight by probability, and is read by extrapolation where it is held out. To leave it out: "
            f"data=msp.words(process, n_ctx={n_ctx}, positions=slice(1, None))."
        )
    lines += _memory_notes(given)
    if classes is not None:
        lines.append(classes.best_note())
    lines += _regret_notes(regret, outside)
    if given.get("no_regret"):
        lines.append(f"The model's regret was not measured: {given['no_regret']}.")
    if to_oracle is not None:
        mean, last = nats_text(to_oracle.mean()), nats_text(to_oracle[-1])
        lines.append(
            f"Above an oracle who knows the component (report.regret_to_oracle): {mean} nats on average, {last} at the "
            "last position."
        )
    return lines if math.isnan(tables.probes[0].scores.in_sample.r2) else lines + _solver_notes(tables, given)


def _memory_notes(given: dict[str, Any]) -> list[str]:
    """What was left out because of the memory that it takes."""
    lines = []
    if (left_out := given.get("concatenation_left_out")) is not None:
        lines.append(
            f"The {left_out['sites']} sites of {left_out['features']:,} features together were not probed: that takes "
            f"{bytes_text(left_out['bytes'])} of moments. Reduce each site first, "
            "concatenate=msp.moments.RandomProjection(64, seed=0), or choose fewer sites."
        )
    if given.get("positions_left_out") is not None:
        lines.append(f"Not scored by position: {positions_left_out(given)}.")
    return lines


def positions_left_out(given: Mapping[str, Any]) -> str:
    """Why positions were not kept apart, and what to do."""
    needed = given["positions_left_out"]["bytes"]
    return (
        f"the moments of every position take {bytes_text(needed)}, more than a quarter of max_bytes. Probe fewer sites "
        "or shorter words, or read these probes on fresh words, msp.probing.transfer(model, report, words)"
    )


def _rival_notes(tables: ProbeTables) -> list[str]:
    """How much each rival explains, and which sites follow it."""
    lines, reads = [], tables.probes[0].reads
    next_token, constrained = (
        next((each for each in tables.controls.rivals if each.kind == kind), None)
        for kind in ("next token", "constrained belief")
    )
    if next_token is not None:
        is_told_apart = any(not math.isnan(tables.beyond_next_token(label)) for label in tables)
        beyond = " Beyond: the share of the rest that the activations add." if is_told_apart else ""
        r2 = next_token.held_out.r2
        lines.append(f"Next-token probabilities alone explain R² {r2:.3f} of the {reads.kind}s, held out.{beyond}")
    if constrained is not None:
        read = {label: scores for label, probe in tables.items() if (scores := probe.scores.rival(constrained.name))}
        follow = [label for label, scores in read.items() if scores.held_out.r2 > tables[label].scores.held_out.r2]
        sites = f"Read better than the belief at {', '.join(follow)}" if follow else "No site reads them better"
        lines.append(
            f"Constrained beliefs, which one attention layer can compute, explain R² {constrained.held_out.r2:.3f} of "
            f"the beliefs, held out. {sites} (report.rivals())."
        )
    others = [each for each in tables.controls.rivals if each.kind == "other part" and not math.isnan(each.held_out.r2)]
    if others:
        best = max(others, key=lambda each: each.held_out.r2)
        what = "parts" if reads.is_belief else "targets"
        lines.append(
            f"Of the other {what}, {best.name!r} explains most of this one: R² {best.held_out.r2:.3f}, held out."
        )
    return lines


def _part_notes(parts: Mapping[str, ProbeTables], given: dict[str, Any]) -> list[str]:
    """Where each part of the belief, or each other target, is read best, and beside what."""
    read = []
    for name, tables in parts.items():
        scored = [probe for probe in tables.probes if not math.isnan(probe.scores.held_out.r2)]
        if not scored:
            read.append(f"{name} never varies")
            continue
        best = max(scored, key=lambda probe: probe.scores.held_out.r2)
        control = tables.controls.best(best.label)
        beside = "" if control is None else f", best control {control.held_out.r2:.3f}"
        read.append(f"{name} R² {best.scores.held_out.r2:.3f} at {best.label}{beside}")
    what = "Parts of the belief" if all(each.probes[0].reads.is_belief for each in parts.values()) else "Other targets"
    lines = [f"{what} (report.parts, report.by_part()), held out: {'; '.join(read)}."] if read else []
    if given.get("parts_left_out"):
        names = ", ".join(given["parts_left_out"])
        lines.append(f"Parts left out, since they are defined in too few rows: {names}.")
    return lines


def _data_note(tables: ProbeTables, given: dict[str, Any], process: Process | None) -> str:
    n = tables.probes[0].scores.in_sample.n
    weighting = f"weighting={given.get('weighting', 'as given')!r}"
    reads = tables.probes[0].reads
    target = "" if reads.name == BELIEF else f"; the {reads.name}"
    if "words" not in given:
        return f"{n:,} rows, {weighting}{target}."
    named = f"{process!r}; " if process is not None else ""
    words = f"{given['words']:,} given words"
    if given["is_population"]:
        words = "every possible word"
    elif given.get("draws") is not None:
        words = f"{given['draws']:,} sampled words ({given['words']:,} distinct)"
    rows = "distinct prefixes" if given.get("split") in ("prefix", "subtree", "block") else "rows"
    return f"{named}{words} of {given['n_ctx']} tokens: {n:,} {rows}, {weighting}{target}."


def _reading_notes(given: dict[str, Any]) -> list[str]:
    """How the model reads the symbols, and which positions are rows."""
    lines = []
    if (fields := given.get("token_map")) is not None:
        token_map = TokenMap.from_dict(fields)
        read = ", ".join("+".join(map(str, ids)) for ids in token_map.symbols[:8])
        read += " …" if len(token_map.symbols) > 8 else ""
        start = f" after BOS {token_map.bos}" if token_map.bos is not None else ""
        start += f" and a prompt of {len(token_map.prompt)} tokens" if token_map.prompt else ""
        between = f", with {'+'.join(map(str, token_map.separator))} between them" if token_map.separator else ""
        prior = " The position before the first symbol is a row, too." if token_map.include_prior else ""
        lines.append(f"The model reads the symbols as tokens {read}{start}{between}.{prior}")
    if (positions := given.get("positions", "all")) != "all":
        shown = positions if isinstance(positions, str) else ", ".join(map(str, positions))
        lines.append(f"Rows are the positions {textwrap.shorten(shown, 80, placeholder=' …')} of each word.")
    return lines


def _constant_notes(tables: ProbeTables, process: Process | None) -> list[str]:
    r2 = tables.probes[0].scores.in_sample.r2_by_target
    reads = tables.probes[0].reads
    states = process.states if process and reads.is_belief and process.n_states == len(r2) else range(len(r2))
    names = reads.classes or states
    constant = [str(name) for name, value in zip(names, r2, strict=True) if math.isnan(value)]
    if not constant:
        return []
    which = ", ".join(constant)
    return [f"Coordinates of the {reads.name} that never vary on these rows: {which}. They have no R² of their own."]


def _overfitting_notes(tables: ProbeTables) -> list[str]:
    worse = [probe for probe in tables.probes if probe.scores.held_out.r2 < 0]
    if not worse:
        return []
    probe = min(worse, key=lambda each: each.scores.held_out.r2)
    where, kind = ", ".join(each.label for each in worse), probe.reads.kind
    lowest = f"Below 0 held out ({where}): worse than the mean {kind}."
    if probe.scores.in_sample.r2 < 0.05:
        return [f"{lowest} These sites carry nothing that a linear map reads."]
    remedy = "" if probe.scores.solver == "ridge" else " solver='ridge' chooses how much to shrink them."
    return [
        f"{lowest} {probe.label} fits {sum(probe.widths)} features to {probe.scores.in_sample.n:,} rows, so its "
        f"in-sample score is optimistic.{remedy}"
    ]


def _control_notes(tables: ProbeTables) -> list[str]:
    has_shuffled = tables.probes[0].scores.shuffled is not None
    twins = {each.name for each in tables.controls if each.kind == "untrained"}
    windows = {each.name for each in tables.controls if not each.is_rival} - twins
    if not (has_shuffled or windows or twins):
        return [
            "No controls were measured: an R² means little alone, and a random network can reach a high one. "
            "Probe with controls=True and untrained=3."
        ]
    against = [f"{len(windows)} readings of the last tokens and the position (report.controls)"] if windows else []
    against += [f"{len(twins)} untrained network{'s' * (len(twins) > 1)}"] if twins else []
    permuted = f"randomly permuted {tables.probes[0].reads.kind}s"
    lines = [f"Shuffled: in-sample R² of a probe of {permuted}."] if has_shuffled else []
    if against:
        lines += [f"Best control: the best held-out score of {' and '.join(against)}.", *_skill_notes(tables)]
    if not twins:
        lines.append(
            "Not among the controls: an untrained network, which can reach a high R² too (untrained=3 adds three)."
        )
    return lines


def _skill_notes(tables: ProbeTables) -> list[str]:
    """What the probes say beyond the controls, and how certain that is."""
    scored = [label for label in tables if not math.isnan(tables.skill(label))]
    if not scored:
        return []
    best = max(scored, key=tables.skill)
    control = tables.controls.best(best)
    assert control is not None
    if tables.skill(best) <= 0:
        return [
            f"No site reads better than its best control (at {best}: {control.name}, R² {control.held_out.r2:.3f} held "
            "out): these probes may find nothing more than that control does."
        ]
    low, high = tables.skill_interval(best)
    interval = "" if math.isnan(low) else f" (95 % over groups of rows: {interval_text(low, high)})"
    return [
        "Skill is the share of what the best control leaves unexplained that the probe explains. It is highest at "
        f"{best}: {skill_text(tables.skill(best))}{interval}. It can vary more from one training to the next: compare "
        "several seeds."
    ]


def _regret_notes(regret: Float64[Tensor, "pos"] | None, outside: Float64[Tensor, "pos"] | None = None) -> list[str]:
    if regret is None:
        return []
    mean, low, high = map(nats_text, (regret.mean(), *regret.aminmax()))
    lines = [f"Regret of the model: {mean} nats on average over positions ({low} to {high})."]
    if outside is not None:
        unknown, rest = nats_text(outside.mean()), nats_text((regret - outside).mean())
        lines.append(
            f"Of it, {unknown} nats are due to tokens that are not symbols (report.regret_outside; "
            f"{nats_text(outside[-1])} at the last position), and {rest} are KL among the symbols."
        )
    position = untrained_position(regret)
    if position is not None:
        n_ctx = len(regret)
        rest = max(float(nats) for p, nats in enumerate(regret) if p != position)
        is_last = position == n_ctx - 1
        reason = "as if its prediction had never been trained: targets inside the context leave out the last one"
        others = [p for p in range(n_ctx) if p != position]
        remedy = f"n_ctx={n_ctx - 1}" if is_last else f"n_ctx={n_ctx}, positions={others}"
        lines.append(
            f"Position {position}{' (the last)' if is_last else ''} has a regret of {nats_text(regret[position])} "
            f"nats, the others at most {nats_text(rest)}{f', {reason}' if is_last else ''}. Results that take it in "
            f"say little about the rest; leave it out: data=msp.words(process, {remedy})."
        )
    return lines


def untrained_position(regret: Float64[Tensor, "pos"]) -> int | None:
    """The position whose regret is far above all others, from 0; `None` if there is none."""
    # Regret in nats that is worth a word, and how many times the next highest is far.
    worth, far = 0.02, 5
    if len(regret) < 3:
        return None
    highest, second = regret.topk(2).values.tolist()
    return int(regret.argmax()) if highest > max(worth, far * second) else None


def _solver_notes(tables: ProbeTables, given: dict[str, Any]) -> list[str]:
    solver = given["solver"]
    if solver.get("rank") is not None:
        return [f"Probes have rank {solver['rank']}, by reduced-rank regression."]
    if solver.get("penalty") is not None:
        return [f"Probes are fitted by ridge with penalty {solver['penalty']:g}."]
    by_ridge = [probe for probe in tables.probes if probe.scores.solver == "ridge"]
    why = f", as there are at least {solver['ratio']:g} rows a feature" if solver["name"] == "auto" else ""
    if not by_ridge:
        return [f"Probes are fitted by least squares{why}."]
    penalties = [probe.scores.penalty for probe in by_ridge if probe.scores.penalty is not None]
    chosen = (
        f"Penalties are {min(penalties):g} to {max(penalties):g}, chosen on held-out folds; each score is of a "
        "penalty chosen without the fold that is scored."
    )
    if solver["name"] == "ridge":
        return [f"Probes are fitted by ridge. {chosen}"]
    n_groups, what = given.get("n_groups") or math.inf, "rows"
    if n_groups < tables.probes[0].scores.in_sample.n:
        what = f"groups of rows ({given.get('groups', 'given')})"
    fewest = min(min(probe.scores.in_sample.n, n_groups) / sum(probe.widths) for probe in by_ridge)
    named = ", ".join(probe.label for probe in by_ridge)
    rest = f" The others are fitted by least squares{why}." if len(by_ridge) < len(tables) else ""
    if len(by_ridge) == len(tables) > 8:
        named = "all probes"
    return [
        f"Fitted by ridge: {named}, which have fewer than {solver['ratio']:g} {what} a feature ({fewest:.2g} at the "
        f"least), so that least squares would overfit. {chosen}{rest}"
    ]


def transfer_notes(
    probes: Mapping[str, BeliefProbe],
    data: BeliefDataset | LabelledTokens,
    rows: LabelledTokens,
    score: HeldOutScore,
    model_fingerprint: str,
) -> list[str]:
    """What frozen probes were scored on, and what is other than where they were fitted."""
    given = {"weighting": "as given", "groups": "group"} | dict(rows.description)
    words, here = f"{len(rows.tokens):,} given words", {"model": model_fingerprint}
    if isinstance(data, BeliefDataset):
        here["process"] = data.process.fingerprint
        words = f"{data.process!r}; {'every possible word' if data.is_population else words}"
    lines = [
        f"{words} of {given.get('n_ctx', rows.n_ctx)} tokens: {score.n:,} rows, weighting={given['weighting']!r}. The "
        f"interval is a bootstrap over {len(score.mse_by_cell)} sets of rows, divided by {given['groups']}."
    ]
    is_same = True
    for what, fingerprint in here.items():
        fitted = {name: each.provenance.get(f"{what}_fingerprint") for name, each in probes.items()}
        others = [name for name, known in fitted.items() if known != fingerprint]
        unknown = all(fitted[name] is None for name in others)
        where = f"no known {what}" if unknown else f"another {what if what == 'process' else 'model or checkpoint'}"
        is_same = is_same and not others
        if others:
            lines.append(f"Fitted on {where}: {'all probes' if len(others) == len(probes) else ', '.join(others)}.")
    named = {"token_map": "token map", "n_ctx": "length of words", "positions": "positions", "weighting": "weighting"}
    changed = [
        name
        for key, name in named.items()
        if any(each.provenance.get(key) != given.get(key) for each in probes.values())
    ]
    if changed:
        lines.append(f"Other than where they were fitted: {', '.join(changed)}.")
    if is_same:
        same = " and ".join(here)
        lines.append(f"Fitted on this {same}: rows among those that the probes were fitted on are in-sample.")
    return lines


class _AlwaysSaved(TypedDict):
    n_folds: Count
    n_cells: Count
    seed: Seed
    solver: dict[str, Any]


class _SavedProvenance(_AlwaysSaved, total=False):
    """What is used of a report's provenance; there may be more."""

    process: dict[str, Any]
    process_fingerprint: str
    model_fingerprint: str
    words: Count
    n_ctx: Count
    is_population: bool
    draws: Count | None
    unused_tokens: list[str]
    draw_seed: Seed | None
    own_dataset: bool
    token_map: dict[str, Any] | None
    weighting: str
    split: str
    target: str
    groups: str
    classes: list[str] | None
    always_first: str | None
    part: str
    part_states: list[str] | None
    parts_left_out: list[str]
    positions: str | list[int]
    no_regret: str | None
    concatenation_left_out: dict[str, Count]
    positions_left_out: dict[str, Count]
    n_groups: Count | None


def checked_provenance(provenance: dict[str, Any], path: Path) -> dict[str, Any]:
    """The provenance, once what is used of it is as `probe` writes it, or a `ValueError`."""
    used = {key: value for key, value in provenance.items() if key in get_type_hints(_SavedProvenance)}
    parsed_json(json.dumps(used).encode(), _SavedProvenance, path)
    if "process" in used:
        try:
            fingerprint = Process.from_dict(used["process"]).fingerprint
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: provenance.process: {error} The file was edited: create it again.") from None
        if fingerprint != used.get("process_fingerprint"):
            raise ValueError(f"{path}: provenance.process is not that of its fingerprint: create the file again.")
    return provenance
