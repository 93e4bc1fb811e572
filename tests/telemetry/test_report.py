"""The report reads what workers wrote, whole or damaged, and compares variants."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pytest

from agent.cli import main
from agent.telemetry import report
from agent.telemetry.hub import percentile
from agent.telemetry.report import collect, read_lines, rolled_out_in_part
from world_support import StartWorld


def line(visit: str, greeting_ms: float, *, flag: str = "on", event: str = "visit ended", **more: object) -> str:
    """A worker's line of one visit."""
    marks = {"job_received": -50.0, "connected": 300.0, "first_frame": greeting_ms - 50, **more.pop("marks", {})}  # type: ignore[dict-item]
    fields = {"event": event, "visit": visit, "marks": marks, "variants": {"enable_api_cache": flag, "other": "on"}}
    return json.dumps({**fields, **more})


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A day's log: 100 visits with the flag, 100 without and slower, and everything else that a log holds."""
    lines = [
        "not json at all",
        '{"event":"visit ended","marks":',
        "{}",
        "[1]",
        '{"event":"visit ended","marks":[1]}',
        "",
    ]
    for number in range(100):
        lines.append(line(f"on-{number}", 400 + number, event="greeting finished"))
        lines.append(f"2026-11-21T10:00:00Z stdout F {line(f'on-{number}', 400 + number, turns=[{'total_ms': 900}])}")
        lines.append(
            line(f"off-{number}", 1400 + number, flag="off", turns=[{"transcript_ms": 200}, {"total_ms": 1900}])
        )
    file = tmp_path / "worker.log"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_percentiles_are_those_of_numpy() -> None:
    values = sorted(np.random.default_rng(3).exponential(500, 997).tolist())
    for share in (0, 1, 50, 90, 95, 99, 100):
        assert percentile(values, share) == pytest.approx(float(np.percentile(values, share)))
    assert percentile([7.0], 99) == 7.0


def test_a_visit_is_counted_once_and_from_its_job(log: Path) -> None:
    visits = read_lines(log.read_text().splitlines())
    assert len([name for name in visits if name.startswith(("on-", "off-"))]) == 200
    found = collect(visits.values())
    assert len(found["greeting", "all"]) == 200
    assert found["greeting", "all"][0] == 400
    assert len(found["turn total", "all"]) == 200
    assert found["connected", "all"][0] == 350


def test_a_device_that_came_later_is_waited_for_by_nobody() -> None:
    text = line("a", 5000, marks={"device_came": 4500.0})
    (visit,) = read_lines([text]).values()
    assert dict(visit.times())["greeting"] == pytest.approx(450)


def test_variants_are_compared(log: Path) -> None:
    visits = list(read_lines(log.read_text().splitlines()).values())
    assert rolled_out_in_part(visits) == ["enable_api_cache"]
    found = collect(visits, ["enable_api_cache"])
    assert percentile(found["greeting", "enable_api_cache=on"], 50) == pytest.approx(449.5)
    assert percentile(found["greeting", "enable_api_cache=off"], 50) == pytest.approx(1449.5)
    assert len(found["turn transcript", "enable_api_cache=off"]) == 100


def test_the_command_prints_a_table_and_draws_a_picture(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "older.log.gz"
    packed.write_bytes(gzip.compress(line("older", 800).encode()))
    picture = tmp_path / "out" / "report.png"
    assert main(["report", str(log), str(packed), "--plot", str(picture)]) == 0
    told = capsys.readouterr().out
    assert "greeting" in told
    assert "enable_api_cache=off" in told
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["report", str(log), "--json", "--no-plot", "--by", "other", "--mark", "greeting"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {
        "mark": "greeting",
        "variant": "other=on",
        "n": 200,
        "p50": 949.5,
        "p90": row["p90"],
        "p95": row["p95"],
        "p99": row["p99"],
    }
    assert 1450 < row["p90"] < row["p95"] < row["p99"] < 1500


def test_standard_input_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.run(["-", "--no-plot", "--json"], stdin=io.StringIO(line("a", 700) + "\n")) == 0
    assert "first_frame" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "arguments", "problem"),
    [
        (b"", [], "no line tells of a visit"),
        (b"plain text\n", [], "no line tells of a visit"),
        (line("a", 700).encode(), ["--mark", "nonsense"], "no visit has reached nonsense"),
        (None, [], "cannot be read"),
        (b"\xff\xfe\x00", [], "no line tells of a visit"),
    ],
)
def test_what_cannot_be_reported_is_said(
    tmp_path: Path, content: bytes | None, arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "worker.log"
    if content is not None:
        file.write_bytes(content)
    assert main(["report", str(file), "--no-plot", *arguments]) == 1
    assert problem in capsys.readouterr().err


def test_a_damaged_archive_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "worker.log.gz"
    file.write_bytes(gzip.compress(b"x" * 5000)[:-20])
    assert main(["report", str(file), "--no-plot"]) == 1
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.timeout(120)
async def test_a_real_workers_log_is_reported_by_variant(start_world: StartWorld, tmp_path: Path) -> None:
    world = await start_world(env={"ENABLE_API_CACHE": "50%"})
    wanted = {"on", "off"}
    visits = 0
    while wanted:
        async with world.device() as device:
            await device.wait_for_sound(timeout=20)
            await device.wait_for_state("listening", timeout=20)
        visits += 1
        await world.worker.wait_until(
            lambda count=visits: len(world.worker.events("visit ended")) >= count, timeout=30, what="the visit's end"
        )
        wanted -= {world.worker.events("visit ended")[-1].fields["variants"]["enable_api_cache"]}
    found = read_lines(item.text for item in world.worker.lines)
    assert len(found) == visits
    shown = collect(found.values(), rolled_out_in_part(found.values()))
    variants = {variant for mark, variant in shown if mark == "greeting"}
    assert variants == {"enable_api_cache=on", "enable_api_cache=off"}
    assert all(0 < value < 20_000 for value in shown["greeting", "enable_api_cache=on"])
