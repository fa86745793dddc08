"""Stages in threads: order, back-pressure, and the first error ends them all."""

from __future__ import annotations

import threading
import time

import pytest

from flcache.engines.handover import Handover, Stages


def test_items_pass_in_order_and_no_more_than_the_limit_waits() -> None:
    stages = Stages()
    handover: Handover[int] = Handover(stages, 2)
    put: list[int] = []

    def produce() -> None:
        for number in range(20):
            handover.put(number)
            put.append(number)
        handover.close()

    stages.start("produce", produce)
    taken = []
    for number in handover:
        time.sleep(0.002)
        assert len(put) <= number + 1 + 2 + 1, "more than the limit was produced ahead"
        taken.append(number)
    stages.join(lambda: pytest.fail("there was no error"))
    assert taken == list(range(20))


@pytest.mark.parametrize("waits_in", ["put", "take"])
def test_the_first_error_ends_a_stage_that_waits(waits_in: str) -> None:
    stages = Stages()
    handover: Handover[int] = Handover(stages, 1)
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        if waits_in == "put":
            handover.put(0)
            handover.put(1)
        else:
            list(handover)
        pytest.fail("it went on")

    def fail() -> None:
        waiting.wait()
        raise ValueError("the disk is full")

    stages.start("wait", wait)
    stages.start("fail", fail)
    stopped = []
    with pytest.raises(ValueError, match="the disk is full"):
        stages.join(lambda: stopped.append(True))
    assert stopped == [True]


def test_an_interrupt_of_the_caller_is_the_error() -> None:
    stages = Stages()
    handover: Handover[int] = Handover(stages, 1)
    stages.start("wait", lambda: list(handover) and None)
    stages.fail(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        stages.join(lambda: None)
