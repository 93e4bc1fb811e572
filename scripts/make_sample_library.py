#!/usr/bin/env python3
"""Make sample/: public-domain songs as synthesised melodies and fables spoken by espeak-ng, as small Ogg/Opus files.

usage: scripts/make_sample_library.py [FOLDER]     (default: sample; written whole, what is up to date stays)
"""

from __future__ import annotations

import json
import sys
import tomllib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from agent.greeting.espeak import synthesise

RATE = 24_000
BIT_RATE = 20_000
SOURCE = Path(__file__).with_name("sample_library.toml")
_STEPS = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}


def melody(notes: str, beats_per_minute: int) -> NDArray[np.int16]:
    """Notes such as `c4:1 g4:2 -:1` (name, octave, beats; `-` rests) as a plucked tone, 24 kHz mono."""
    parts = [np.zeros(RATE // 20)]
    for note in notes.split():
        pitch, _, beats = note.partition(":")
        length = round(float(Fraction(beats or "1")) * 60 / beats_per_minute * RATE)
        time = np.arange(length) / RATE
        if pitch == "-":
            parts.append(np.zeros(length))
            continue
        name, octave = pitch[:-1], int(pitch[-1])
        semitone = _STEPS[name[0]] + name.count("#") - name[1:].count("b") + 12 * (octave - 4) - 9
        frequency = 440.0 * 2 ** (semitone / 12)
        tone = sum(np.sin(2 * np.pi * frequency * k * time) * np.exp(-time * (2 + k)) / k**1.5 for k in (1, 2, 3, 4))
        fade = np.minimum(1.0, np.minimum(time, time[::-1]) / 0.008)
        parts.append(tone * fade)
    sound = np.concatenate(parts)
    return np.asarray(sound / np.abs(sound).max() * 20_000, dtype=np.int16)


def speech(text: str, language: str) -> NDArray[np.int16]:
    """A story's sentences, spoken, with a pause between them; 24 kHz mono."""
    parts = []
    for sentence in text.split("\n"):
        if not sentence.strip():
            continue
        pcm, rate = synthesise(sentence.strip(), language, words_per_minute=145)
        points = np.arange(0, len(pcm), rate / RATE)
        parts += [np.interp(points, np.arange(len(pcm)), pcm), np.zeros(RATE // 2)]
    return np.asarray(np.concatenate(parts), dtype=np.int16)


def write_opus(path: Path, pcm: NDArray[np.int16]) -> None:
    """Write mono Ogg/Opus; a reader never sees half of it."""
    draft = path.with_suffix(".part.ogg")
    with av.open(str(draft), "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=RATE, layout="mono")
        stream.bit_rate = BIT_RATE
        for start in range(0, len(pcm), RATE):
            frame = av.AudioFrame.from_ndarray(pcm[start : start + RATE].reshape(1, -1), format="s16", layout="mono")
            frame.sample_rate = RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    draft.replace(path)


def main() -> int:
    """Make the whole tree; prints what it made."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "sample")
    entries = tomllib.loads(SOURCE.read_text())["title"]
    catalogues: dict[Path, dict[str, dict[str, object]]] = {}
    for entry in track(entries, "sample library"):
        kind = "music" if "notes" in entry else "stories"
        place = folder / kind / entry["section"]
        place.mkdir(parents=True, exist_ok=True)
        filename = entry["filename"]
        catalogues.setdefault(place, {})[entry["title"]] = {
            "romanized": entry.get("romanized", entry["title"]),
            "filename": filename,
            "alternatives": entry.get("alternatives", []),
            "keywords": entry.get("keywords", []),
        }
        path = place / filename
        if path.exists() and path.stat().st_mtime > SOURCE.stat().st_mtime:
            continue
        if kind == "music":
            write_opus(path, melody(" ".join([entry["notes"]] * entry.get("times", 1)), entry["tempo"]))
        else:
            write_opus(path, speech(entry["text"], entry["language"]))
    for place, catalogue in catalogues.items():
        (place / "metadata.json").write_text(json.dumps(catalogue, ensure_ascii=False, indent=1) + "\n")
    print(f"{len(entries)} titles in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
