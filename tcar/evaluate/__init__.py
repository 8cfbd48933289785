"""How well a model does, and how sure that is: metrics, their statistics, and what confidence means."""

from tcar.evaluate.confidence import EvaluationError, calibration, fit_temperature, probabilities, reliability
from tcar.evaluate.confusions import class_twins, confused_pairs, kinship_order
from tcar.evaluate.emap import emap
from tcar.evaluate.metrics import Metrics, Scoring, annotations, confusion, metrics, over_seeds, paired_difference
from tcar.evaluate.statistics import Bootstrap, holm, interval, mean_interval, paired, ratio_interval, student

__all__ = [
    "Bootstrap", "EvaluationError", "Metrics", "Scoring", "annotations", "calibration", "class_twins", "confused_pairs",
    "confusion", "emap", "fit_temperature", "holm", "interval", "kinship_order", "mean_interval", "metrics",
    "over_seeds", "paired", "paired_difference", "probabilities", "ratio_interval", "reliability", "student",
]  # fmt: skip
