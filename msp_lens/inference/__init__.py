"""The other way round: the process whose words a network predicts, inferred from the network alone."""

from msp_lens.inference.infer import infer
from msp_lens.inference.inference_report import Candidate, Inference
from msp_lens.inference.likelihood import Fit, fit_machine
from msp_lens.inference.machine import simplified
from msp_lens.inference.operators import Operators, spectral_operators
from msp_lens.inference.predictive_states import PredictiveRank, predictive_rank, stationarity_gap
from msp_lens.inference.predictor import Predictor, network_predictor
from msp_lens.inference.process_comparison import ProcessComparison, compare_processes
from msp_lens.inference.site_ranks import SiteRanks, site_ranks
from msp_lens.inference.word_probabilities import WordProbabilities, data_words, network_words, process_words

__all__ = [
    "Candidate",
    "Fit",
    "Inference",
    "Operators",
    "PredictiveRank",
    "Predictor",
    "ProcessComparison",
    "SiteRanks",
    "WordProbabilities",
    "compare_processes",
    "data_words",
    "fit_machine",
    "infer",
    "network_predictor",
    "network_words",
    "predictive_rank",
    "process_words",
    "simplified",
    "site_ranks",
    "spectral_operators",
    "stationarity_gap",
]
