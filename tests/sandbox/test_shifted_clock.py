"""A process whose wall clock is set while it runs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from sandbox.fault_house import SHIFTED_CLOCK
from sandbox.processes import plain_environment

PROGRAM = """
import json, sys, time
from datetime import datetime
from time import time as imported
for line in sys.stdin:
    wait_until = time.monotonic() + 0.1
    while time.monotonic() < wait_until:
        pass
    print(json.dumps([time.time(), imported(), time.time_ns() / 1e9, time.monotonic()]), flush=True)
"""


def test_the_clock_jumps_and_nothing_else_does(tmp_path: Path) -> None:
    file = tmp_path / "clock"
    env = plain_environment({"PYTHONPATH": str(SHIFTED_CLOCK), "SHIFTED_CLOCK": str(file)})
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for written, expected in (("", 0), ("+3600\n", 3600), ("-3600\n", -3600), ("nonsense", -3600), ("0", 0)):
            file.write_text(written)
            process.stdin.write("\n")
            process.stdin.flush()
            *walls, monotonic = json.loads(process.stdout.readline())
            for wall in walls:
                assert abs(wall - expected - time.time()) < 60
            assert abs(monotonic - time.monotonic()) < 60
        process.stdin.close()
        assert process.wait(30) == 0
