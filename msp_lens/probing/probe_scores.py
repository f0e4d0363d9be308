"""The scores of one probe: in-sample and held out, and those it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msp_lens.moments.scores import HeldOutScore, Score, from_json


@dataclass(frozen=True)
class ProbeScores:
    """How well one probe reads beliefs; what was not measured is `None` or empty.

    Attributes:
        in_sample: On the rows it was fitted on.
        held_out: By cross-validation over groups of rows.
        shuffled: In-sample score of a probe fitted to shuffled beliefs: what chance alone would show.
        shuffled_held_out: The same, held out.
        with_next_token: Held-out score of a map from the activations *and* the optimal next-token probabilities.
        by_rank: Held-out scores of reduced-rank regression of rank 1, 2, …
        by_rank_in_sample: The same, in-sample.
        by_position: Held-out scores of this probe at each position, against the variance at that position.
        by_position_own: Held-out scores of probes fitted to one position each.
        penalty: Ridge's penalty. If it was chosen, `held_out` is for penalties chosen without the fold being scored.
        mse_by_penalty: Pairs of a penalty and its held-out MSE. `penalty` has the least, so its MSE here is biased.
    """

    in_sample: Score
    held_out: HeldOutScore
    shuffled: Score | None = None
    shuffled_held_out: HeldOutScore | None = None
    with_next_token: HeldOutScore | None = None
    by_rank: tuple[HeldOutScore, ...] = ()
    by_rank_in_sample: tuple[Score, ...] = ()
    by_position: tuple[HeldOutScore, ...] = ()
    by_position_own: tuple[HeldOutScore, ...] = ()
    penalty: float | None = None
    mse_by_penalty: tuple[tuple[float, float], ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ProbeScores:
        """Rebuild the scores from `dataclasses.asdict` of them, read back from JSON."""
        return cls(**{key: from_json(value) for key, value in values.items()})
