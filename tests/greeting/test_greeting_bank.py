"""Loading the bank: the shipped files, files of other forms, and everything that can be wrong with a folder."""

from __future__ import annotations

import io
import json
import os
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from agent.greeting import audio
from agent.greeting.audio import SAMPLE_RATE, Pcm
from agent.greeting.bank import GreetingBank

SHIPPED = Path(__file__).parents[2] / "greetings"


def tone(seconds: float = 1.0, *, rate: int = SAMPLE_RATE, level: float = 0.14, lead: float = 0.0) -> Pcm:
    """A 440 Hz tone at the bank's target loudness (-20 dBFS RMS) unless told otherwise."""
    time = np.arange(int(seconds * rate)) / rate
    sound = np.round(np.sin(2 * np.pi * 440 * time) * level * 32768).astype(np.int16)
    return np.concatenate([np.zeros(int(lead * rate), np.int16), sound])


def wav(pcm: Any, *, rate: int = SAMPLE_RATE, channels: int = 1, width: int = 2) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(pcm.tobytes())
    return buffer.getvalue()


def encoded(pcm: Pcm, container: str, codec: str, rate: int) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        resampler = av.AudioResampler(format=stream.format.name, layout="mono", rate=rate, frame_size=stream.frame_size)
        frame = av.AudioFrame.from_ndarray(pcm.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        frame.pts, frame.time_base = 0, Fraction(1, SAMPLE_RATE)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return buffer.getvalue()


def entry(file: str, **fields: Any) -> dict[str, Any]:
    return {"file": file, "language": "en", "text": "Hello!", "style": "default", "maker": "espeak-ng", **fields}


def write(folder: Path, *entries: Any, manifest: bytes | None = None) -> GreetingBank:
    text = manifest if manifest is not None else json.dumps({"recordings": entries}).encode()
    (folder / "manifest.json").write_bytes(text)
    return GreetingBank.load(folder)


def dominant_hertz(pcm: Pcm) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(pcm)))) * SAMPLE_RATE / len(pcm)


def problems(bank: GreetingBank) -> dict[str, str]:
    return {problem.file: problem.reason for problem in bank.problems}


def test_the_shipped_bank_is_whole_and_loads_sample_for_sample() -> None:
    bank = GreetingBank.load(SHIPPED)
    assert bank.problems == ()
    ids = {greeting.id for greeting in bank.greetings}
    assert {"en_default", "en_child_friendly", "zh_default", "hi_default", "fallback"} <= ids
    assert {f"{language}_returning" for language in ("en", "zh", "hi")} <= ids
    for item in bank.recordings:
        with wave.open(str(SHIPPED / f"{item.id}.wav")) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
            raw = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        assert np.array_equal(raw, item.pcm), item.id
        loud = np.abs(item.pcm.astype(np.int32))
        assert int(np.argmax(loud >= loud.max() * 0.01)) <= 0.010 * SAMPLE_RATE, item.id
        assert item.text
        assert item.maker == "espeak-ng"
        assert item.duration <= 10
        assert not item.pcm.flags.writeable


def test_every_sentence_and_digit_is_spoken_in_every_language() -> None:
    bank = GreetingBank.load(SHIPPED)
    for language in ("en", "zh", "hi"):
        purposes = ["provider_down", "im_back", "goodbye", "bind_first", "not_found"]
        for purpose in [*purposes, *(f"digit_{digit}" for digit in range(10))]:
            spoken = bank.sentence(purpose, [language])
            assert spoken is not None
            assert (spoken.language, spoken.purpose) == (language, purpose)
    unknown = bank.sentence("goodbye", ["ta", None])
    assert unknown is not None
    assert unknown.language == "en"
    assert bank.sentence("no such sentence", ["en"]) is None


def test_a_bind_code_is_read_out_twice_in_one_language() -> None:
    bank = GreetingBank.load(SHIPPED)
    spoken = bank.bind_code("40 1".replace(" ", ""), ["hi-IN"])
    sentence = bank.sentence("bind_first", ["hi"])
    assert spoken is not None
    assert sentence is not None
    assert spoken.text == f"{sentence.text} 4 0 1"
    assert spoken.language == "hi"
    assert np.array_equal(spoken.pcm[: len(sentence.pcm)], sentence.pcm)
    digits = [bank.sentence(f"digit_{digit}", ["hi"]) for digit in (4, 0, 1)]
    heard = sum(len(digit.pcm) for digit in digits if digit is not None)
    gaps = len(spoken.pcm) - len(sentence.pcm) - 2 * heard
    assert gaps == 8 * 0.25 * SAMPLE_RATE
    assert not spoken.pcm.flags.writeable


@pytest.mark.parametrize("code", ["", "12a", "１２", "1" * 13, "-1", None])
def test_a_code_that_is_none_is_not_read_out(code: Any) -> None:
    assert GreetingBank.load(SHIPPED).bind_code(code, ["en"]) is None


def test_a_missing_digit_is_not_left_out_silently(tmp_path: Path) -> None:
    for name in ("bind", "one"):
        (tmp_path / f"{name}.wav").write_bytes(wav(tone(0.2)))
    bank = write(tmp_path, entry("bind.wav", purpose="bind_first"), entry("one.wav", purpose="digit_1"))
    assert bank.bind_code("11") is not None
    assert bank.bind_code("12") is None


def test_a_file_already_right_is_not_touched(tmp_path: Path) -> None:
    pcm = tone()
    (tmp_path / "a.wav").write_bytes(wav(pcm))
    (loaded,) = write(tmp_path, entry("a.wav")).greetings
    assert np.array_equal(loaded.pcm, pcm)
    assert (loaded.id, loaded.text, loaded.duration, loaded.sample_rate) == ("a", "Hello!", 1.0, 24_000)


@pytest.mark.parametrize("level", [0.004, 0.03, 0.5, 0.99])
def test_loudness_is_evened_out(tmp_path: Path, level: float) -> None:
    (tmp_path / "a.wav").write_bytes(wav(tone(level=level)))
    (loaded,) = write(tmp_path, entry("a.wav")).greetings
    rms = float(np.sqrt(np.mean(np.square(loaded.pcm.astype(float))))) / 32768
    assert 20 * np.log10(rms) == pytest.approx(-20, abs=0.5)
    assert audio.prepare(loaded.pcm) is loaded.pcm


def test_peaks_are_never_made_to_clip(tmp_path: Path) -> None:
    pcm = tone(level=0.01)
    pcm[5000] = 20_000
    (tmp_path / "a.wav").write_bytes(wav(pcm))
    (loaded,) = write(tmp_path, entry("a.wav")).greetings
    assert np.abs(loaded.pcm.astype(int)).max() <= round(32768 * 10 ** (-1 / 20))


def test_silence_before_the_first_sound_is_cut(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(tone(lead=0.7)))
    (loaded,) = write(tmp_path, entry("a.wav")).greetings
    assert 0.95 < loaded.duration <= 1.01


def as_stereo_44100() -> bytes:
    left = tone(rate=44_100)
    return wav(np.stack([left, left], axis=1), rate=44_100, channels=2)


def as_8_bit() -> bytes:
    return wav((tone(level=0.5) // 256 + 128).astype(np.uint8), width=1)


def as_float() -> bytes:
    return encoded(tone(), "wav", "pcm_f32le", 48_000)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.wav", as_stereo_44100()),
        ("a.wav", as_8_bit()),
        ("a.wav", as_float()),
        ("a.wav", wav(tone(rate=8000), rate=8000)),
        ("a.mp3", encoded(tone(), "mp3", "libmp3lame", 44_100)),
        ("a.ogg", encoded(tone(), "ogg", "libopus", 48_000)),
        ("a.flac", encoded(tone(), "flac", "flac", 48_000)),
        ("a.m4a", encoded(tone(), "ipod", "aac", 44_100)),
    ],
    ids=["44.1 kHz stereo", "8 bit", "float", "8 kHz", "mp3", "opus", "flac", "m4a"],
)
def test_other_forms_are_converted(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    bank = write(tmp_path, entry(name))
    assert bank.problems == ()
    (loaded,) = bank.greetings
    assert loaded.pcm.dtype == np.int16
    assert loaded.duration == pytest.approx(1.0, abs=0.08)
    assert dominant_hertz(loaded.pcm) == pytest.approx(440, abs=3)


def test_a_stream_that_did_not_know_its_length_is_read(tmp_path: Path) -> None:
    data = bytearray(wav(tone()))
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(bytes(data))
    (loaded,) = write(tmp_path, entry("a.wav")).greetings
    assert loaded.duration == pytest.approx(1.0, abs=0.01)


WHOLE = wav(tone())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "there is no such file"),
        (b"", "cannot be decoded"),
        (b"not a sound at all " * 99, "cannot be decoded"),
        (np.random.default_rng(7).bytes(5000), "cannot be decoded"),
        (WHOLE[: len(WHOLE) // 2], "is cut short"),
        (WHOLE[:44], "is cut short"),
        (wav(np.zeros(0, np.int16)), "holds no sound"),
        (wav(np.zeros(24_000, np.int16)), "is silent"),
        (wav(tone(10.01)), "is longer than 10 s"),
        (wav(tone(11, rate=8000), rate=8000), "is longer than 10 s"),
        (encoded(tone(30), "mp3", "libmp3lame", 44_100), "is longer than 10 s"),
    ],
    ids=[
        *("missing", "empty", "text", "noise", "half", "header only", "no samples", "silent", "long", "long 8 kHz"),
        "long mp3",
    ],
)
def test_what_cannot_be_used_is_refused_by_name_and_the_rest_loads(
    tmp_path: Path, data: bytes | None, reason: str
) -> None:
    if data is not None:
        (tmp_path / "bad.wav").write_bytes(data)
    (tmp_path / "good.wav").write_bytes(WHOLE)
    bank = write(tmp_path, entry("bad.wav"), entry("good.wav"))
    assert [greeting.id for greeting in bank.greetings] == ["good"]
    assert list(problems(bank)) == ["bad.wav"]
    assert reason in problems(bank)["bad.wav"]
    assert str(bank.problems[0]).startswith("bad.wav: ")


def test_exactly_ten_seconds_are_allowed(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(tone(10.0)))
    assert write(tmp_path, entry("a.wav")).problems == ()


def test_a_file_too_large_to_be_a_greeting_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.wav").open("wb") as file:
        file.truncate(64 * 2**20)
    assert "larger than" in problems(write(tmp_path, entry("a.wav")))["a.wav"]


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    (tmp_path / "folder.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    bank = write(tmp_path, entry("folder.wav"), entry("pipe.wav"))
    assert problems(bank)["folder.wav"] == problems(bank)["pipe.wav"] == "is not a regular file"


@pytest.mark.parametrize(
    "name",
    ["../secret.wav", "/etc/passwd", "a/../../secret.wav", "..\\secret.wav", "link.wav", "loop.wav", "a\0.wav", ".x"],
)
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.wav").write_bytes(WHOLE)
    folder = tmp_path / "bank"
    folder.mkdir()
    (folder / "good.wav").write_bytes(WHOLE)
    (folder / "link.wav").symlink_to(tmp_path / "secret.wav")
    (folder / "loop.wav").symlink_to(folder / "loop.wav")
    bank = write(folder, entry(name), entry("good.wav"))
    assert [greeting.id for greeting in bank.greetings] == ["good"]
    assert len(bank.problems) == 1


def test_a_file_in_a_folder_inside_is_fine(tmp_path: Path) -> None:
    (tmp_path / "hi").mkdir()
    (tmp_path / "hi" / "default.wav").write_bytes(WHOLE)
    (loaded,) = write(tmp_path, entry("hi/default.wav", language="Hindi")).greetings
    assert (loaded.id, loaded.language) == ("default", "hi")


@pytest.mark.parametrize(
    "bad",
    [
        None,
        7,
        "en_default.wav",
        {},
        {"file": "a.wav"},
        entry("a.wav", language="🧸"),
        entry("a.wav", language=5),
        entry("a.wav", style="../x"),
        entry("a.wav", text=["Hello"]),
        entry("x" * 300),
        entry(""),
    ],
)
def test_a_bad_entry_is_refused_and_the_rest_loads(tmp_path: Path, bad: Any) -> None:
    for name in ("a.wav", "good.wav"):
        (tmp_path / name).write_bytes(WHOLE)
    bank = write(tmp_path, bad, entry("good.wav"))
    assert [greeting.id for greeting in bank.greetings] == ["good"]
    assert len(bank.problems) == 1


def test_a_file_named_twice_is_loaded_once(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(WHOLE)
    bank = write(tmp_path, entry("a.wav"), entry("a.wav", language="hi"))
    assert [greeting.language for greeting in bank.greetings] == ["en"]
    assert problems(bank) == {"a.wav": "is named twice"}


@pytest.mark.parametrize(
    "manifest",
    [
        None,
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"recordings":{}}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"recordings":[' + b"{}," * 3000 + b"{}]}",
        b" " * (2**20 + 1),
    ],
    ids=["missing", "empty", "cut", "list", "no list", "no list in it", "no text", "deep", "many", "large"],
)
def test_without_a_usable_manifest_files_are_known_by_their_names(tmp_path: Path, manifest: bytes | None) -> None:
    for name in ("en_default", "hi_child_friendly", "fallback", "holiday", "en_digit_1"):
        (tmp_path / f"{name}.wav").write_bytes(WHOLE)
    (tmp_path / "en_default.txt").write_text("no sound")
    bank = GreetingBank.load(tmp_path) if manifest is None else write(tmp_path, manifest=manifest)
    assert {greeting.id for greeting in bank.greetings} == {"en_default", "hi_child_friendly", "fallback"}
    assert {greeting.text for greeting in bank.greetings} == {""}
    assert list(problems(bank)) == ["manifest.json"]


def test_an_empty_or_missing_folder_is_a_problem_and_no_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        bank = GreetingBank.load(folder)
        assert bank.recordings == ()
        assert bank.choose(["en"]) is None
        assert set(problems(bank)) == {"manifest.json", str(folder)}


def test_the_bank_does_not_print_its_samples() -> None:
    assert len(repr(GreetingBank.load(SHIPPED).greetings[0])) < 300
