"""What `beyond_belief` found: what is read of the past beyond the belief, and what erasing it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from msp_lens._tables import TableView, nats_text
from msp_lens._values import Value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName


@dataclass(frozen=True, eq=False)
class Decodable(Value):
    """How much of one thing of the past is read at a site beyond the belief; partial R², held out.

    Attributes:
        site: The site's label.
        what: `"token"` or `"state"`.
        lag: How many tokens ago.
        left: The share of its variance that the belief leaves.
        partial: The share of that which the activations explain beside the belief; NaN if the belief leaves nothing.
        partial_quadratic: The same beside the belief and the products of its entries.
        shuffled: The same as `partial` for the past of other words.
        untrained: The same as `partial` for each untrained twin.
    """

    site: str
    what: str
    lag: int
    left: float
    partial: float
    partial_quadratic: float
    shuffled: float
    untrained: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Erased(Value):
    """What it costs to erase what is read beyond the belief; mean regret over positions, nats.

    Attributes:
        site: The site's label, or `"all sites"`.
        what: What is erased: `"token"`, `"state"` or both, at all lags.
        rank: How many directions are erased, over all sites that are edited.
        variance: The share of the activations' variance within positions that goes with them.
        alone: Regret of the network left alone.
        regret: With them erased.
        at_random: With as many random directions erased that leave the belief read alone, too.
        spread: The standard deviation of that over draws.
        worth: Regret of a predictor that knows only how often each token comes.
    """

    site: str
    what: str
    rank: int
    variance: float
    alone: float
    regret: float
    at_random: float
    spread: float
    worth: float

    @property
    def share_lost(self) -> float:
        """What erasing costs, as a share of what context is worth."""
        return (self.regret - self.alone) / self.worth if self.worth > 1e-12 else math.nan


@dataclass(frozen=True, eq=False, repr=False)
class BeyondBelief(Value, TableView):
    """What a network holds of the past beyond the belief, and what it needs of it; `beyond_belief` makes it.

    Attributes:
        decodable: For each site, thing and lag.
        erased: For each site, and all of them together, and each kind of thing.
        n_random: Random erasures drawn.
        cautions: What is left out of the regret.
        description: What the numbers were measured on.
    """

    decodable: tuple[Decodable, ...]
    erased: tuple[Erased, ...]
    n_random: int
    cautions: tuple[str, ...]
    description: str

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each site, thing and lag: what the belief leaves of it, and partial R² with controls."""
        names = ("site", "what", "lag", "left", "partial", "partial_quadratic", "shuffled")
        rows = [{name: getattr(each, name) for name in names} | dict(each.untrained) for each in self.decodable]
        return pd.DataFrame(rows)

    def erasures(self) -> pd.DataFrame:
        """One row for each site and kind of thing: rank, variance, and regret left alone, erased and at random."""
        names = ("site", "what", "rank", "variance", "alone", "regret", "at_random", "spread", "share_lost")
        return pd.DataFrame([{name: getattr(each, name) for name in names} for each in self.erased])

    def summary(self) -> list[str]:
        """What the numbers say, and how they were measured."""
        known = [each for each in self.decodable if not math.isnan(each.partial)]
        notes = ["The belief leaves nothing of the past to be read."]
        if known:
            best = max(known, key=lambda each: each.partial)
            when = f"{best.what} {best.lag} back"
            twins = [f"{name} {value:.3f}" for name, value in best.untrained.items()]
            controls = ", ".join([*twins, f"shuffled {best.shuffled:.3f}"])
            notes = [
                f"Most is read beyond the belief of the {when}, at {best.site}: partial R² {best.partial:.3f} "
                f"(beside products of the belief's entries {best.partial_quadratic:.3f}; {controls})."
            ]
        worst = max(self.erased, key=lambda each: each.regret)
        removed = f"{worst.what}, {worst.rank} directions with {worst.variance:.1%} of the variance"
        lost = f"{worst.share_lost:.1%} of what context is worth"
        notes.append(
            f"Erasing it costs most at {worst.site} ({removed}): regret {nats_text(worst.alone)} becomes "
            f"{nats_text(worst.regret)} nats, {lost}; as many random directions, {nats_text(worst.at_random)}."
        )
        return [
            *notes,
            *(f"{caution} Here it is left out." for caution in self.cautions),
            "Partial R²: the share that activations explain of what the belief leaves of a token's or a past state's "
            "variance, with a mean for each position. A high one is no fault: attention must read tokens, and a wide "
            "network may keep what it does not need.",
            "Erased at every position: all that is read of it and is uncorrelated with the belief read. So the same "
            "belief is read afterwards. Random directions leave it alone, too; they are the mean of "
            f"{self.n_random} draws. By site and kind: erasures().",
            self.description,
        ]

    @property
    def plot(self) -> PastPlots:
        """The picture: `plot()`."""
        return PastPlots(self)

    def _title(self) -> str:
        return "Partial R² of the past, given the belief"

    def _display(self) -> pd.DataFrame:
        rows: dict[tuple[str, str], dict[str, str]] = {}
        for each in self.decodable:
            row = rows.setdefault((each.site, each.what), {"what": each.what})
            row[f"{each.lag} back"] = "–" if math.isnan(each.partial) else f"{each.partial:.3f}"
        names = dict.fromkeys(name for row in rows.values() for name in row if name != "what")
        ordered = sorted(names, key=lambda name: int(name.split()[0]))
        table = pd.DataFrame(list(rows.values()), index=pd.Index([site for site, _ in rows], name="site"))
        return table.reindex(columns=["what", *ordered]).fillna("")


@dataclass(frozen=True, eq=False)
class PastPlots:
    """The picture of what is held beyond the belief; call it."""

    found: BeyondBelief

    def __call__(self, *, theme: ThemeName = "light") -> Figure:
        """Partial R² over lag at each site, and regret with it erased beside as many random directions."""
        from msp_lens.figures.representation_curves import plot_beyond_belief

        found = self.found
        curves: dict[str, dict[str, list[float]]] = {}
        lags = sorted({each.lag for each in found.decodable})
        for each in found.decodable:
            curve = curves.setdefault(each.what, {}).setdefault(each.site, [math.nan] * len(lags))
            curve[lags.index(each.lag)] = each.partial
        # All there is to erase, at each site.
        last = found.erased[-1].what
        regrets = {each.site: (each.regret, each.at_random) for each in found.erased if each.what == last}
        levels = {"alone": found.erased[0].alone, "worth": found.erased[0].worth}
        return plot_beyond_belief(lags, curves, regrets, **levels, theme=theme)
