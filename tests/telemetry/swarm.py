"""Many short-lived processes that measure and die: `python swarm.py COUNT SEED`. Prints what they measured as JSON.

Each is forked, begins a visit, counts some things, and either ends it or kills itself with SIGKILL after one of them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections import Counter

from agent.telemetry.meter import meter


def visit(number: int, plan: int | None, rng: random.Random) -> None:
    """One process: records, one after the other; after the `plan`th it is killed."""
    job = f"job-{number}"
    records = [
        lambda: meter.send(["v", job]),
        lambda: meter.count("toy_service_cache", service="vad", result="hit"),
        lambda: meter.send(["g", "toy_greeting_seconds", job, {"language": "en", "source": "recorded"}, 0.25]),
        lambda: meter.observe("toy_turn_seconds", 0.5),
        lambda: meter.count("toy_api_calls", call="prompt", result="ok", source="live"),
        lambda: meter.send(["e", job]),
    ]
    for step, send in enumerate(records):
        send()
        if step == plan:
            os.kill(os.getpid(), signal.SIGKILL)
    if meter.unsent:
        meter.drain(10)


def main(count: int, seed: int) -> None:
    rng = random.Random(seed)
    counted: Counter[str] = Counter()
    running = 0
    names = ["started", "cache", "greeting", "turn", "api", "ended"]
    for number in range(count):
        plan = rng.choice([None, None, 0, 1, 2, 3, 4])
        counted.update(names if plan is None else names[: plan + 1])
        counted["lost"] += plan is not None
        if os.fork() == 0:
            try:
                visit(number, plan, rng)
            finally:
                os._exit(0)
        running += 1
        if running >= 20:
            os.wait()
            running -= 1
    while running:
        os.wait()
        running -= 1
    sys.stdout.write(json.dumps(counted))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
