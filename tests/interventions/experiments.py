"""Every experiment, by name."""

import msp_lens as msp
from msp_lens import interventions as edits

EXPERIMENTS = {
    "intervene": msp.intervene,
    "persistence": msp.persistence,
    "necessity": msp.necessity,
    "bayes_consistency": edits.bayes_consistency,
    "prediction_consistency": edits.prediction_consistency,
}
