"""Processes whose inference is tested, with the length of words that shows all their dimensions."""

import msp_lens as msp

processes = msp.processes

# Every process of the catalog: its words need this length for the rank to show.
CATALOG = {
    "mess3": (processes.mess3(x=0.05, a=0.85), 6),
    "golden mean": (processes.golden_mean(p=0.4), 7),
    "even": (processes.even(p=0.3), 7),
    "coin": (processes.coin(p=0.3), 5),
    "z1r": (processes.z1r(p=0.4), 8),
    "sns": (processes.sns(p=0.5, q=0.4), 8),
    "rrxor": (processes.rrxor(p1=0.4, p2=0.6), 10),
    "leaky rrxor": (processes.leaky_rrxor(), 10),
    "matching parentheses": (processes.matching_parens(), 10),
    "mr name": (processes.mr_name(), 6),
    "days of week": (processes.days_of_week(), 4),
}
GENERALIZED = {
    "bloch walk": (processes.bloch_walk(), 6),
    "frdn": (processes.frdn(), 9),
    "moon": (processes.moon(), 6),
}
EVERYTHING = CATALOG | GENERALIZED
