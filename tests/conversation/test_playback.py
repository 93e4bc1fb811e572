"""A visit's media over the real sample library: who may begin, who is outdated, what an endless room does."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.conversation.control_words import Control
from agent.conversation.playback import GIVE_UP_AFTER, SORRY, TRY_AGAIN_AFTER, UNSURE_MS, Playback
from agent.conversation.resume import Playing
from agent.conversation.tools import Toolbox
from agent.device.link import DeviceLink
from agent.library import catalogue
from agent.library.ranking import Answer
from agent.library.services import LibraryService, ServiceCache
from agent.library.titles import Title
from agent.settings import Settings
from agent.speaker.player_types import Hold
from agent.speaker.speaker import Speaker
from agent.telemetry.meter import meter
from sandbox.processes import REPO

SAMPLE = REPO / "sample"
DEADLINE = 20.0
RATE = 24_000


class Gate:
    """A library whose searches wait until they are let through."""

    def __init__(self, cache: ServiceCache) -> None:
        self._cache = cache
        self.open = asyncio.Event()
        self.open.set()
        self.asked = asyncio.Event()

    @property
    def music(self) -> Any:
        return _Gated(self, self._cache.music)

    @property
    def stories(self) -> Any:
        return _Gated(self, self._cache.stories)


class _Gated:
    def __init__(self, gate: Gate, service: LibraryService) -> None:
        self._gate, self._service = gate, service

    async def search(self, *args: Any, **options: Any) -> Answer:
        await self._wait()
        return await self._service.search(*args, **options)

    async def titles(self, *args: Any) -> Any:
        await self._wait()
        return await self._service.titles(*args)

    async def _wait(self) -> None:
        self._gate.asked.set()
        await self._gate.open.wait()


class Room:
    """As much of a room as a link needs: it keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.local_participant = self

    async def publish_data(self, payload: bytes | str, **_: Any) -> None:
        self.sent.append(json.loads(payload))

    def on(self, *_: Any) -> None: ...

    def off(self, *_: Any) -> None: ...


class Visit:
    """A playback with all it needs, and the ear that pulls its sound."""

    def __init__(self, settings: Settings, *, try_again_after: float = TRY_AGAIN_AFTER) -> None:
        self.room = Room()
        self.link = DeviceLink(cast("Any", self.room), "02:00:00:00:00:01")
        self.link.start()
        self.speaker = Speaker()
        self.cache = ServiceCache(settings, None, "")
        self.gate = Gate(self.cache)
        self.said: list[str] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.playback = Playback(
            settings,
            library=cast("Any", self.gate),
            link=self.link,
            speaker=self.speaker,
            spawn=lambda work, _: self.tasks.append(asyncio.ensure_future(work)),
            sorry=self.sorry,
            try_again_after=try_again_after,
        )
        self.woken = asyncio.Event()
        self.playback.player.on_wake = self.woken.set

    async def sorry(self, purpose: str) -> None:
        self.said.append(purpose)

    async def hear(self, samples: int = 4800) -> int:
        """Pull until so many samples have come; fewer when nothing sounds and no title is there."""
        heard, player = 0, self.playback.player
        async with asyncio.timeout(DEADLINE):
            while heard < samples:
                self.woken.clear()
                block = player.pull(480)
                if block is not None:
                    heard += len(block)
                elif player.current is None:
                    break
                else:
                    await self.woken.wait()
        return heard

    def quiet(self) -> bool:
        """Whether nothing sounds, once the last faded block is out."""
        self.playback.player.pull(480)
        return self.playback.player.pull(480) is None

    async def settle(self) -> None:
        """What was spawned has ended."""
        while tasks := [task for task in self.tasks if not task.done()]:
            await asyncio.wait_for(asyncio.gather(*tasks), DEADLINE)

    @property
    def told(self) -> Counter[str]:
        """What the device was told, by type; complete once the link is closed."""
        return Counter(message["type"] for message in self.room.sent)

    async def aclose(self) -> None:
        await self.playback.aclose()
        await self.link.aclose()
        await self.speaker.aclose()
        self.cache.close()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Settings:
    state = tmp_path_factory.mktemp("playback")
    shutil.copytree(SAMPLE, state / "catalogue")
    settings = Settings(  # type: ignore[call-arg]
        _env_file=None,
        state_dir=state,
        model_dir=model_dir,
        catalogue_dir=state / "catalogue",
    )
    assert catalogue.run(["load", str(SAMPLE)], settings) == 0
    return settings


@pytest.fixture
async def visit(loaded: Settings) -> AsyncIterator[Visit]:
    made = Visit(loaded)
    yield made
    await made.aclose()
    told = made.told
    assert told["music_playback_started"] == told["music_playback_stopped"]


@pytest.fixture
def nowhere(loaded: Settings, tmp_path: Path) -> Settings:
    """The titles are known, their files are gone."""
    (tmp_path / "empty").mkdir()
    return loaded.model_copy(update={"catalogue_dir": tmp_path / "empty"})


def toolbox(visit: Visit) -> Any:
    anything = cast("Any", None)
    return Toolbox(visit.playback, anything, zone=anything, switch=anything, goodbye=anything)


class Words:
    """A tool call's context, whose reply has been heard once `heard` is set."""

    def __init__(self) -> None:
        self.heard = asyncio.Event()

    async def wait_for_playout(self) -> None:
        await self.heard.wait()


async def searching(visit: Visit, work: Any) -> asyncio.Task[Any]:
    """Begin what searches the library; it waits there."""
    visit.gate.open.clear()
    visit.gate.asked.clear()
    task = asyncio.ensure_future(work)
    await asyncio.wait_for(visit.gate.asked.wait(), DEADLINE)
    return task


@pytest.mark.parametrize(("filename", "reason"), [("../secret.mp3", "name"), ("nothing.mp3", "missing")])
async def test_a_title_that_may_not_or_cannot_be_opened_is_counted(visit: Visit, filename: str, reason: str) -> None:
    records: list[Any] = []
    meter.use(records.append)
    try:
        visit.playback.start([Title(7, "music", "Twinkle", "English", filename=filename)])
        await visit.hear()
        await visit.settle()
    finally:
        meter.use(None)
    counted = [record for record in records if record[1] == "toy_media_refused"]
    assert counted == [["c", "toy_media_refused", {"reason": reason}, 1]]


@pytest.mark.parametrize("who", ["parent", "model", "room"])
async def test_a_title_that_is_found_after_the_stop_does_not_play(visit: Visit, who: str) -> None:
    playback = visit.playback
    work = {
        "parent": lambda: playback.play_wish("music", "twinkle twinkle", None),
        "model": lambda: toolbox(visit).play_music(cast("Any", SimpleNamespace()), "twinkle twinkle"),
        "room": lambda: playback.play_any("music", endless=True),
    }[who]
    task = await searching(visit, work())
    playback.stop()
    visit.gate.open.set()
    assert not await task
    assert playback.player.current is None
    assert visit.said == [], "nothing is wrong: it is wanted no more"


async def test_what_played_earlier_does_not_go_on_after_a_stop(visit: Visit) -> None:
    assert await visit.playback.play_any("story")
    saved = visit.playback.snapshot()
    assert saved is not None
    visit.playback.stop()
    task = await searching(visit, visit.playback.restore(saved))
    visit.playback.stop()
    visit.gate.open.set()
    assert not await task
    assert visit.playback.player.current is None


async def test_the_parents_latest_wish_counts(visit: Visit) -> None:
    first = await searching(visit, visit.playback.play_wish("music", "row your boat", None))
    second = asyncio.ensure_future(visit.playback.play_wish("music", "twinkle twinkle", None))
    visit.gate.open.set()
    await asyncio.wait_for(asyncio.gather(first, second), DEADLINE)
    current = visit.playback.player.current
    assert current is not None
    assert "Twinkle" in current.title


async def test_a_song_waits_for_the_models_words_and_is_not_begun_by_them(visit: Visit) -> None:
    words = Words()
    tool = asyncio.ensure_future(toolbox(visit).play_music(cast("Any", words), "twinkle twinkle"))
    while visit.playback.player.current is None:
        await asyncio.wait({tool}, timeout=0.01)
    visit.playback.agent_state("speaking")
    assert visit.playback.player.pull(480) is None
    words.heard.set()
    assert await tool is None
    assert await visit.hear() >= 4800


async def test_a_song_that_was_held_goes_on_softly_under_an_answer_and_a_story_after_it(visit: Visit) -> None:
    playback = visit.playback
    for kind, sounds in (("music", True), ("story", False)):
        assert await playback.play_any(cast("Any", kind))
        assert await visit.hear() >= 4800
        playback.child_speaking(True)
        assert visit.quiet()
        playback.child_speaking(False)
        playback.child_said()
        playback.agent_state("speaking")
        assert playback.player.active
        assert await visit.hear() >= 4800 if sounds else visit.quiet()
        playback.agent_state("listening")
        assert await visit.hear() >= 4800


async def test_a_story_waits_for_an_answer_that_took_long_to_come(visit: Visit) -> None:
    playback = visit.playback
    assert await playback.play_any("story")
    assert await visit.hear() >= 4800
    playback.child_speaking(True)
    playback.child_speaking(False)
    playback.release()  # as after AFTER_SOUND without a word
    assert await visit.hear() >= 4800
    playback.child_said()
    assert visit.quiet(), "there were words after all"
    playback.release()  # as after AFTER_WORDS without an answer
    assert await visit.hear() >= 4800
    playback.agent_state("thinking")
    playback.agent_state("speaking")
    assert visit.quiet()
    playback.agent_state("listening")
    assert await visit.hear() >= 4800


async def test_an_endless_room_ends_with_the_sleep_timer_even_at_the_end_of_a_title(visit: Visit) -> None:
    playback = visit.playback
    assert await playback.play_any("music")
    length = await visit.hear(10**9) * 1000 // RATE
    assert playback.player.again()
    playback.go_on_endlessly("music")
    playback.player.seek(length - 1000)
    assert await visit.hear() >= 4800
    playback.player.sleep_in(0)
    await visit.hear(10**9)
    await visit.settle()
    assert playback.player.current is None


async def test_an_endless_room_plays_on_and_ends_with_the_title_it_was_told_to(visit: Visit) -> None:
    playback = visit.playback
    assert await playback.play_any("music", endless=True)
    first = playback.player.current
    await visit.hear(10**9)
    await visit.settle()
    second = playback.player.current
    assert second is not None
    assert second != first
    assert await visit.hear() >= 4800
    assert await toolbox(visit).playback("sleep_after_this") == "It stops after this one."
    await visit.hear(10**9)
    await visit.settle()
    assert playback.player.current is None


async def test_an_endless_room_whose_titles_are_gone_says_so_and_gives_up(nowhere: Settings) -> None:
    visit = Visit(nowhere)
    try:
        assert await visit.playback.play_any("music", endless=True)
        await visit.hear()
        for _ in range(GIVE_UP_AFTER + 1):
            await visit.settle()
            await visit.hear()
        assert visit.playback.player.current is None
        assert visit.said == [SORRY] * GIVE_UP_AFTER
    finally:
        await visit.aclose()
    assert not visit.told


async def test_an_endless_room_plays_again_once_its_titles_are_back(nowhere: Settings) -> None:
    assert nowhere.catalogue_dir is not None
    visit = Visit(nowhere, try_again_after=0.01)
    try:
        assert await visit.playback.play_any("music", endless=True)
        while len(visit.said) < GIVE_UP_AFTER:
            await visit.hear()
            await visit.settle()
        shutil.copytree(SAMPLE, nowhere.catalogue_dir, dirs_exist_ok=True)
        async with asyncio.timeout(DEADLINE):
            while await visit.hear() < 4800:
                visit.woken.clear()
                await visit.woken.wait()
        assert visit.said == [SORRY] * GIVE_UP_AFTER, "it did not say so each time"
        visit.playback.stop()
        assert visit.playback.player.current is None
    finally:
        await visit.aclose()
    assert visit.told["music_playback_started"] == 1


async def test_a_device_that_drops_hears_again_what_it_has_missed(visit: Visit) -> None:
    playback = visit.playback
    assert await playback.play_any("story")
    await visit.hear(3 * RATE)
    playback.device_there()
    await visit.hear(5 * RATE)  # nobody hears this: LiveKit tells of the loss seconds later
    playback.dropped(True)
    assert visit.quiet()
    assert 2900 - UNSURE_MS <= playback.player.position_ms <= 3000
    playback.dropped(True)
    playback.dropped(False)
    assert 2900 - UNSURE_MS <= playback.player.position_ms <= 3000
    await visit.hear(RATE)
    playback.control(Control.PAUSE)
    assert visit.quiet()
    playback.dropped(True)
    playback.dropped(False)
    assert visit.quiet(), "what the child has paused stays paused"


async def test_a_title_that_begins_while_the_device_is_gone_is_heard_from_its_start(visit: Visit) -> None:
    playback = visit.playback
    playback.device_there()
    assert await playback.play_any("story")
    await visit.hear(4 * RATE)  # it had vanished before: no sign of life came while this sounded
    playback.dropped(True)
    assert playback.player.position_ms == 0
    playback.dropped(False)
    await visit.hear(RATE)
    playback.stop()
    playback.dropped(True)
    assert await playback.play_any("story")
    assert visit.quiet(), "nobody is there to hear it"
    playback.dropped(False)
    assert await visit.hear(RATE) >= RATE
    assert playback.player.position_ms <= 1100


async def test_go_on_is_for_the_model_once_a_title_has_come_to_its_end(visit: Visit) -> None:
    playback = visit.playback
    assert await playback.play_any("music")
    await visit.hear(10_000 * RATE)
    assert playback.player.current is None
    assert playback.understand("go on") is None, "there is nothing that could go on"
    assert playback.understand("again") is Control.AGAIN
    assert await playback.play_any("music")
    await visit.hear(RATE)
    playback.stop()
    assert playback.understand("go on") is Control.RESUME


async def test_what_played_goes_on_in_a_later_visit_at_its_second(visit: Visit, loaded: Settings) -> None:
    assert await visit.playback.play_any("story")
    await visit.hear(30_000)
    saved = visit.playback.snapshot()
    assert isinstance(saved, Playing)
    later = Visit(loaded)
    try:
        assert await later.playback.restore(saved)
        assert later.playback.player.position_ms == saved.position_ms
        assert await later.hear() >= 4800
        later.playback.player.pause(Hold.USER)
        assert later.playback.snapshot() is None, "what the child has paused is not begun by itself"
        assert not await later.playback.restore(saved.model_copy(update={"title_id": "999999"}))
    finally:
        await later.aclose()
