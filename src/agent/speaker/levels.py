"""How loud media is: the child's volume, speech over it, falling asleep, and fades that keep changes from clicking."""

from __future__ import annotations

from typing import Final

from agent.speaker.gain import Gain, Ramp
from agent.speaker.pcm import SAMPLE_RATE

FADE: Final = SAMPLE_RATE // 100
"""Samples in which a cut fades in or out."""
_VOLUME_RAMP: Final = SAMPLE_RATE // 20
_DUCK_DOWN: Final = SAMPLE_RATE * 8 // 100
_DUCK_UP: Final = SAMPLE_RATE * 30 // 100
_DUCKED: Final = 0.22
_SLEEP_FADE: Final = 4 * SAMPLE_RATE


class Levels:
    """Four levels multiplied, sample by sample: fade, duck, volume and sleep. All begin at full loudness."""

    def __init__(self) -> None:
        self._fade = Ramp(1.0)
        self._duck = Ramp(1.0)
        self._volume = Ramp(1.0)
        self._sleep = Ramp(1.0)

    @property
    def volume(self) -> int:
        """The child's volume, 0 to 100; where it goes while it moves."""
        return round(self._volume.target * 100)

    @property
    def now(self) -> float:
        """The gain of the next sample."""
        return self._fade.level * self._duck.level * self._volume.level * self._sleep.level

    def take(self, samples: int) -> Gain:
        """The gain of each of the next `samples`; one number while nothing moves."""
        return (
            self._fade.take(samples) * self._volume.take(samples) * self._duck.take(samples) * self._sleep.take(samples)
        )

    def fade_in(self) -> None:
        """Begin at silence: what follows was cut out of the middle."""
        self._fade = Ramp(0.0)
        self._fade.to(1.0, FADE)

    def full(self) -> None:
        """Begin at full loudness: a title from its start."""
        self._fade = Ramp(1.0)

    def duck(self, on: bool) -> None:
        """Make room for speech, or take it back."""
        target = _DUCKED if on else 1.0
        if self._duck.target != target:
            self._duck.to(target, _DUCK_DOWN if on else _DUCK_UP)

    def set_volume(self, percent: int) -> int:
        """Go to a volume, kept within 0 to 100; returns what it then is."""
        self._volume.to(min(max(percent, 0), 100) / 100, _VOLUME_RAMP)
        return self.volume

    # Sleep

    @property
    def falling_asleep(self) -> bool:
        """Whether media fades for the night, or has."""
        return self._sleep.target == 0.0

    @property
    def asleep(self) -> bool:
        """Whether it has."""
        return self._sleep.level == 0.0

    def fall_asleep(self) -> None:
        """Fade slowly to silence."""
        self._sleep.to(0.0, _SLEEP_FADE)

    def stay_awake(self) -> None:
        """Come back from a fade that has begun, without a click."""
        self._sleep.to(1.0, FADE)

    def wake(self) -> None:
        """Full loudness for something new."""
        self._sleep = Ramp(1.0)
