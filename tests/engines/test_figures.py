"""What held an encoder back, in words."""

from __future__ import annotations

import pytest

from flcache.engines.figures import Clock, EncoderTimes, together


@pytest.mark.parametrize(
    ("times", "workers", "said"),
    [
        (EncoderTimes(100, 9.7, 0.2, 0.1, 10.0), 4, "encoder busy 0.97"),
        (EncoderTimes(100, 4.0, 5.0, 0.5, 10.0), 4, "decoding held it back: encode.decode_workers=10 would do"),
        (EncoderTimes(100, 1.0, 8.0, 0.5, 10.0), 4, "would want 40 cores: this machine has 16"),
        (EncoderTimes(100, 4.0, 0.5, 5.0, 10.0), 4, "storing held it back"),
        (EncoderTimes(), 4, "encoder busy 0.00"),
    ],
)
def test_advice(times: EncoderTimes, workers: int, said: str) -> None:
    assert said in times.advice(workers, cores=16)


def test_several_encoders_add_up() -> None:
    both = together([EncoderTimes(10, 3.0, 1.0, 0.0, 4.0), EncoderTimes(6, 1.0, 3.0, 0.0, 4.0)])
    assert both == EncoderTimes(16, 4.0, 4.0, 0.0, 8.0) and both.busy == 0.5


def test_the_wait_for_the_first_batch_does_not_count() -> None:
    clock = Clock()
    assert list(clock.waits_for("decode", iter([1, 2]))) == [1, 2]
    clock.add(8, encoding_s=0.5)
    clock.stop()
    assert clock.times.waiting_for_decoding_s < 0.1 and clock.times.span_s < 0.1 and clock.times.clips == 8
