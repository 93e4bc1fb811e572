"""Whatever child, parent, model, network and device do to the player, in whatever order: its promises hold."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from player_support import BLOCK, Clock, Log, Shelf, title

from agent.speaker.player import MediaPlayer
from agent.speaker.player_types import Hold, PlayerSnapshot

TITLES = [title(number) for number in range(6)]
SHORT = {number: np.full(480 * 7 * (number + 1) + 13 * number, 8000, np.int16) for number in range(6)}

holds = st.sampled_from(list(Hold))
some_titles = st.lists(st.sampled_from(TITLES), max_size=4)
moments = st.integers(-200, 1200)

commands = st.one_of(
    st.tuples(st.just("pull"), st.integers(1, 30)),
    st.tuples(st.just("give_back"), st.integers(0, 4000)),
    st.tuples(st.just("play"), some_titles, moments),
    st.tuples(st.just("add"), some_titles, st.booleans()),
    st.tuples(st.just("pause"), holds),
    st.tuples(st.just("resume"), holds),
    st.tuples(st.just("stop"), st.booleans()),
    st.tuples(st.just("next")),
    st.tuples(st.just("previous")),
    st.tuples(st.just("again")),
    st.tuples(st.just("seek"), moments),
    st.tuples(st.just("seek_by"), moments),
    st.tuples(st.just("shuffle"), st.booleans()),
    st.tuples(st.just("volume"), st.integers(-10, 120)),
    st.tuples(st.just("duck"), st.booleans()),
    st.tuples(st.just("sleep_in"), st.one_of(st.none(), st.integers(0, 20))),
    st.tuples(st.just("sleep_after_title")),
    st.tuples(st.just("time"), st.integers(0, 15)),
    st.tuples(st.just("break_source")),
    st.tuples(st.just("starve_source"), st.integers(0, 3000)),
    st.tuples(st.just("feed_source"), st.integers(0, 3000)),
    st.tuples(st.just("lose_title"), st.integers(0, 5)),
    st.tuples(st.just("find_titles")),
    st.tuples(st.just("snapshot")),
    st.tuples(st.just("restore")),
)


class Room:
    def __init__(self, seed: int) -> None:
        self.shelf, self.log, self.clock = Shelf(), Log(), Clock()
        self.shelf.sounds = SHORT
        self.player = MediaPlayer(self.shelf.open, self.log, clock=self.clock, rng=random.Random(seed))
        self.saved: PlayerSnapshot | None = None
        player, shelf = self.player, self.shelf
        self.actions: dict[str, Callable[..., object]] = {
            "pull": self.pull,
            "give_back": player.give_back,
            "play": lambda titles, start: player.play(titles, start_ms=start),
            "add": lambda titles, first: player.add(titles, first=first),
            "pause": player.pause,
            "resume": player.resume,
            "stop": lambda fade: player.stop(fade=fade),
            "next": player.next,
            "previous": player.previous,
            "again": player.again,
            "seek": player.seek,
            "seek_by": player.seek_by,
            "shuffle": player.shuffle,
            "volume": player.set_volume,
            "duck": player.duck,
            "sleep_in": player.sleep_in,
            "sleep_after_title": player.sleep_after_title,
            "time": self.pass_time,
            "break_source": lambda: [source.break_with("cut") for source in shelf.sources[-1:]],
            "starve_source": lambda more: [source.hold_at(source.position + more) for source in shelf.sources[-1:]],
            "feed_source": lambda more: [source.feed(more) for source in shelf.sources[-1:]],
            "lose_title": shelf.missing.add,
            "find_titles": shelf.missing.clear,
            "snapshot": self.save,
            "restore": lambda: self.saved and player.restore(self.saved),
        }

    def pull(self, blocks: int) -> None:
        for _ in range(blocks):
            before, at = self.player.current, self.player.position_ms
            told = len(self.log.told)
            block = self.player.pull(BLOCK)
            if block is not None:
                assert block.shape == (BLOCK,)
                assert block.dtype == np.int16
            if self.player.current == before and len(self.log.told) == told:
                assert at <= self.player.position_ms <= at + 21

    def pass_time(self, seconds: int) -> None:
        self.clock.now += seconds

    def save(self) -> None:
        self.saved = self.player.snapshot()

    def check(self) -> None:
        sounding: int | None = None
        for what, number, _ in self.log.told:
            if what == "started":
                assert sounding is None
                sounding = number
            elif what == "stopped":
                assert sounding == number
                sounding = None
        if self.player.current is None:
            assert sounding is None
            assert self.player.position_ms == 0
            assert not self.player.active
        else:
            assert sounding in {None, self.player.current.id}
        assert sum(not source.closed for source in self.shelf.sources) <= 2 + len(self.player._closing)


@settings(max_examples=400)
@given(st.lists(commands, min_size=5, max_size=40), st.integers(0, 9))
def test_started_and_stopped_come_in_pairs_whatever_happens(steps: list[tuple[object, ...]], seed: int) -> None:
    async def visit() -> None:
        room = Room(seed)
        for name, *arguments in steps:
            room.actions[str(name)](*arguments)
            room.check()
        await room.player.aclose()
        room.check()
        told = [what for what, _, _ in room.log.told]
        assert told.count("started") == told.count("stopped")
        assert all(source.closed for source in room.shelf.sources)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(visit())
