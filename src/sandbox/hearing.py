"""Speech recognition without a network: pocketsphinx with a grammar of the sentences a test or demo may say."""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import re
import wave
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

RATE = 16_000
QUIET_RMS = 60.0
PADDINGS = (0.2, 0.35, 0.1)
NOISE_FLOOR = 10.0

Samples = npt.NDArray[np.int16]

_decoder: Any = None
_sentences: dict[str, str] = {}


class Hearing:
    """Recognises one of `sentences` (English words of the bundled dictionary, whole sentences) in speech.

    The decoder lives in a process of its own: it holds the interpreter's lock while it works. Use as an async context
    manager or call `close`. Raises ValueError from `start` naming words the dictionary does not know.
    """

    def __init__(self, sentences: Sequence[str]) -> None:
        if not sentences:
            raise ValueError("a grammar needs at least one sentence")
        self._known = {normalise(s): s for s in sentences}
        self._pool = ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_load, initargs=(self._known,)
        )

    async def start(self) -> None:
        """Load the decoder, so that the first sentence takes no longer than the others."""
        unknown = await asyncio.get_running_loop().run_in_executor(self._pool, _unknown_words)
        if unknown:
            raise ValueError(f"words unknown to the recogniser: {', '.join(unknown)}")

    async def recognise(self, samples: Samples, rate: int) -> str:
        """The sentence heard in mono 16-bit samples; empty for silence or when nothing fits."""
        if not loud(samples):
            return ""
        at_16k = resample(samples, rate, RATE).tobytes()
        return await asyncio.get_running_loop().run_in_executor(self._pool, _decode, at_16k)

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def normalise(text: str) -> str:
    """Lower case, letters and apostrophes only, single spaces: how the dictionary spells."""
    return " ".join(re.findall(r"[a-z']+", text.lower()))


def loud(samples: Samples) -> bool:
    """Whether the samples carry more than a quiet room's noise."""
    return bool(samples.size) and float(np.sqrt(np.mean(samples.astype(np.float64) ** 2))) > QUIET_RMS


def resample(samples: Samples, source: int, target: int) -> Samples:
    """Change the sample rate through the spectrum: for a whole utterance, without aliasing."""
    if source == target or not samples.size:
        return samples
    length = round(samples.size * target / source)
    spectrum = np.fft.rfft(samples.astype(np.float64))
    wanted = np.zeros(length // 2 + 1, dtype=complex)
    keep = min(spectrum.size, wanted.size)
    wanted[:keep] = spectrum[:keep]
    changed = np.fft.irfft(wanted, length) * (length / samples.size)
    return np.clip(changed, -32768, 32767).astype(np.int16)


def read_wav(data: bytes) -> tuple[Samples, int]:
    """Mono 16-bit samples and their rate from WAV bytes. Raises ValueError when it is not such a file."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            if file.getsampwidth() != 2:
                raise ValueError("16-bit samples are needed")
            samples = np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16)
            if file.getnchannels() > 1:
                samples = samples.reshape(-1, file.getnchannels()).mean(axis=1).astype(np.int16)
            return samples, file.getframerate()
    except (wave.Error, EOFError) as error:
        raise ValueError(f"not a WAV file: {error}") from None


def _load(sentences: dict[str, str]) -> None:
    from pocketsphinx import Decoder  # type: ignore[attr-defined]

    global _decoder
    _sentences.update(sentences)
    # Without its second pass the last word of a sentence is far less often lost.
    _decoder = Decoder(lm=None, samprate=RATE, loglevel="FATAL", bestpath=False)
    if not _unknown_words():
        _decoder.add_jsgf_string("said", f"#JSGF V1.0;\ngrammar g;\npublic <s> = {' | '.join(sentences)} ;\n")
        _decoder.activate_search("said")


def _unknown_words() -> list[str]:
    words = sorted({word for sentence in _sentences for word in sentence.split()})
    return [word for word in words if not _decoder.lookup_word(word)]


def _decode(samples: bytes) -> str:
    best = ""
    speech = np.frombuffer(samples, dtype=np.int16).astype(np.float64)
    noise = np.random.default_rng(
        1
    )  # digital silence breaks the decoder's features: a quiet room is around every sentence
    for padding in PADDINGS:
        room = np.pad(speech, int(RATE * padding))
        room += noise.normal(0.0, NOISE_FLOOR, room.size)
        _decoder.start_utt()
        heard = np.clip(room, -32768, 32767).astype(np.int16).tobytes()
        _decoder.process_raw(heard, no_search=False, full_utt=True)
        _decoder.end_utt()
        hypothesis = _decoder.hyp()
        text = hypothesis.hypstr if hypothesis else ""
        if text in _sentences:
            return _sentences[text]
        best = max(best, text, key=len)
    return best
