#!/usr/bin/env python3
"""Make the recorded greetings: `scripts/generate_greetings.py [--maker espeak-ng|edge-tts|openai|elevenlabs] …`."""

from __future__ import annotations

import sys

from agent.greeting.commands import run

if __name__ == "__main__":
    sys.exit(run(["make", *sys.argv[1:]]))
