from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from agent.errors import MediaError
from sandbox.audio import align, read_wav, resample, speak, sweep, tone, write_wav

RATE = 24_000


def noisy(samples: np.ndarray, level: float = 300.0) -> np.ndarray:
    noise = np.random.default_rng(5).normal(0, level, samples.size)
    return np.clip(samples + noise, -32768, 32767).astype(np.int16)


def test_a_wav_comes_back_as_it_went(tmp_path: Path) -> None:
    samples = np.random.default_rng(1).integers(-32768, 32768, 5000).astype(np.int16)
    path = tmp_path / "deep" / "a.wav"
    write_wav(path, samples, 48_000)
    back, rate = read_wav(path)
    assert rate == 48_000
    assert np.array_equal(back, samples)
    assert [item.name for item in path.parent.iterdir()] == ["a.wav"]


def test_stereo_is_mixed(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.array([[100, 300], [-50, 50]], "<i2").tobytes())
    assert read_wav(path)[0].tolist() == [200, 0]


@pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF\x24\x00\x00\x00WAVEjunk" * 9])
def test_what_is_no_wav_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.wav"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.wav"):
        read_wav(path)


def test_eight_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(8000)
        file.writeframes(b"\x80" * 100)
    with pytest.raises(ValueError, match=r"old\.wav: 8 bits"):
        read_wav(path)


@pytest.mark.parametrize("target", [16_000, 48_000])
def test_resampling_keeps_length_and_pitch(target: int) -> None:
    changed = resample(tone(1.0, RATE, frequency=440), RATE, target)
    assert changed.size == target
    assert int(np.argmax(np.abs(np.fft.rfft(changed)))) == 440


@pytest.mark.parametrize("offset", [0, 1, 4321])
def test_a_recording_is_found_to_the_sample_in_noise_and_at_another_level(offset: int) -> None:
    reference = sweep(1.0, RATE)
    heard = np.concatenate([np.zeros(offset, np.int16), (reference * 0.3).astype(np.int16), np.zeros(900, np.int16)])
    found, correlation = align(noisy(heard, 50), reference)
    assert found == offset
    assert correlation > 0.98


def test_a_jitter_buffer_that_stretches_does_not_spoil_the_figure() -> None:
    reference = sweep(2.0, RATE)
    middle = RATE // 2
    heard = np.concatenate([reference[:middle], reference[middle - 480 : middle], reference[middle:]])
    assert align(heard, reference)[1] > 0.95


def test_a_lost_beginning_lowers_the_figure_by_its_share_and_is_seen_in_its_own_block() -> None:
    reference = sweep(1.0, RATE)
    lost = RATE // 5
    found, correlation = align(reference[lost:], reference)
    assert correlation == pytest.approx(0.8, abs=0.05)
    assert found == pytest.approx(-lost, abs=RATE * 60 // 1000)
    assert align(reference[lost:], reference[: RATE // 10])[1] < 0.6


def test_something_else_is_not_found() -> None:
    noise = np.random.default_rng(3).normal(0, 5000, RATE).astype(np.int16)
    assert align(noise, sweep(1.0, RATE))[1] < 0.3


def test_silence_and_nothing_give_zero() -> None:
    reference = sweep(0.2, RATE)
    silence, nothing = np.zeros(RATE, np.int16), np.zeros(0, np.int16)
    assert align(silence, reference) == (0, 0.0)
    assert align(nothing, reference) == (0, 0.0)
    assert align(reference, silence) == (0, 0.0)


def test_speech_is_as_long_as_its_sentence_and_has_the_rate_asked_for() -> None:
    short, long = (
        speak("Hello.", "en", 16_000),
        speak("Hello. Please tell me a story about a small bear.", "en", 16_000),
    )
    assert short.dtype == np.int16
    assert 16_000 * 0.2 < short.size < 16_000 * 2 < long.size
    assert np.abs(long.astype(int)).max() > 3000
    assert speak("Hello.", "en", 48_000).size == pytest.approx(short.size * 3, rel=0.01)


def test_a_language_without_a_voice_is_refused() -> None:
    with pytest.raises(MediaError, match=r"no voice|failed"):
        speak("Hello.", "xx-klingon")
