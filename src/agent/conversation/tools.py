"""What the model can do: play, control what plays, ask and move the device, change its character, say goodbye.

Their descriptions are sent with every turn, so they are short. What goes wrong reaches the model as a sentence it can
say; a tool that returns None wants no reply, so that nobody talks over a title that begins.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

import structlog
from livekit.agents import RunContext
from livekit.agents.llm import Tool, function_tool

from agent.conversation.playback import Playback
from agent.device.calls import Answered, Battery, CallResult, DeviceCalls, Failed, read_volume
from agent.errors import InvalidCall, LibraryError, NotFound, RemoteError, Unavailable
from agent.library.ranking import Answer
from agent.library.titles import Kind, Title
from agent.speaker.player_types import State
from agent.telemetry.meter import meter

log = structlog.get_logger(__name__)

NOTHING: Final = "Nothing is playing."
SILENT: Final = "The device did not answer. Say that you do not know whether it worked."
COLOURS: Final = {
    "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 200, 0), "orange": (255, 110, 0),
    "purple": (150, 0, 255), "pink": (255, 80, 160), "white": (255, 255, 255), "turquoise": (0, 220, 200),
    "off": (0, 0, 0),
}  # fmt: skip

Action = Literal[
    "pause", "resume", "stop", "next", "previous", "again", "forward", "back", "shuffle", "sleep", "sleep_after_this"
]


class Toolbox:
    """The tools of one visit.

    `switch` changes the device's character by name and returns when the new instructions hold; it raises RemoteError.
    `goodbye` lets the visit end when the goodbye has been heard.
    """

    def __init__(
        self,
        playback: Playback,
        calls: DeviceCalls,
        *,
        zone: ZoneInfo,
        switch: Callable[[str], Awaitable[None]],
        goodbye: Callable[[], None],
        now: Callable[[ZoneInfo], datetime] = datetime.now,
    ) -> None:
        self._playback = playback
        self._calls = calls
        self._zone = zone
        self._switch = switch
        self._goodbye = goodbye
        self._now = now

    @property
    def tools(self) -> Sequence[Tool]:
        """For the agent."""
        return [
            self.play_music,
            self.play_story,
            self.playback,
            self.now_playing,
            self.volume,
            self.light,
            self.battery,
            self.date_and_time,
            self.switch_mode,
            self.say_goodbye,
        ]

    # Media

    @function_tool
    async def play_music(
        self, context: RunContext[None], song: str = "", language: str = "", queue: bool = False
    ) -> str | None:
        """Play a song now. Say nothing first.

        Args:
            song: What the child called it, in its own words and script; empty for any song.
            language: Only if the child named one.
            queue: Play it after the current one.
        """
        return await self._play(context, "music", song, language, queue=queue)

    @function_tool
    async def play_story(
        self, context: RunContext[None], story: str = "", category: str = "", queue: bool = False
    ) -> str | None:
        """Play a recorded story now. Say nothing first.

        Args:
            story: What the child called it, or what it is about; empty for any story.
            category: Only if the child named one.
            queue: Play it after the current one.
        """
        return await self._play(context, "story", story, category, queue=queue)

    async def _play(
        self, context: RunContext[None], kind: Kind, request: str, section: str, *, queue: bool
    ) -> str | None:
        tool = f"play_{kind}"
        stops = self._playback.stops
        try:
            answer = await self._playback.find(kind, request.strip()[:200], section.strip()[:60] or None)
        except (Unavailable, LibraryError) as error:
            log.warning("the library cannot be searched", kind=kind, reason=str(error))
            _count(tool, "failed")
            return f"The {_name(kind)} library cannot be reached just now. Say sorry."
        title = answer.title
        if title is None:
            _count(tool, "failed")
            return _not_found(kind, answer)
        _count(tool, "done")
        if stops != self._playback.stops:
            return None
        if queue and self._playback.player.current is not None:
            self._playback.player.add([title])
            return f"“{title.title}” comes next."
        self._playback.start([title], held=True)
        await context.wait_for_playout()
        self._playback.begin()
        return None

    @function_tool
    async def playback(self, action: Action, amount: float = 0) -> str | None:
        """Control what is playing.

        Args:
            action: What to do.
            amount: Seconds for forward and back, minutes for sleep.
        """
        player, playback = self._playback.player, self._playback
        if player.current is None and action not in {"resume", "again"}:
            return NOTHING
        _count("playback", "done")
        match action:
            case "pause":
                done = player.pause()
            case "resume":
                done = player.resume()
            case "stop":
                playback.stop()
                done = True
            case "next":
                playback.next()
                done = True
            case "previous":
                done = player.previous()
            case "again":
                done = player.again()
            case "forward" | "back":
                step = min(max(amount, 0) or 15.0, 3600.0) * 1000
                done = player.seek_by(round(step if action == "forward" else -step))
            case "shuffle":
                player.shuffle(True)
                done = True
            case "sleep":
                minutes = min(max(amount, 0) or 10.0, 240.0)
                player.sleep_in(minutes * 60)
                return f"It stops in {minutes:g} minutes."
            case "sleep_after_this":
                playback.end_after_title()
                return "It stops after this one."
        playback.release()
        return None if done else NOTHING

    @function_tool
    async def now_playing(self) -> str:
        """What is playing or paused, and what comes next."""
        player = self._playback.player
        if player.current is None:
            return NOTHING
        state = "paused" if player.state is State.PAUSED and not player.active else "playing"
        length = player.duration_ms
        minutes = f", {player.position_ms // 60000} of {length // 60000} minutes" if length else ""
        following = "; next: " + ", ".join(map(_call, player.upcoming[:3])) if player.upcoming else ""
        return f"{_call(player.current)} is {state}{minutes}{following}."

    # The device

    @function_tool
    async def volume(self, level: int | None = None, change: int = 0) -> str:
        """Set the device's loudness, or ask for it with no arguments.

        Args:
            level: 0 to 100.
            change: Louder (10) or quieter (-10) instead.
        """
        if level is not None:
            return _done(await self._call("self_set_volume", volume=level), "volume")
        if change:
            name = "self_volume_up" if change > 0 else "self_volume_down"
            return _done(await self._call(name, step=abs(change)), "volume")
        answer = await self._call("self_get_volume")
        if isinstance(answer, Answered) and (found := read_volume(answer.value)) is not None:
            return f"The volume is {found} percent."
        return _done(answer, "volume") if not isinstance(answer, Answered) else SILENT

    @function_tool
    async def light(self, colour: str = "", mode: str = "") -> str:
        """Change the device's light.

        Args:
            colour: A simple English colour, "off", or #rrggbb.
            mode: An effect such as rainbow, instead of a colour.
        """
        if mode.strip():
            return _done(await self._call("self_set_light_mode", mode=mode), "light")
        wanted = _colour(colour)
        if wanted is None:
            return f"There is no such colour. Known: {', '.join(COLOURS)}."
        red, green, blue = wanted
        return _done(await self._call("self_set_light_color", red=red, green=green, blue=blue), "light")

    @function_tool
    async def battery(self) -> str:
        """How full the device's battery is."""
        answer = await self._call("self_get_battery_status")
        if isinstance(answer, Answered) and (found := Battery.read(answer.value)) is not None:
            charging = {True: ", charging", False: ", not charging", None: ""}[found.charging]
            return f"{found.percentage} percent{charging}."
        return _done(answer, "battery") if not isinstance(answer, Answered) else SILENT

    async def _call(self, function: str, **arguments: Any) -> CallResult:
        try:
            answer = await self._calls.call(function, arguments)
        except InvalidCall as error:
            _count(function, "failed")
            return Failed(str(error))
        _count(
            function, "done" if isinstance(answer, Answered) else "failed" if isinstance(answer, Failed) else "silent"
        )
        return answer

    # The rest

    @function_tool
    async def date_and_time(self) -> str:
        """The date, weekday and time where the child is."""
        return self._now(self._zone).strftime("%A, %d %B %Y, %H:%M")

    @function_tool
    async def switch_mode(self, mode: str) -> str:
        """Change into another character or mode of this toy.

        Args:
            mode: Its exact name.
        """
        try:
            await self._switch(mode.strip()[:100])
        except NotFound:
            _count("switch_mode", "failed")
            return "There is no such mode. Ask for its exact name."
        except RemoteError as error:
            log.warning("mode cannot be changed", reason=str(error))
            _count("switch_mode", "failed")
            return "The mode could not be changed just now. Say sorry."
        _count("switch_mode", "done")
        return "Done. Greet the child in your new character, in one short sentence."

    @function_tool
    async def say_goodbye(self, context: RunContext[None]) -> None:
        """End the conversation, when the child says goodbye or wants to sleep. A goodbye is said for you."""
        _count("say_goodbye", "done")
        await context.wait_for_playout()  # one last story may be told before
        self._goodbye()


def _count(tool: str, outcome: str) -> None:
    meter.count("toy_tool_calls", tool=tool, outcome=outcome)


def _name(kind: Kind) -> str:
    return "music" if kind == "music" else "story"


def _call(title: Title) -> str:
    return f"the {'song' if title.kind == 'music' else 'story'} “{title.title}”"


def _not_found(kind: Kind, answer: Answer) -> str:
    thing = "song" if kind == "music" else "story"
    if not answer.nearest:
        return f"There is no such {thing}. Say so."
    names = ", ".join(f"“{title.title}”" for title in answer.nearest[:3])
    return f"There is no such {thing}. Say so, and offer one of these: {names}."


def _done(answer: CallResult, what: str) -> str:
    if isinstance(answer, Answered):
        return "Done."
    return f"The device could not change its {what}." if isinstance(answer, Failed) else SILENT


def _colour(text: str) -> tuple[int, int, int] | None:
    name = text.strip().lower()
    if len(name) == 7 and name[0] == "#":
        try:
            number = int(name[1:], 16)
        except ValueError:
            return None
        return number >> 16, number >> 8 & 255, number & 255
    return COLOURS.get(name)
