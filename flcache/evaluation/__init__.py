"""Is the prediction better than copying? Rollouts, errors and skill per horizon, a table and a picture."""

from flcache.evaluation.baselines import BASELINES, Predict, copy_last
from flcache.evaluation.plot import plot_skill
from flcache.evaluation.result import Errors, EvaluationResult, HorizonResult
from flcache.evaluation.rollout import evaluate
from flcache.evaluation.table import evaluation_table

__all__ = [
    "BASELINES",
    "Errors",
    "EvaluationResult",
    "HorizonResult",
    "Predict",
    "copy_last",
    "evaluate",
    "evaluation_table",
    "plot_skill",
]
