"""Riechers et al. 2025: in-context learning is what predicting a non-ergodic source asks for.

Claim: where every word comes from one of several components, an optimal predictor learns in context which one it is.
For N coins of unknown bias it loses h_ℓ - h → 1/(2ℓ) nats at the ℓ-th token above one who knows the coin. For
components with hidden states, it holds the posterior over components beside the belief within each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens.beliefs.learning import LearningCurve, learning_curve
from msp_lens.data import words
from msp_lens.experiments.claims import Claim, Section, all_of, at_least, at_most, within, within_factor
from msp_lens.experiments.reproduction import Network, Networks, Paper, Trained
from msp_lens.models.build import ModelConfig
from msp_lens.models.hooked import HookedModel, find_sites, word_length
from msp_lens.probing.fit import probe
from msp_lens.probing.geometry import explained
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.catalog import coins, mess3
from msp_lens.processes.compose import Mixture, WithBos, mixture, with_bos
from msp_lens.representation.factor_geometry import SHARE, belief_dimensions, n_components, overlap, within_groups
from msp_lens.training.config import TrainingConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName

# Where activations are read: what the unembedding reads.
SITE = "ln_final"
COMPONENT = "component"
# What replications report of three Mess3 machines: R² of the posterior over components and of the beliefs within them,
# components for 95 % of the variance, and the overlap of the subspaces of the two.
COMPONENT_R2, WITHIN_R2, NC95, OVERLAP = 0.94, 0.99, 6, 0.01


def networks(small: bool) -> dict[str, Network]:
    """A network that reads tosses of one of many coins, and one that reads one of three Mess3 machines, after BOS."""
    three = [mess3(x=0.05, a=0.85), mess3(x=0.15, a=0.6), mess3(x=0.25, a=0.9)]
    processes = {"coins": with_bos(coins(10 if small else 100)), "mess3": with_bos(mixture(three, [1 / 3] * 3))}
    sizes: dict[str, Any] = {
        "coins": {"n_layers": 2, "d_model": 32, "n_heads": 2, "d_head": 16, "d_mlp": 128, "n_ctx": 24},
        "mess3": {"n_layers": 3, "d_model": 64, "n_heads": 2, "d_head": 16, "d_mlp": 128, "n_ctx": 17},
    }
    steps = {"coins": 600, "mess3": 1500}
    if not small:
        sizes = {name: {"n_layers": 4, "d_model": 64, "n_heads": 4, "d_head": 16, "d_mlp": 256} for name in sizes}
        sizes["coins"]["n_ctx"], sizes["mess3"]["n_ctx"] = 101, 33
        steps = dict.fromkeys(steps, 20_000)
    return {
        name: Network(
            process=process,
            model=ModelConfig(d_vocab=process.n_tokens, **sizes[name]),
            training=TrainingConfig(steps=steps[name], batch_size=256, optimizer="muon", learning_rate=3e-3),
        )
        for name, process in processes.items()
    }


def exact_coins(networks: Networks, small: bool) -> Section:
    """The power law itself, exactly, without any network."""
    length = 100
    many, few = learning_curve(coins(1_000), length), learning_curve(coins(2), length)
    constant, of_few = (float(2 * length * curve.excess[-1]) for curve in (many, few))
    slope = _slope(many)
    return Section(
        title="Not knowing the coin costs 1/(2ℓ)",
        method=f"""
            One of N coins, of biases n/(N+1), is tossed throughout a word. The optimal observer loses h_ℓ nats at the
            ℓ-th token, one who knows the coin h. What not knowing costs, h_ℓ - h, is computed exactly, for 1,000 coins
            and {length} tokens.
        """,
        claims=(
            Claim(
                says=f"h_ℓ - h approaches 1/(2ℓ): 2ℓ (h_ℓ - h) at ℓ = {length}",
                source="the theory of coins",
                published=1.0,
                measured=constant,
                control=of_few,
                control_is="two coins",
                rule=within(constant, 1.0, 0.05),
            ),
            Claim(
                says="A power law: its exponent, from ℓ = 10 on",
                source="the theory of coins",
                published=-1.0,
                measured=slope,
                control=_slope(few),
                control_is="two coins",
                rule=within(slope, -1.0, 0.1),
            ),
        ),
        picture=lambda theme: many.plot(title="1,000 coins", theme=theme),
        alt="The entropy of each token, known and unknown coin, and their difference beside 1/(2ℓ)",
        remark="With two coins, words soon tell which one it is, and the cost falls exponentially.",
    )


def coins_in_context(networks: Networks, small: bool) -> Section:
    """The same curve, as a trained network follows it."""
    trained = networks["coins"]
    mixed = _mixed(trained)
    curve = learning_curve(mixed, _ctx(trained))
    above, above_twin = (regret + curve.excess for regret in (trained.regret, trained.untrained_regret()))
    farthest, farthest_twin = (float((each / curve.excess - 1).abs().max()) for each in (above, above_twin))
    last = len(curve.excess)
    limit = 0.5 / last

    def picture(theme: ThemeName) -> Figure:
        from msp_lens.figures.curves import plot_learning

        lost = {"the network": above.tolist(), "untrained": above_twin.tolist()}
        shown = (curve.entropies.tolist(), curve.oracle.tolist(), [] if curve.limit is None else curve.limit.tolist())
        return plot_learning(*shown, networks=lost, title=f"{len(mixed.components)} coins", theme=theme)

    return Section(
        title="A network learns the coin in context",
        method=f"""
            A transformer is trained on words of {last} tosses after BOS, of one of {len(mixed.components)} coins. Its
            expected loss at each token, less that of an oracle who knows the coin, is its regret and what not knowing
            costs the optimal observer. The regret is averaged over sampled words, drawn by probability.
        """,
        claims=(
            Claim(
                says=f"The network loses 1/(2ℓ) more than the oracle at its last token, ℓ = {last}",
                source="the experiment with coins",
                published=limit,
                measured=float(above[-1]),
                control=float(above_twin[-1]),
                control_is="untrained",
                rule=within_factor(float(above[-1]), limit, 1.25),
            ),
            Claim(
                says="At every token it is as good as can be: greatest distance from the exact h_ℓ - h, relative",
                source="the experiment with coins",
                published="follows theory",
                measured=farthest,
                control=farthest_twin,
                control_is="untrained",
                rule=at_most(farthest, 0.1),
            ),
        ),
        picture=picture,
        alt="Loss above the oracle’s at each token: exact, of the network, and untrained, beside 1/(2ℓ)",
        remark=f"With {len(mixed.components)} coins the exact cost at the last token is {float(curve.excess[-1]):.3g}, "
        f"a little below the limit of many coins, {limit:.3g}.",
    )


def which_and_where(networks: Networks, small: bool) -> Section:
    """Three Mess3 machines: which one it is, and where it is, are read apart."""
    trained = networks["mess3"]
    report = _probed(trained.model, trained, untrained=1)
    claims = []
    within_labels = _mixed(trained).labels
    for says, published, parts in (
        ("Which component it is: R² of the posterior", COMPONENT_R2, (COMPONENT,)),
        ("The belief within a component: R², averaged over the three", WITHIN_R2, within_labels),
    ):
        scores = [report.parts[part][SITE].scores.held_out.r2 for part in parts]
        measured, (control, name) = sum(scores) / len(scores), _best_control(report, parts)
        claims.append(
            Claim(
                says=says,
                source="replications",
                published=published,
                measured=measured,
                control=control,
                control_is=name,
                rule=all_of(
                    at_least(measured, published - 0.05),
                    at_least(measured, (1 + control) / 2, "half of what the best control leaves"),
                ),
            )
        )
    return Section(
        title="Which component, and where in it",
        method=f"""
            Words of {_ctx(trained) - 1} tokens after BOS come from one of three Mess3 machines, equally likely. The
            posterior over the three and the belief within each are regressed on the activations of every site, with
            ridge; prefixes count by probability, and R² is held out by prefix. BOS itself, after which nothing is
            known, is left out. Controls are an untrained network, and windows of the last tokens.
        """,
        claims=tuple(claims),
        picture=lambda theme: report.plot.parts(theme=theme),
        alt="R² of the posterior over components and of the beliefs within them, by site, with the best controls",
        tables=(report.parts[COMPONENT],),
        remark=f"The claims are of {SITE}. The belief within a component follows from the last few tokens, and a "
        "window of them reads it without any network. So a high R² of it says little, while which component it is "
        "takes the whole word.",
    )


def subspaces(networks: Networks, small: bool) -> Section:
    """Three Mess3 machines: how many dimensions, and how far the two kinds of belief share them."""
    trained = networks["mess3"]
    twin = trained.untrained()
    drawn = trained.process.sample(4_000, _ctx(trained), seed=0)
    _, apart, joint = belief_dimensions(trained.process, drawn)
    spread, spread_of_twin = (_covariance(model, drawn) for model in (trained.model, twin))
    measured, untrained = n_components(spread), n_components(spread_of_twin)
    shared, of_twin = (_shared(model, trained) for model in (trained.model, twin))
    largest, largest_of_twin = max(shared.values()), max(of_twin.values())
    chance = 2 / len(spread)
    curves = {"the network": explained(spread), "untrained": explained(spread_of_twin)}
    curves |= {"joint belief": joint.explained, "its parts side by side": apart.explained}

    def picture(theme: ThemeName) -> Figure:
        from msp_lens.figures.formation_curves import plot_measures

        kind, most = "share of the variance", max(map(len, curves.values()))
        panels = {kind: {name: [*each.tolist(), *[1.0] * (most - len(each))] for name, each in curves.items()}}
        places, levels = list(range(1, most + 1)), {kind: {f"{SHARE:.0%}": SHARE}}
        return plot_measures(places, panels, levels=levels, counted="principal components", theme=theme)

    return Section(
        title="Which and where have subspaces of their own",
        method=f"""
            The activations at {SITE} have an NC95, the number of principal components that hold 95 % of their variance
            within positions. The subspace of a belief is where activations move with it: the span of its decoder,
            Σ_bb⁺ Σ_bh. The overlap of two is ‖V₁ᵀV₂‖² over the number of dimensions, 0 if they are orthogonal and 1 if
            they coincide.
        """,
        claims=(
            Claim(
                says=f"Components of the activations, where the joint belief needs {joint.dimensions} and its parts "
                f"side by side {apart.dimensions}",
                source="replications",
                published=NC95,
                measured=measured,
                control=untrained,
                control_is="untrained",
                rule=within(measured, NC95, 1),
            ),
            Claim(
                says="Overlap of the posterior’s subspace with that of the belief within a component, the greatest",
                source="replications",
                published=f"below {OVERLAP}",
                measured=largest,
                control=largest_of_twin,
                control_is=f"untrained; random subspaces {chance:.3f}",
                rule=at_most(largest, OVERLAP),
            ),
        ),
        picture=picture,
        alt="Share of the variance in the first components, of activations and of beliefs",
        remark="By component, overlaps are "
        + ", ".join(f"{value:.2g} ({label}; untrained {of_twin[label]:.2g})" for label, value in shared.items())
        + ". The posterior does not change if tokens trade places, and the beliefs within components do: by this "
        "symmetry the two are uncorrelated, and orthogonal subspaces can hold them. How far apart a network puts them "
        "may depend on its width and training, and on how alike the machines are, of which replications say little.",
    )


def _slope(curve: LearningCurve) -> float:
    """The exponent of the excess as a power of ℓ, from ℓ = 10 to the end, by least squares of the logarithms."""
    ell = torch.arange(10, len(curve.excess) + 1, dtype=torch.float64).log()
    excess = curve.excess[9:].clamp_min(torch.finfo(torch.float64).tiny).log()
    return float((ell - ell.mean()) @ (excess - excess.mean()) / (ell - ell.mean()).square().sum())


def _mixed(trained: Trained) -> Mixture:
    """The mixture that a network reads after BOS."""
    mixed = trained.process.process if isinstance(trained.process, WithBos) else trained.process
    assert isinstance(mixed, Mixture), trained.process
    return mixed


def _ctx(trained: Trained) -> int:
    return word_length(trained.model)


def _probed(model: HookedModel, trained: Trained, **options: Any) -> ProbeReport:
    """Beliefs and their parts read after every token but BOS."""
    dataset = words(trained.process, n_ctx=_ctx(trained), n_words=10_000, positions=slice(1, None), seed=0)
    return probe(model, dataset, solver="ridge", concatenate=False, progress=False, **options)


def _best_control(report: ProbeReport, parts: Sequence[str]) -> tuple[float, str]:
    """The control that does best for these parts on average, and its R², held out."""
    scores: dict[str, float] = {}
    for part in parts:
        for each in report.parts[part].controls:
            if not each.is_rival and each.site in (None, SITE):
                scores[each.name] = scores.get(each.name, 0.0) + each.held_out.r2 / len(parts)
    best = max(scores, key=lambda name: scores[name])
    return scores[best], best


def _covariance(model: HookedModel, drawn: Tensor) -> Float64[Tensor, "feature feature"]:
    """The covariance of activations within positions, over words drawn by probability."""
    (site,) = find_sites(model, SITE)
    return within_groups(model, drawn, [site], len(drawn), None)[site]


def _shared(model: HookedModel, trained: Trained) -> dict[str, float]:
    """The overlap of the posterior's subspace with that of the belief within each component."""
    report = _probed(model, trained, sites=SITE, controls=False)
    bases = {name: _basis(part[SITE].decoder) for name, part in report.parts.items()}
    return {label: overlap(bases[COMPONENT], bases[label]) for label in _mixed(trained).labels}


def _basis(decoder: Float64[Tensor, "target feature"]) -> Float64[Tensor, "feature rank"]:
    """An orthonormal basis of the decoder's span."""
    _, sizes, directions = torch.linalg.svd(decoder, full_matrices=False)
    return directions[sizes > 1e-6 * sizes[0]].T


def differences(small: bool) -> tuple[str, ...]:
    """What differs from the paper's setting."""
    unknown = (
        "The paper’s networks and training are not known here, nor which three Mess3 machines replications mixed: here "
        "they are those with (x, a) = (.05, .85), (.15, .6) and (.25, .9).",
        "The numbers published for three Mess3 machines are those of replications.",
    )
    if not small:
        return unknown
    return (
        "The network reads 10 coins and words of 24 tosses, instead of 100 and 101 at full size. The exact curve is of "
        "1,000 coins at either size.",
        *unknown,
    )


NONERGODIC2025 = Paper(
    name="nonergodic2025",
    title="Next-token pretraining implies in-context learning",
    authors="Riechers, Bigelow, Alt and Shai, 2025",
    source="arXiv:2505.18373",
    claims="Training data come from many sources, and each text from one of them. To predict the next token well, one "
    "must find out in context which source it is. So in-context learning needs no further explanation, and theory says "
    "how fast it is: for coins of unknown bias, what not knowing costs falls as 1/(2ℓ).",
    networks=networks,
    sections=(exact_coins, coins_in_context, which_and_where, subspaces),
    differences=differences,
    small_minutes=6,
    full_cost="about a day on one core for each of two networks, an estimate from the small size’s rate",
)
