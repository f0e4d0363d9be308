"""Piotrowski et al. 2025: what one attention layer can do of the Bayes step, and does.

Claim: attention adds up what each token says by itself, decayed by its age, r_d = π + Σ_s δ(z_s) T^(d-s). So attention
to a key falls by ζ with each later query, what a head writes is parallel to δ(z) = π T^{|z} - π, and a negative ζ takes
two heads. The MLP turns these constrained beliefs into the true ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from msp_lens.beliefs.constrained import attention_heads_needed, constrained_beliefs
from msp_lens.data import LabelledTokens, all_words
from msp_lens.data.labelled import BELIEF
from msp_lens.experiments.claims import Claim, Rule, Section, all_of, at_least, at_most, number_text, within
from msp_lens.experiments.reproduction import Network, Networks, Paper, Trained
from msp_lens.models.build import ModelConfig
from msp_lens.models.hooked import find_sites, word_length
from msp_lens.models.sites import site_label
from msp_lens.moments import Moments, least_squares, score
from msp_lens.probing.fit import probe
from msp_lens.probing.geometry import explained
from msp_lens.processes.catalog import mess3, rrxor
from msp_lens.processes.process import Process
from msp_lens.representation import (
    AttentionByLag,
    NetworkAttention,
    SiteReading,
    attention_by_lag,
    folded_moments,
)
from msp_lens.training.config import TrainingConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName

CONSTRAINED = "constrained belief"
AFTER_ATTENTION, AT_THE_END = "0_mid", "0_post"
# Mess3's rate is ζ = 1 - 3x, whatever a is. The networks of three rates, with one head each:
RATES = {"slow": 0.05, "middle": 0.15, "fast": 0.25}
# Rates of one size and either sign, -.5 and .5, with one head and with two.
SIGNS = {"negative": 0.5, "positive": 1 / 6}
# Cumulated variance of the first three principal components, for Mess3(.15, .6).
VARIANCES = {AFTER_ATTENTION: (0.465, 0.889, 0.986), AT_THE_END: (0.495, 0.768, 0.981)}


def networks(small: bool) -> dict[str, Network]:
    """One-layer networks: three rates with one head; and a negative and a positive rate with one head and with two."""
    # As little as 1e-4 nats are at stake after the first step at these rates, so they are trained for longer.
    longer = TrainingConfig(steps=3_000, batch_size=512, optimizer="muon", learning_rate=3e-3)
    shorter = TrainingConfig(steps=1_500, batch_size=256, optimizer="muon", learning_rate=3e-3)
    worlds = {name: (mess3(x=x, a=0.6), 1, longer) for name, x in RATES.items()}
    for sign, x in SIGNS.items():
        process = mess3(x=x, a=0.85)
        worlds |= {f"{sign}_one_head": (process, 1, shorter), f"{sign}_two_heads": (process, 2, shorter)}
    made = {}
    for name, (process, n_heads, training) in worlds.items():
        model = ModelConfig(d_vocab=3, n_layers=1, n_heads=n_heads)
        training = training if small else replace(training, steps=10 * training.steps)
        made[name] = Network(process=process, model=model, training=training)
    return made


def decay(networks: Networks, small: bool) -> Section:
    """How attention to a key falls with each later query, at three rates."""
    found = {name: _attention(networks[name]) for name in RATES}
    rates = [each.rate for each in found.values()]
    decays, untrained = zip(
        *([network.head("L0H0").decay for network in each.networks] for each in found.values()), strict=True
    )
    claims = [
        Claim(
            says=f"Attention to a key falls by ζ = 1 − 3x with each later query, x = {x:g}",
            source="theory; attention patterns",
            published=rate,
            measured=measured,
            control=control,
            control_is="untrained",
            rule=within(measured, rate, 0.1),
        )
        for x, rate, measured, control in zip(RATES.values(), rates, decays, untrained, strict=True)
    ]
    slope, slope_untrained = (float(np.polyfit(rates, each, 1)[0]) for each in (decays, untrained))
    claims.append(
        Claim(
            says="Its rate follows ζ from network to network: slope",
            source="theory",
            published=1.0,
            measured=slope,
            control=slope_untrained,
            control_is="untrained",
            rule=within(slope, 1.0, 0.25),
        )
    )
    return Section(
        title="Attention falls by the second eigenvalue ζ",
        method="""
            What a token of Mess3 says of the state decays by ζ = 1 − 3x with each step. So attention from query d + m
            to key s should be ζ^m times that from query d. The rate is fitted by least squares over all queries after
            each key, with a height of its own for each key. Lag 0 is left out, since the residual stream carries the
            token itself, and so is the first position, which takes what a softmax leaves over. Words count by their
            probability.

            The picture is of x = 0.15: attention by lag, what all of the layer adds at each lag in units of what the
            token says by itself, and which beliefs each site follows.
        """,
        claims=tuple(claims),
        picture=lambda theme: found["middle"].plot(theme=theme),
        alt="Attention by lag beside the predicted decay, effective attention, and the beliefs that each site follows",
        remark="An untrained network attends to all positions about alike. Its attention to a key falls only because "
        "later queries share theirs among more keys: by about the same rate whatever ζ is.",
    )


def outputs(networks: Networks, small: bool) -> Section:
    """What heads write for each token, beside what the token says by itself."""
    found = {name: _attention(networks[name]) for name in RATES}
    claims = []
    for name, each in found.items():
        rate, (head, twin) = each.rate, (network.head("L0H0") for network in each.networks)
        claims.append(
            Claim(
                says=f"What the head writes for a token is parallel to π T^{{|z}} − π, x = {RATES[name]:g}: cosine",
                source="OV circuit",
                published="parallel",
                measured=head.alignment,
                control=twin.alignment,
                control_is="untrained",
                rule=at_least(head.alignment, 0.95),
            )
        )
        added, added_untrained = (float(network.effective[1]) for network in (head, twin))
        claims.append(
            Claim(
                says=f"And as large as it should be: what is added at lag 1, in those units, x = {RATES[name]:g}",
                source="theory",
                published=rate,
                measured=added,
                control=added_untrained,
                control_is="untrained",
                rule=within(added, rate, 0.15),
            )
        )
    return Section(
        title="What a head writes is the evidence of its token",
        method="""
            The output of the values, W_V W_O of the normalized embedding, is averaged over positions for each token and
            read as a constrained belief, by the map that is fitted to the residual stream after attention. It is
            compared with what the token says by itself, δ(z) = π T^{|z} − π. The cosine is over all tokens together, by
            their probability. Its size is that of the effective attention: the slope of what a key adds to later
            queries on δ(z).
        """,
        claims=tuple(claims),
        tables=tuple(found.values()),
    )


def principal_components(networks: Networks, small: bool) -> Section:
    """How the variance is spread after attention, and at the end."""
    trained = networks["middle"]
    found, within_positions = _attention(trained), _variance_within_positions(trained)
    claims = []
    for place, site in (("after attention", AFTER_ATTENTION), ("at the end", AT_THE_END)):
        published = VARIANCES[site]
        measured, control = (network.site(site).variance.tolist()[:3] for network in found.networks)
        claims.append(
            Claim(
                says=f"Share of the residual stream’s variance in its first 1, 2 and 3 principal components, {place}",
                source="PCA of the residual stream",
                published=_several(published),
                measured=_several(measured),
                control=_several(control),
                control_is="untrained",
                rule=_each_within(measured, published, 0.05),
            )
        )
    sites = [AFTER_ATTENTION, AT_THE_END]
    report = probe(trained.model, trained.process, sites=sites, concatenate=False, controls=False, progress=False)
    return Section(
        title="Principal components of the residual stream",
        method="""
            The covariance is over all positions of all words, by their probability. The picture shows the true beliefs
            of every prefix, and those read from the residual stream after attention and at the end, each by one map for
            all positions.
        """,
        claims=tuple(claims),
        picture=lambda theme: report.plot(*sites, theme=theme),
        alt="True beliefs, and those read after attention and at the end",
        remark="The numbers depend on what is counted, which we do not know of the paper. With each position’s mean "
        f"taken out, they are {_several(within_positions[AFTER_ATTENTION])} after attention and "
        f"{_several(within_positions[AT_THE_END])} at the end; attention’s output alone has "
        f"{_several(found.trained.site('0_attn_out').variance.tolist()[:3])}. Shares of variance also depend on how "
        "strongly a network writes what it does not need.",
    )


def two_kinds_of_belief(networks: Networks, small: bool) -> Section:
    """Which beliefs the residual stream follows after attention, and at the end."""
    trained = networks["middle"]
    found = _attention(trained)
    (after, last), (after_untrained, last_untrained) = (_after_and_last(network) for network in found.networks)
    claims = [
        Claim(
            says="After attention, constrained beliefs are read better than true ones: error of the first over that of "
            "the second",
            source="residual stream after attention",
            published="constrained",
            measured=_error_ratio(after),
            control=_error_ratio(after_untrained),
            control_is="untrained",
            rule=at_most(_error_ratio(after), 0.5),
        ),
        Claim(
            says="The MLP makes them true: what is left of the error of the true beliefs after it",
            source="final residual stream",
            published="refined towards full beliefs",
            measured=(1 - last.belief) / (1 - after.belief),
            control=(1 - last_untrained.belief) / (1 - after_untrained.belief),
            control_is="untrained",
            rule=at_most((1 - last.belief) / (1 - after.belief), 0.5),
        ),
        Claim(
            says="At the end, true beliefs are read no worse than constrained ones: error of the second over that of "
            "the first",
            source="final residual stream",
            published="full beliefs",
            measured=_error_ratio(last),
            control=_error_ratio(last_untrained),
            control_is="untrained",
            rule=at_least(_error_ratio(last), 1.0),
        ),
    ]
    worlds = ((mess3(x=0.05, a=0.85), 9), (mess3(x=0.15, a=0.6), 9), (rrxor(), 10))
    claims += [_rivalry(process, n_ctx) for process, n_ctx in worlds]

    def picture(theme: ThemeName) -> Figure:
        from msp_lens.figures.representation_curves import plot_compared

        names = ("constrained beliefs", "true beliefs")
        return plot_compared(bars, names, ylabel="R², held out, each position by itself", theme=theme)

    bars = {
        f"{network.network.removesuffix(' 1')}\n{site.site}": (site.constrained, site.belief)
        for network in found.networks
        for site in _after_and_last(network)
    }
    return Section(
        title="Constrained beliefs after attention, true beliefs after the MLP",
        method="""
            Constrained beliefs r_d = π + Σ_s δ(z_s) T^(d−s) are what attention alone can compute; they are not
            normalized. Both kinds are read from the residual stream of the network of x = 0.15 by least squares, by a
            map for each position, since a softmax divides by a number that differs from position to position. R² is
            held out by prefix.

            How far the two kinds differ at all depends on the process. It is a number without any network: the R² of an
            affine map from constrained to true beliefs, over all words of nine tokens (ten for RRXOR) and their
            prefixes, by probability.
        """,
        claims=tuple(claims),
        picture=picture,
        alt="R squared of constrained and true beliefs after attention and at the end, trained and untrained",
        remark="Read by one map for all positions, R² of the constrained beliefs is "
        f"{after.constrained_everywhere:.4f} after attention and {last.constrained_everywhere:.4f} at the end, and of "
        f"the true ones {after.belief_everywhere:.4f} and {last.belief_everywhere:.4f}.",
    )


def two_heads(networks: Networks, small: bool) -> Section:
    """A negative rate asks for two heads; a positive one does not."""
    one, two = (networks[f"negative_{number}"] for number in ("one_head", "two_heads"))
    gain, gain_positive = (
        float(networks[f"{sign}_one_head"].regret.mean() / networks[f"{sign}_two_heads"].regret.mean())
        for sign in ("negative", "positive")
    )
    found, alone = _attention(two), _attention(one)
    added, added_alone = (each.trained.head("layer 0").effective for each in (found, alone))
    needed, needed_positive = (
        attention_heads_needed(networks[f"{sign}_one_head"].process) for sign in ("negative", "positive")
    )
    alternates = Rule("negative at lag 1 and positive at lag 2", bool(added[1] < 0 < added[2]))
    return Section(
        title="A negative ζ takes two heads",
        method="""
            With x = 0.5 in Mess3, ζ is −0.5: what a token says speaks against its state one step later and for it two
            steps later. A softmax has no negative weights, so one head cannot alternate, and two can, with opposite
            outputs. Networks with one and with two heads are trained alike on ζ = −0.5, and as a control on ζ = 0.5,
            both with a = 0.85.

            The picture is of the network with two heads.
        """,
        claims=(
            Claim(
                says="Heads that the constrained beliefs of ζ = −0.5 ask for",
                source="theory",
                published=2.0,
                measured=float(needed),
                control=float(needed_positive),
                control_is="ζ = 0.5",
                rule=within(float(needed), 2.0, 0.0),
            ),
            Claim(
                says="A second head helps: regret with one head over that with two, ζ = −0.5",
                source="theory",
                published="one head cannot",
                measured=gain,
                control=gain_positive,
                control_is="ζ = 0.5",
                rule=all_of(at_least(gain, 2.0), at_least(gain, 2 * gain_positive, "twice the control")),
            ),
            Claim(
                says="With two heads, what attention adds alternates in sign: at lags 1, 2",
                source="theory",
                published="−0.5, 0.25",
                measured=_several(added[1:3].tolist()),
                control=_several(added_alone[1:3].tolist()),
                control_is="one head",
                rule=alternates,
            ),
        ),
        picture=lambda theme: found.plot(theme=theme),
        alt="Attention of two heads by lag, their effective attention together, and the beliefs that each site follows",
        tables=(alone, found),
        remark="Mean regrets are "
        + ", ".join(
            f"{number_text(float(networks[f'{sign}_{number}'].regret.mean()))} nats ({number.replace('_', ' ')}, "
            f"ζ = {1 - 3 * x:.1f})"
            for sign, x in SIGNS.items()
            for number in ("one_head", "two_heads")
        )
        + ".",
    )


def differences(small: bool) -> tuple[str, ...]:
    """What differs from the paper's setting."""
    longer, shorter = ("3,000", "1,500") if small else ("30,000", "15,000")
    return (
        f"The networks have the paper’s width and one layer, but their training is ours, from one seed: {longer} steps "
        f"of Muon with 512 words of 11 tokens each for the three rates, {shorter} with 256 for the two signs.",
        "The processes other than Mess3(x = 0.15, a = 0.6) are our choice: published numbers are known for that alone.",
    )


def _attention(trained: Trained) -> AttentionByLag:
    return attention_by_lag(trained.model, trained.process)


def _variance_within_positions(trained: Trained) -> dict[str, list[float]]:
    """Cumulated variance of three principal components about the mean of each position, by words’ probability."""
    labelled = LabelledTokens.from_beliefs(all_words(trained.process, word_length(trained.model)))
    sites = find_sites(trained.model, [AFTER_ATTENTION, AT_THE_END])
    cells = folded_moments.folded_moments(trained.model, labelled, sites, n_folds=2, seed=0, by_position=True)
    within = {site: folded_moments.within_positions(folded_moments.at_positions(each)) for site, each in cells.items()}
    return {site_label(site): explained(each.covariance(site, site)).tolist()[:3] for site, each in within.items()}


def _several(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def _each_within(measured: Sequence[float], published: Sequence[float], tolerance: float) -> Rule:
    holds = all(within(*pair, tolerance).holds for pair in zip(measured, published, strict=True))
    return Rule(f"each within {tolerance:g} of what is published", holds)


def _after_and_last(network: NetworkAttention) -> tuple[SiteReading, SiteReading]:
    return network.site(AFTER_ATTENTION), network.site(AT_THE_END)


def _error_ratio(site: SiteReading) -> float:
    """The share of the constrained beliefs that is not read, over that of the true ones."""
    return (1 - site.constrained) / (1 - site.belief)


def _rivalry(process: Process, n_ctx: int) -> Claim:
    """How much of the true beliefs an affine map explains from the constrained ones, without any network."""
    dataset = all_words(process, n_ctx)
    weights = dataset.word_weights.unsqueeze(1).expand_as(dataset.tokens).flatten()
    rows = torch.cat([constrained_beliefs(process, dataset.tokens), dataset.beliefs], dim=-1).flatten(0, 1)
    moments = Moments({CONSTRAINED: process.n_states, BELIEF: process.n_states}).update(rows, weights)
    named = process.title
    r2 = score(least_squares(moments, CONSTRAINED, BELIEF), moments, CONSTRAINED, BELIEF).r2
    return Claim(
        says=f"Constrained beliefs are not the true ones: R² of the second from the first, {named}",
        source="theory; no number given",
        published="an approximation",
        measured=r2,
        rule=at_most(r2, 0.99),
    )


CONSTRAINED2025 = Paper(
    name="constrained2025",
    title="Constrained belief updates explain geometric structures in transformer representations",
    authors="Piotrowski, Riechers, Filan and Shai, 2025",
    source="arXiv:2502.01954",
    claims="Bayes’ rule is recursive, but attention reads all tokens at once. The paper finds that one attention layer "
    "adds up what each token says by itself, decayed by its age. Attention patterns, values and geometry follow from "
    "that; the MLP and later layers turn these constrained beliefs into the true ones.",
    networks=networks,
    sections=(decay, outputs, principal_components, two_kinds_of_belief, two_heads),
    differences=differences,
    small_minutes=10,
    full_cost="about an hour and a half for seven networks on two cores (estimated from the small size)",
)
