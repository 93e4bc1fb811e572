"""What the documentation says of the settings is what they are."""

from __future__ import annotations

import subprocess
import sys

from sandbox.processes import REPO


def test_env_example_and_readme_name_every_setting() -> None:
    done = subprocess.run(
        [sys.executable, str(REPO / "scripts" / "make_configuration_docs.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
