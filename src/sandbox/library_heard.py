"""Make library_heard.json: the evaluation's titles spoken by espeak-ng and heard by pocketsphinx's general model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from pocketsphinx import Decoder  # type: ignore[attr-defined]

from agent.greeting.espeak import synthesise
from sandbox.hearing import RATE, Samples, resample
from sandbox.library_evaluation import catalogue, spoken

# Words a minute and pitch of the speakers, in turn. They and the noise were chosen so that the recogniser makes fewest
# mistakes with sentences of the development split.
_VOICES = ((130, 45), (140, 45), (130, 40))
_ROOM_NOISE = 80.0  # RMS; the recogniser's features break on digital silence


def hear(decoder: Decoder, samples: Samples, rate: int) -> str:
    """What the general model makes of one utterance."""
    speech = np.pad(resample(samples, rate, RATE).astype(np.float64), RATE // 4)
    room = speech + np.random.default_rng(samples.size).normal(0.0, _ROOM_NOISE, speech.size)
    decoder.start_utt()
    decoder.process_raw(np.clip(room, -32768, 32767).astype(np.int16).tobytes(), full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return str(hypothesis.hypstr).strip() if hypothesis else ""


def main() -> None:
    """Write the transcripts; a few minutes on one core."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("library_heard.json"))
    arguments = parser.parse_args()
    decoder = Decoder(loglevel="FATAL")
    utterances: list[dict[str, str]] = []
    for title in catalogue():
        for said in spoken(title):
            speed, pitch = _VOICES[len(utterances) % len(_VOICES)]
            samples, rate = synthesise(said, words_per_minute=speed, pitch=pitch)
            heard = hear(decoder, samples, rate)
            utterances.append({"kind": title.kind, "title": title.title, "said": said, "heard": heard})
            print(f"{said!r} -> {heard!r}", flush=True)
    made = {"made_by": "python -m sandbox.library_heard", "recogniser": "pocketsphinx 5.1.1, general model"}
    lines = ",\n".join("  " + json.dumps(item, ensure_ascii=False) for item in utterances)
    head = json.dumps(made)[1:-1]
    arguments.out.write_text("{" + head + ', "utterances": [\n' + lines + "\n]}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
