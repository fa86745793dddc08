"""Rollouts, baselines without training, metrics per horizon, probes, tables and a picture."""

from typing import TYPE_CHECKING

from flcache.lazy import load_on_demand

if TYPE_CHECKING:
    from flcache.evaluation.baselines import BASELINES, Predict, copy_last, fit_baselines, given, true_context
    from flcache.evaluation.bootstrap import Interval
    from flcache.evaluation.options import EvaluationOptions, ProbeOptions
    from flcache.evaluation.plot import plot_skill
    from flcache.evaluation.probe import Accuracy, Labelled, ProbeTest, train_probes
    from flcache.evaluation.processes import ALONE, Processes
    from flcache.evaluation.result import Errors, EvaluationResult, HorizonResult, plain
    from flcache.evaluation.rollout import Prediction, evaluate, skill_by_horizon
    from flcache.evaluation.sampling import Sampling, clip_seeds
    from flcache.evaluation.table import baselines_table, detail_table, evaluation_table, samples_table
else:
    __getattr__ = load_on_demand(__name__, __file__)

__all__ = [
    "ALONE",
    "BASELINES",
    "Accuracy",
    "Errors",
    "EvaluationOptions",
    "EvaluationResult",
    "HorizonResult",
    "Interval",
    "Labelled",
    "Predict",
    "Prediction",
    "ProbeOptions",
    "ProbeTest",
    "Processes",
    "Sampling",
    "baselines_table",
    "clip_seeds",
    "copy_last",
    "detail_table",
    "evaluate",
    "evaluation_table",
    "fit_baselines",
    "given",
    "plain",
    "plot_skill",
    "samples_table",
    "skill_by_horizon",
    "train_probes",
    "true_context",
]
