"""How far an edit leaves the cloud of real activations: the distance to the nearest one, and its null.

    off manifold = E min_w |h' - h_w| / E min_w |h_donor - h_w|

h' is the edited activation, h_donor that of a donor, a real one, and h_w those of other words at the same site and
position, in the site's own Euclidean space. Words with the edited word's prefix or the donor's are left out of both, so
that a real activation has a distance of about 1, a donor's exactly. An edit that is far from all of them may act on the
network in ways that no word does: that it works shows less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from msp_lens.data.belief_dataset import prefix_hashes

# Distinct words that real activations are taken from, at most.
MOST_WORDS = 1_000


@dataclass(frozen=True, eq=False)
class Cloud:
    """Real activations from one position on.

    Attributes:
        prefixes: A number for each word's prefix up to each position.
        activations: By site, on the CPU.
    """

    prefixes: Int[Tensor, "word later"]
    activations: Mapping[str, Float64[Tensor, "word later d_model"]]

    def distance(
        self,
        held: Mapping[str, Float[Tensor, "row pos d_model"]],
        sites: Sequence[str],
        places: slice,
        words: Int[Tensor, "row later"],
        donors: Int[Tensor, "row later"],
    ) -> Float64[Tensor, "row later"]:
        """The distance to the nearest activation of another word's prefix at some places, summed over sites.

        `words` and `donors` number the prefixes of each row's word and donor. NaN where there is no other word, and
        after the places.
        """
        found = torch.full(words.shape, math.nan, dtype=torch.float64)
        here = {site: held[site][:, places].cpu().double() for site in sites}
        for k in range(next(iter(here.values())).shape[1]):
            own = (words[:, k, None] == self.prefixes[:, k]) | (donors[:, k, None] == self.prefixes[:, k])
            away = [torch.cdist(here[site][:, k], self.activations[site][:, k]) for site in sites]
            nearest = torch.stack([torch.where(own, math.inf, each).amin(dim=1) for each in away]).sum(dim=0)
            found[:, k] = torch.where(nearest < math.inf, nearest, math.nan)
        return found


def cloud_words(tokens: Int[Tensor, "word pos"], generator: torch.Generator) -> Int[Tensor, "kept pos"]:
    """The distinct words, or so many of them as a cloud is made of."""
    distinct = tokens.unique(dim=0)
    order = torch.randperm(len(distinct), generator=generator)[:MOST_WORDS]
    return distinct[order.sort().values]


def numbered(tokens: Int[Tensor, "word pos"], first: int) -> Int[Tensor, "word later"]:
    """A number for each word's prefix up to each position from the first on."""
    return prefix_hashes(tokens)[:, first:]
