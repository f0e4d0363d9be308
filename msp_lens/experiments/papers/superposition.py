"""The width of the residual stream: what it must hold, and what else it holds if there is room.

The comments under the post of Shai et al. 2024 ask what networks with a narrower or wider residual stream would do.
Claim: with few dimensions, a network uses them for what predicts, the belief. With more, it also carries what does not
predict, the past beyond the belief, and does not need it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch

from msp_lens._tables import TableView, nats_text
from msp_lens._values import Value
from msp_lens.data import words
from msp_lens.experiments.claims import Claim, Rule, Section, all_of, at_least, at_most
from msp_lens.experiments.reproduction import Network, Networks, Paper, Trained
from msp_lens.interventions.necessity import worth_of_context
from msp_lens.models.build import ModelConfig
from msp_lens.models.hooked import find_sites, word_length
from msp_lens.probing.belief_probe import BeliefProbe
from msp_lens.probing.fit import probe
from msp_lens.probing.geometry import belief_covariance
from msp_lens.processes.catalog import mess3, rrxor
from msp_lens.representation import BeyondBelief, Decodable, Erased, beyond_belief
from msp_lens.training.config import TrainingConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName

WIDTHS = (2, 4, 8, 16, 64)
# Of two numbers a LayerNorm leaves only which is larger, so comparisons begin at four.
NARROW, ENOUGH, WIDE = 4, 8, 64
COMMENTS, FOLLOW_UP = "the post’s comments, in words", "follow-up post, in words"
MESS3, RRXOR = "mess3", "rrxor"
EVERY_LAYER = "blocks.*.hook_resid_post"


def networks(small: bool) -> dict[str, Network]:
    """Networks on Mess3 and on RRXOR that differ in the width of the residual stream alone."""
    training = TrainingConfig(steps=1500 if small else 15_000, optimizer="muon", learning_rate=3e-3)
    made = {}
    for name, process in ((MESS3, mess3(x=0.05, a=0.85)), (RRXOR, rrxor())):
        for width in WIDTHS:
            model = ModelConfig(d_vocab=process.n_tokens, n_layers=2 if small else 4, d_model=width)
            made[f"{name}_{width}"] = Network(process=process, model=model, training=training)
    return made


def prediction(networks: Networks, small: bool) -> Section:
    """How well networks of each width predict two worlds."""
    lost = {name: {width: _share_lost(networks[f"{name}_{width}"]) for width in WIDTHS} for name in (MESS3, RRXOR)}
    needed, needed_rrxor = (_least_width(lost[name]) for name in (MESS3, RRXOR))

    def picture(theme: ThemeName) -> Figure:
        from msp_lens.figures.curves import plot_sweep

        curves = {name: (list(WIDTHS), list(lost[name].values())) for name in lost}
        label = "regret, share of what context is worth"
        return plot_sweep(curves, xlabel="d_model", ylabel=label, is_error=True, theme=theme)

    return Section(
        title="How wide a stream must be to predict",
        method="""
            Networks are trained alike and differ in the width of the residual stream alone, 2 to 64. Regret is the
            expected KL from the optimal prediction to the network’s, averaged over positions, as a share of what
            context is worth: the regret of a predictor that knows only how often each token comes. Beliefs have two
            dimensions in Mess3 and four in RRXOR.
        """,
        claims=(
            Claim(
                says=f"Mess3: {ENOUGH} dimensions predict nearly as well as {WIDE}: share of context’s worth that is "
                "lost",
                source=COMMENTS,
                published="few dimensions are enough for what predicts",
                measured=lost[MESS3][ENOUGH],
                control=lost[MESS3][WIDTHS[0]],
                control_is=f"{WIDTHS[0]} dimensions; with {WIDE}, {lost[MESS3][WIDE]:.2g}",
                rule=at_most(lost[MESS3][ENOUGH], 0.02),
            ),
            Claim(
                says="Where beliefs have more dimensions, the stream must be wider: least width with at most 2 % lost, "
                "RRXOR",
                source=COMMENTS,
                published="wider",
                measured=_width_text(needed_rrxor),
                control=_width_text(needed),
                control_is="Mess3",
                rule=Rule("wider than for Mess3, for which one is wide enough", needed < needed_rrxor),
            ),
        ),
        picture=picture,
        alt="Regret over the width of the residual stream, for Mess3 and RRXOR",
    )


def geometry(networks: Networks, small: bool) -> Section:
    """What the dimensions of the last layer are used for, by width."""
    pairs = [(name, width) for name in (MESS3, RRXOR) for width in WIDTHS]
    table = _Widths(tuple(_held(name, width, networks[f"{name}_{width}"]) for name, width in pairs))
    narrow, enough, wide = (table.of(MESS3, width) for width in (NARROW, ENOUGH, WIDE))

    def picture(theme: ThemeName) -> Figure:
        from msp_lens.figures.curves import plot_sweep

        shown = {"R² of the belief, held out": "r2", "variance that moves with it": "variance", "overlap": "overlap"}
        curves = {
            label: (list(WIDTHS), [float(getattr(table.of(MESS3, width), field)) for width in WIDTHS])
            for label, field in shown.items()
        }
        return plot_sweep(curves, xlabel="d_model", ylabel="share, Mess3, last layer", theme=theme)

    return Section(
        title="What the dimensions are used for",
        method="""
            At the last layer’s residual stream, all words by their probability: R² of the belief, held out by prefix;
            the share of the activations’ variance that moves with the belief, tr(Σ_hb Σ_bb⁺ Σ_bh) / tr Σ_hh; and the
            overlap, the share of all other variance that lies in the subspace in which the belief moves the
            activations. Random directions would have an overlap of that subspace’s dimensions over the stream’s.
        """,
        claims=(
            Claim(
                says=f"Mess3: {ENOUGH} dimensions hold the belief: R², held out",
                source=COMMENTS,
                published="few dimensions are enough for the belief",
                measured=enough.r2,
                control=enough.untrained,
                control_is=f"untrained; with {WIDE}, {wide.r2:.4f}",
                rule=all_of(
                    at_least(enough.r2, 0.95),
                    Rule(
                        "an error of at most half of the untrained one’s", 1 - enough.r2 <= (1 - enough.untrained) / 2
                    ),
                ),
            ),
            Claim(
                says=f"A narrow stream serves the belief: share of variance that moves with it, {NARROW} dimensions",
                source=COMMENTS,
                published="few dimensions must serve what predicts",
                measured=narrow.variance,
                control=wide.variance,
                control_is=f"{WIDE} dimensions",
                rule=at_least(narrow.variance, wide.variance, "the control"),
            ),
        ),
        picture=picture,
        alt="R squared, share of variance and overlap over the width of the residual stream",
        tables=(table,),
        remark="What a stream carries beside the belief shows in what can be read of it (below) rather than in the "
        f"variance: of that, the belief has {narrow.variance:.0%} with {NARROW} dimensions and {wide.variance:.0%} "
        f"with {WIDE}. Nobody has said how the two should overlap. The overlap is {narrow.overlap:.2f} with {NARROW} "
        f"dimensions, where random directions have {narrow.chance:.2f}, and {wide.overlap:.2f} with {WIDE}, where they "
        f"have {wide.chance:.2f}. In RRXOR no single layer of a shallow network need hold all of the belief.",
    )


def inert_past(networks: Networks, small: bool) -> Section:
    """What of the past is read beyond the belief at each width, and whether the network needs it."""
    widths = WIDTHS[1:]
    found = {width: _beyond(networks[f"{MESS3}_{width}"]) for width in widths}
    partial = {width: _partial(each) for width, each in found.items()}
    mean = {width: sum(values) / len(values) for width, values in partial.items()}
    trend = float(pd.Series(mean).corr(pd.Series(widths, index=widths), method="spearman"))
    of_untrained = {width: next(iter(_newest(each).untrained.values())) for width, each in found.items()}
    erased = {width: _all_erased(each) for width, each in found.items()}
    cost, cost_at_random = (
        max((getattr(each, name) - each.alone) / each.worth for each in erased.values())
        for name in ("regret", "at_random")
    )
    kept = [partial[ENOUGH][lag] / partial[WIDE][lag] for lag in (0, -1)]

    def picture(theme: ThemeName) -> Figure:
        from msp_lens.figures.score_curves import plot_r2

        lags = [float(lag) for lag in range(len(partial[WIDE]))]
        curves = {f"d_model {width}": values for width, values in partial.items()}
        label, title = "partial R², held out", "Tokens of the past, given the belief"
        return plot_r2(lags, curves, xlabel="tokens ago", ylabel=label, title=title, theme=theme)

    return Section(
        title="The past beyond the belief",
        method="""
            Given the belief, the past predicts nothing more of Mess3. How much of it is held all the same is a partial
            R²: the share that activations of the last layer explain of what the belief leaves of the variance of the
            token m steps ago, with a mean for each position, held out by prefix.

            Whether the network needs it is a question of erasing it: everything that is read of these tokens and is
            uncorrelated with the belief read is erased at all layers and positions by LEACE, beside as many random
            directions that leave the belief alone, too.
        """,
        claims=(
            Claim(
                says=f"With room, the stream carries what predicts nothing: partial R² of the token just read, {WIDE} "
                "dimensions",
                source=f"{COMMENTS}; {FOLLOW_UP}",
                published="kept",
                measured=partial[WIDE][0],
                control=_newest(found[WIDE]).shuffled,
                control_is=f"the past of other words; untrained, {of_untrained[WIDE]:.2f}",
                rule=at_least(partial[WIDE][0], 0.5),
            ),
            Claim(
                says=f"Without room, it does not: the same with {NARROW} dimensions",
                source=f"{COMMENTS}; {FOLLOW_UP}",
                published="shed only under pressure on capacity",
                measured=partial[NARROW][0],
                control=of_untrained[NARROW],
                control_is="untrained",
                rule=all_of(
                    at_most(partial[NARROW][0], partial[WIDE][0] / 2, "half of that of the wide stream"),
                    at_most(partial[NARROW][0], of_untrained[NARROW] / 2, "half of the untrained one’s"),
                ),
            ),
            Claim(
                says=f"The wider the stream, the more it carries: rank correlation of width, {NARROW} to {WIDE}, and "
                "partial R², averaged over tokens 0 to 4 steps ago",
                source=COMMENTS,
                published="more",
                measured=trend,
                rule=at_least(trend, 0.8),
            ),
            Claim(
                says="It is inert: the most that erasing it costs at any width, as a share of what context is worth",
                source=FOLLOW_UP,
                published="removing it does not hurt",
                measured=cost,
                control=cost_at_random,
                control_is="random directions",
                rule=all_of(at_most(cost, 0.05), at_most(cost, 2 * cost_at_random, "twice that of random directions")),
            ),
            Claim(
                says=f"The oldest is shed first: partial R² with {ENOUGH} dimensions over that with {WIDE}, of the "
                "token 4 steps ago",
                source=FOLLOW_UP,
                published="oldest first",
                measured=kept[1],
                control=kept[0],
                control_is="the token just read",
                beyond="the follow-up post says so of a coin that loses its use at a known time, in a process that is "
                "not run here; in Mess3 every token loses its use gradually",
            ),
        ),
        picture=picture,
        alt="Partial R squared of past tokens given the belief, by how long ago, a curve for each width",
        tables=(_Erasures(erased),),
        remark="An untrained network carries "
        + ", ".join(f"{value:.2f} ({width} dimensions)" for width, value in of_untrained.items())
        + " of the token just read, since its residual stream still holds the token’s embedding. Erasing everything "
        f"beyond the belief leaves {NARROW} dimensions with hardly more than the belief, so that there the random "
        f"directions are the same ones. With {WIDE} dimensions, erasing costs "
        f"{(erased[WIDE].regret - erased[WIDE].alone) / erased[WIDE].worth:.1%} of what context is worth, and random "
        f"directions {(erased[WIDE].at_random - erased[WIDE].alone) / erased[WIDE].worth:.1%}. A network is also "
        "disturbed by any change that it was not trained for.",
    )


def differences(small: bool) -> tuple[str, ...]:
    """What differs from the setting of the post."""
    depth = "two layers rather than four and " if small else ""
    return (
        "No number of the comments or the follow-up post is known to us: what they say is put in our words, and the "
        "rules are ours. The follow-up’s process, with a coin, is not run.",
        f"Networks have {depth}the post’s head of 8 dimensions and MLP of 256 at every width. They are trained by "
        f"{'1,500' if small else '15,000'} steps of Muon with 256 words each, one for each width, from one seed.",
    )


@dataclass(frozen=True)
class _Held:
    """What the last layer of one network holds; as for the section on geometry."""

    world: str
    width: int
    regret: float
    r2: float
    untrained: float
    variance: float
    dimension: float
    overlap: float
    chance: float


@dataclass(frozen=True, eq=False, repr=False)
class _Widths(Value, TableView):
    """The last layer of each network, as a table."""

    rows: tuple[_Held, ...]

    def of(self, world: str, width: int) -> _Held:
        return next(row for row in self.rows if (row.world, row.width) == (world, width))

    def _title(self) -> str:
        return "The last layer, by width"

    def _display(self) -> pd.DataFrame:
        rows = [
            {
                "network": f"{row.world}, d_model {row.width}",
                "regret": nats_text(row.regret),
                "R² held out": f"{row.r2:.4f}",
                "untrained": f"{row.untrained:.4f}",
                "variance share": f"{row.variance:.3f}",
                "effective dimension": f"{row.dimension:.2f}",
                "overlap": f"{row.overlap:.3f}",
                "of random directions": f"{row.chance:.3f}",
            }
            for row in self.rows
        ]
        return pd.DataFrame(rows).set_index("network")


@dataclass(frozen=True, eq=False, repr=False)
class _Erasures(Value, TableView):
    """What erasing the past beyond the belief costs at each width, as a table."""

    erased: Mapping[int, Erased]

    def _title(self) -> str:
        return "Regret with tokens of the past erased beyond the belief, at all layers (nats)"

    def _display(self) -> pd.DataFrame:
        rows = [
            {
                "d_model": width,
                "directions": each.rank,
                "variance": f"{each.variance:.1%}",
                "left alone": nats_text(each.alone),
                "erased": nats_text(each.regret),
                "as many at random": nats_text(each.at_random),
                "without context": nats_text(each.worth),
            }
            for width, each in self.erased.items()
        ]
        return pd.DataFrame(rows).set_index("d_model")


def _share_lost(trained: Trained) -> float:
    """Mean regret as a share of what context is worth."""
    dataset = words(trained.process, n_ctx=word_length(trained.model), max_words=20_000, seed=0)
    return float(trained.regret.mean() / worth_of_context(dataset).mean())


def _least_width(lost: Mapping[int, float]) -> float:
    """The least width that loses at most 2 %; infinite if all lose more."""
    return min((width for width, share in lost.items() if share <= 0.02), default=math.inf)


def _width_text(width: float) -> float | str:
    return float(width) if math.isfinite(width) else f"more than {WIDTHS[-1]}"


def _held(world: str, width: int, trained: Trained) -> _Held:
    site = find_sites(trained.model, EVERY_LAYER)[-1]
    options = {"concatenate": False, "untrained": 1, "by_position": False, "progress": False}
    report = probe(trained.model, trained.process, sites=site, **options)
    (found,) = report.values()
    untrained = next(each.held_out.r2 for each in report.controls if each.kind == "untrained")
    overlap, chance = _overlap(found)
    (shape,) = report.geometry().sites
    return _Held(
        world=world,
        width=width,
        regret=float(trained.regret.mean()),
        r2=found.scores.held_out.r2,
        untrained=untrained,
        variance=shape.variance_share,
        dimension=shape.effective_dimension,
        overlap=overlap,
        chance=chance,
    )


def _overlap(found: BeliefProbe) -> tuple[float, float]:
    """The share of the variance beside the belief's that lies in the belief's subspace, and that of a random one."""
    moments, sites = found.moments, found.sites
    assert moments is not None  # A probe has them unless it was loaded from a file.
    covariance = moments.covariance(sites, sites)
    rest = covariance - belief_covariance(found)
    _, sizes, directions = torch.linalg.svd(found.decoder, full_matrices=False)
    basis = directions[sizes > 1e-6 * sizes[0]]
    total = float(rest.trace())
    share = float((basis @ rest @ basis.T).trace()) / total if total > 0 else float("nan")
    return share, len(basis) / len(covariance)


def _beyond(trained: Trained) -> BeyondBelief:
    """What is read beyond the belief in every layer's residual stream."""
    return beyond_belief(trained.model, trained.process, EVERY_LAYER, n_words=6_000)


def _partial(found: BeyondBelief) -> list[float]:
    """Partial R² of the token 0, 1, … steps ago at the last layer."""
    last = found.decodable[-1].site
    return [each.partial for each in found.decodable if (each.site, each.what) == (last, "token")]


def _newest(found: BeyondBelief) -> Decodable:
    """What is found of the token just read at the last layer."""
    last = found.decodable[-1].site
    return next(each for each in found.decodable if (each.site, each.what, each.lag) == (last, "token", 0))


def _all_erased(found: BeyondBelief) -> Erased:
    return next(each for each in found.erased if (each.site, each.what) == ("all sites", "token"))


SUPERPOSITION = Paper(
    name="superposition",
    title="What else fits beside the belief: the width of the residual stream",
    authors="Comments on the post of Shai et al., 2024, and a follow-up, “Toy transformers may represent belief-state "
    "geometry optimally but not minimally”, 2026",
    source="LessWrong, Transformers represent belief state geometry in their residual stream",
    address="https://www.lesswrong.com/posts/gTZ2SxesbHckJ3CkF",
    claims="Theory says what a network must hold to predict well, not what else it holds. Readers of the post asked "
    "what becomes of the belief in a narrow residual stream; a follow-up found that networks keep what no longer "
    "predicts, unless there is no room for it. Here only the width is varied.",
    networks=networks,
    sections=(prediction, geometry, inert_past),
    differences=differences,
    small_minutes=10,
    full_cost="about an hour and a half for ten networks on two cores (estimated from the small size)",
)
