"""Shai et al. 2026: a transformer holds a world of independent parts part by part.

Claim: with b₁, …, b_K the beliefs about the factors of a world, activations span Σ_k dim b_k dimensions, an orthogonal
subspace for each factor, where the joint belief ⊗_k b_k would need Π_k (1 + dim b_k) - 1. Noise ties the factors
together, and then dimensions are added.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from msp_lens._tables import nats_text
from msp_lens.beliefs.filtering import filter_beliefs
from msp_lens.beliefs.information import kl_divergence
from msp_lens.experiments.claims import Claim, Rule, Section, all_of, at_least, at_most, within_factor
from msp_lens.experiments.reproduction import Network, Networks, Paper, Trained
from msp_lens.models.build import ModelConfig
from msp_lens.processes.catalog import bloch_walk, mess3
from msp_lens.processes.compose import WithBos, with_bos
from msp_lens.processes.factored import Factored
from msp_lens.representation.factor_geometry import (
    SHARE,
    FactorGeometry,
    SiteFactors,
    belief_dimensions,
    factor_geometry,
)
from msp_lens.training.config import TrainingConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import Curves, ThemeName

# Where subspaces are compared: what the unembedding reads.
SITE = "ln_final"
# Published NC95, read off the figures: what the beliefs of the factors and the joint one need, and the network's own.
FACTORED, JOINT, NETWORK = 10, 135, 11
WITH_NOISE = {0.0: 11, 0.2: 19, 0.3: 24, 0.5: 38}


def world(n_mess3: int, n_walks: int, noise: float = 0.0) -> WithBos:
    """Independent Mess3 machines and Bloch walks, whose tokens come together as one, after a BOS token."""
    factors = [mess3(x=0.15, a=0.6)] * n_mess3 + [bloch_walk(1.0, 3.0)] * n_walks
    return with_bos(Factored(factors, noise=noise, name="world"))


def networks(small: bool) -> dict[str, Network]:
    """The paper's world of five factors, clean and noisy; at the small size three factors, and two for noise."""
    if not small:
        return {name: _full(world(3, 2, noise)) for noise, name in dial(small).items()}
    noisy = {name: _small(world(2, 0, noise), d_model=64, batch_size=512) for noise, name in dial(small).items()}
    return {"clean": _small(world(3, 0), d_model=96, batch_size=1024)} | noisy


def dial(small: bool) -> dict[float, str]:
    """The networks by the noise that they were trained with."""
    if small:
        return {noise: f"noise_{noise:g}" for noise in (0.0, 0.2, 0.5)}
    return {noise: f"noise_{noise:g}" if noise else "clean" for noise in WITH_NOISE}


def _small(process: WithBos, *, d_model: int, batch_size: int) -> Network:
    sizes: Any = {"d_model": d_model, "n_heads": 2, "d_head": d_model // 4, "d_mlp": 2 * d_model, "n_ctx": 9}
    training = TrainingConfig(
        steps=900,
        batch_size=batch_size,
        optimizer="muon",
        learning_rate=3e-3,
        log_every=100,
        checkpoints="logarithmic",
        n_checkpoints=11,
    )
    return Network(process=process, model=ModelConfig(d_vocab=process.n_tokens, n_layers=3, **sizes), training=training)


def _full(process: WithBos) -> Network:
    sizes: Any = {"d_model": 120, "n_heads": 3, "d_head": 40, "d_mlp": 480, "n_ctx": 9}
    training = TrainingConfig(
        steps=500_000,
        batch_size=25_000,
        learning_rate=5e-4,
        schedule="constant",
        log_every=1_000,
        save_every=1_000,
        checkpoints="logarithmic",
    )
    return Network(process=process, model=ModelConfig(d_vocab=process.n_tokens, n_layers=4, **sizes), training=training)


def hypotheses(networks: Networks, small: bool) -> Section:
    """The paper's world of five factors: what each hypothesis predicts, without any network."""
    five = world(3, 2)
    _, factored, joint = belief_dimensions(five, five.sample(4_000, 9, seed=0))
    curves = {"factored": factored.explained.tolist(), "joint": joint.explained.tolist()}
    curves["factored"] += [1.0] * (len(curves["joint"]) - len(curves["factored"]))

    def picture(theme: ThemeName) -> Figure:
        from msp_lens.figures.formation_curves import plot_measures

        share, places = "share of the variance", list(range(1, len(curves["joint"]) + 1))
        levels = {share: {f"{SHARE:.0%}": SHARE}}
        return plot_measures(places, {share: curves}, levels=levels, counted="principal components", theme=theme)

    return Section(
        title="What the two hypotheses predict",
        method="""
            The paper's world: three Mess3 machines and two Bloch walks, whose tokens come together as one of 432. The
            exact beliefs after every token of 4,000 words of eight tokens and BOS, drawn by probability, have a
            covariance within each position; the number of its principal components that hold 95 % of the variance,
            NC95, is what a representation needs: few for the factors' beliefs side by side, many for the joint one.
        """,
        claims=tuple(
            Claim(
                says=f"Components that {name} need",
                source="the figure of explained variance",
                published=published,
                measured=each.dimensions,
                rule=within_factor(each.dimensions, published, 1.15),
            )
            for name, published, each in (
                ("the five factors' beliefs side by side", FACTORED, factored),
                ("the joint belief", JOINT, joint),
            )
        ),
        picture=picture,
        alt="Share of the variance of the beliefs in the first components, side by side and joint",
        remark="The numbers depend on how words are weighted, which the paper does not say.",
    )


def dimensions(networks: Networks, small: bool) -> Section:
    """The network's own number of dimensions: in all, for each factor varied alone, and for all of these together."""
    trained = networks["clean"]
    found = factor_geometry(trained.model, _world(trained))
    network, twin = found.select(SITE), found.select(SITE, "untrained 1")
    own, needed = network.dimensions.values(), found.factored.dimensions
    asked = [4 if label.startswith("bloch_walk") else 2 for label in found.labels]
    farthest = max(abs(n - wanted) for n, wanted in zip(own, asked, strict=True))
    claims = (
        Claim(
            says=f"Components of the activations, where factored beliefs need {needed} and the joint one "
            f"{found.joint.dimensions}",
            source="the figure of explained variance",
            published=f"{NETWORK}, where they need {FACTORED} and {JOINT}",
            measured=network.total,
            control=twin.total,
            control_is="untrained",
            rule=all_of(
                at_least(network.total, 0.8 * needed, "four fifths of what factored beliefs need"),
                at_most(network.total, 1.25 * needed, "five quarters of that"),
            ),
        ),
        Claim(
            says="Components of each factor’s variation alone",
            source="the figure of “vary one”",
            published="2 for each Mess3, 4 for each Bloch walk",
            measured=_listed(own),
            control=_listed(twin.dimensions.values()),
            control_is="untrained",
            rule=Rule("each within 1 of what is published", farthest <= 1),
        ),
        Claim(
            says="All factors’ variations together need about the sum of these: union over sum",
            source="the figure of “vary one”",
            published="12 / 14",
            measured=f"{network.union} / {sum(own)}",
            control=f"{twin.union} / {sum(twin.dimensions.values())}",
            control_is="untrained",
            rule=at_least(network.union / max(1, sum(own)), 0.8),
        ),
    )
    return Section(
        title="The network needs as many dimensions as its factors, not as the joint belief",
        method=f"""
            Activations of the network at {SITE}, on words drawn by probability, have an NC95 of their own. Then each
            factor is varied alone: the other factors' tokens are frozen, and the covariance of what moves when one
            factor's stream is drawn anew has an NC95, too. If subspaces share nothing, all variations together, each
            scaled to variance 1, need the sum of the factors' own.

            Left, the variance in the first components, beside what the beliefs predict. Right, how far the factors'
            subspaces overlap at each site; the next section follows that over the training.
        """,
        claims=claims,
        picture=lambda theme: found.plot(theme=theme),
        alt="Share of the variance in the first components, and overlap of factors’ subspaces by site",
        tables=(found,),
    )


def overlap(networks: Networks, small: bool) -> Section:
    """The factors' subspaces: orthogonal after training, and mixed before."""
    trained = networks["clean"]
    found = _geometry(trained)
    network, twin = found.select(SITE), found.select(SITE, "untrained 1")
    claims = (
        Claim(
            says="Overlap of two factors’ subspaces after training",
            source="the figure of overlap",
            published="about 0.001",
            measured=network.overlap,
            control=network.chance,
            control_is="random subspaces",
            rule=at_most(network.overlap, network.chance / 2, "half of random subspaces’"),
        ),
        Claim(
            says="Overlap at random initialization",
            source="the figure of overlap",
            published=0.5,
            measured=twin.overlap,
            control=network.chance,
            control_is="random subspaces",
            rule=within_factor(twin.overlap, 0.5, 2),
        ),
        Claim(
            says="Training takes the subspaces apart: overlap after it over overlap before",
            source="the figure of overlap",
            published="about 0.002",
            measured=network.overlap / twin.overlap,
            rule=at_most(network.overlap / twin.overlap, 0.1),
        ),
    )
    steps = _over_training(trained)
    by_step = list(steps.values())

    def picture(theme: ThemeName) -> Figure:
        from msp_lens.figures.formation_curves import plot_measures

        kinds = ("overlap of factors’ subspaces", "components for 95 % of the variance")
        overlaps = {"the network": [each.overlap for each in by_step]}
        counts = {"activations": [float(each.total) for each in by_step]}
        counts |= {"all factors varied": [float(each.union) for each in by_step]}
        own = [sum(each.dimensions.values()) / len(each.dimensions) for each in by_step]
        counts |= {"one factor varied, on average": own}
        needed = {"factored beliefs": found.factored.dimensions, "joint belief": found.joint.dimensions}
        levels = {kinds[0]: {"random subspaces": network.chance}, kinds[1]: needed}
        panels: dict[str, Curves] = {kinds[0]: overlaps, kinds[1]: counts}
        options: Any = {"levels": levels, "logarithmic": kinds[:1], "counted": "optimizer steps"}
        return plot_measures(list(steps), panels, **options, theme=theme)

    return Section(
        title="Training makes the factors’ subspaces orthogonal",
        method=f"""
            Each factor's subspace at {SITE} is that of the first components of its variation alone, as many as its
            beliefs have dimensions. The overlap of two is ‖V₁ᵀV₂‖² over the number of dimensions: 0 if they are
            orthogonal, 1 if they coincide, and for random subspaces the number over the network's width.
            {"Checkpoints of the training are measured alike." if steps else ""}
        """,
        claims=claims,
        picture=picture if steps else None,
        alt="Overlap of the factors’ subspaces, and numbers of components, over training",
        remark="" if steps else "The network was loaded, without the checkpoints of its training.",
    )


def noise(networks: Networks, small: bool) -> Section:
    """The noise dial: the more noise ties the factors together, the more dimensions the network has."""
    trained = {epsilon: networks[name] for epsilon, name in dial(small).items()}
    found = {epsilon: _geometry(each) for epsilon, each in trained.items()}
    totals = {epsilon: each.select(SITE).total for epsilon, each in found.items()}
    untrained = [each.select(SITE, "untrained 1").total for each in found.values()]
    in_order = list(totals.values())
    least_growth = min(after - before for before, after in itertools.pairwise(in_order))
    says = "Components with noise " + ", ".join(f"{epsilon:g}" for epsilon in totals)
    claims = [
        Claim(
            says=says,
            source="the figure of noise",
            published=_listed(WITH_NOISE[epsilon] for epsilon in totals),
            measured=_listed(in_order),
            control=_listed(untrained),
            control_is="untrained",
            rule=Rule("at least one more with each step of the noise", least_growth >= 1),
        )
    ]
    lost = {epsilon: cost_of_factoring(_world(each)) for epsilon, each in trained.items()}
    regrets = {epsilon: float(each.regret.mean()) for epsilon, each in trained.items()}
    lost_of_five = {epsilon: cost_of_factoring(world(3, 2, epsilon), n_words=500) for epsilon in trained}
    least_lost, *_, most_lost = lost.values()
    claims.append(
        Claim(
            says="Factored beliefs are lossless without noise, and cost prediction with the most: nats a token",
            source="abstract",
            published="lossless, and a loss",
            measured=most_lost,
            control=max(0.0, least_lost),
            control_is="without noise",
            rule=Rule("without noise at most 1e-9, and more with noise", least_lost <= 1e-9 < most_lost),
        )
    )
    steps = {epsilon: _over_training(each) for epsilon, each in trained.items()}
    says, source = (
        "With the most noise, factored comes first: components at the end, less the fewest before",
        "abstract",
    )
    published = "expand over training"
    if not all(steps.values()):
        beyond = "networks were loaded, without the checkpoints of their training"
        claims.append(Claim(says=says, source=source, published=published, beyond=beyond))
    else:
        gained = {epsilon: totals[epsilon] - min(at.total for at in each.values()) for epsilon, each in steps.items()}
        first, *_, most = gained.values()
        claims.append(
            Claim(
                says=says,
                source=source,
                published=published,
                measured=most,
                control=first,
                control_is="without noise",
                rule=Rule("at least one, and more than without noise", most >= max(1, first + 1)),
            )
        )

    def picture(theme: ThemeName) -> Figure:
        from msp_lens.figures.formation_curves import plot_measures

        kind = "components for 95 % of the variance"
        curves = {f"noise {epsilon:g}": [float(at.total) for at in each.values()] for epsilon, each in steps.items()}
        return plot_measures(list(_first(steps)), {kind: curves}, counted="optimizer steps", theme=theme)

    needed = "; ".join(
        f"{epsilon:g}: {each.factored.dimensions} and {each.joint.dimensions}" for epsilon, each in found.items()
    )
    return Section(
        title="Noise adds dimensions",
        method=f"""
            A share ε of the joint tokens is replaced by uniformly random ones. Then what was one factor's token and
            what was noise is a question about all factors at once, and their beliefs are no longer independent. The
            exact beliefs about factors side by side and the joint one need, by noise, {needed}.
        """,
        claims=tuple(claims),
        picture=picture if all(steps.values()) else None,
        alt="Components of the activations over training, by noise",
        remark="An observer who holds only independent beliefs about the factors loses, by noise, "
        f"{_by_noise(lost)} nats a token more than the optimal one; in the paper’s world of five factors, "
        f"{_by_noise(lost_of_five)}. The networks’ regrets are "
        f"{_by_noise(regrets)}. Where the loss is well below the regret, training has no reason yet to add dimensions. "
        "Counts come down from those of random weights, and a short training may end before they grow again.",
    )


def cost_of_factoring(process: WithBos, *, n_words: int = 4_000, length: int = 8) -> float:
    """What an observer loses who makes the beliefs about the factors independent after every token, nats a token.

    The Bayes step is exact, and its result is replaced by the product of its marginals. Averaged over words, drawn by
    probability, and over the tokens predicted after BOS and each token but the last.
    """
    joint = process.process
    drawn = joint.sample(n_words, length, seed=0)
    optimal = filter_beliefs(joint, drawn)[:, :-1]
    beliefs, held = joint.initial.expand(n_words, -1), []
    for tokens in drawn[:, :-1].T:
        beliefs = joint.join_parts(joint.parts(joint.bayes_step(beliefs, tokens)[0]))
        held.append(beliefs)
    predicted = torch.stack(held, dim=1) @ joint.emissions
    # At the first token both observers hold the prior, and nothing is lost.
    return float(kl_divergence(optimal @ joint.emissions, predicted.log()).sum() / (n_words * length))


def _world(trained: Trained) -> WithBos:
    assert isinstance(trained.process, WithBos), trained.process
    return trained.process


def _geometry(trained: Trained, *, untrained: int = 1, model: Any = None) -> FactorGeometry:
    """The factors at the last site, from fewer words than by default: this is measured at many checkpoints."""
    sizes: Any = {"n_frozen": 16, "n_streams": 128, "n_words": 2_000}
    return factor_geometry(model or trained.model, _world(trained), sites=SITE, untrained=untrained, **sizes)


def _over_training(trained: Trained) -> dict[int, SiteFactors]:
    """The same at every checkpoint, by step; empty if the network was loaded."""
    if trained.training is None:
        return {}
    models = {each.step: each.load().model for each in trained.training.checkpoints}
    return {step: _geometry(trained, untrained=0, model=model).select(SITE) for step, model in models.items()}


def _first(of_each: Mapping[float, Mapping[int, SiteFactors]]) -> Mapping[int, SiteFactors]:
    return next(iter(of_each.values()))


def _by_noise(nats: Mapping[float, float]) -> str:
    return "; ".join(f"{epsilon:g}: {nats_text(max(0.0, value))}" for epsilon, value in nats.items())


def _listed(numbers: Any) -> str:
    return ", ".join(str(number) for number in numbers)


def differences(small: bool) -> tuple[str, ...]:
    """What differs from the paper's setting."""
    read = "Published numbers are read off the paper’s figures."
    if not small:
        return ("The learning rate’s schedule is not known here; it is constant after a short warm-up.", read)
    return (
        "Worlds of three Mess3 machines (27 tokens and BOS), and of two for the noise (9 and BOS), rather than of "
        "three Mess3 machines and two Bloch walks (432 and BOS): numbers of dimensions are compared with what the "
        "beliefs of the same world need.",
        "Networks of 3 layers of 96 or 64, and 900 steps of 1,024 or 512 words with Muon, instead of 4 layers of 120 "
        "and 500,000 steps of 25,000 words with AdamW.",
        read,
    )


FACTORED2026 = Paper(
    name="factored2026",
    title="Transformers learn factored representations",
    authors="Shai, Amdahl-Culleton, Christensen, Bigelow, Rosas, Boyd, Alt, Ray and Riechers, 2026",
    source="arXiv:2602.02385",
    claims="A world may be made of independent parts. A network could hold the joint belief about all of them, whose "
    "dimensions grow as a product, or each part’s belief in a subspace of its own, whose dimensions add up. The paper "
    "finds that transformers do the latter, and that noise which ties the parts together makes them add dimensions.",
    networks=networks,
    sections=(hypotheses, dimensions, overlap, noise),
    differences=differences,
    small_minutes=13,
    full_cost="months on one core for each of four networks, an estimate from the small size’s rate",
)
