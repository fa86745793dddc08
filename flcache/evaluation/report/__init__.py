"""`flcache report`: one self-contained HTML page of a run, with a player of predictions as colours."""

from flcache.evaluation.report.colours import MAX_CLIPS, TargetMoments
from flcache.evaluation.report.page import Report, render, write_report
from flcache.evaluation.report.player import RolledClip, clips_that_fit, frame_side, player_content, seen_region
from flcache.evaluation.report.predictions import PredictedVideo, Predictions, write_predictions

__all__ = [
    "MAX_CLIPS",
    "PredictedVideo",
    "Predictions",
    "Report",
    "RolledClip",
    "TargetMoments",
    "clips_that_fit",
    "frame_side",
    "player_content",
    "render",
    "seen_region",
    "write_predictions",
    "write_report",
]
