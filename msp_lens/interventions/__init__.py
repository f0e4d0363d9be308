"""Write beliefs: edits of the residual stream, and the experiments that tell whether the network uses them."""

from msp_lens.interventions.consistency import bayes_consistency, prediction_consistency
from msp_lens.interventions.edits import (
    Edit,
    applying,
    centroid,
    covariance_shift,
    donor,
    donor_belief,
    no_edit,
    patch,
    placebo,
    placebo_off_belief,
    pseudo_inverse_shift,
    steer,
    toward,
)
from msp_lens.interventions.erasure import erase, erase_random, keep_only, project_out, project_out_random
from msp_lens.interventions.intervene import intervene
from msp_lens.interventions.intervention_report import InterventionReport
from msp_lens.interventions.menu import EDITS, Material
from msp_lens.interventions.necessity import necessity
from msp_lens.interventions.persistence import persistence
from msp_lens.interventions.real_activations import Centroids, belief_centroids
from msp_lens.interventions.steering_vector import SteeringVector, steering_vector
from msp_lens.interventions.targets import TARGETS, Targets, another_part, nearest_words

__all__ = [
    "EDITS",
    "TARGETS",
    "Centroids",
    "Edit",
    "InterventionReport",
    "Material",
    "SteeringVector",
    "Targets",
    "another_part",
    "applying",
    "bayes_consistency",
    "belief_centroids",
    "centroid",
    "covariance_shift",
    "donor",
    "donor_belief",
    "erase",
    "erase_random",
    "intervene",
    "keep_only",
    "nearest_words",
    "necessity",
    "no_edit",
    "patch",
    "persistence",
    "placebo",
    "placebo_off_belief",
    "prediction_consistency",
    "project_out",
    "project_out_random",
    "pseudo_inverse_shift",
    "steer",
    "steering_vector",
    "toward",
]
