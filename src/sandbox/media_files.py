"""Sound files of every format a catalogue holds, encoded from samples."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final, NamedTuple, cast

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream

Pcm = npt.NDArray[np.int16]


class _Recipe(NamedTuple):
    container: str
    codec: str
    rate: int
    options: dict[str, str]
    codec_options: dict[str, str]


_RECIPES: Final = {
    "mp3": _Recipe("mp3", "libmp3lame", 44100, {}, {}),
    "mp3-bare": _Recipe("mp3", "libmp3lame", 44100, {"id3v2_version": "0", "write_xing": "0"}, {}),
    "mp3-vbr": _Recipe("mp3", "libmp3lame", 44100, {}, {"qscale": "4"}),
    "m4a": _Recipe("ipod", "aac", 44100, {"movflags": "faststart"}, {}),
    "m4a-end": _Recipe("ipod", "aac", 44100, {}, {}),
    "opus": _Recipe("ogg", "libopus", 48000, {"page_duration": "200000"}, {}),
    "ogg": _Recipe("ogg", "vorbis", 44100, {}, {"strict": "experimental"}),
    "wav": _Recipe("wav", "pcm_s16le", 22050, {}, {}),
    "flac": _Recipe("flac", "flac", 44100, {}, {}),
}

FORMATS: Final = tuple(_RECIPES)


def encode(samples: Pcm, form: str, *, rate: int = 24_000, bit_rate: int = 128_000, stereo: bool = True) -> bytes:
    """`samples` (mono, at `rate` Hz) as a file of one of FORMATS; `m4a-end` has its index after the sound."""
    recipe = _RECIPES[form]
    layout = "stereo" if stereo else "mono"
    # A real file: to put the index first, ffmpeg opens its output a second time.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sound")
        _write(path, samples, recipe, layout, rate, bit_rate)
        return path.read_bytes()


def _write(path: Path, samples: Pcm, recipe: _Recipe, layout: str, rate: int, bit_rate: int) -> None:
    with av.open(str(path), "w", format=recipe.container, options=recipe.options) as container:
        stream = cast(AudioStream, container.add_stream(recipe.codec, rate=recipe.rate, layout=layout))
        stream.options = dict(recipe.codec_options)
        if "qscale" in recipe.codec_options:
            stream.codec_context.qscale = True
        else:
            stream.bit_rate = bit_rate
        resampler = av.AudioResampler(
            format=stream.codec_context.format, layout=layout, rate=recipe.rate, frame_size=stream.frame_size or None
        )
        for start in range(0, len(samples), 4800):
            block = np.ascontiguousarray(samples[start : start + 4800]).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
            frame.sample_rate, frame.pts = rate, start
            for ready in resampler.resample(frame):
                container.mux(stream.encode(ready))
        for ready in resampler.resample(None):
            container.mux(stream.encode(ready))
        container.mux(stream.encode(None))
