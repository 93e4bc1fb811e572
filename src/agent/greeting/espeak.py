"""Speech without a key or a network: espeak-ng, as the library that `espeakng-loader` bundles, else as the program."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
import wave
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from agent.errors import MediaError

Pcm = npt.NDArray[np.int16]

VOICES: Final[Mapping[str, str]] = MappingProxyType({"en": "en-us", "zh": "cmn", "hi": "hi"})
"""The voice of each language where it is not named like the language."""

_MAX_TEXT_BYTES: Final = 20_000
_PROGRAM_TIMEOUT: Final = 60.0
_RETRIEVAL_SYNCHRONOUS: Final = 2
_CHARS_UTF8: Final = 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_DEFAULTS: Final = {_RATE: 175, _PITCH: 50, _RANGE: 50}
_CALLBACK: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

_lock = threading.Lock()  # the library keeps one global voice and one callback
_engine: _Engine | None = None


def synthesise(
    text: str,
    language: str = "en",
    *,
    words_per_minute: int = 150,
    pitch: int = 55,
    voice: str | None = None,
) -> tuple[Pcm, int]:
    """Speak `text`. Returns mono 16-bit samples and their rate in Hz (22050 with the stock voices).

    `language` is BCP 47; `voice` an espeak-ng voice that overrides it, such as `en-gb` or `hi+f3`; `pitch` 0-99.
    Blocks for some 20 ms a sentence; may be called from any thread, one speaks at a time.
    Raises MediaError where espeak-ng is not there, does not know the voice, or says nothing.
    """
    data = text.encode()
    if not data.strip() or b"\0" in data or len(data) > _MAX_TEXT_BYTES:
        raise MediaError(f"espeak-ng: the text must have 1 to {_MAX_TEXT_BYTES} bytes and no NUL")
    name = voice or VOICES.get(language.split("-")[0].lower(), language)
    with _lock:
        engine = _library()
        pcm, rate = (
            engine.speak(data, name, words_per_minute, pitch)
            if engine
            else _speak_with_program(data, name, words_per_minute, pitch)
        )
    if not pcm.size:
        raise MediaError(f"espeak-ng: the voice {name} said nothing")
    return pcm, rate


def available() -> bool:
    """Whether `synthesise` has anything to speak with."""
    with _lock:
        return _library() is not None or _program() is not None


class _Engine:
    """The library, initialised once in this process."""

    def __init__(self, path: str, data: str) -> None:
        self._lib = ctypes.CDLL(path)
        self.rate = int(self._lib.espeak_Initialize(_RETRIEVAL_SYNCHRONOUS, 0, os.fsencode(data), 0))
        if self.rate <= 0:
            raise OSError("espeak-ng could not be initialised")
        self._lib.espeak_Synth.argtypes = [
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        self._parts: list[bytes] = []
        self._callback = _CALLBACK(self._collect)  # kept: the library holds only the bare pointer
        self._lib.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: Any, count: int, _events: int | None) -> int:
        if samples and count > 0:
            self._parts.append(ctypes.string_at(samples, count * 2))
        return 0

    def speak(self, text: bytes, voice: str, words_per_minute: int, pitch: int) -> tuple[Pcm, int]:
        if self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise MediaError(f"espeak-ng has no voice {voice}")
        for parameter, value in (_DEFAULTS | {_RATE: words_per_minute, _PITCH: pitch}).items():
            self._lib.espeak_SetParameter(parameter, value, 0)
        self._parts.clear()
        if self._lib.espeak_Synth(text, len(text) + 1, 0, 0, 0, _CHARS_UTF8, None, None) != 0:
            raise MediaError("espeak-ng failed to speak")
        self._lib.espeak_Synchronize()
        return np.frombuffer(b"".join(self._parts), dtype=np.int16), self.rate


def _library() -> _Engine | None:
    global _engine
    if _engine is None:
        try:
            import espeakng_loader
        except ImportError:
            return None
        try:
            folder = Path(str(espeakng_loader.__file__)).parent
            _engine = _Engine(str(folder / "libespeak-ng.so"), str(folder / "espeak-ng-data"))
        except OSError:
            return None  # a wheel for another machine: the program may still be there
    return _engine


def _program() -> str | None:
    return shutil.which("espeak-ng")


def _speak_with_program(text: bytes, voice: str, words_per_minute: int, pitch: int) -> tuple[Pcm, int]:
    program = _program()
    if program is None:
        raise MediaError("espeak-ng is not there: install the package espeakng-loader, or the program espeak-ng")
    try:
        done = subprocess.run(  # noqa: S603 — a fixed program, the text goes through its standard input
            [program, "-b", "1", "-v", voice, "-s", str(words_per_minute), "-p", str(pitch), "--stdin", "--stdout"],
            input=text,
            capture_output=True,
            timeout=_PROGRAM_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MediaError("espeak-ng did not finish") from error
    if done.returncode != 0 or not done.stdout:
        raise MediaError(f"espeak-ng failed with the voice {voice}")
    try:
        with wave.open(BytesIO(done.stdout)) as file:  # its header announces no length
            rate = file.getframerate()
            return np.frombuffer(file.readframes(2**30), dtype="<i2").astype(np.int16), rate
    except (wave.Error, EOFError) as error:
        raise MediaError("espeak-ng wrote no sound") from error
