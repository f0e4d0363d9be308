"""The catalog at a glance: how large each process is, how predictable, and how many beliefs it leads to."""

from __future__ import annotations

import pandas as pd

from msp_lens.beliefs.information import entropy_rate
from msp_lens.beliefs.presentation import presentation
from msp_lens.processes.registry import CATALOG, catalog_entry

# Nodes of the levels followed: enough for four decimals of most entropy rates.
LISTING_LEVEL = 30_000


def catalog_table() -> pd.DataFrame:
    """One row a named process, at its default parameters.

    Columns: HMM, or GHMM for a generalized one; hidden states; tokens; entropy rate h in nats, ≈ where its bounds leave
    the fourth decimal open; mixed states, ∞ where they are infinitely many; how many of the reachable beliefs'
    dimensions next-token probabilities show.

    Example:
        >>> catalog_table().loc["rrxor(p1=0.5, p2=0.5)", "mixed states"]
        '36'
    """
    rows = {}
    for name in CATALOG:
        entry = catalog_entry(name)
        process = entry.process
        degeneracy, rate = process.degeneracy(), entropy_rate(process, max_level=LISTING_LEVEL)
        rows[repr(process).partition(":")[0]] = {
            "kind": "GHMM" if process.is_generalized else "HMM",
            "states": process.n_states,
            "tokens": process.n_tokens,
            "h, nats": f"{rate.value:.4f}" if rate.upper - rate.lower < 1e-4 else f"≈{rate.value:.2f}",
            "mixed states": str(len(presentation(process))) if entry.has_finite_mixed_states else "∞",
            "seen in next token": f"{degeneracy.next_token_dimensions} of {degeneracy.belief_dimensions}",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("process")
