from __future__ import annotations

import asyncio
from typing import Any, cast

import numpy as np
import pytest

from agent.speaker.ambience import Ambience, background_loop, thinking_loop
from agent.speaker.gain import Ramp, falling
from agent.speaker.pcm import SAMPLE_RATE
from agent.speaker.speaker import Speaker
from speaker_alone import Listener


def pull(ambience: Ambience, seconds: float) -> np.ndarray:
    blocks = [ambience.pull(480) for _ in range(round(seconds * 50))]
    assert all(block is not None and len(block) == 480 and block.dtype == np.int16 for block in blocks)
    return np.concatenate([block for block in blocks if block is not None])


def test_off_is_nothing() -> None:
    assert Ambience(background=False).pull(480) is None


def test_the_background_is_soft_and_loops_without_a_seam() -> None:
    heard = pull(Ambience(), 10)
    assert 0 < np.abs(heard).max() <= 160
    steps = np.abs(np.diff(background_loop()))
    assert abs(background_loop()[0] - background_loop()[-1]) <= steps.max()
    assert heard[SAMPLE_RATE] == heard[5 * SAMPLE_RATE]


def test_thinking_comes_goes_and_wakes_the_speaker() -> None:
    woken: list[bool] = []
    ambience = Ambience(background=False, on_wake=lambda: woken.append(True))
    ambience.thinking(True)
    assert woken
    assert np.abs(pull(ambience, 2)).max() > 500
    ambience.thinking(False)
    while ambience.pull(480) is not None:
        assert len(woken) == 3
    ambience.thinking(True)
    first = pull(ambience, 0.1)
    assert abs(int(first[0])) < 20
    assert thinking_loop()[0] == 0


def test_speech_makes_it_softer() -> None:
    ambience = Ambience()
    loud = np.abs(pull(ambience, 4)).mean()
    ambience.duck(True)
    pull(ambience, 4)
    soft = np.abs(pull(ambience, 4)).mean()
    assert soft == pytest.approx(0.3 * loud, rel=0.15)
    ambience.give_back(4800)


class Noted(Ambience):
    """Keeps whether speech was over it at each pull, and tells when it is over no more."""

    def __init__(self) -> None:
        super().__init__(background=False)
        self.under_speech: list[bool] = []
        self.free = asyncio.Event()
        self._under = False

    def duck(self, on: bool) -> None:
        self._under = on
        super().duck(on)
        if self.under_speech and not on:
            self.free.set()

    def pull(self, samples: int) -> np.ndarray | None:
        if self._under:
            self.under_speech.append(True)
        return super().pull(samples)


async def test_the_speaker_makes_it_softer_while_something_is_said() -> None:
    speaker, ambience = Speaker(), Noted()
    await speaker.publish(cast("Any", Listener()))
    await speaker.wait_for_listener()
    speaker.attach_ambience(ambience)
    speaker.play(np.full(SAMPLE_RATE // 5, 1000, np.int16))
    await asyncio.wait_for(ambience.free.wait(), 10)
    assert len(ambience.under_speech) >= 10, "all blocks of 20 ms"
    await speaker.aclose()


@pytest.mark.parametrize("step", [1, 7, 480, 5000])
def test_a_ramp_is_a_straight_line_however_it_is_taken(step: int) -> None:
    ramp = Ramp(0.2)
    ramp.to(0.8, 1000)
    values = np.concatenate([np.broadcast_to(np.float32(ramp.take(step)), step) for _ in range(2100 // step + 1)])
    assert values[999] == pytest.approx(0.8, abs=1e-3)
    assert values[499] == pytest.approx(0.5, abs=1e-3)
    assert values[-1] == pytest.approx(0.8, abs=1e-6)
    assert np.abs(np.diff(values)).max() < 0.0007
    assert ramp.level == ramp.target == 0.8


def test_a_ramp_can_turn_round_and_jump() -> None:
    ramp = Ramp(0.0)
    ramp.to(1.0, 100)
    ramp.take(50)
    assert ramp.level == pytest.approx(0.5)
    ramp.to(0.0, 50)
    ramp.take(50)
    assert ramp.take(10) == 0.0
    ramp.to(0.7, 0)
    assert ramp.take(10) == 0.7
    assert falling(3).tolist() == [1.0, 0.5, 0.0]
