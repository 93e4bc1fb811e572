"""The marks by which a visit's death is known, on a disk that refuses them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from agent.serving import Served, ServingMark, take_dead
from agent.settings import Settings
from sandbox.processes import plain_environment

# Nothing may be written any more, as on a full disk.
PROGRAM = """
import os, resource, signal, sys
from pathlib import Path
from agent.serving import Served, ServingMark
from agent.settings import Settings
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
mark = ServingMark(Settings(_env_file=None, state_dir=Path(sys.argv[1])))
files = len(os.listdir("/proc/self/fd"))
try:
    mark.set(Served("room", "agent"))
except OSError as error:
    mark.clear()
    sys.exit(0 if len(os.listdir("/proc/self/fd")) == files else 3)
sys.exit(2)
"""


def test_a_mark_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], env=plain_environment(), timeout=60, check=False
    )
    assert done.returncode == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_visit_that_died_is_told_once(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, state_dir=tmp_path)  # type: ignore[call-arg]
    mark = ServingMark(settings)
    mark.set(Served("room", "agent"))
    assert take_dead(settings) == [], "it lives"
    mark.clear()
    assert take_dead(settings) == [], "it has ended in order"
    program = PROGRAM.replace("(0, 0)", "(10**6, 10**6)")
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=plain_environment(), timeout=60, check=False)
    marks = tmp_path / "run" / "visits"
    for number, content in enumerate(("7", "no JSON", '["one"]', '{"a": 1}')):
        (marks / f"{number}.json").write_text(content)
    (marks / "folder.json").mkdir()  # nothing that could be opened for writing
    assert take_dead(settings) == [Served("room", "agent")]
    assert take_dead(settings) == []
    assert [path.name for path in marks.iterdir()] == ["folder.json"]
