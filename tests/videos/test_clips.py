from __future__ import annotations

import pytest

from flcache.errors import ConfigError
from flcache.videos import ClipRule, Video, needs_duration, plan_clips
from flcache.videos.clips import PLAN_COLUMNS

KNOWN = Video("known", "label/known", "label", 10.0)
UNKNOWN = Video("unknown", "unknown.mp4", "label", None)


def rule(**fields: object) -> ClipRule:
    return ClipRule(**{"frames": 16, "fps": 4.0, "stride": None, "clips_per_video": 1, "short": "pad"} | fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"frames": 0},
        {"stride": 2},
        {"fps": None},
        {"fps": 0.0},
        {"fps": float("nan")},
        {"fps": None, "stride": 0},
        {"clips_per_video": 0},
        {"fps": None, "stride": 2, "clips_per_video": None},
        {"short": "repeat"},
    ],
)
def test_a_rule_that_means_nothing_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="clip"):
        rule(**fields)


def test_one_clip_lies_in_the_middle() -> None:
    plan = plan_clips([Video("v", "v", "l", 13.013)], rule(), None)
    assert list(plan.columns) == list(PLAN_COLUMNS)
    assert plan.clip_id[0] == "v-0" and plan.start_s[0] == pytest.approx(4.6315)
    assert plan.timestamps[0] == pytest.approx([4.6315 + i / 4 for i in range(16)])


@pytest.mark.parametrize("count", [2, 3, 7])
def test_several_clips_share_the_video_and_stay_inside_it(count: int) -> None:
    starts = plan_clips([KNOWN], rule(clips_per_video=count), None).start_s
    assert len(starts) == count and starts.is_monotonic_increasing
    assert starts.min() >= 0 and starts.max() + 16 / 4 <= 10.0


def test_the_whole_video_is_cut_into_clips_that_do_not_overlap() -> None:
    plan = plan_clips([KNOWN], rule(frames=10, clips_per_video=None), None)
    assert plan.start_s.tolist() == [0.0, 2.5, 5.0, 7.5]
    assert plan_clips([KNOWN], rule(frames=100, clips_per_video=None), None).start_s.tolist() == [0.0]


def test_short_videos_are_padded_from_their_start_or_dropped() -> None:
    short = Video("short", "short", "label", 1.0)
    assert plan_clips([short], rule(), None).start_s.tolist() == [0.0]
    dropped = plan_clips([short], rule(short="drop"), None)
    assert dropped.empty and list(dropped.columns) == list(PLAN_COLUMNS) and dropped.start_s.dtype == "float64"


def test_a_clip_as_long_as_the_video_is_not_short() -> None:
    exact = Video("exact", "exact", "label", 4.0)
    assert plan_clips([exact], rule(short="drop"), None).start_s.tolist() == [0.0]
    assert plan_clips([exact], rule(short="drop", clips_per_video=None), None).start_s.tolist() == [0.0]


def test_durations_count_only_where_the_annotation_has_none() -> None:
    assert needs_duration(rule(), [KNOWN, UNKNOWN]) == [UNKNOWN]
    assert needs_duration(rule(fps=None, stride=2), [KNOWN, UNKNOWN]) == []
    assert plan_clips([UNKNOWN], rule(), None).start_s.tolist() == [0.0]
    assert plan_clips([UNKNOWN], rule(), {"unknown": 10.0}).start_s.tolist() == [3.125]
    assert plan_clips([KNOWN], rule(), {"known": 99.0}).start_s.tolist() == [3.125]


def test_strides_start_at_the_shares_and_count_frames_later() -> None:
    plan = plan_clips([KNOWN], rule(fps=None, stride=3, clips_per_video=2), None)
    assert plan.start_s.tolist() == [0.0, 5.0] and plan.timestamps.tolist() == [None, None]
