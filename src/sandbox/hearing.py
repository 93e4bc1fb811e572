"""Speech recognition without a network: pocketsphinx with a grammar of the sentences a test or demo may say."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import subprocess
import sys
import wave
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

RATE = 16_000
QUIET_RMS = 60.0
PADDINGS = (0.2, 0.35, 0.1)
NOISE_FLOOR = 10.0

Samples = npt.NDArray[np.int16]


class Hearing:
    """Recognises one of `sentences` (English words of the bundled dictionary, whole sentences) in speech.

    The decoder is a process of its own: it holds the interpreter's lock while it works. `start` before use, `close`
    after; both and `recognise` belong to one event loop.
    """

    def __init__(self, sentences: Sequence[str]) -> None:
        if not sentences:
            raise ValueError("a grammar needs at least one sentence")
        self._known = {normalise(s): s for s in sentences}
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """Load the decoder. Raises ValueError naming words that its dictionary does not know."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sandbox.hearing", stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=1 << 20
        )
        unknown = await self._ask(json.dumps(self._known).encode())
        if unknown:
            await self.close()
            raise ValueError(f"words unknown to the recogniser: {unknown}")

    async def recognise(self, samples: Samples, rate: int) -> str:
        """The sentence heard in mono 16-bit samples; empty for silence or when nothing fits."""
        if not loud(samples):
            return ""
        return await self._ask(base64.b64encode(resample(samples, rate, RATE).tobytes()))

    async def _ask(self, line: bytes) -> str:
        # Shielded: an answer that nobody waits for any more must not be taken for the next one.
        return await asyncio.shield(asyncio.ensure_future(self._exchange(line)))

    async def _exchange(self, line: bytes) -> str:
        async with self._turn:
            process = self._process
            if process is None or process.stdin is None or process.stdout is None:
                raise RuntimeError("the recogniser is not running")
            process.stdin.write(line + b"\n")
            await process.stdin.drain()
            answer = await process.stdout.readline()
            if not answer:
                raise RuntimeError("the recogniser has ended")
            return str(json.loads(answer))

    async def close(self) -> None:
        """End the process."""
        async with self._turn:
            process, self._process = self._process, None
            if process is not None and process.stdin is not None:
                process.stdin.close()
                await process.wait()


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


def _unknown_words(decoder: Any, sentences: Iterable[str]) -> list[str]:
    words = sorted({word for sentence in sentences for word in sentence.split()})
    return [word for word in words if not decoder.lookup_word(word)]


def _decode(decoder: Any, sentences: dict[str, str], samples: bytes) -> str:
    best = ""
    speech = np.frombuffer(samples, dtype=np.int16).astype(np.float64)
    # Digital silence breaks the decoder's features: a quiet room is around every sentence.
    noise = np.random.default_rng(1)
    for padding in PADDINGS:
        room = np.pad(speech, int(RATE * padding))
        room += noise.normal(0.0, NOISE_FLOOR, room.size)
        decoder.start_utt()
        heard = np.clip(room, -32768, 32767).astype(np.int16).tobytes()
        decoder.process_raw(heard, no_search=False, full_utt=True)
        decoder.end_utt()
        hypothesis = decoder.hyp()
        text = hypothesis.hypstr if hypothesis else ""
        if text in sentences:
            return sentences[text]
        best = max(best, text, key=len)
    return best


def main() -> None:
    """The recogniser's process: the sentences as one line of JSON, then a sound in base64 a line, each answered."""
    from pocketsphinx import Decoder  # type: ignore[attr-defined]

    lines = sys.stdin.buffer
    sentences: dict[str, str] = json.loads(lines.readline())
    # Without its second pass the last word of a sentence is far less often lost.
    decoder = Decoder(lm=None, samprate=RATE, loglevel="FATAL", bestpath=False)
    unknown = _unknown_words(decoder, sentences)
    if not unknown:
        decoder.add_jsgf_string("said", f"#JSGF V1.0;\ngrammar g;\npublic <s> = {' | '.join(sentences)} ;\n")
        decoder.activate_search("said")
    print(json.dumps(", ".join(unknown)), flush=True)
    for line in lines:
        print(json.dumps(_decode(decoder, sentences, base64.b64decode(line))), flush=True)


if __name__ == "__main__":
    main()
