"""Songs and stories of a visit: found, played, held while somebody speaks, and told to the device."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import structlog

from agent.conversation.control_words import Control, ControlWords
from agent.conversation.resume import QUEUE_MAX, Playing
from agent.device.calls import Answered
from agent.device.link import DeviceLink
from agent.device.messages import music_playback_started, music_playback_stopped
from agent.errors import LibraryError, MediaError, Unavailable
from agent.library.ranking import Answer
from agent.library.services import LibraryService, ServiceCache
from agent.library.titles import Kind, Title
from agent.settings import Settings
from agent.speaker.media_store import MediaStore
from agent.speaker.player import MediaPlayer
from agent.speaker.player_types import Hold, State, StopReason
from agent.speaker.speaker import Speaker
from agent.telemetry.meter import meter

log = structlog.get_logger(__name__)

SORRY: Final = "provider_down"
"""The recorded sentence for what cannot be had; `not_found` asks to add the device to the app."""
AFTER_SOUND: Final = 2.0
"""Seconds media waits for a word after the child's microphone had only a noise."""
AFTER_WORDS: Final = 8.0
"""Seconds media waits at most for the answer to what the child has said."""
RECENTLY: Final = 180.0
"""Seconds for which "go on" and "again" mean what was stopped."""
JUST_NOW: Final = 1.5
"""Seconds after a sound has ended in which the child may still begin to stop it."""
STILL_STOPPING: Final = 5.0
"""Seconds after a stop in which another is the same."""
HISTORY_MAX: Final = 200
UNSURE_MS: Final = 800
"""How much of what was played need not have been heard yet when a sign of life has come."""
MISSED_MAX_MS: Final = 45_000
GIVE_UP_AFTER: Final = 3
"""Titles in a row that could not be played, after which an endless room falls silent for a while."""
TRY_AGAIN_AFTER: Final = 15.0
"""Seconds of that silence, doubled each time up to TRY_AGAIN_LATEST."""
TRY_AGAIN_LATEST: Final = 240.0


class Playback:
    """The media of one visit. Make it in the room's loop behind the greeting; `aclose` ends everything that plays.

    While the child speaks, media is held at its sample; it goes on when the answer begins (a song, softly under it) or
    has ended (a story, whose words would be lost). `spawn` runs a task that the visit supervises; `sorry` says the
    recorded sentence of a purpose; `on_change` is called whenever something else plays.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        library: ServiceCache | None,
        link: DeviceLink,
        speaker: Speaker,
        spawn: Callable[[Coroutine[Any, Any, Any], str], object],
        sorry: Callable[[str], Coroutine[Any, Any, None]],
        words: ControlWords | None = None,
        try_again_after: float = TRY_AGAIN_AFTER,
    ) -> None:
        self._library = library
        self._link = link
        self._speaker = speaker
        self._spawn = spawn
        self._sorry = sorry
        self._words = words or ControlWords()
        self._store = MediaStore(
            base_url=settings.media_base_url,
            catalogue_dir=settings.catalogue_dir,
            private_network=settings.media_private_network,
        )
        self.player = MediaPlayer(self._store.open, self, on_wake=speaker.wake)
        speaker.attach_media(self.player)
        self.on_change: Callable[[], None] | None = None
        self._history: list[int] = []
        self._endless: Kind | None = None
        self._failures = 0
        self._try_again_after = try_again_after
        self._again: asyncio.TimerHandle | None = None
        self._wishes = 0
        self._awaits_words = False
        self.stops = 0
        """How often everything was stopped: a title that was looked for before that is wanted no more."""
        self._heard: tuple[Title | None, int] = (None, 0)
        self._seen = self._away = False
        self._stopped_at = float("-inf")
        self._child_speaks = False
        self._stoppable_until = float("-inf")
        self._something_to_stop = False
        self._agent_state = "listening"
        self._later: asyncio.TimerHandle | None = None
        self._closed = False

    async def warm(self) -> None:
        """Reach the media server ahead of the first title. Never fails."""
        await self._store.warm()

    async def aclose(self) -> None:
        """End playing, then the connections."""
        self._closed = True
        self._endless = None
        self._cancel_timer()
        if self._again is not None:
            self._again.cancel()
        await self.player.aclose()
        self._speaker.attach_media(None)
        await self._store.aclose()

    # Finding

    async def find(self, kind: Kind, request: str = "", section: str | None = None) -> Answer:
        """What the child means. Raises Unavailable or LibraryError where there is no library to look in."""
        started = time.perf_counter()
        answer = await self._service(kind).search(request, section or None, history=self._history)
        meter.observe("toy_library_search_seconds", time.perf_counter() - started, kind=kind)
        meter.count("toy_library_searches", kind=kind, outcome=answer.kind)
        return answer

    def _service(self, kind: Kind) -> LibraryService:
        if self._library is None:
            raise Unavailable("the library could not be loaded")
        if not self._store.known:
            raise Unavailable("there is no place to play from: set MEDIA_BASE_URL or CATALOGUE_DIR")
        return self._library.music if kind == "music" else self._library.stories

    # Playing

    def start(self, titles: Sequence[Title], *, held: bool = False) -> None:
        """Play these instead of what plays; `held`: load now, and sound with `begin`."""
        self._endless, self._failures = None, 0
        self._play(titles, held=held)

    def _play(self, titles: Sequence[Title], *, held: bool = False, start_ms: int = 0) -> None:
        self._wishes += 1
        self._awaits_words = held
        self.player.play(titles, start_ms=start_ms)
        self._unheard(titles[0] if titles else None, start_ms)
        if self._away:
            self.player.pause(Hold.DROP)
        if held or self._child_speaks:
            self.player.pause(Hold.SPEECH)
        else:
            self.release()

    def begin(self) -> None:
        """What was started `held` may sound, unless the child speaks again: then it waits for it."""
        if not self._child_speaks:
            self.release()

    def release(self) -> None:
        """Nobody speaks any more: what is held goes on."""
        self._cancel_timer()
        self._awaits_words = False
        self.player.resume(Hold.SPEECH)

    async def play_any(self, kind: Kind, *, endless: bool = False) -> bool:
        """Play a title that was not heard yet; `endless`: one after the other. False where there is none."""
        played = await self._play_found(kind)
        if played and endless:
            self.go_on_endlessly(kind)
        return played

    async def play_wish(self, kind: Kind, request: str, section: str | None) -> None:
        """What the parent's app asks for; what cannot be played is said."""
        self._failures = 0
        await self._play_found(kind, request, section)

    async def _play_found(self, kind: Kind, request: str = "", section: str | None = None) -> bool:
        """False where there is none, and where something else was wanted while it was looked for."""
        self._wishes += 1
        wish = self._wishes
        try:
            title = (await self.find(kind, request, section)).title
        except (Unavailable, LibraryError) as error:
            log.warning("nothing can be played", kind=kind, reason=str(error))
            title = None
        if wish != self._wishes:
            return False
        if title is None:
            await self._sorry(SORRY)
            return False
        self._endless = None
        self._play([title])
        return True

    def go_on_endlessly(self, kind: Kind) -> None:
        """After what plays now, play one title of this kind after the other."""
        self._endless = kind

    def end_after_title(self) -> None:
        """End playing with the current title."""
        self._endless = None
        self.player.sleep_after_title()

    def stop(self) -> None:
        """Silence media at once, and forget the queue and what is being looked for."""
        self._endless = None
        self._wishes += 1
        self.stops += 1
        self._cancel_timer()
        self.player.stop(fade=False)
        self.player.resume(Hold.SPEECH)
        self._speaker.drop_queue()

    def next(self) -> None:
        """The next of the queue, else any other of the same kind."""
        current, endless = self.player.current, self._endless
        if self.player.upcoming or current is None:
            self.player.next()
        else:
            self._spawn(self.play_any(current.kind, endless=endless is not None), "next title")

    # Control words

    def understand(self, transcript: str, language: str | None = None) -> Control | None:
        """The control that the child's words are as a whole, where it concerns what sounds or has just sounded.

        A "stop" concerns words and answers too: it counts where the child began to speak while there were any.
        """
        control = self._words.match(transcript, language)
        if control is None or self.player.current is not None:
            return control
        if control is Control.STOP:
            return control if self._something_to_stop or self._speaker.speaking else None
        recent = time.monotonic() - self._stopped_at < RECENTLY
        again = control is Control.AGAIN or (control is Control.RESUME and self.player.resumable)
        return control if recent and again else None

    def control(self, control: Control) -> None:
        """Do it, now."""
        meter.count("toy_control_words", control=control.value)
        player = self.player
        match control:
            case Control.STOP:
                self.stop()
                self._something_to_stop = True
                self._keep_stoppable(STILL_STOPPING)
            case Control.PAUSE:
                player.pause()
                self._speaker.drop_queue()
            case Control.RESUME:
                player.resume()
            case Control.NEXT:
                self.next()
            case Control.PREVIOUS:
                player.previous()
            case Control.AGAIN:
                player.again()
            case Control.LOUDER:
                self._spawn(self._turn_volume("self_volume_up"), "louder")
            case Control.QUIETER:
                self._spawn(self._turn_volume("self_volume_down"), "quieter")
        self.release()

    async def _turn_volume(self, function: str) -> None:
        if not isinstance(await self._link.calls.call(function), Answered):
            await self._sorry(SORRY)

    # Who speaks

    def child_speaking(self, speaking: bool) -> None:
        """The child has begun or ended to make sound."""
        self._child_speaks = speaking
        self._cancel_timer()
        if not speaking:
            self._release_in(AFTER_SOUND)
            return
        busy = self._agent_state in {"thinking", "speaking"} or self.player.current is not None
        self._something_to_stop = busy or self._speaker.speaking or time.monotonic() < self._stoppable_until
        self._hold()

    def child_said(self) -> None:
        """There were words in it: the answer is on its way."""
        if not self._child_speaks:
            if not self._goes_under_words:
                self._hold()
            self._release_in(AFTER_WORDS)

    def _hold(self) -> None:
        sounding = self.sounding
        if self.player.pause(Hold.SPEECH) and sounding:
            self._speaker.drop_queue()

    @property
    def _goes_under_words(self) -> bool:
        current = self.player.current
        return current is not None and current.kind == "music" and not self._awaits_words

    def _keep_stoppable(self, seconds: float) -> None:
        self._stoppable_until = max(self._stoppable_until, time.monotonic() + seconds)

    def agent_state(self, state: str) -> None:
        """The session's state has changed."""
        if self._agent_state == "speaking" != state:
            self._keep_stoppable(JUST_NOW)
        self._agent_state = state
        if state == "thinking" or self._child_speaks:
            return
        if state != "speaking" or self._goes_under_words:
            self.release()
        else:
            self._cancel_timer()
            self._hold()

    @property
    def sounding(self) -> bool:
        """Whether a title is playing this moment."""
        return self.player.state is State.PLAYING

    def device_there(self) -> None:
        """The device was there a moment ago: what had sounded by then was heard."""
        self._seen = True
        if self.sounding:
            self._heard = (self.player.current, max(self.player.position_ms - UNSURE_MS, 0))

    def dropped(self, dropped: bool) -> None:
        """The device has lost its connection, or is back: then it hears again what it has missed."""
        self._away = dropped
        if not dropped:
            self.player.resume(Hold.DROP)
        elif self.player.pause(Hold.DROP):
            self._speaker.drop_queue()
            self._go_back()

    def _unheard(self, title: Title | None, position_ms: int) -> None:
        """Nothing of a title from here on was heard, as far as signs of life of this device tell."""
        if self._seen:
            self._heard = (title, position_ms)

    def _go_back(self) -> None:
        (title, heard), self._heard = self._heard, (None, 0)
        missed = self.player.position_ms - heard
        log.info("media waits for the device", unheard_ms=missed if title is self.player.current else None)
        if title is not None and title is self.player.current and self.player.active and 0 < missed < MISSED_MAX_MS:
            self.player.seek(heard)

    def _release_in(self, seconds: float) -> None:
        self._cancel_timer()
        self._later = asyncio.get_running_loop().call_later(seconds, self._release_late)

    def _release_late(self) -> None:
        self._later = None
        if not self._child_speaks and self._agent_state not in {"thinking", "speaking"}:
            self.release()

    def _cancel_timer(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None

    # Coming back

    def snapshot(self) -> Playing | None:
        """What plays and is to go on in a later visit; None where nothing does, or the child has paused it."""
        now = self.player.snapshot()
        if now is None or now.paused:
            return None
        return Playing(
            kind=now.title.kind,
            title_id=str(now.title.id),
            position_ms=self.player.position_ms,
            queue=tuple(str(title.id) for title in now.upcoming[:QUEUE_MAX]),
        )

    async def restore(self, playing: Playing) -> bool:
        """Go on at the same second; False where its title is gone, or something else was wanted meanwhile."""
        self._wishes += 1
        wish = self._wishes
        try:
            service = self._service(playing.kind)
            wanted = [int(number) for number in (playing.title_id, *playing.queue)]
            titles = [title for title in await service.titles(wanted) if title is not None]
        except (Unavailable, LibraryError, ValueError) as error:
            log.warning("what played cannot go on", reason=str(error))
            return False
        if wish != self._wishes or not titles or str(titles[0].id) != playing.title_id:
            return False
        self._play(titles, start_ms=playing.position_ms)
        return True

    # What the player tells

    def started(self, title: Title) -> None:
        """The title's first sample is on its way to the child."""
        if self._heard[0] is not title:
            self._unheard(title, 0)
        self._history = [*self._history, title.id][-HISTORY_MAX:]
        meter.count("toy_titles_started", kind=title.kind)
        self._link.send(
            music_playback_started(title.title, language=title.section or None, message=f"Playing {title.title}")
        )
        self._changed()

    def stopped(self, title: Title, reason: StopReason) -> None:
        """It sounds no more."""
        self._stopped_at = time.monotonic()
        self._keep_stoppable(JUST_NOW)
        meter.count("toy_titles_stopped", kind=title.kind, reason=reason.value)
        self._link.send(music_playback_stopped())
        self._changed()
        if reason is StopReason.ENDED:
            self._failures = 0
        if reason is StopReason.ENDED and self._endless is not None and not self.player.upcoming and not self._closed:
            self._spawn(self.play_any(self._endless, endless=True), "next title")

    def problem(self, title: Title, error: MediaError) -> None:
        """It cannot be played, or not to its end; the next one plays, and this is said."""
        meter.count("toy_media_refused", reason=error.reason)
        log.warning("title cannot be played", kind=title.kind, title_id=title.id, error=str(error))
        self._failures += 1
        self._history = [*self._history, title.id][-HISTORY_MAX:]
        self._spawn(self._after_problem(), "missing title")

    async def _after_problem(self) -> None:
        wishes, tries = self._wishes, self._failures - GIVE_UP_AFTER
        if tries <= 0:
            await self._sorry(SORRY)
        if self._endless is None or self._closed:
            return
        if tries < 0:
            await self._play_another(wishes)
        else:
            # Where the titles come from is away: it is asked again from time to time, and the child is not told.
            pause = min(self._try_again_after * 2.0**tries, TRY_AGAIN_LATEST)
            self._again = asyncio.get_running_loop().call_later(pause, self._try_again, wishes)

    def _try_again(self, wishes: int) -> None:
        self._spawn(self._play_another(wishes), "another title")

    async def _play_another(self, wishes: int) -> None:
        """In an endless room, unless something else was wanted meanwhile."""
        if self.player.current is None and wishes == self._wishes and self._endless is not None:
            await self.play_any(self._endless, endless=True)

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()
