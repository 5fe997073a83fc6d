"""The breaker's states, by a clock of the test's own."""

from __future__ import annotations

from finetune.clients.breaker import REST_SECONDS, Breaker, Turn


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def broken() -> tuple[Breaker, Clock]:
    """A breaker right after the first call without an answer."""
    clock = Clock()
    breaker = Breaker(clock=clock)
    assert breaker.turn() is Turn.CALL
    breaker.silent(Turn.CALL, "no answer in time")
    return breaker, clock


def test_calls_go_through_while_there_are_answers() -> None:
    breaker = Breaker(clock=Clock())
    for _ in range(3):
        assert breaker.turn() is Turn.CALL
        breaker.answered()


def test_after_a_silence_calls_fail_at_once_and_say_why() -> None:
    breaker, clock = broken()
    clock.now += REST_SECONDS - 1
    assert breaker.turn() is Turn.FAIL
    assert breaker.error == "no answer in time"


def test_one_probe_at_a_time_after_the_rest() -> None:
    breaker, clock = broken()
    clock.now += REST_SECONDS
    assert [breaker.turn() for _ in range(3)] == [Turn.PROBE, Turn.FAIL, Turn.FAIL]


def test_a_probe_that_is_answered_lets_everybody_call_again() -> None:
    breaker, clock = broken()
    clock.now += REST_SECONDS
    assert breaker.turn() is Turn.PROBE
    breaker.answered()
    assert [breaker.turn() for _ in range(2)] == [Turn.CALL, Turn.CALL]


def test_a_probe_without_an_answer_starts_another_rest() -> None:
    breaker, clock = broken()
    clock.now += REST_SECONDS
    assert breaker.turn() is Turn.PROBE
    clock.now += 5
    breaker.silent(Turn.PROBE, "refused")
    clock.now += REST_SECONDS - 0.1
    assert breaker.turn() is Turn.FAIL
    assert breaker.error == "refused"
    clock.now += 0.2
    assert breaker.turn() is Turn.PROBE


def test_calls_that_began_before_the_silence_do_not_prolong_it() -> None:
    breaker, clock = broken()
    clock.now += 4
    breaker.silent(Turn.CALL, "a later one")
    clock.now += REST_SECONDS - 4
    assert breaker.turn() is Turn.PROBE


def test_a_late_answer_ends_the_rest() -> None:
    breaker, _ = broken()
    breaker.answered()
    assert breaker.turn() is Turn.CALL


def test_a_cancelled_probe_leaves_the_probe_to_the_next_caller() -> None:
    breaker, clock = broken()
    clock.now += REST_SECONDS
    assert breaker.turn() is Turn.PROBE
    breaker.abandoned(Turn.PROBE)
    assert breaker.turn() is Turn.PROBE
