"""What a report's numbers are of, and how far to trust them, in words."""

from __future__ import annotations

import math

from msp_lens.probing.probe_report import ProbeReport

_HELD_OUT = {
    "prefix": "by prefix: no held-out row is a fitted one's repetition, though its neighbors in the tree of words are "
    "fitted on",
    "sequence": "by word: words share their beginnings, so rows at early positions have been seen",
    "subtree": "by {groups}: words that begin alike are held out together",
}


def summarize(report: ProbeReport) -> list[str]:
    """The notes beneath a report's table."""
    given = report.provenance
    lines = [
        _data(report),
        "R² held out, with its 95 % interval, and in-sample; MSE held out, per coordinate.",
        _held_out(report),
        *_overfitted(report),
        *_controls(report),
    ]
    rivals = [each for each in report.controls if each.is_rival]
    if rivals:
        is_told_apart = any(not math.isnan(report.beyond_next_token(label)) for label in report)
        beyond = " Beyond: the share of the rest that the activations add." if is_told_apart else ""
        lines.append(
            f"Next-token probabilities alone explain R² {rivals[0].held_out.r2:.3f} of the beliefs, held out.{beyond}"
        )
    degeneracy = getattr(report.process, "degeneracy", None)
    if degeneracy is not None:
        lines.append(f"{degeneracy()}")
    if report.regret is not None:
        lines.append(
            f"Regret of the model: {float(report.regret.mean()):.2g} nats on average over positions "
            f"({float(report.regret.min()):.2g} to {float(report.regret.max()):.2g})."
        )
    if given.get("method", "ols") != "ols":
        lines.append(_method(report))
    return lines


def _data(report: ProbeReport) -> str:
    given, n = report.provenance, report.probes[0].scores.in_sample.n
    weighting = f"weighting={given.get('weighting', 'as given')!r}"
    if "words" not in given:
        return f"{n:,} rows, {weighting}."
    process = f"{report.process!r}; " if report.process is not None else ""
    if given["is_population"]:
        words = "every possible word"
    elif given.get("draws") is not None:
        words = f"{given['draws']:,} sampled words ({given['words']:,} distinct)"
    else:
        words = f"{given['words']:,} given words"
    rows = "distinct prefixes" if given.get("split") in ("prefix", "subtree") else "rows"
    return f"{process}{words} of {given['n_ctx']} tokens: {n:,} {rows}, {weighting}."


def _held_out(report: ProbeReport) -> str:
    given = report.provenance
    by = _HELD_OUT.get(given.get("split", ""), "by the rows' groups").format(groups=given.get("groups", "group"))
    return (
        f"Held out: {given['n_folds']} folds {by}. 95 %: bootstrap over {given['n_cells']} cells of groups, the fitted "
        "maps kept."
    )


def _overfitted(report: ProbeReport) -> list[str]:
    worse = [probe for probe in report.probes if probe.scores.held_out.r2 < 0 < probe.scores.in_sample.r2]
    if not worse:
        return []
    probe = worse[-1]
    remedy = "" if report.provenance.get("method") == "ridge" else " method='ridge' chooses how much to shrink them."
    return [
        f"Below 0 held out ({', '.join(each.label for each in worse)}): worse than the mean belief. {probe.label} fits "
        f"{sum(probe.widths)} features to {probe.scores.in_sample.n:,} rows, so its in-sample score flatters.{remedy}"
    ]


def _controls(report: ProbeReport) -> list[str]:
    shuffled = report.probes[0].scores.shuffled is not None
    names = [name for name in report.controls.names if not name.startswith("untrained")]
    names = [name for name in names if any(c.name == name and not c.is_rival for c in report.controls)]
    twins = [name for name in report.controls.names if name.startswith("untrained")]
    if not (shuffled or names or twins):
        return [
            "No controls stand beside these numbers: an R² means little alone, and a random network can reach a high "
            "one. Probe with controls=True and untrained=3."
        ]
    lines = []
    if shuffled:
        lines.append("Shuffled: a probe of beliefs dealt out at random, in-sample.")
    against = []
    if names:
        against.append(f"{len(names)} readings of the last tokens and the position (report.controls)")
    if twins:
        against.append(f"{len(twins)} untrained network{'s' * (len(twins) > 1)}")
    if against:
        lines.append(
            f"Best control: the best held out of {' and '.join(against)}. Skill: the share of what it leaves "
            "unexplained that the probe explains; below 0, less than the control."
        )
    if not twins:
        lines.append(
            "Not among the controls: an untrained network, which can reach a high R² too (untrained=3 adds three)."
        )
    return lines


def _method(report: ProbeReport) -> str:
    given = report.provenance
    if given["method"] == "reduced_rank":
        return f"Probes are of rank {given['rank']}, by reduced-rank regression."
    if given["penalty"] is not None:
        return f"Probes are by ridge with penalty {given['penalty']:g}."
    penalties = [probe.scores.penalty for probe in report.probes if probe.scores.penalty is not None]
    return (
        f"Probes are by ridge with penalties {min(penalties):g} to {max(penalties):g}, chosen on held-out folds; "
        "scores are of penalties chosen without the fold that is scored."
    )
