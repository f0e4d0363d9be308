"""What each layer would predict, and believe, if the network ended there.

The residual stream at a site takes the place of the last layer's output: the network's own final normalization and
unembedding then turn it into a prediction, which is compared with the optimal one. The same is asked of the belief:
the probe fitted at the last layer reads every earlier one. A layer may hold the belief, as its own probe shows, in
directions that neither reads yet.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from msp_lens._checks import Count, Seed, checked
from msp_lens._tables import TableView, nats_text
from msp_lens._values import Value
from msp_lens.beliefs.filtering import next_token_probabilities
from msp_lens.beliefs.information import kl_divergence
from msp_lens.beliefs.nearest import nearest_belief
from msp_lens.data import BeliefDataset
from msp_lens.interventions.necessity import worth_of_context
from msp_lens.interventions.preparation import Probes, in_firing_order, log_probabilities, over_words, untrained_end
from msp_lens.models.activations import stream_activations
from msp_lens.models.hooked import HookedModel, find_sites, unwrapped
from msp_lens.models.sites import site_label
from msp_lens.probing.belief_probe import BeliefProbe
from msp_lens.processes.process import Process

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from msp_lens.figures.style import ThemeName


@dataclass(frozen=True)
class LayerReading:
    """What one site would give if the network ended there; KL in nats, R² of beliefs.

    Attributes:
        site: The site's label.
        lens: KL(optimal ‖ prediction by the final unembedding).
        implied: KL(optimal ‖ prediction that the belief read by the site's own probe implies).
        r2_last_probe: R² of the belief as the last site's probe reads it here.
        r2_own_probe: R² of the belief as the site's own probe reads it, on the same words.
    """

    site: str
    lens: float
    implied: float
    r2_last_probe: float
    r2_own_probe: float


@dataclass(frozen=True, eq=False, repr=False)
class LogitLens(Value, TableView):
    """What each layer would predict and believe; `logit_lens` makes it.

    Attributes:
        layers: By site, in the order of the forward pass.
        model: KL(optimal ‖ the network's own prediction), its regret.
        average: The same of a prediction by the frequency of each token, which ignores the words.
        cautions: What is left out.
        description: What the numbers were measured on.
    """

    layers: tuple[LayerReading, ...]
    model: float
    average: float
    cautions: tuple[str, ...]
    description: str

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each site."""
        return pd.DataFrame([asdict(each) for each in self.layers])

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON-ready values."""
        numbers = {"model": self.model, "average": self.average}
        texts = {"cautions": list(self.cautions), "description": self.description}
        return {"layers": [asdict(each) for each in self.layers], **numbers, **texts}

    def summary(self) -> list[str]:
        """What the numbers say, and how they were measured."""
        first, last = self.layers[0], self.layers[-1]
        # What is left of the distance from the average to the optimum.
        near = 0.1 * self.average
        readable = next((each.site for each in self.layers if each.implied < near), None)
        spoken = next((each.site for each in self.layers if each.lens < near), None)
        found = [
            f"If the network ended at {first.site}, its prediction would be {nats_text(first.lens)} nats from the "
            f"optimum; at {last.site} it is {nats_text(last.lens)}. A prediction that ignores the words is "
            f"{nats_text(self.average)} nats from the optimum."
        ]
        if readable is not None and spoken is not None:
            found.append(
                f"The belief read by a site's own probe first predicts well at {readable}, the final unembedding at "
                f"{spoken}: within a tenth of what ignoring the words costs."
            )
        return [
            *found,
            *(f"{caution} Here it is left out." for caution in self.cautions),
            "lens: KL(optimal ‖ prediction), the site's activation read by the network's own final normalization and "
            "unembedding. implied: the same for the prediction that follows from the belief read by the site's own "
            "probe. R²: of the belief, as read by the last site's probe and by the site's own, both on these words.",
            "A site whose belief is read well only by its own probe holds it in directions that later layers turn into "
            "those of the output. The lens assumes that layers share directions; where they do not, it says little.",
            self.description,
        ]

    @property
    def plot(self) -> LensPlots:
        """The picture: `plot()`."""
        return LensPlots(self)

    def _title(self) -> str:
        return "Predictions and beliefs by layer, if the network ended there"

    def _display(self) -> pd.DataFrame:
        table = self.to_dataframe().set_index("site")
        shown = pd.DataFrame(index=table.index)
        for name in ("lens", "implied"):
            shown[f"{name}, nats"] = table[name].map(nats_text)
        shown["R² last probe"] = table["r2_last_probe"].map("{:.4f}".format)
        shown["R² own probe"] = table["r2_own_probe"].map("{:.4f}".format)
        return shown


@dataclass(frozen=True, eq=False)
class LensPlots:
    """The picture of the layers; call it."""

    found: LogitLens

    def __call__(self, *, theme: ThemeName = "light") -> Figure:
        """KL to the optimal prediction at each site, and R² of the belief, by the last layer's means and its own."""
        from msp_lens.figures.representation_curves import plot_lens

        found = self.found
        table = found.to_dataframe()
        predictions = {"final unembedding": table["lens"].tolist(), "own probe's belief": table["implied"].tolist()}
        beliefs = {"last layer's probe": table["r2_last_probe"].tolist(), "own probe": table["r2_own_probe"].tolist()}
        levels = {"the network's output": found.model, "ignoring the words": found.average}
        return plot_lens(table["site"].tolist(), predictions, beliefs, levels=levels, theme=theme)


@checked
def logit_lens(
    model: HookedModel,
    data: Process | BeliefDataset,
    *,
    probes: Probes,
    n_words: Count | None = None,
    seed: Seed = 0,
    batch_size: Count | None = None,
) -> LogitLens:
    """What each layer would predict, and which belief would be read, by the means of the last one.

    Sites are those of the probes that are points of the residual stream, up to the last layer's output. The network is
    run once for each, with that layer's output replaced by the residual stream at the site. Arguments as for
    `bayes_consistency`.

    Raises:
        ValueError: if an option is too small, a probe or the model does not fit, the network has no layers with a
            residual stream, or there is no probe of the last layer's output.
        KeyError: if the model lacks a probe's site.
    """
    model, dataset, chosen, description, _ = over_words(model, data, probes, n_words, seed, predicts=True)
    chosen, final = _along_the_stream(model, chosen)
    optimal = next_token_probabilities(dataset.process, dataset.beliefs)
    answer = partial(log_probabilities, n_tokens=dataset.process.n_tokens)

    def distance(site: str) -> Float64[Tensor, "pos"]:
        """KL to the optimum at each position, the network ended at a site."""
        kept: list[Tensor] = []

        def keep(activation: Tensor, hook: Any) -> None:
            kept[:] = [activation]

        def end(activation: Tensor, hook: Any) -> Tensor:
            return kept.pop().to(activation.device)

        hooks = [] if site == final else [(site, keep), (final, end)]
        total = torch.zeros(dataset.n_ctx, dtype=torch.float64)
        with model.hooks(fwd_hooks=hooks):
            for batch in stream_activations(model, dataset.tokens, (), batch_size=batch_size, logits=answer):
                total += dataset.word_weights[batch.words] @ kl_divergence(optimal[batch.words], batch.output)
        return total

    by_position = {probe.label: distance(probe.sites[0]) for probe in chosen}
    own = by_position[chosen[-1].label]
    caution = untrained_end(own)
    trained = slice(None, -1) if caution else slice(None)
    read = _beliefs(model, dataset, chosen, batch_size)
    weights = dataset.word_weights[:, None].expand(-1, dataset.n_ctx)
    layers = []
    for probe in chosen:
        belief = nearest_belief(dataset.process, read[probe.label][1])
        implied = (belief @ dataset.process.emissions).clamp(min=1e-6)
        implied = implied / implied.sum(dim=-1, keepdim=True)
        by_belief = dataset.word_weights @ kl_divergence(optimal, implied.log())
        layers.append(
            LayerReading(
                probe.label,
                float(by_position[probe.label][trained].mean()),
                float(by_belief[trained].mean()),
                *(_r2(dataset.beliefs, each, weights) for each in read[probe.label]),
            )
        )
    average = float(worth_of_context(dataset)[trained].mean())
    words = f"{description}. KL in nats, mean over positions, words weighted by probability."
    return LogitLens(tuple(layers), float(own[trained].mean()), average, tuple(caution), words)


def _along_the_stream(model: HookedModel, probes: Sequence[BeliefProbe]) -> tuple[list[BeliefProbe], str]:
    """The probes of the residual stream in the order of the forward pass, and the name of the last layer's output."""
    stream = re.compile(r"\d+_(pre|mid|post)")
    ordered = in_firing_order(model, [probe for probe in probes if stream.fullmatch(site_label(probe.sites[0]))])
    if not ordered:
        raise ValueError(
            f"{type(unwrapped(model)).__name__} has no layers with a residual stream, or probes has none of it, so no "
            "earlier activation can take the place of the last one: give the probes of msp.probe(model, …) of a "
            "transformer."
        )
    (final,) = find_sites(model, "final_post")
    if final != ordered[-1].sites[0]:
        raise ValueError("probes has none of the last layer's output, final_post: its probe reads the earlier layers.")
    return ordered, final


def _beliefs(
    model: HookedModel, dataset: BeliefDataset, probes: Sequence[BeliefProbe], batch_size: int | None
) -> dict[str, tuple[Float64[Tensor, "word pos state"], Float64[Tensor, "word pos state"]]]:
    """The beliefs at each site, as read by the last site's probe and by its own."""
    last, parts = probes[-1], {probe.label: ([], []) for probe in probes}
    sites = [probe.sites[0] for probe in probes]
    for batch in stream_activations(model, dataset.tokens, sites, batch_size=batch_size, logits=False):
        for probe in probes:
            activation = batch.activations[probe.sites[0]]
            for reader, found in zip((last, probe), parts[probe.label], strict=True):
                found.append(reader.predict(activation).cpu().double())
    return {label: (torch.cat(by_last), torch.cat(by_own)) for label, (by_last, by_own) in parts.items()}


def _r2(true: Tensor, read: Tensor, weights: Tensor) -> float:
    """The share of the beliefs' variance that is read, over words and positions."""
    weights = weights / weights.sum()
    mean = (weights[..., None] * true).sum(dim=(0, 1))
    left, whole = (float((weights * each.square().sum(dim=-1)).sum()) for each in (true - read, true - mean))
    return 1 - left / whole if whole > 1e-12 else float("nan")
