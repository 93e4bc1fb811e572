"""Libraries that would tell their makers of their use do not."""

from __future__ import annotations

import subprocess
import sys

_LOADED = """
import os
import agent.conversation.turn_taking, agent.library.embedding
import onnxruntime
print(len(os.listdir("/proc/self/task")))
print(*(os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if number.isdigit()
        and os.path.exists(f"/proc/self/fd/{number}")), sep="\\n")
"""


def test_onnxruntime_neither_starts_a_thread_nor_opens_a_file_to_tell_of_its_use() -> None:
    told = subprocess.run([sys.executable, "-c", _LOADED], capture_output=True, text=True, timeout=120, check=True)
    threads, *files = told.stdout.splitlines()
    assert not [file for file in files if "onnxruntime" in file]
    quiet = subprocess.run(
        [sys.executable, "-c", "import numpy, os; print(len(os.listdir('/proc/self/task')))"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert int(threads) == int(quiet.stdout)
