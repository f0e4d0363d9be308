"""What the face offers; `__init__.py` loads each name from where it is imported here, and each room on first use."""

from . import (
    beliefs,
    controls,
    data,
    experiments,
    figures,
    formation,
    inference,
    interventions,
    models,
    moments,
    page,
    probing,
    processes,
    representation,
    training,
)
from .beliefs import filter_beliefs, next_token_probabilities
from .data import BeliefDataset, LabelledTokens, TokenMap, words
from .experiments import Study, SweepResult, compare, run, sweep
from .formation import Emergence, emergence
from .inference import Inference, infer
from .interventions import InterventionReport, applying, intervene, necessity, persistence
from .models import ModelConfig, build_model, check_model, find_sites, load_checkpoint, load_model, save_checkpoint
from .moments import BeliefRegressor, Ridge
from .probing import BeliefProbe, ProbeReport, Split, probe, probe_rows
from .processes import Process, mess3, rrxor
from .training import TrainingConfig, TrainingRun, train

__version__: str

__all__ = [
    "BeliefDataset",
    "BeliefProbe",
    "BeliefRegressor",
    "Emergence",
    "Inference",
    "InterventionReport",
    "LabelledTokens",
    "ModelConfig",
    "ProbeReport",
    "Process",
    "Ridge",
    "Split",
    "Study",
    "SweepResult",
    "TokenMap",
    "TrainingConfig",
    "TrainingRun",
    "applying",
    "beliefs",
    "build_model",
    "check_model",
    "compare",
    "controls",
    "data",
    "emergence",
    "experiments",
    "figures",
    "filter_beliefs",
    "find_sites",
    "formation",
    "infer",
    "inference",
    "intervene",
    "interventions",
    "load_checkpoint",
    "load_model",
    "mess3",
    "models",
    "moments",
    "necessity",
    "next_token_probabilities",
    "page",
    "persistence",
    "probe",
    "probe_rows",
    "probing",
    "processes",
    "representation",
    "rrxor",
    "run",
    "save_checkpoint",
    "sweep",
    "train",
    "training",
    "words",
]
