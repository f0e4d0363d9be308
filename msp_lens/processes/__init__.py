"""What generates the data: hidden Markov processes, those of the literature, and ways to build others."""

from msp_lens.processes.bayes import bayes_children, bayes_step
from msp_lens.processes.catalog import (
    bloch_walk,
    coin,
    coins,
    days_of_week,
    even,
    frdn,
    golden_mean,
    leaky_rrxor,
    matching_parens,
    mess3,
    moon,
    mr_name,
    rrxor,
    sns,
    z1r,
)
from msp_lens.processes.chains import Degeneracy, StateClass
from msp_lens.processes.compose import Mixture, WithBos, leaky, mixture, with_bos
from msp_lens.processes.construct import from_moore, random_process
from msp_lens.processes.factored import Factored, product
from msp_lens.processes.process import Process
from msp_lens.processes.registry import CATALOG, CatalogEntry, build_process, catalog_entry
from msp_lens.processes.structure import emission_rank, future_rank, is_minimal, minimal_dimension, reach_rank

__all__ = [
    "CATALOG",
    "CatalogEntry",
    "Degeneracy",
    "Factored",
    "Mixture",
    "Process",
    "StateClass",
    "WithBos",
    "bayes_children",
    "bayes_step",
    "bloch_walk",
    "build_process",
    "catalog_entry",
    "coin",
    "coins",
    "days_of_week",
    "emission_rank",
    "even",
    "frdn",
    "from_moore",
    "future_rank",
    "golden_mean",
    "is_minimal",
    "leaky",
    "leaky_rrxor",
    "matching_parens",
    "mess3",
    "minimal_dimension",
    "mixture",
    "moon",
    "mr_name",
    "product",
    "random_process",
    "reach_rank",
    "rrxor",
    "sns",
    "with_bos",
    "z1r",
]
