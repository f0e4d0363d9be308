"""Hidden states recovered from a network's activations, and edits that write them.

Clusters of activations, by k-means, are taken for hidden states. Each cluster is matched to one state so that the sum
over clusters of the mean true belief in the matched state is as large as possible.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from torch import Tensor

from msp_lens.beliefs.filtering import filter_beliefs
from msp_lens.interventions import edits as write
from msp_lens.interventions.edits import Edit
from msp_lens.interventions.menu import EditMaker, Material
from msp_lens.models.activations import stream_activations
from msp_lens.models.hooked import HookedModel, find_sites, word_length
from msp_lens.probing.belief_probe import BeliefProbe
from msp_lens.processes.process import Process

# Where states are read and written: the residual stream after the last layer.
SITE = "final_post"


@dataclass(frozen=True, eq=False)
class States:
    """Activations of the prefixes of words that were drawn, and the states that they are taken to be in.

    Attributes:
        activations: After the last layer.
        likeliest: The state that is likeliest by the true belief.
        recovered: That of the cluster, matched to the hidden states.
    """

    activations: Float64[Tensor, "word pos d_model"]
    likeliest: Int[Tensor, "word pos"]
    recovered: Int[Tensor, "word pos"]
    n_states: int

    def centroids(self, labels: Int[Tensor, "word pos"]) -> Float64[Tensor, "state d_model"]:
        """The mean activation of each state's prefixes; zeros for a state that has none."""
        return _means(self.activations.flatten(0, 1), labels.flatten(), self.n_states)


def recover(model: HookedModel, process: Process, *, n_words: int = 2_000, seed: int = 1) -> States:
    """Recover hidden states from activations by k-means; each cluster is matched to one state by true beliefs."""
    tokens = process.sample(n_words, word_length(model), seed=seed)
    (site,) = find_sites(model, SITE)
    batches = stream_activations(model, tokens, site, logits=False)
    activations = torch.cat([batch.activations[site].cpu().double() for batch in batches])
    beliefs, n_states = filter_beliefs(process, tokens), process.n_states
    k_means = KMeans(n_states, n_init=10, random_state=seed)  # pyright: ignore[reportArgumentType]
    clusters = k_means.fit_predict(activations.flatten(0, 1).numpy())
    clusters = torch.as_tensor(clusters, dtype=torch.int64)
    held = _means(beliefs.flatten(0, 1), clusters, n_states)
    # Row by row, the state of each cluster.
    _, state_of = linear_sum_assignment(held.numpy(), maximize=True)
    recovered = torch.as_tensor(state_of)[clusters].reshape(tokens.shape)
    return States(activations, beliefs.argmax(dim=-1), recovered, n_states)


def transition_signal(states: Int[Tensor, "word pos"], process: Process) -> float:
    """How near the transitions between states are to the hidden ones, 1 - d / d₀; see `recovered_states`."""
    n = process.n_states
    pairs = (states[:, :-1] * n + states[:, 1:]).flatten()
    counts = torch.bincount(pairs, minlength=n * n).reshape(n, n).double()
    hidden, frequencies = process.transitions.sum(dim=0), counts.sum(dim=0) / counts.sum()
    found = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    away, from_frequencies = ((each - hidden).abs().sum(dim=1).mean() for each in (found, frequencies.expand(n, n)))
    return 1 - float(away / from_frequencies)


def state_edits(model: HookedModel, process: Process) -> dict[str, EditMaker]:
    """Edits that write the mean activation of a state's prefixes, and their controls."""
    states, vertices = recover(model, process), torch.eye(process.n_states, dtype=torch.float64)
    recovered, everything = states.centroids(states.recovered), states.activations.flatten(0, 1).mean(dim=0)
    order = torch.randperm(states.recovered.numel(), generator=torch.Generator().manual_seed(0))
    shuffled = states.recovered.flatten()[order].reshape(states.recovered.shape)

    def nearest(means: Tensor) -> EditMaker:
        return lambda probe, _: write.centroid(probe, vertices, means)

    def random(probe: BeliefProbe, given: Material) -> Edit:
        def edit(h: Tensor, belief: Tensor) -> Tensor:
            drawn = torch.randn(h.shape, dtype=torch.float64, generator=given.generator)
            lengths = recovered.norm(dim=-1)[belief.argmax(dim=-1).cpu()].unsqueeze(-1)
            return (lengths * torch.nn.functional.normalize(drawn, dim=-1)).to(h)

        return Edit("random activation", probe, edit)

    return {
        "recovered state": nearest(recovered),
        "likeliest state": nearest(states.centroids(states.likeliest)),
        "wrong state": nearest(recovered.roll(1, dims=0)),
        "mean activation": nearest(everything.expand_as(recovered)),
        "random activation": random,
        "shuffled labels": nearest(states.centroids(shuffled)),
    }


def _means(rows: Tensor, labels: Tensor, n: int) -> Tensor:
    """The mean of each label's rows."""
    sums = torch.zeros(n, rows.shape[1], dtype=rows.dtype).index_add_(0, labels, rows)
    return sums / torch.bincount(labels, minlength=n).clamp(min=1).unsqueeze(1)
