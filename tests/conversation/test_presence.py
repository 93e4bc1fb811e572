"""What the device is told of the agent's state, by the contract: only `speaking -> listening` ends a speech for it."""

from __future__ import annotations

import json
import random
from typing import Final

import pytest

from agent.conversation.presence import Presence
from agent.device.messages import AgentState, Outgoing

STATES: Final[tuple[AgentState, ...]] = ("initializing", "idle", "listening", "thinking", "speaking")


class Told:
    """Keeps the changes a device was told of."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str]] = []
        self.presence = Presence(self.send)

    def send(self, message: Outgoing) -> None:
        data = json.loads(message.payload)["data"]
        self.changes.append((data["old_state"], data["new_state"]))


def test_words_and_then_a_tool_end_the_speech_for_the_device() -> None:
    told = Told()
    for state in ("listening", "thinking", "speaking"):
        told.presence.session_state(state)  # type: ignore[arg-type]
    told.presence.audible(True)
    told.presence.session_state("thinking")  # the tool runs while the words still sound
    told.presence.audible(False)
    told.presence.session_state("listening")
    assert told.changes == [
        ("initializing", "listening"),
        ("listening", "thinking"),
        ("thinking", "speaking"),
        ("speaking", "listening"),
        ("listening", "thinking"),
        ("thinking", "listening"),
    ]


@pytest.mark.parametrize("seed", range(20))
def test_speaking_ends_in_listening_alone_and_no_change_is_left_out(seed: int) -> None:
    told, chance = Told(), random.Random(seed)
    for _ in range(200):
        if chance.random() < 0.4:
            told.presence.audible(chance.random() < 0.5)
        else:
            told.presence.session_state(chance.choice(STATES))
    shown = "initializing"
    for old, new in told.changes:
        assert old == shown != new
        assert old != "speaking" or new == "listening"
        shown = new
    assert shown == told.presence.shown
