"""Which clips are taken from which video: the plan, a pure function of annotations, rule and durations.

A clip of F frames at `fps` spans `F / fps` seconds and consists of the frames on display at `start + i / fps`. A clip
with a `stride` counts frames of the file instead: its length in seconds is known only when the file is open.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from flcache.videos.annotations import Video
from flcache.videos.options import ClipRule

if TYPE_CHECKING:
    import pandas as pd

PLAN_COLUMNS = ("clip_id", "video", "video_id", "label", "start_s", "timestamps", "end_s", "frames", "stride", "short")


def needs_duration(rule: ClipRule, videos: Iterable[Video]) -> list[Video]:
    """The videos to probe before `plan_clips`: the rule needs their duration, and the annotation has none."""
    if rule.stride is not None and rule.clips_per_video == 1:
        return []  # one clip, counted from the first frame
    return [video for video in videos if video.duration_s is None]


def plan_clips(videos: Iterable[Video], rule: ClipRule, durations: Mapping[str, float] | None) -> pd.DataFrame:
    """One row per clip, with columns `PLAN_COLUMNS`, in the order of `videos`.

    `durations` maps `video_id` to seconds, for videos without an annotated duration. A video of unknown duration gets
    one clip, at 0. `timestamps` are seconds from the first displayed frame, to the microsecond; None for a stride,
    where frames are counted from the one on display at `start_s`. `end_s` is where a segment ends, None for a file.
    """
    import pandas as pd  # takes half a second, and decode workers do not need it

    rows = []
    for video in videos:
        duration_s = video.duration_s
        if duration_s is None and durations is not None:
            duration_s = _rest_s(video, durations.get(video.video_id))
        for k, start_s in enumerate(_starts(rule, duration_s)):
            start_s += video.start_s or 0.0
            timestamps = None if rule.fps is None else [round(start_s + i / rule.fps, 6) for i in range(rule.frames)]
            clip_id = f"{video.video_id}-{k}"
            rows.append((clip_id, video.path, video.video_id, video.label, start_s, timestamps, video.end_s))
    plan = pd.DataFrame(rows, columns=list(PLAN_COLUMNS[:7]))
    plan = plan.assign(frames=rule.frames, stride=rule.stride, short=rule.short)
    return plan.astype({"start_s": "float64", "timestamps": "object", "end_s": "float64"})


def _rest_s(video: Video, file_s: float | None) -> float | None:
    """Seconds from where `video` starts to the end of its file, which has `file_s`."""
    return None if file_s is None else max(0.0, file_s - (video.start_s or 0.0))


def _starts(rule: ClipRule, duration_s: float | None) -> Sequence[float]:
    """Seconds at which the clips of a video of nominal `duration_s` start."""
    if duration_s is None:
        return [0.0]
    if rule.fps is None:
        count = rule.clips_per_video or 1
        return [k * duration_s / count for k in range(count)]
    if rule.short == "drop" and duration_s <= (rule.frames - 1) / rule.fps:
        return []
    span_s = rule.frames / rule.fps
    if rule.clips_per_video is None:
        count = max(1, math.floor(duration_s / span_s + 1e-6))  # 10 s hold 4 clips of 2.5 s in spite of rounding
        return [k * span_s for k in range(count)]
    return [_centred(rule, duration_s, k) for k in range(rule.clips_per_video)]


def _centred(rule: ClipRule, duration_s: float, k: int) -> float:
    """Start of the clip in the middle of share `k`, moved inwards where it would leave the video."""
    assert rule.fps is not None and rule.clips_per_video is not None
    middle_s = (k + 0.5) * duration_s / rule.clips_per_video
    latest_s = max(0.0, duration_s - rule.frames / rule.fps)
    return min(max(0.0, middle_s - (rule.frames - 1) / rule.fps / 2), latest_s)
