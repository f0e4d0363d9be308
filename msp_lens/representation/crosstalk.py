"""Write one factor's belief, and see whether its predictions move and the others stay.

The belief about one factor is replaced by the one that another word leads to, at one site and position; the beliefs
about the other factors are what they were. The network's prediction is read factor by factor,

    p_j(x_j) = Σ over the other factors' tokens of p(x₁, …, x_n),

and compared with that of an observer who holds the target, and with the network's own before the edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pandas as pd
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from msp_lens._checks import AtLeast, Count, Seed, checked
from msp_lens._random import derived_generator
from msp_lens._tables import nats_text, percent
from msp_lens.beliefs.information import kl_divergence
from msp_lens.data.belief_dataset import default_count
from msp_lens.interventions.edits import applying, donor, no_edit, placebo, steer
from msp_lens.interventions.engine import mean_and_error, ratio
from msp_lens.interventions.intervention_report import InterventionReport, Layout
from msp_lens.interventions.preparation import chosen_positions, in_firing_order
from msp_lens.models.activations import stream_activations, vocabulary_out, words_per_batch
from msp_lens.models.hooked import HookedModel, check_fits, context_length, model_device
from msp_lens.probing.belief_probe import BeliefProbe
from msp_lens.probing.probe_report import ProbeReport
from msp_lens.processes.factored import Factored

# No edit moves nothing, and is not shown.
EDITS = ("placebo", "steer", "donor")


@checked
def crosstalk(
    model: HookedModel,
    world: Factored,
    *,
    probes: ProbeReport,
    position: int | None = None,
    n_words: Annotated[int, AtLeast(2, "a standard error needs two words")] | None = None,
    seed: Seed = 0,
    batch_size: Count | None = None,
) -> InterventionReport:
    """Steer the belief about one factor at each site, and read the predictions of all factors: a matrix of crosstalk.

    `steer` writes with the factor's own decoder, `h + (b'_k - b̂_k) D_k`. It is compared with no edit, a random step of
    the same length, and a donor, the activation of a run in which only that factor's tokens were others.

    Args:
        model: The model that was probed.
        world: Its process, of several factors, without noise on the joint token.
        probes: The report, whose `parts` have the probes of the factors.
        position: The last position of the words, where the edit is made and the prediction is read; by default three
            quarters into the model's context.
        n_words: Words to draw, each with another word whose belief about the factor is the target; by default 1,000, or
            fewer of more than 200 tokens.
        seed: Seed of the words and of the placebo's directions.
        batch_size: Words in one forward pass.

    Returns:
        A row for each site, edit, edited factor and factor read: `kl_to_target`, KL(target's optimum ‖ model) of that
        factor's next token, in nats; `recovery`, the share of it that the edit removes; `moved`, KL(before ‖ after the
        edit) of the model's own prediction, in nats; `share`, that relative to the same edit's effect on the edited
        factor. Each measure has its standard error, `…_error`.

    Raises:
        ValueError: if the report has no parts or is of another model, the position is outside the words, or the world
            is noisy or has one factor.
    """
    wanted = chosen_positions(position, context_length(model))[0]
    check_fits(model, world, wanted + 1, predicts=True)
    chosen = _chosen(world, probes)
    n_words = n_words or default_count(wanted + 1, 1000, fewest=100)
    generator = torch.Generator().manual_seed(seed)
    words = world.sample(n_words, wanted + 1, generator=generator).cpu()
    # All is drawn before the model runs.
    swaps = [_swap(world, k, words, generator) for k in range(len(world.factors))]
    chosen = {label: in_firing_order(model, part) for label, part in chosen.items()}
    records = []
    for swap in swaps:
        probes_of_factor = chosen[world.labels[swap.factor]]
        records += _rows(world, swap, _predictions(model, world, probes_of_factor, swap, seed, batch_size))
    table = pd.DataFrame(records)
    title = f"How far an edit of one factor's belief moves the prediction of each, nats; position {wanted}"
    notes = (
        _contrast(table, world.labels),
        f"{n_words:,} words drawn from {world.name}, each with another stream of the edited factor's tokens, whose "
        "belief is written. KL(model's next-token distribution before ‖ after the edit), for each factor's own token.",
        "On the diagonal the edit should move the prediction as far as a donor does, the activation of a run in which "
        "only that factor's tokens were others. Off the diagonal it should move nothing; what it does is crosstalk.",
        "placebo: a step in a random direction, of the same length as that of steer.",
    )
    provenance = {"process": world.to_dict(), "n_words": n_words, "seed": seed, "position": wanted}
    chosen_for_picture = {"edit": "steer", "site": table["site"].iloc[-1]}
    layout = Layout(
        ["site", "edit", "edited"],
        "read",
        "moved",
        "KL before ‖ after (nats)",
        across="edited",
        chosen=chosen_for_picture,
    )
    keys, visible = ("site", "edit", "edited", "read"), {"edit": EDITS}
    return InterventionReport(title, table, keys, notes, provenance, layout, visible)


def _contrast(table: pd.DataFrame, labels: Sequence[str]) -> str:
    """What steering recovers of each factor, and its greatest crosstalk, at the site where that is best."""
    steered = table.loc[table["edit"] == "steer"]
    own = steered.loc[steered["edited"] == steered["read"]].set_index(["site", "edited"])["recovery"].unstack()
    site = own.mean(axis=1).idxmax()
    here = steered.loc[steered["site"] == site]
    recovered = ", ".join(f"{label} {percent(own.loc[site, label])}" for label in labels)
    others = here.loc[here["edited"] != here["read"]]
    worst = others.loc[others["share"].idxmax()]
    return (
        f"At {site}, steering a factor recovers of the way to its target's optimum: {recovered}. The most it moves "
        f"another's prediction is {nats_text(worst['moved'])} nats ({worst['edited']} on {worst['read']}), "
        f"{percent(worst['share'])} of what it moves its own."
    )


def _chosen(world: Factored, report: ProbeReport) -> dict[str, list[BeliefProbe]]:
    """The probes of single sites for each factor; a `ValueError` if no factor's belief can be exchanged alone."""
    if len(world.factors) < 2:
        raise ValueError(f"{world!r} has one factor, and crosstalk is between factors: use msp.intervene.")
    if missing := [label for label in world.labels if label not in report.parts]:
        raise ValueError(
            f"probes has no part {missing[0]!r}; its parts are {', '.join(report.parts) or 'none'}. Give "
            f"msp.probe(model, {world.name}), the report of this world."
        )
    if world.noise:
        raise ValueError(
            f"{world.name} has noise={world.noise:g}: which tokens its factors emitted is unknown, so that none can be "
            "drawn anew given the others. Use a world without noise."
        )
    report.run_on()
    return {label: [each for each in report.parts[label].probes if len(each.sites) == 1] for label in world.labels}


@dataclass(frozen=True, eq=False)
class _Swap:
    """Words in which the belief about one factor is to be replaced by that of their donors.

    `optimum` is the distribution of each factor's next token for an observer who holds the target.
    """

    factor: int
    words: Int[Tensor, "word pos"]
    donors: Int[Tensor, "word pos"]
    target: Float64[Tensor, "word part_state"]
    optimum: list[Float64[Tensor, "word _"]]


def _swap(world: Factored, factor: int, words: Int[Tensor, "word pos"], generator: torch.Generator) -> _Swap:
    donors, label = world.redraw(words, factor, generator=generator), world.labels[factor]
    held = {name: beliefs[:, -1] for name, beliefs in world.filter_factors(words).items()}
    target = world.filter_factors(donors)[label][:, -1]
    return _Swap(factor, words, donors, target, list(world.factor_predictions({**held, label: target}).values()))


def _predictions(
    model: HookedModel, world: Factored, probes: Sequence[BeliefProbe], swap: _Swap, seed: int, batch_size: int | None
) -> dict[tuple[str, str], list[Float64[Tensor, "word _"]]]:
    """What the model says of each factor's next token after each edit of each site."""
    position, sites = swap.words.shape[1] - 1, [probe.sites[0] for probe in probes]
    sources = [derived_generator(seed, "crosstalk", swap.factor, probe.label) for probe in probes]
    predicted: dict[tuple[str, str], list[list[Tensor]]] = {}
    size = words_per_batch(
        batch_size, position + 1, numbers_per_token=vocabulary_out(model), device=model_device(model)
    )
    for rows in torch.arange(len(swap.words)).split(size):
        (donated,) = stream_activations(model, swap.donors[rows], sites, batch_size=len(rows), logits=False)
        for probe, source in zip(probes, sources, strict=True):
            edits = {
                "none": no_edit(probe),
                "placebo": placebo(steer(probe), generator=source),
                "steer": steer(probe),
                "donor": donor(probe, donated.activations[probe.sites[0]][:, position:]),
            }
            for name, edit in edits.items():
                with applying(model, edit, swap.target[rows].unsqueeze(1), position=[position]):
                    (batch,) = stream_activations(model, swap.words[rows], [], batch_size=len(rows))
                logits = batch.output[:, -1, : world.n_tokens].cpu().double()
                predicted.setdefault((probe.label, name), []).append(
                    list(world.token_marginals(logits.softmax(dim=-1)).values())
                )
    return {key: [torch.cat(parts) for parts in zip(*batches, strict=True)] for key, batches in predicted.items()}


def _rows(world: Factored, swap: _Swap, predicted: dict[tuple[str, str], list[Tensor]]) -> list[dict[str, Any]]:
    records = []
    for (site, edit), after in predicted.items():
        alone = predicted[site, "none"]
        moved = [kl_divergence(a, b.log()) for a, b in zip(alone, after, strict=True)]
        for j, label in enumerate(world.labels):
            far, before = (kl_divergence(swap.optimum[j], each[j].log()) for each in (after, alone))
            row: dict[str, Any] = {"site": site, "edit": edit, "edited": world.labels[swap.factor], "read": label}
            row["kl_to_target"], row["kl_to_target_error"] = mean_and_error(far)
            row["recovery"], row["recovery_error"] = ratio(before - far, before)
            row["moved"], row["moved_error"] = mean_and_error(moved[j])
            row["share"], row["share_error"] = ratio(moved[j], moved[swap.factor])
            records.append(row | {"n": len(swap.words)})
    return records
