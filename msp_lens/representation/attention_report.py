"""What `attention_by_lag` found: heads, sites and networks, as tables, sentences and a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
from jaxtyping import Complex128, Float64
from torch import Tensor

from msp_lens._names import meant
from msp_lens._tables import TableView
from msp_lens._values import Value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName


@dataclass(frozen=True, eq=False)
class HeadAttention(Value):
    """One head's attention, or what all heads of a layer add together.

    Attributes:
        head: Its label, such as `"L0H1"`, or `"layer 0"` for all heads together.
        attention: Mean attention at lag 0, 1, …, over keys after the first position; NaN for all heads together.
        first: Mean attention to the first position from later ones.
        decay: The rate by which attention to a key falls with each later query; `fit_decay` says how it is fitted.
        decay_fit: The share of attention's squares that the rate accounts for.
        effective: Effective attention at lag 0, 1, …: what is added, in units of what the token says by itself.
        effective_decay: Its rate; negative if its sign alternates.
        effective_fit: The share of its squares that the rate accounts for.
        alignment: Cosine between what the values add for each token, read as a constrained belief, and what the token
            says by itself: 1 if parallel, for all tokens by their probability.
        gram: The same without any read-out: cosine of the Gram matrices over tokens of the outputs and of δ(z). It is
            high by chance for few tokens.
    """

    head: str
    attention: Float64[Tensor, "lag"]
    first: float
    decay: float
    decay_fit: float
    effective: Float64[Tensor, "lag"]
    effective_decay: float
    effective_fit: float
    alignment: float
    gram: float

    @property
    def is_together(self) -> bool:
        """Whether these are all heads of a layer: then there is no pattern, only what they add."""
        return math.isnan(self.first)


@dataclass(frozen=True, eq=False)
class SiteReading(Value):
    """How well a site follows the constrained beliefs and the true ones, held out by prefix.

    Attributes:
        site: The site's label.
        constrained: R² of the constrained beliefs, read by a map for each position.
        belief: R² of the true beliefs, likewise.
        constrained_everywhere: R² of the constrained beliefs, read by one map for all positions.
        belief_everywhere: R² of the true beliefs, likewise.
        variance: The share of the activations' variance in their first 1, 2, … principal components.
    """

    site: str
    constrained: float
    belief: float
    constrained_everywhere: float
    belief_everywhere: float
    variance: Float64[Tensor, "component"]


@dataclass(frozen=True, eq=False)
class NetworkAttention(Value):
    """The attention of one network, the trained one or an untrained twin.

    Attributes:
        network: Which one.
        heads: The heads of each layer, and after them all heads of the layer together.
        sites: After each layer's attention, and after the last layer.
    """

    network: str
    heads: tuple[HeadAttention, ...]
    sites: tuple[SiteReading, ...]

    def head(self, label: str) -> HeadAttention:
        """The head with this label, or a layer's heads together (`"layer 0"`); `KeyError` if there is none."""
        found = {each.head: each for each in self.heads}
        if label not in found:
            raise KeyError(f"No head {label!r}; there are {', '.join(found)}.{meant(label, found)}")
        return found[label]

    def site(self, label: str) -> SiteReading:
        """The site with this label; `KeyError` if there is none."""
        found = {each.site: each for each in self.sites}
        if label not in found:
            raise KeyError(f"No site {label!r}; there are {', '.join(found)}.{meant(label, found)}")
        return found[label]


@dataclass(frozen=True, eq=False, repr=False)
class AttentionByLag(Value, TableView):
    """A network's attention by lag beside what constrained beliefs ask for; `attention_by_lag` makes it.

    Attributes:
        trained: The network.
        untrained: Its untrained twins, which should not pass.
        rates: The rates ζ by which what tokens say decays, the slowest first.
        heads_needed: How many heads of one layer they ask for.
        asked: The effective attention that they ask for at lag 0, 1, …
        description: What the numbers were measured on.
    """

    trained: NetworkAttention
    untrained: tuple[NetworkAttention, ...]
    rates: Complex128[Tensor, "rate"]
    heads_needed: int
    asked: Float64[Tensor, "lag"]
    description: str

    @property
    def networks(self) -> tuple[NetworkAttention, ...]:
        """The network and its untrained twins."""
        return (self.trained, *self.untrained)

    @property
    def rate(self) -> float:
        """The rate ζ, if there is a single real one; else NaN."""
        is_real = len(self.rates) == 1 and abs(float(self.rates[0].imag)) < 1e-9
        return float(self.rates[0].real) if is_real else math.nan

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each network, head and lag: mean attention, effective attention and what is asked for."""
        rows = []
        for network in self.networks:
            for head in network.heads:
                values = zip(head.attention.tolist(), head.effective.tolist(), self.asked.tolist(), strict=True)
                for lag, (attention, effective, asked) in enumerate(values):
                    row = {"network": network.network, "head": head.head, "lag": lag, "attention": attention}
                    rows.append(row | {"effective": effective, "asked": asked})
        return pd.DataFrame(rows)

    def by_head(self) -> pd.DataFrame:
        """One row for each network and head: decays with their fits, and how parallel its output is to δ(z)."""
        names = ("first", "decay", "decay_fit", "effective_decay", "effective_fit", "alignment", "gram")
        rows = [
            {"network": network.network, "head": head.head} | {name: getattr(head, name) for name in names}
            for network in self.networks
            for head in network.heads
        ]
        return pd.DataFrame(rows)

    def by_site(self) -> pd.DataFrame:
        """One row for each network and site: R² of constrained and true beliefs, and cumulated variance."""
        names = ("constrained", "belief", "constrained_everywhere", "belief_everywhere")
        rows = []
        for network in self.networks:
            for site in network.sites:
                row = {"network": network.network, "site": site.site} | {name: getattr(site, name) for name in names}
                shares = {f"variance {k}": share for k, share in enumerate(site.variance.tolist()[:4], start=1)}
                rows.append(row | shares)
        return pd.DataFrame(rows)

    def summary(self) -> list[str]:
        """What the numbers say, and how they were measured."""
        rates = ", ".join(_rate_text(complex(rate)) for rate in self.rates.tolist()[:4])
        more = " …" if len(self.rates) > 4 else ""
        asks = (
            f"What a token says decays by ζ = {rates}{more} with each step" if rates else "No evidence outlasts a step"
        )
        notes = [f"{asks}: {self.heads_needed} head{'s' * (self.heads_needed != 1)} of one layer could do that."]
        together = next(head for head in self.trained.heads if head.is_together)
        decays = [f"{head.head} {head.decay:.3f}" for head in self.trained.heads if not head.is_together]
        twins = [f"{head.decay:.3f}" for twin in self.untrained for head in twin.heads if not head.is_together]
        controls = f" Untrained: {', '.join(twins)}." if twins else ""
        notes.append(
            f"Attention to a key falls by a factor with each later query: {', '.join(decays)}; in effect, with signs, "
            f"all heads of {together.head} together {together.effective_decay:.3f}.{controls}"
        )
        notes += [_follows(network) for network in self.networks]
        return [
            *notes,
            "Lag 0 and the first position are apart: the residual stream carries the token itself, and the first "
            "position takes what is left of a softmax. The theory is about the first layer: later ones read what "
            "earlier ones have mixed. Few tokens make outputs parallel to what they say by chance (alignment): see the "
            "untrained network's.",
            f"{self.description} By head and site: by_head(), by_site().",
        ]

    @property
    def plot(self) -> AttentionPlots:
        """The picture: `plot()`."""
        return AttentionPlots(self)

    def _title(self) -> str:
        return "Attention by lag, and its decay"

    def _display(self) -> pd.DataFrame:
        rows = []
        for network in self.networks:
            for head in network.heads:
                is_one = not head.is_together
                shown = head.attention if is_one else head.effective
                row = {"head": head.head, "network": network.network, "": "attention" if is_one else "effective"}
                row |= {f"lag {lag}": f"{float(shown[lag]):.3f}" for lag in range(min(6, len(shown)))}
                row["decay"] = f"{head.decay if is_one else head.effective_decay:.3f}"
                row["alignment"] = f"{head.alignment:.3f}"
                rows.append(row)
        return pd.DataFrame(rows).set_index("head")


@dataclass(frozen=True, eq=False)
class AttentionPlots:
    """The picture of attention by lag; call it."""

    found: AttentionByLag

    def __call__(self, *, theme: ThemeName = "light") -> Figure:
        """Attention by lag, the effective attention beside what is asked for, and what each site follows."""
        from msp_lens.figures.representation_curves import plot_attention_by_lag

        found, trained = self.found, self.found.trained
        attention = {head.head: head.attention.tolist() for head in trained.heads if not head.is_together}
        for twin in found.untrained:
            heads = [head for head in twin.heads if not head.is_together]
            attention |= {f"{twin.network}, {head.head}": head.attention.tolist() for head in heads}
        effective = {head.head: head.effective.tolist() for head in trained.heads if head.is_together}
        sites = {each.site: (each.constrained, each.belief) for each in trained.sites}
        return plot_attention_by_lag(attention, effective, found.asked.tolist(), sites, rate=found.rate, theme=theme)


def _rate_text(rate: complex) -> str:
    return f"{rate.real:.3f}" if abs(rate.imag) < 1e-9 else f"{rate.real:.3f}{rate.imag:+.3f}i"


def _follows(network: NetworkAttention) -> str:
    """Which beliefs the residual stream follows after the first layer's attention, and at the end."""
    # After what the first layer's attention adds comes the residual stream with it.
    after, last = network.sites[1], network.sites[-1]

    def told(site: SiteReading) -> str:
        return f"{site.site} R² {site.constrained:.4f} of the constrained beliefs, {site.belief:.4f} of the true ones"

    ends = f"; {told(last)}" if last.site != after.site else ""
    return f"{network.network}, each position read by itself: {told(after)}{ends}."
