"""Shai et al. 2024: beliefs, fractal or not, are a linear image of the residual stream.

Claim: with B the beliefs after every prefix and H the activations, min over W, c of |H W + c - B|² is small, layer by
layer for Mess3, and only over all layers together for RRXOR.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from msp_lens.data import LabelledTokens, words
from msp_lens.experiments.claims import Claim, Section, all_of, at_least, at_most, number_text, within, within_factor
from msp_lens.experiments.reproduction import Network, Networks, Paper, Trained
from msp_lens.formation import emergence
from msp_lens.models.hooked import word_length
from msp_lens.probing.fit import probe
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.catalog import mess3, rrxor
from msp_lens.training.config import TrainingConfig
from msp_lens.training.presets import recipe

# Squared errors per coordinate at six sites, and at the six concatenated. Mess3's are those of the published weights,
# which equal the bars of the figure; RRXOR's are read from the figure.
PLACES = ("the embedding", "layer 1", "layer 2", "layer 3", "layer 4", "the final LayerNorm", "all of them together")
MESS3_ERRORS = (0.030943, 0.001411, 0.000711, 0.000526, 0.000386, 0.000301, 0.000098)
RRXOR_ERRORS = (0.0700, 0.0417, 0.0318, 0.0259, 0.0244, 0.0293, 0.0036)


def networks(small: bool) -> dict[str, Network]:
    """The paper's two networks; at the small size trained for minutes rather than days."""
    brief = {
        "mess3": TrainingConfig(),
        "rrxor": TrainingConfig(steps=700, batch_size=2048, optimizer="muon", learning_rate=3e-3),
    }
    made = {}
    for process in (mess3(x=0.05, a=0.85), rrxor()):
        chosen = recipe("shai2024", process)
        training = brief[process.name] if small else chosen.training
        if process.name == "mess3":
            training = replace(training, checkpoints="logarithmic", n_checkpoints=11)
        made[process.name] = Network(process=process, model=chosen.model, training=training)
    return made


def fractal(networks: Networks, small: bool) -> Section:
    """Mess3: the error at every layer, and the picture of what is read there."""
    trained = networks["mess3"]
    report = _fitted(trained)
    untrained = _untrained(report)
    claims = [
        Claim(
            says="The network predicts almost optimally: its loss over the least possible one",
            source="appendix",
            published="1.0002",
            measured=f"{trained.loss_ratio:.4f}",
            rule=at_most(trained.loss_ratio, 1.001),
        )
    ]
    for place, published, site in zip(PLACES, MESS3_ERRORS, report, strict=True):
        measured = report[site].scores.in_sample.mse
        # What the embedding knows, the last token and the position, does not depend on the training.
        near = within_factor(measured, published, 1.01 if place == PLACES[0] else 3)
        far = at_most(measured, untrained[site] / 5, "a fifth of the untrained network’s")
        claims.append(
            Claim(
                says=f"Squared error of the beliefs read at {place}",
                source="Fig. 6",
                published=published,
                measured=measured,
                control=untrained[site],
                control_is="untrained",
                rule=near if place == PLACES[0] else all_of(near, far),
            )
        )
    shown = [site for site in ("0_pre", "3_post", "concatenated") if site in report]
    return Section(
        title="Mess3’s fractal is in the residual stream (Figures 5 and 6)",
        method="""
            Every word of the network’s context, 59,049 of ten tokens, is run through the network. At each site, beliefs
            over the three hidden states are regressed on activations by ordinary least squares with an intercept: all
            positions of all words, every word alike, scored on the same data. Errors are averaged over coordinates.

            Each point is a prefix, in the color of its true belief. The first panel is the truth. Where the panel of a
            site has the same shape and colors, the beliefs are there.
        """,
        claims=tuple(claims),
        picture=lambda theme: report.plot(*shown, theme=theme),
        alt="True beliefs of Mess3, and those read from four sites",
        remark="Held out by prefix, the errors are "
        + ", ".join(f"{number_text(each.scores.held_out.mse)} ({label})" for label, each in report.items())
        + ". An untrained network already explains most of the variance; the finding is what training adds to that.",
    )


def cross_validation(networks: Networks, small: bool) -> Section:
    """Mess3: the error on rows that were not fitted, and with shuffled beliefs."""
    trained = networks["mess3"]
    options: dict[str, Any] = {"sites": "3_post", "solver": "ols", "controls": False, "progress": False}
    dataset = words(trained.process, n_ctx=word_length(trained.model))
    (at_random,) = probe(trained.model, dataset, weighting="sequence", split="position", **options).probes
    (by_prefix,) = probe(trained.model, dataset, weighting="sequence", **options).probes
    beliefs = dataset.beliefs.flatten(0, 1)
    order = torch.randperm(len(beliefs), generator=torch.Generator().manual_seed(0))
    dealt = LabelledTokens.from_tokens(dataset.tokens, beliefs[order].view_as(dataset.beliefs))
    (shuffled,) = probe(trained.model, dealt, **options).probes
    error, without = at_random.scores.held_out.mse, shuffled.scores.in_sample.mse
    return Section(
        title="Cross-validation and shuffled beliefs (Figure S1)",
        method="""
            Could the fit be an accident of many features? Rows, one for every position of every word, are dealt into
            fifths at random; a map is fitted on four of them and scored on the fifth. As a control, beliefs are
            shuffled among all rows before the fit.
        """,
        claims=(
            Claim(
                says="Squared error at layer 4 on rows that were not fitted",
                source="Fig. S1",
                published=0.00039,
                measured=error,
                control=without,
                control_is="shuffled beliefs",
                rule=within_factor(error, 0.00039, 3),
            ),
            Claim(
                says="Squared error with shuffled beliefs: their variance",
                source="Fig. S1",
                published=0.111,
                measured=without,
                rule=within(without, 0.111, 0.002),
            ),
        ),
        remark="Words share their beginnings, so a row that is held out at random has often been fitted in another "
        f"word. Held out by prefix, the error is {number_text(by_prefix.scores.held_out.mse)}.",
    )


def over_training(networks: Networks, small: bool) -> Section:
    """Mess3: how the beliefs form."""
    title, trained = "The fractal forms during training (Figures 6 and S2)", networks["mess3"]
    says = ("After about ten steps the beliefs are read with R²", "Error and loss fall together, by rank correlation")
    if trained.training is None:
        beyond = "the network was loaded, without the history of its training"
        claims = [
            Claim(says=each, source=source, published=published, beyond=beyond)
            for each, source, published in zip(says, ("Fig. 6", "Fig. S2"), (0.885, "together"), strict=True)
        ]
        return Section(title=title, method="The network was loaded without its checkpoints.", claims=tuple(claims))
    length = min(8, word_length(trained.model))
    formed = emergence(
        trained.training,
        words(trained.process, n_ctx=length, max_words=7_000, seed=0),
        sites=["0_pre", "0_post", "3_post"],
        weighting="sequence",
        controls=False,
        progress=False,
    )
    table = formed.to_dataframe()
    at_last = table.loc[table["site"] == "3_post"].set_index("step")["R² in-sample"]
    step = min(at_last.index, key=lambda step: abs(step - 10))
    together = formed.rank_correlation("3_post", in_sample=True)
    return Section(
        title=title,
        method=f"""
            Checkpoints of the training are probed alike, on the same words of {length} tokens. In the paper, R² is .885
            after 10 steps, and the squared error .01274 after 10, .00727 after 1,430, .00248 after 4,980 and .000386
            after 1,000,000.
        """,
        claims=(
            Claim(
                says=says[0],
                source="Fig. 6",
                published=0.885,
                measured=float(at_last[step]),
                control=float(at_last.iloc[0]),
                control_is="untrained",
                rule=within(float(at_last[step]), 0.885, 0.05),
            ),
            Claim(
                says=says[1],
                source="Fig. S2",
                published="together",
                measured=together,
                rule=at_least(together, 0.8),
            ),
        ),
        picture=lambda theme: formed.plot(in_sample=True, theme=theme),
        alt="R squared, squared error and regret over training",
        remark="An untrained network already reaches almost that R²: what training adds is the detail, which the error "
        "shows and R² hides.",
    )


def spread_over_layers(networks: Networks, small: bool) -> Section:
    """RRXOR: no layer has the beliefs, all together have them."""
    trained = networks["rrxor"]
    report, ridge = _fitted(trained), _fitted(trained, solver="ridge")
    untrained = _untrained(report)
    unknown = next(
        each.held_out.r2 for each in ridge.controls if each.kind == "untrained" and each.site == "concatenated"
    )
    claims = []
    for place, published, site in zip(PLACES, RRXOR_ERRORS, report, strict=True):
        measured = report[site].scores.in_sample.mse
        factor = 1.05 if place == PLACES[0] else 2
        claims.append(
            Claim(
                says=f"Squared error of the beliefs read at {place}",
                source="Fig. 7",
                published=published,
                measured=measured,
                control=untrained[site],
                control_is="untrained",
                rule=within_factor(measured, published, factor),
            )
        )
    *single, together = (each.scores for each in report.values())
    gain = together.in_sample.r2 - max(scores.in_sample.r2 for scores in single)
    *single, unseen = (each.scores.held_out.r2 for each in ridge.values())
    claims.append(
        Claim(
            says="All sites together read what no single one does: R² gained, in-sample",
            source="Fig. 7",
            published=0.25,
            measured=gain,
            control=unseen - max(single),
            control_is="held out by prefix, ridge",
            rule=at_least(gain, 0.1),
        )
    )
    return Section(
        title="RRXOR’s beliefs are spread over the layers (Figure 7)",
        method="""
            The same regression for RRXOR, whose 36 mixed states are no function of the next token’s probabilities. Its
            436 words have only 1,046 distinct prefixes, and the sites together have hundreds of features.
        """,
        claims=tuple(claims),
        picture=lambda theme: report.plot("3_post", "concatenated", theme=theme),
        alt="True beliefs of RRXOR, those read at the last layer, and those read at all sites together",
        remark="In-sample, the sites of an untrained network together read much of the beliefs, too. On prefixes that "
        f"were not fitted, with ridge, this network reaches R² {unseen:.3f} with all sites and {max(single):.3f} with "
        f"the best one, and an untrained network {unknown:.3f} with all. So the beliefs are there, but the leap from "
        "one site to all is mostly that of more features on few prefixes.",
    )


def distances(networks: Networks, small: bool) -> Section:
    """RRXOR and Mess3: whether distances follow the beliefs, or only the next token."""
    trained, control = networks["rrxor"], networks["mess3"]
    pairs = ((trained.model, trained), (control.model, control), (trained.untrained(), trained))
    # The same maps as in the sections above, without their controls.
    how: dict[str, Any] = {"weighting": "sequence", "solver": "ols", "controls": False, "progress": False}
    found, of_mess3, of_twin = (probe(model, of.process, **how).distances("concatenated") for model, of in pairs)
    numbers = (
        ("RRXOR: distances read follow those of the beliefs, R²", 0.95, found.r2_true, of_twin.r2_true),
        ("RRXOR: they hardly follow those of the next token, R²", 0.31, found.r2_next_token, of_twin.r2_next_token),
        ("Mess3: they follow those of the beliefs, R²", "about 1", of_mess3.r2_true, None),
        ("Mess3: and those of the next token, R²", "about 1", of_mess3.r2_next_token, None),
    )
    claims = [
        Claim(
            says=says,
            source="Fig. 7",
            published=published,
            measured=measured,
            control=other,
            control_is="untrained",
            rule=within(measured, published, 0.1) if isinstance(published, float) else at_least(measured, 0.95),
        )
        for says, published, measured, other in numbers
    ]
    return Section(
        title="Beliefs, or only the next token? (Figure 7D)",
        method="""
            Over pairs of prefixes, distances between the beliefs read at all sites together are compared with distances
            between true beliefs, and with distances between next-token probabilities. For Mess3 the two are affine
            functions of each other, so the comparison says nothing there.
        """,
        claims=tuple(claims),
        picture=lambda theme: found.plot(theme=theme),
        alt="Distances between beliefs read, against those between true beliefs and between next-token probabilities",
        remark="The maps are fitted to beliefs, and what fits them exactly resembles them: the distances of an "
        "untrained network follow the beliefs, too, though less.",
    )


def differences(small: bool) -> tuple[str, ...]:
    """What differs from the paper's setting."""
    shared = "Cross-validation fits on four fifths of the rows."
    if not small:
        return (shared,)
    return (
        "The networks are the paper’s, but their training is not: 1,500 steps of AdamW for Mess3 and 700 of Muon for "
        "RRXOR, minutes instead of 1,000,000 steps of plain SGD, 56 hours. So numbers are compared by factors.",
        shared,
    )


def _fitted(trained: Trained, *, solver: str = "ols") -> ProbeReport:
    """Probes of a network by the paper's conventions, with an untrained twin."""
    options: dict[str, Any] = {"weighting": "sequence", "solver": solver, "progress": False}
    return probe(trained.model, trained.process, untrained=1, **options)


def _untrained(report: ProbeReport) -> dict[str, float]:
    """In-sample squared error of the untrained twin, by site."""
    return {str(each.site): each.in_sample.mse for each in report.controls if each.kind == "untrained"}


SHAI2024 = Paper(
    name="shai2024",
    title="Transformers represent belief state geometry in their residual stream",
    authors="Shai, Marzen, Teixeira, Gietelink Oldenziel and Riechers, 2024",
    source="arXiv:2405.15943",
    claims="To predict the tokens of a hidden Markov process well, one must keep track of the belief over its hidden "
    "states. The paper finds these beliefs in the residual stream of transformers by linear regression: fractal where "
    "theory says so, in the last layer for Mess3 and spread over all layers for RRXOR.",
    networks=networks,
    sections=(fractal, cross_validation, over_training, spread_over_layers, distances),
    differences=differences,
    small_minutes=8,
    full_cost="56 hours for each of two networks, on a few cores",
)
