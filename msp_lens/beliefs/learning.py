"""Learning in context: how fast the tokens of a mixture tell which of its components they come from.

An observer of a mixture loses h_ℓ = H(X_ℓ | X_1 … X_{ℓ-1}) at the ℓ-th token, one who knows the component only the
average of the components' own h_ℓ. The excess is what not knowing costs, and its sum over ℓ is what the words tell
about the component, at most the entropy of the weights.

For coins of all biases, p = n/(N+1) with n = 1 … N equally likely, the excess is near 1/(2ℓ) nats, one parameter's
worth, as long as ℓ is far below N²; then the coin is known, and it falls exponentially. For infinitely many coins, with
Laplace's rule (k+1)/(ℓ+1) after k of ℓ-1 tokens, it is

    log(ℓ+1) - 2 log(1¹ 2² … ℓ^ℓ) / (ℓ (ℓ+1)) - 1/2 = 1/(2ℓ) - (log(ℓ)/6 + 0.4975) / ℓ² + O(log(ℓ)/ℓ³),

and for N coins about 1/(2ℓN) less.

Source: arXiv 2505.18373 (the coins).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import Count, checked
from msp_lens._tables import TableView, nats_text
from msp_lens._values import Value
from msp_lens.beliefs.information import EXACT_LEVEL, entropy, myopic_entropies
from msp_lens.processes.compose import Mixture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName


@dataclass(frozen=True, eq=False, repr=False)
class LearningCurve(TableView, Value):
    """What the optimal observer of a mixture loses at each token, and what not knowing the component costs.

    Attributes:
        process: The mixture.
        entropies: h_1, h_2, … of the mixture, in nats: the entropy of a token given those before it in the word.
        oracle: The same of an observer who knows the component: the components' own, averaged by their weights.
    """

    process: Mixture
    entropies: Float64[Tensor, "length"]
    oracle: Float64[Tensor, "length"]

    @property
    def excess(self) -> Float64[Tensor, "length"]:
        """What not knowing the component costs at each token, in nats."""
        return self.entropies - self.oracle

    @property
    def limit(self) -> Float64[Tensor, "length"] | None:
        """1/(2ℓ), which the excess of ever more coins approaches; `None` unless every component is a coin."""
        if any((part.n_states, part.n_tokens) != (1, 2) for part in self.process.components):
            return None
        return 0.5 / torch.arange(1, len(self.entropies) + 1, dtype=torch.float64)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each token of a word, numbered from 1."""
        columns = {"h, nats": self.entropies, "oracle": self.oracle, "excess": self.excess}
        columns |= {"1/(2ℓ)": self.limit} if self.limit is not None else {}
        index = pd.RangeIndex(1, len(self.entropies) + 1, name="token ℓ")
        return pd.DataFrame({name: values.numpy() for name, values in columns.items()}, index=index)

    def _display(self) -> pd.DataFrame:
        return self.to_dataframe().map(nats_text)

    def _title(self) -> str:
        return f"Learning the component of {self.process.name} in context"

    def summary(self) -> list[str]:
        """What the words tell of the component, and how much there is to tell."""
        told, all_there_is = float(self.excess.sum()), float(entropy(self.process.weights))
        return [
            f"Exact, over all words. The excess adds up to {nats_text(told)} nats in {len(self.entropies)} tokens: "
            f"what they tell about which of the {len(self.process.components)} components it is, of "
            f"{nats_text(all_there_is)} nats in all."
        ]

    def plot(self, *, title: str | None = None, theme: ThemeName = "light") -> Figure:
        """h_ℓ with the oracle's, and the excess on logarithmic axes, with 1/(2ℓ) for coins."""
        from msp_lens.figures.curves import plot_learning

        limit = () if self.limit is None else self.limit.tolist()
        title = self._title() if title is None else title
        return plot_learning(self.entropies.tolist(), self.oracle.tolist(), limit, title=title, theme=theme)


@checked
def learning_curve(mixture: Mixture, length: Count, *, max_level: Count = EXACT_LEVEL) -> LearningCurve:
    """h_1 … h_length of a mixture, of an observer who knows the component, and their difference; all exact.

    Words that lead to the same belief are followed as one. Coins are told apart by counts alone, so that there are only
    ℓ + 1 beliefs after ℓ tokens. With BOS, give its `process`: BOS tells nothing.

    Raises:
        ValueError: if the words of one length lead to more than `max_level` beliefs.

    Example:
        >>> from msp_lens.processes.catalog import coins
        >>> curve = learning_curve(coins(100), 40)
        >>> curve.excess[-1], curve.limit[-1]
        (tensor(0.0117, dtype=torch.float64), tensor(0.0125, dtype=torch.float64))
    """
    known = zip(mixture.weights, mixture.components, strict=True)
    oracle = [weight * myopic_entropies(part, length, max_level=max_level) for weight, part in known]
    return LearningCurve(
        mixture, myopic_entropies(mixture, length, max_level=max_level), torch.stack(oracle).sum(dim=0)
    )
