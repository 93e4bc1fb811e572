from __future__ import annotations

import asyncio

import pytest

from agent.conversation.standby import Lineup
from agent.errors import AllProvidersFailed


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Provider:
    """Answers its name, fails, or stays silent."""

    def __init__(self, name: str, behaviour: str = "works") -> None:
        self.name = name
        self.behaviour = behaviour
        self.asked = 0
        self.cancelled = 0

    async def answer(self) -> str:
        self.asked += 1
        if self.behaviour == "fails":
            raise ConnectionError(self.name)
        if self.behaviour == "silent":
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled += 1
        return self.name


def lineup(*providers: Provider, clock: Clock | None = None) -> Lineup[Provider]:
    return Lineup("thing", [(p.name, p) for p in providers], rest=15, longest_rest=60, clock=clock or Clock())


async def ask(line: Lineup[Provider], patience: float = 0.02, deadline: float = 0.2) -> str:
    _, answer = await line.race(Provider.answer, patience=patience, deadline=deadline)
    return answer


async def test_the_first_that_works_is_asked_alone() -> None:
    a, b = Provider("a"), Provider("b")
    assert await ask(lineup(a, b)) == "a"
    assert b.asked == 0


async def test_the_next_takes_over_from_one_that_fails_and_is_asked_first_until_the_rest_is_over() -> None:
    clock = Clock()
    a, b = Provider("a", "fails"), Provider("b")
    line = lineup(a, b, clock=clock)
    assert [await ask(line), await ask(line)] == ["b", "b"]
    assert a.asked == 1
    a.behaviour = "works"
    clock.now += 16
    assert await ask(line) == "a"
    assert line.candidates[0].failures == 0


async def test_rests_grow_with_failures_in_a_row_up_to_a_limit() -> None:
    clock = Clock()
    a = Provider("a", "fails")
    line = lineup(a, Provider("b"), clock=clock)
    rests = []
    for _ in range(4):
        await ask(line)
        rests.append(line.candidates[0].resting_until - clock.now)
        clock.now = line.candidates[0].resting_until + 1
    assert rests == [15, 30, 60, 60]


async def test_one_that_is_silent_gets_company_and_is_called_off() -> None:
    a, b = Provider("a", "silent"), Provider("b")
    line = lineup(a, b)
    assert await ask(line) == "b"
    assert a.cancelled == 1
    assert line.order()[0].name == "b"


async def test_one_that_was_asked_a_moment_ago_is_not_blamed_for_the_other_s_answer() -> None:
    asked = asyncio.Event()

    class Late(Provider):
        async def answer(self) -> str:
            await asked.wait()
            return self.name

    class Beside(Provider):
        async def answer(self) -> str:
            asked.set()
            return await super().answer()

    line = lineup(Late("a"), Beside("b", "silent"))
    assert await ask(line, deadline=10) == "a"
    assert [candidate.total_failures for candidate in line.candidates] == [0, 0]


async def test_an_answer_to_an_older_question_does_not_end_a_rest() -> None:
    clock = Clock()
    a = Provider("a")
    line = lineup(a, Provider("b"), clock=clock)
    asked_at = clock.now
    clock.now += 1
    line.failed(line.candidates[0], ConnectionError())
    line.worked(line.candidates[0], asked_at)
    assert line.order()[0].name == "b"


async def test_a_single_provider_is_asked_twice() -> None:
    a = Provider("a", "fails")
    with pytest.raises(AllProvidersFailed, match="a: ConnectionError, a: ConnectionError"):
        await ask(lineup(a))
    assert a.asked == 2


async def test_all_silent_ends_at_the_deadline_with_nobody_left_waiting() -> None:
    a, b = Provider("a", "silent"), Provider("b", "silent")
    with pytest.raises(AllProvidersFailed, match="silent") as raised:
        await ask(lineup(a, b))
    assert raised.value.kind == "thing"
    assert (a.cancelled, b.cancelled) == (1, 1)


async def test_nobody_configured_says_so() -> None:
    with pytest.raises(AllProvidersFailed, match="no provider is configured"):
        await ask(lineup())


async def test_cancelling_calls_everybody_off() -> None:
    a = Provider("a", "silent")
    race = asyncio.create_task(ask(lineup(a, Provider("b", "silent")), patience=10, deadline=10))
    while not a.asked:
        await asyncio.to_thread(lambda: None)
    race.cancel()
    await asyncio.gather(race, return_exceptions=True)
    assert a.cancelled == 1
