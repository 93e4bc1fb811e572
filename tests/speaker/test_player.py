from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator

import numpy as np
import pytest
from media_support import noise
from player_support import BLOCK, Clock, Ear, Log, Shelf, title

from agent.library.titles import Title
from agent.speaker.media_source import Mark
from agent.speaker.pcm import SAMPLE_RATE
from agent.speaker.player import MediaPlayer
from agent.speaker.player_types import Hold, PlayerSnapshot, State, StopReason

A, B, C, D = title(1), title(2), title(3), title(4)
LENGTH = 12 * SAMPLE_RATE


class World:
    def __init__(self) -> None:
        self.shelf, self.log, self.clock = Shelf(), Log(), Clock()
        self.woken = 0
        self.player = MediaPlayer(self.shelf.open, self.log, on_wake=self._wake, clock=self.clock, rng=random.Random(3))
        self.ear = Ear(self.player.pull, self.player.give_back)

    def _wake(self) -> None:
        self.woken += 1


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.player.aclose()
    assert all(source.closed for source in made.shelf.sources)


def same(heard: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.array_equal(heard, wanted))


async def test_plays_a_title_to_its_end_unchanged(world: World) -> None:
    world.player.play([A])
    assert world.player.state is State.STARTING
    assert world.player.active
    world.ear.listen(LENGTH * 2)
    assert same(world.ear.sound[:LENGTH], noise(12.0, 1))
    assert world.log.told == [("started", 1, ""), ("stopped", 1, "ended")]
    assert world.player.state is State.IDLE
    assert not world.player.active


async def test_titles_follow_each_other_without_a_gap(world: World) -> None:
    world.shelf.sounds = {1: noise(12.0, 1)[:10_001], 2: noise(12.0, 2)[:7_003]}
    world.player.play([A, B])
    world.ear.listen(LENGTH)
    assert same(world.ear.sound[:17_004], np.concatenate([noise(12.0, 1)[:10_001], noise(12.0, 2)[:7_003]]))
    assert [told[:2] for told in world.log.told] == [("started", 1), ("stopped", 1), ("started", 2), ("stopped", 2)]


async def test_a_pause_loses_and_repeats_nothing(world: World) -> None:
    world.player.play([A])
    world.ear.listen(2 * SAMPLE_RATE)
    assert world.player.pause()
    world.ear.listen(SAMPLE_RATE)
    assert world.player.pull(BLOCK) is None
    assert world.player.state is State.PAUSED
    assert not world.player.active
    settled = len(world.ear.sound) - BLOCK + 240
    assert not world.ear.sound[settled:].any()
    assert world.player.resume()
    before = len(world.ear.sound)
    world.ear.listen(SAMPLE_RATE)
    went_on = world.ear.sound[before:]
    assert same(went_on[240:], noise(12.0, 1)[settled + 240 : settled + len(went_on)])
    # Both sides of the pause are faded rather than cut.
    assert abs(int(world.ear.sound[settled - 1])) < 1000
    assert abs(int(went_on[0])) < 1000


async def test_what_never_sounded_is_played_after_the_pause(world: World) -> None:
    world.player.play([A])
    world.ear.listen(3 * SAMPLE_RATE)
    world.player.pause(Hold.SPEECH)
    world.ear.lose(7)
    heard = len(world.ear.sound)
    assert world.player.position_ms == heard * 1000 // SAMPLE_RATE
    world.ear.listen(SAMPLE_RATE)
    world.player.resume(Hold.SPEECH)
    world.ear.listen(SAMPLE_RATE)
    sound = np.delete(world.ear.sound, np.s_[heard + 240 : heard + BLOCK])
    assert same(sound[:heard], noise(12.0, 1)[:heard])
    assert same(sound[heard + 480 :], noise(12.0, 1)[heard + 480 : len(sound)])


async def test_giving_back_while_it_plays_repeats_exactly_that(world: World) -> None:
    world.player.play([A])
    world.ear.listen(SAMPLE_RATE)
    world.ear.lose(5)
    world.ear.listen(SAMPLE_RATE)
    assert same(world.ear.sound, noise(12.0, 1)[: len(world.ear.sound)])


async def test_giving_back_more_than_is_remembered_goes_back_by_loading_again(world: World) -> None:
    world.player.play([A])
    world.ear.listen(5 * SAMPLE_RATE)
    world.player.give_back(5 * SAMPLE_RATE // 2)
    assert world.shelf.opened[-1] == (1, 5 * SAMPLE_RATE // 2)
    assert world.log.told == [("started", 1, "")]


async def test_giving_back_across_a_change_of_titles_returns_to_the_start_of_the_new_one(world: World) -> None:
    world.shelf.sounds[1] = noise(12.0, 1)[:SAMPLE_RATE]
    world.player.play([A, B])
    world.ear.listen(SAMPLE_RATE + 2 * BLOCK)
    world.player.give_back(5 * BLOCK)
    assert world.player.current == B
    assert world.player.position_ms == 0


async def test_holds_add_up(world: World) -> None:
    world.player.play([A])
    world.ear.listen(SAMPLE_RATE)
    world.player.pause(Hold.SPEECH)
    world.player.pause(Hold.DROP)
    assert world.player.active
    world.player.resume(Hold.SPEECH)
    assert world.player.state is State.PAUSED
    world.player.pause(Hold.USER)
    assert not world.player.active
    world.player.resume(Hold.DROP)
    assert world.player.state is State.PAUSED
    world.player.resume(Hold.USER)
    assert world.player.state is State.PLAYING


async def test_a_hold_ends_after_its_title(world: World) -> None:
    world.player.play([A])
    world.ear.listen(SAMPLE_RATE)
    for hold in (Hold.DROP, Hold.SPEECH):
        world.player.pause(hold)
    assert world.player.stop(fade=False)
    for hold in (Hold.DROP, Hold.SPEECH):
        assert not world.player.resume(hold)
    world.player.play([B])
    assert world.ear.listen(SAMPLE_RATE) == SAMPLE_RATE


async def test_to_end_a_hold_there_is_not_changes_no_sample(world: World) -> None:
    world.player.play([A])
    for hold in (Hold.SPEECH, Hold.DROP, Hold.USER):
        world.ear.listen(SAMPLE_RATE)
        assert world.player.resume(hold)
    world.ear.listen(SAMPLE_RATE)
    assert same(world.ear.sound, noise(12.0, 1)[: 4 * SAMPLE_RATE])


async def test_speech_ducks_without_a_step(world: World) -> None:
    world.shelf.sounds[1] = np.full(LENGTH, 10_000, np.int16)
    world.player.play([A])
    world.ear.listen(SAMPLE_RATE)
    world.player.duck(True)
    world.ear.listen(SAMPLE_RATE)
    assert int(world.ear.sound[-1]) == pytest.approx(2200, abs=2)
    world.player.duck(False)
    world.ear.listen(SAMPLE_RATE)
    assert int(world.ear.sound[-1]) == 10_000
    assert np.abs(np.diff(world.ear.sound.astype(int))).max() < 20


async def test_volume_and_stop_have_no_clicks(world: World) -> None:
    world.shelf.sounds[1] = np.full(LENGTH, 10_000, np.int16)
    world.player.play([A])
    world.ear.listen(SAMPLE_RATE)
    assert world.player.set_volume(30) == 30
    world.ear.listen(SAMPLE_RATE)
    assert int(world.ear.sound[-1]) == pytest.approx(3000, abs=2)
    assert world.player.set_volume(170) == 100
    world.ear.listen(SAMPLE_RATE)
    world.player.stop()
    world.ear.listen(SAMPLE_RATE)
    assert int(world.ear.sound[-1]) == 0
    assert np.abs(np.diff(world.ear.sound.astype(int))).max() < 100


async def test_an_abort_is_silent_at_once(world: World) -> None:
    world.player.play([A, B])
    world.ear.listen(SAMPLE_RATE)
    assert world.player.stop(fade=False)
    assert world.player.pull(BLOCK) is None
    assert world.player.upcoming == ()
    assert world.log.told == [("started", 1, ""), ("stopped", 1, "stopped")]
    assert not world.player.stop(fade=False)
    assert len(world.log.told) == 2


async def test_go_on_after_stop_returns_to_the_same_second(world: World) -> None:
    world.player.play([A, B])
    world.ear.listen(2 * SAMPLE_RATE)
    world.player.stop(fade=False)
    assert world.player.resume()
    assert world.shelf.opened[-1] == (1, 2 * SAMPLE_RATE)
    assert world.player.upcoming == (B,)
    world.player.stop()
    world.player.play([C])
    world.player.stop()
    assert world.player.resume()
    assert world.player.current == C


async def test_nothing_to_go_on_with(world: World) -> None:
    assert not world.player.resume()
    assert not world.player.pause()
    assert not world.player.seek(1000)
    assert not world.player.again()
    assert not world.player.previous()
    assert not world.player.next()
    assert world.player.snapshot() is None
    assert world.player.pull(BLOCK) is None


async def test_next_previous_and_again(world: World) -> None:
    world.player.play([A, B, C])
    world.ear.listen(SAMPLE_RATE)
    assert world.player.next()
    assert world.player.current == B
    world.ear.listen(SAMPLE_RATE)
    assert world.player.previous()
    assert world.player.current == A
    assert world.player.upcoming == (B, C)
    world.ear.listen(4 * SAMPLE_RATE)
    assert world.player.previous()
    assert (world.player.current, world.player.position_ms) == (A, 0)
    assert world.player.next()
    assert world.player.next()
    assert world.player.current == C
    world.ear.listen(SAMPLE_RATE)
    assert not world.player.next()
    assert world.player.state is State.IDLE
    assert world.player.again()
    assert world.player.current == C


async def test_seek_goes_to_the_sample_and_is_no_new_start(world: World) -> None:
    world.player.play([A, B])
    world.ear.listen(SAMPLE_RATE)
    assert world.player.seek(5000)
    world.ear.heard.clear()
    world.ear.listen(SAMPLE_RATE)
    assert same(world.ear.sound[240:], noise(12.0, 1)[5 * SAMPLE_RATE + 240 : 6 * SAMPLE_RATE])
    assert world.player.seek_by(-4000)
    assert world.player.position_ms == 2000
    assert world.log.told == [("started", 1, "")]
    assert world.player.seek(12_000)
    assert world.player.current == B
    assert world.log.told[-1] == ("stopped", 1, "ended")


async def test_a_missing_title_is_told_and_the_next_plays(world: World) -> None:
    world.shelf.missing = {1}
    world.player.play([A, B])
    world.ear.listen(SAMPLE_RATE)
    assert world.log.told == [("problem", 1, "no such file"), ("started", 2, "")]


async def test_a_title_that_breaks_is_told_once_and_the_next_plays(world: World) -> None:
    world.shelf.held[1] = SAMPLE_RATE
    world.player.play([A, B])
    world.ear.listen(2 * SAMPLE_RATE)
    world.shelf.last.break_with("the source is broken")
    world.ear.listen(SAMPLE_RATE)
    assert world.log.told == [
        ("started", 1, ""),
        ("stopped", 1, "broken"),
        ("problem", 1, "the source is broken"),
        ("started", 2, ""),
    ]


async def test_a_server_that_fails_title_after_title_is_given_up(world: World) -> None:
    world.shelf.missing = set(range(100))
    world.player.play([title(number) for number in range(50)])
    assert [told[0] for told in world.log.told] == ["problem"] * 3
    assert world.player.state is State.IDLE
    world.shelf.missing = set()
    world.player.play([A])
    assert world.ear.listen(SAMPLE_RATE) == SAMPLE_RATE


async def test_a_late_source_is_silence_then_goes_on(world: World) -> None:
    world.shelf.held[1] = SAMPLE_RATE + 100
    world.player.play([A])
    world.ear.listen(4 * SAMPLE_RATE)
    played = SAMPLE_RATE + 100
    assert world.player.pull(BLOCK) is None
    woken = world.woken
    world.shelf.last.feed(1000)
    assert world.player.pull(BLOCK) is None
    assert world.woken == woken
    world.shelf.last.feed(LENGTH)
    assert world.woken == woken + 1
    world.ear.heard.clear()
    world.ear.listen(SAMPLE_RATE)
    assert same(world.ear.sound[240:], noise(12.0, 1)[played + 240 : played + len(world.ear.sound)])
    assert world.log.told == [("started", 1, "")]


async def test_a_source_that_never_comes_is_given_up(world: World) -> None:
    world.shelf.held[1] = 0
    world.player.play([A, B])
    for _ in range(16 * 50):
        world.player.pull(BLOCK)
    assert world.log.told == [("problem", 1, "the source is too slow"), ("started", 2, "")]


async def test_the_next_title_is_loaded_ahead_and_dropped_when_the_queue_changes(world: World) -> None:
    world.player.play([A, B])
    world.ear.listen(BLOCK)
    assert world.shelf.opened == [(1, 0), (2, 0)]
    prefetched = world.shelf.last
    world.player.add([C], first=True)
    assert world.player.upcoming == (C, B)
    world.ear.listen(BLOCK)
    assert world.shelf.opened == [(1, 0), (2, 0), (3, 0)]
    world.player.next()
    assert world.player.current == C
    assert world.shelf.opened == [(1, 0), (2, 0), (3, 0)]
    await world.player.aclose()
    assert prefetched.closed


async def test_adding_to_nothing_plays(world: World) -> None:
    assert world.player.add([A, B]) == 2
    assert world.player.current == A
    assert world.player.upcoming == (B,)


async def test_shuffle_and_back(world: World) -> None:
    titles = [title(number) for number in range(20)]
    world.player.play(titles)
    world.player.shuffle(True)
    assert world.player.upcoming != tuple(titles[1:])
    assert set(world.player.upcoming) == set(titles[1:])
    world.player.shuffle(False)
    assert world.player.upcoming == tuple(titles[1:])


async def test_the_sleep_timer_ends_softly(world: World) -> None:
    world.shelf.sounds[1] = np.full(60 * SAMPLE_RATE, 10_000, np.int16)
    world.player.play([A, B])
    world.player.sleep_in(600)
    world.ear.listen(SAMPLE_RATE)
    world.clock.now += 599
    assert world.player.sleep_left == pytest.approx(1)
    world.ear.listen(SAMPLE_RATE)
    assert int(world.ear.sound[-1]) == 10_000
    world.clock.now += 1
    world.ear.listen(30 * SAMPLE_RATE)
    assert len(world.ear.sound) < 8 * SAMPLE_RATE
    assert np.abs(np.diff(world.ear.sound.astype(int))).max() < 5
    assert world.log.told[-1] == ("stopped", 1, "stopped")
    assert world.player.upcoming == ()
    assert world.player.sleep_left is None


async def test_the_sleep_timer_can_be_taken_back_while_it_fades(world: World) -> None:
    world.shelf.sounds[1] = np.full(60 * SAMPLE_RATE, 10_000, np.int16)
    world.player.play([A])
    world.player.sleep_in(0)
    world.ear.listen(2 * SAMPLE_RATE)
    assert int(world.ear.sound[-1]) < 8000
    world.player.sleep_in(None)
    world.ear.listen(SAMPLE_RATE)
    assert int(world.ear.sound[-1]) == 10_000


async def test_the_sleep_timer_ends_a_title_held_by_speech(world: World) -> None:
    world.player.play([A])
    world.ear.listen(SAMPLE_RATE)
    world.player.pause(Hold.SPEECH)
    world.player.sleep_in(5)
    world.clock.now += 6
    world.player.pull(BLOCK)
    assert world.player.state is State.IDLE


@pytest.mark.parametrize("breaks", [False, True])
async def test_the_sleep_timer_ends_playing_with_a_title_that_ends_while_it_fades(world: World, breaks: bool) -> None:
    world.player.play([A, B])
    world.ear.listen(LENGTH - 2 * SAMPLE_RATE)
    world.player.sleep_in(0)
    world.ear.listen(SAMPLE_RATE)
    if breaks:
        world.shelf.sources[0].hold_at(LENGTH - SAMPLE_RATE // 2)
        world.shelf.sources[0].break_with("cut")
    world.ear.listen(LENGTH)
    assert world.player.state is State.IDLE
    assert world.log.told == [("started", 1, ""), ("stopped", 1, "stopped")]
    world.player.play([C])
    world.ear.heard.clear()
    world.ear.listen(SAMPLE_RATE)
    assert same(world.ear.sound, noise(12.0, 3)[:SAMPLE_RATE])


async def test_sleep_after_this_title(world: World) -> None:
    world.player.play([A, B])
    world.player.sleep_after_title()
    world.ear.listen(2 * LENGTH)
    assert len(world.ear.sound) == LENGTH
    assert world.player.state is State.IDLE


async def test_a_snapshot_goes_through_json_and_on_at_the_same_sample(world: World) -> None:
    world.player.play([A, B, C])
    world.ear.listen(3 * SAMPLE_RATE)
    world.player.set_volume(100)
    taken = world.player.snapshot()
    assert taken is not None
    world.player.stop(fade=False)
    back = PlayerSnapshot.from_dict(json.loads(json.dumps(taken.to_dict())))
    assert back == taken
    world.player.restore(back)
    assert world.player.upcoming == (B, C)
    world.ear.heard.clear()
    world.ear.listen(SAMPLE_RATE)
    assert same(world.ear.sound[240:], noise(12.0, 1)[3 * SAMPLE_RATE + 240 : 4 * SAMPLE_RATE])


async def test_a_paused_snapshot_comes_back_paused(world: World) -> None:
    world.player.restore(PlayerSnapshot(A, SAMPLE_RATE, (Mark(0, 0),), paused=True))
    assert world.player.state is State.PAUSED
    assert world.player.pull(BLOCK) is None
    world.player.resume()
    assert world.ear.listen(SAMPLE_RATE) == SAMPLE_RATE


@pytest.mark.parametrize("data", [{}, {"title": 3}, {"title": {"id": 1}, "position": "x"}])
async def test_a_broken_snapshot_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="snapshot"):
        PlayerSnapshot.from_dict(data)


async def test_closing_tells_and_leaves_nothing(world: World) -> None:
    world.player.play([A, B])
    world.ear.listen(SAMPLE_RATE)
    await world.player.aclose()
    assert world.log.told == [("started", 1, ""), ("stopped", 1, "closed")]
    assert world.player.pull(BLOCK) is None
    world.player.play([A])
    assert world.player.state is State.IDLE


async def test_a_listener_may_control_the_player() -> None:
    class Jumpy(Log):
        def stopped(self, title: Title, reason: StopReason) -> None:
            super().stopped(title, reason)
            if len(self.told) < 6:
                player.play([C])

    jumpy = Jumpy()
    player = MediaPlayer(Shelf().open, jumpy)
    ear = Ear(player.pull, player.give_back)
    player.play([A])
    ear.listen(SAMPLE_RATE)
    player.stop()
    ear.listen(SAMPLE_RATE)
    await player.aclose()
    assert [told[:2] for told in jumpy.told] == [("started", 1), ("stopped", 1), ("started", 3), ("stopped", 3)]


async def test_a_listener_that_fails_does_not_silence_the_music() -> None:
    class Broken(Log):
        def started(self, title: Title) -> None:
            raise RuntimeError("a bug of the listener's")

    shelf = Shelf()
    player = MediaPlayer(shelf.open, Broken())
    player.play([A])
    assert player.pull(BLOCK) is not None
    await player.aclose()
