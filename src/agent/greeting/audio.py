"""Recordings as the speaker wants them: 24 kHz mono 16-bit, of even loudness, beginning at once."""

from __future__ import annotations

import io
import os
import tempfile
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from agent.errors import MediaError

Pcm = npt.NDArray[np.int16]

SAMPLE_RATE: Final = 24_000
"""Hz. What the bank holds and the speaker plays."""
MAX_SECONDS: Final = 10.0
"""Longer recordings are refused: a child waits for nothing longer."""
MAX_LEAD_SECONDS: Final = 0.010
"""Silence left at most before the first sound."""
TARGET_DBFS: Final = -20.0
"""Loudness of the voiced parts (RMS) that every recording is brought to."""
PEAK_DBFS: Final = -1.0
"""No sample is made louder than this."""

_MAX_FILE_BYTES: Final = 32 * 1024 * 1024
_TOLERANCE_DB: Final = 0.5
_KEPT_LEAD_SECONDS: Final = 0.008
_ONSET: Final = 0.01  # of the peak: 40 dB below it
_SILENT_PEAK: Final = 104  # -50 dBFS
_FRAME: Final = SAMPLE_RATE // 50


def load(path: Path) -> Pcm:
    """Read a recording. Raises MediaError with the reason (never the path).

    A WAV that is 24 kHz mono 16-bit, at the target loudness and without silence before it comes back sample
    for sample; anything else is decoded, resampled, trimmed and brought to the target.
    The result is read-only, between one sample and MAX_SECONDS long, and not silent.
    """
    if not path.is_file():
        raise MediaError("there is no such file" if not path.exists() else "is not a regular file")
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise MediaError(f"is larger than {_MAX_FILE_BYTES // 2**20} MB")
        data = path.read_bytes()
    except OSError as error:
        raise MediaError(f"cannot be read ({error.strerror})") from error
    return prepare(decode(data))


def decode(data: bytes) -> Pcm:
    """Any sound file's bytes as 24 kHz mono samples. Raises MediaError where it is none, or longer than MAX_SECONDS."""
    pcm = _plain_wave(data)
    return _decode_any(data) if pcm is None else pcm


def prepare(pcm: Pcm) -> Pcm:
    """Even out the loudness and trim the silence before the first sound; the same array where nothing is to be done.

    So a recording that went through it once comes back sample for sample. Raises MediaError for silence.
    """
    peak = int(np.abs(pcm.astype(np.int32)).max()) if pcm.size else 0
    if peak < _SILENT_PEAK:
        raise MediaError("is silent")
    gain = min(10 ** (TARGET_DBFS / 20) * 32768 / _voiced_rms(pcm), 10 ** (PEAK_DBFS / 20) * 32768 / peak)
    if abs(20 * np.log10(gain)) > _TOLERANCE_DB:
        pcm = np.round(pcm * gain).clip(-32768, 32767).astype(np.int16)
        peak = int(np.abs(pcm.astype(np.int32)).max())
    onset = int(np.argmax(np.abs(pcm.astype(np.int32)) >= peak * _ONSET))
    if onset > MAX_LEAD_SECONDS * SAMPLE_RATE:
        pcm = pcm[onset - int(_KEPT_LEAD_SECONDS * SAMPLE_RATE) :]
    pcm.flags.writeable = False
    return pcm


def resample(pcm: Pcm, rate: int) -> Pcm:
    """Mono samples of another rate at 24 kHz."""
    if rate == SAMPLE_RATE:
        return pcm
    return decode(to_wave(pcm, rate))


def to_wave(pcm: Pcm, rate: int = SAMPLE_RATE) -> bytes:
    """A 16-bit mono WAV file's bytes."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.astype("<i2", copy=False).tobytes())
    return buffer.getvalue()


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file in one step: a reader sees the old one or the new one, also after a kill."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:  # whatever happened, no half-written file stays behind
        Path(temporary).unlink(missing_ok=True)
        raise


def _voiced_rms(pcm: Pcm) -> float:
    """RMS of the 20 ms frames that are within 25 dB of the loudest one: pauses do not count."""
    whole = pcm[: max(len(pcm) // _FRAME, 1) * _FRAME].astype(np.float32)
    power = np.square(whole.reshape(-1, min(_FRAME, len(whole)))).mean(axis=1)
    return float(np.sqrt(power[power >= power.max() * 10**-2.5].mean()))


def _plain_wave(data: bytes) -> Pcm | None:
    """The samples of a WAV that needs no conversion; None for everything else."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, SAMPLE_RATE):
                return None
            frames = file.getnframes()
            samples = file.readframes(min(frames, int(MAX_SECONDS * SAMPLE_RATE) + 1))
    except (wave.Error, EOFError):
        return None
    if len(samples) // 2 < min(frames, int(MAX_SECONDS * SAMPLE_RATE) + 1):
        if frames >= 0x7FFF0000 // 2:  # written by a program that could not know the length
            return None
        raise MediaError("is cut short")
    _check_length(len(samples) // 2)
    return np.frombuffer(samples, dtype="<i2").astype(np.int16, copy=False)


def _decode_any(data: bytes) -> Pcm:
    import av  # 100 ms of import that files already right do not need

    try:
        with av.open(io.BytesIO(data), mode="r", metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise MediaError("holds no sound")
            resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
            parts: list[Pcm] = []
            total = 0
            for part in _frames(container.decode(container.streams.audio[0]), resampler):
                parts.append(part)
                total += len(part)
                _check_length(total)
    except MediaError:
        raise
    except (av.FFmpegError, ValueError, OSError) as error:
        raise MediaError(f"cannot be decoded ({_short(error)})") from error
    if not parts:
        raise MediaError("holds no sound")
    return np.concatenate(parts)


def _frames(decoded: Iterator[object], resampler: object) -> Iterator[Pcm]:
    import av

    assert isinstance(resampler, av.AudioResampler)
    for frame in decoded:
        assert isinstance(frame, av.AudioFrame)
        frame.pts = None  # damaged time stamps must not become silence
        for out in resampler.resample(frame):
            yield out.to_ndarray().reshape(-1).astype(np.int16, copy=False)
    for out in resampler.resample(None):
        yield out.to_ndarray().reshape(-1).astype(np.int16, copy=False)


def _check_length(samples: int) -> None:
    if samples > MAX_SECONDS * SAMPLE_RATE:
        raise MediaError(f"is longer than {MAX_SECONDS:.0f} s")
    if samples == 0:
        raise MediaError("holds no sound")


def _short(error: Exception) -> str:
    text = getattr(error, "strerror", None) or type(error).__name__
    return str(text)[:80]
