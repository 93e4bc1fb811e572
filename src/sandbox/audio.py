"""Sound on disk and in arrays: WAV in and out, a voice without a key, and where one recording lies in another."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent.greeting.espeak import synthesise

Pcm = npt.NDArray[np.int16]
"""Mono int16 samples."""


def read_wav(source: Path | bytes) -> tuple[Pcm, int]:
    """Samples (channels mixed to one) and rate of a 16-bit WAV file or its bytes. Raises ValueError, OSError."""
    name = source.name if isinstance(source, Path) else "WAV"
    data = source.read_bytes() if isinstance(source, Path) else source
    try:
        with wave.open(io.BytesIO(data)) as file:
            if file.getsampwidth() != 2:
                raise ValueError(f"{name}: {8 * file.getsampwidth()} bits a sample; 16 are needed")
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
            channels, rate = file.getnchannels(), file.getframerate()
    except (wave.Error, EOFError, RuntimeError) as error:  # RuntimeError: a chunk that ends beyond the file
        raise ValueError(f"{name}: not a WAV file: {error}") from None
    if channels > 1:
        samples = samples.reshape(-1, channels).mean(axis=1)
    return samples.astype(np.int16), rate


def write_wav(path: Path, samples: Pcm, rate: int) -> None:
    """Write mono 16-bit; the folder is made, and a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with wave.open(str(part), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    part.replace(path)


def tone(seconds: float, rate: int, *, frequency: float = 440.0, amplitude: float = 0.5) -> Pcm:
    """A sine that begins at full amplitude."""
    times = np.arange(round(seconds * rate)) / rate
    return np.asarray(np.cos(2 * np.pi * frequency * times) * amplitude * 32767, np.int16)


def sweep(seconds: float, rate: int, *, low: float = 200.0, high: float = 3500.0, amplitude: float = 0.5) -> Pcm:
    """A sine that rises from `low` to `high` Hz: no moment of it is like another, so it aligns to the sample."""
    times = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (low * times + (high - low) * times**2 / (2 * seconds))
    return np.asarray(np.cos(phase) * amplitude * 32767, np.int16)


def resample(samples: Pcm, source: int, target: int) -> Pcm:
    """Change the rate by cutting or padding the spectrum: exact for what both rates can carry."""
    if source == target or not samples.size:
        return samples
    size = round(samples.size * target / source)
    spectrum = np.fft.rfft(samples.astype(np.float64))
    wanted = np.zeros(size // 2 + 1, np.complex128)
    shared = min(spectrum.size, wanted.size)
    wanted[:shared] = spectrum[:shared]
    return np.asarray(np.clip(np.fft.irfft(wanted, size) * (size / samples.size), -32768, 32767), np.int16)


def align(heard: Pcm, reference: Pcm, rate: int = 24_000) -> tuple[int, float]:
    """Where `reference` lies in `heard`: (offset in samples, how well it is found there, -1 to 1).

    The offset is where the reference's first sample falls, negative where its beginning is missing. The second figure
    is the correlation of `blocks`, weighted by their energy: what is missing lowers it by its share, while level and
    the jitter buffer's stretching of some milliseconds do not. Both have the rate `rate`. Silence gives (0, 0.0).
    """
    if not heard.size or not reference.size or not heard.any() or not reference.any():
        return 0, 0.0
    found = blocks(heard, reference, rate)
    weights = [energy for _, _, energy in found]
    return found[0][0], float(np.average([correlation for _, correlation, _ in found], weights=weights))


def blocks(heard: Pcm, reference: Pcm, rate: int = 24_000) -> list[tuple[int, float, float]]:
    """The reference in blocks of 100 ms, each looked for within 60 ms of where its neighbour was found.

    Neighbours are followed from the block that is found best where the whole lies, forwards and backwards: a busy
    machine's jitter buffer moves the ends of a sentence by more than that, little by little.

    One (offset of the reference's first sample as this block shows it, normalised correlation, energy) a block that
    is not silent; correlation 0 where the place lies outside what was heard. Both must hold sound.
    """
    coarse = _peak(heard, reference)
    reach, size = rate * 60 // 1000, rate // 10
    parts = [(start, reference[start : start + size].astype(np.float64)) for start in range(0, reference.size, size)]
    parts = [(start, block) for start, block in parts if block.any()]

    def look(start: int, block: npt.NDArray[np.float64], near: int) -> tuple[int, float]:
        lag, correlation = _best(_window(heard, near + start - reach, block.size + 2 * reach), block)
        return near + lag - reach, correlation

    def weight(place: int) -> float:
        return look(*parts[place], coarse)[1] * float(np.linalg.norm(parts[place][1]))

    anchor = max(range(len(parts)), key=weight)
    result: dict[int, tuple[int, float, float]] = {}
    for way in (range(anchor, len(parts)), range(anchor, -1, -1)):
        offset = result[anchor][0] if anchor in result else coarse
        for place in way:
            start, block = parts[place]
            found, correlation = look(start, block, offset)
            if correlation > 0.5:
                offset = found
            result[place] = (offset, correlation, float(block @ block))
    return [result[place] for place in range(len(parts))]


def _peak(heard: Pcm, reference: Pcm) -> int:
    long, short = heard.astype(np.float64), reference.astype(np.float64)
    size = 1 << int(np.ceil(np.log2(long.size + short.size)))
    product = np.fft.irfft(np.fft.rfft(long, size) * np.conj(np.fft.rfft(short, size)), size)
    # The transform wraps negative lags to the end.
    lags = np.concatenate([np.arange(long.size), np.arange(-short.size + 1, 0)])
    return int(lags[int(np.argmax(product[lags]))])


def _window(samples: Pcm, start: int, size: int) -> npt.NDArray[np.float64]:
    window = np.zeros(size)
    first, last = max(start, 0), min(start + size, samples.size)
    if first < last:
        window[first - start : last - start] = samples[first:last]
    return window


def _best(window: npt.NDArray[np.float64], block: npt.NDArray[np.float64]) -> tuple[int, float]:
    products = np.correlate(window, block, "valid")
    sums = np.concatenate([[0.0], np.cumsum(window**2)])
    energies = sums[block.size :] - sums[: -block.size]
    norms = np.sqrt(np.maximum(energies, 1.0) * float(block @ block))
    lag = int(np.argmax(products / norms))
    return lag, float(products[lag] / norms[lag])


def speak(text: str, language: str = "en", rate: int = 16_000) -> Pcm:
    """A sentence spoken by espeak-ng, at `rate`. Blocks for some 20 ms; safe from any thread.

    Raises agent.errors.MediaError where espeak-ng is not there or does not know the language.
    """
    samples, made_at = synthesise(text, language)
    return resample(samples, made_at, rate)
