"""How often one may come."""

from __future__ import annotations

from agent.admission import RateLimit


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_passes_and_then_the_rate() -> None:
    clock = Clock()
    limit = RateLimit(per_minute=60, burst=3, clock=clock)
    assert [limit.take("a") for _ in range(4)] == [True, True, True, False]
    clock.now += 1.0
    assert [limit.take("a") for _ in range(2)] == [True, False]
    clock.now += 3600
    assert [limit.take("a") for _ in range(4)] == [True, True, True, False], "rest does not pile up"


def test_one_does_not_use_up_what_is_anothers() -> None:
    limit = RateLimit(per_minute=1, burst=1, clock=Clock())
    assert limit.take("a")
    assert not limit.take("a")
    assert limit.take("b")


def test_a_million_names_are_not_remembered() -> None:
    limit = RateLimit(per_minute=1, burst=1, clock=Clock())
    for number in range(50_000):
        limit.take(str(number))
    assert len(limit._buckets) <= 20_000
    assert not limit.take("49999"), "the latest are"
