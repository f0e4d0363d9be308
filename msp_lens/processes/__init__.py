"""What generates the data: hidden Markov processes, those of the literature, and how to make more of them."""

from msp_lens.processes.catalog import (
    coin,
    days_of_week,
    even,
    golden_mean,
    leaky_rrxor,
    matching_parens,
    mess3,
    mr_name,
    rrxor,
    sns,
    z1r,
)
from msp_lens.processes.compose import Mixture, Product, leaky, mixture, product, with_bos
from msp_lens.processes.construct import from_moore, random_process
from msp_lens.processes.generalized import bloch_walk, frdn, moon
from msp_lens.processes.process import Process
from msp_lens.processes.registry import CATALOG, CatalogEntry, build_process, catalog_entry
from msp_lens.processes.structure import (
    Degeneracy,
    StateClass,
    communicating_classes,
    degeneracy,
    emission_rank,
    future_rank,
    is_irreducible,
    is_minimal,
    is_unifilar,
    minimal_dimension,
    reach_rank,
)

__all__ = [
    "CATALOG",
    "CatalogEntry",
    "Degeneracy",
    "Mixture",
    "Process",
    "Product",
    "StateClass",
    "bloch_walk",
    "build_process",
    "catalog_entry",
    "coin",
    "communicating_classes",
    "days_of_week",
    "degeneracy",
    "emission_rank",
    "even",
    "frdn",
    "from_moore",
    "future_rank",
    "golden_mean",
    "is_irreducible",
    "is_minimal",
    "is_unifilar",
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
