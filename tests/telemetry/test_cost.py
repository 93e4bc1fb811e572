"""Every use has its price, in the books per day and device, and a budget ends a visit with a goodbye."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from livekit.agents.metrics import LLMMetrics, RealtimeModelMetrics, STTMetrics, TTSMetrics, VADMetrics
from livekit.agents.metrics.base import Metadata
from telemetry_support import SENTENCES, parse, scrape, talk, talking_world, total, until

from agent.errors import SettingsError
from agent.prices import LIST_PRICES, Price
from agent.redis_client import connect
from agent.settings import Settings, load_settings
from agent.telemetry.cost import (
    Budget,
    CostLedger,
    Usage,
    UsageMeter,
    cost_path,
    day_of,
    open_sums,
    price_of,
    read_costs,
    read_usage,
    spent_on,
)
from agent.telemetry.cost_redis import DaySums
from agent.telemetry.hub import MetricsHub
from agent.telemetry.meter import meter
from agent.telemetry.worker_telemetry import open_hub
from damage_support import damage_table
from sandbox.processes import REPO, free_port
from sandbox.redis_server import RedisServer

NOW = 1_800_000_000.0
USE = ["u", "2027-01-15", "dev-a", {"service": "llm", "model": "writer"}, 7]
TABLE = {
    "writer": Price(input=2.0, cached_input=0.5, output=8.0),
    "ear": Price(minute=0.006),
    "voice": Price(characters=30.0, minute=0.6),
    "live": Price(input=4, cached_input=1, output=16, audio_input=32, cached_audio_input=2, audio_output=64),
}
META = {name: Metadata(model_name=name, model_provider="test") for name in TABLE}
PIPELINE = [
    LLMMetrics(
        label="l",
        request_id="1",
        timestamp=0,
        duration=1,
        ttft=0.2,
        cancelled=False,
        completion_tokens=100,
        prompt_tokens=1000,
        prompt_cached_tokens=600,
        total_tokens=1100,
        tokens_per_second=50,
        metadata=META["writer"],
    ),
    STTMetrics(
        label="s", request_id="2", timestamp=0, duration=1, audio_duration=30, streamed=False, metadata=META["ear"]
    ),
    TTSMetrics(
        label="t",
        request_id="3",
        timestamp=0,
        ttfb=0.1,
        duration=1,
        audio_duration=6,
        cancelled=False,
        characters_count=90,
        streamed=False,
        metadata=META["voice"],
    ),
]


def test_each_kind_of_use_has_its_price() -> None:
    found = [usage for metrics in PIPELINE if (usage := read_usage(metrics)) is not None]
    assert [usage.service for usage in found] == ["llm", "stt", "tts"]
    costs = [price_of(usage, TABLE) for usage in found]
    assert costs == pytest.approx([(400 * 2 + 600 * 0.5 + 100 * 8) / 1e6, 0.003, 90 * 30 / 1e6 + 0.06])


def test_realtime_tokens_are_priced_by_sound_and_text_and_cached_once() -> None:
    details = RealtimeModelMetrics.InputTokenDetails(
        audio_tokens=700,
        text_tokens=300,
        cached_tokens=500,
        cached_tokens_details=RealtimeModelMetrics.CachedTokenDetails(audio_tokens=400, text_tokens=100),
    )
    metrics = RealtimeModelMetrics(
        request_id="1",
        timestamp=0,
        input_tokens=1000,
        output_tokens=250,
        input_token_details=details,
        output_token_details=RealtimeModelMetrics.OutputTokenDetails(text_tokens=50, audio_tokens=200),
        metadata=META["live"],
    )
    usage = read_usage(metrics)
    assert usage is not None
    expected = 200 * 4 + 100 * 1 + 50 * 16 + 300 * 32 + 400 * 2 + 200 * 64
    assert price_of(usage, TABLE) == pytest.approx(expected / 1e6)


def test_what_costs_nothing_is_no_use_and_an_unknown_model_has_no_price() -> None:
    assert (
        read_usage(VADMetrics(label="v", timestamp=0, idle_time=0, inference_duration_total=0, inference_count=1))
        is None
    )
    assert price_of(Usage("llm", "a-new-model", input_tokens=5), TABLE) is None


def test_prices_extend_the_list_and_bad_ones_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRICES", '{"my-model": {"input": 1}, "gpt-4.1-mini": {"input": 9}}')
    prices = load_settings(None).prices
    assert prices["my-model"] == Price(input=1)
    assert prices["gpt-4.1-mini"] == Price(input=9)
    assert prices["gpt-realtime"] == LIST_PRICES["gpt-realtime"]
    for bad in ("{", "[]", '{"m": {"input": -1}}', '{"m": {"inptu": 1}}', '{"m": 3}', '"text"'):
        monkeypatch.setenv("PRICES", bad)
        with pytest.raises(SettingsError, match="PRICES"):
            load_settings(None)


def _settings(**values: object) -> Settings:
    return Settings(_env_file=None, **{"prices": {"writer": {"input": 1_000_000}}, **values})  # type: ignore[arg-type,call-arg]


def test_a_budget_tells_once_whose_limit_is_reached() -> None:
    told: list[str] = []
    budget = Budget(_settings(budget_per_visit=3, budget_per_day=5))
    budget.spend(2)
    assert budget.exhausted is None
    budget.on_exhausted = told.append
    budget.earlier(2.5)
    assert told == []
    budget.spend(0.5)
    assert budget.exhausted == "day"
    budget.spend(2)
    assert told == ["day"]
    unlimited = Budget(_settings())
    unlimited.spend(1e9)
    assert unlimited.exhausted is None


async def test_the_books_add_up_over_visits_and_survive_the_worker(tmp_path: Path) -> None:
    settings = _settings(state_dir=tmp_path)
    path = tmp_path / "cost.db"
    async with MetricsHub(tmp_path / "run") as hub, CostLedger(path, hub, wall=lambda: NOW):
        for device, uses in (("dev-a", 3), ("dev-b", 1)):
            usage = UsageMeter(settings, device, wall=lambda: NOW)
            for _ in range(uses):
                usage.use(Usage("llm", "writer", input_tokens=10, cached_tokens=4, output_tokens=2))
            assert usage.report()["llm_input_tokens"] == 10 * uses
        tomorrow = UsageMeter(settings, "dev-a", wall=lambda: NOW + 86400)
        tomorrow.use(Usage("tts", "voice", speech_s=1.5, characters=20))
        assert tomorrow.report()["unpriced"] == ["voice"]
        samples = await scrape(hub)
        assert total(samples, "toy_usage_tokens_total", kind="input") == 4 * 6
        assert total(samples, "toy_usage_tokens_total", kind="cached_input") == 4 * 4
        assert total(samples, "toy_usage_characters_total", model="voice") == 20
        assert total(samples, "toy_cost_total", model="writer") == pytest.approx(24)
    day = day_of(NOW)
    assert spent_on(path, day, "dev-a") == pytest.approx(18)
    assert spent_on(path, day, "nobody") == 0
    rows = read_costs(path, days=2, wall=lambda: NOW + 86400)
    assert [(row["day"], row["device"], row["uses"]) for row in rows] == [
        (day_of(NOW + 86400), "dev-a", 1),
        (day, "dev-a", 3),
        (day, "dev-b", 1),
    ]
    async with MetricsHub(tmp_path / "run") as hub, CostLedger(path, hub, wall=lambda: NOW + 500 * 86400):
        pass
    assert read_costs(path, days=10_000, wall=lambda: NOW) == []


async def test_the_books_are_kept_though_nothing_else_is_measured(tmp_path: Path) -> None:
    settings = _settings(state_dir=tmp_path, metrics=False, budget_per_day=15)

    async def show(_: MetricsHub) -> None:
        """The worker's own gauges are not looked at here."""

    async with AsyncExitStack() as stack:
        hub = await open_hub(stack, settings, roles=dict, show=show)
        UsageMeter(settings, "dev-a", wall=lambda: NOW).use(Usage("llm", "writer", input_tokens=10))
        meter.send(["v", "job-1"])
        meter.count("toy_control_words", control="stop")
        # A process of its own finds the worker by its environment.
        script = (
            f"from agent.telemetry.meter import meter; meter.send(['v', 'j']); meter.send({USE!r}); meter.drain(10)"
        )
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
        assert await other.wait() == 0
        samples = await until(hub, lambda found: total(found, "toy_metric_records_total", result="taken") >= 2)
        assert total(samples, "toy_visits_started_total") == total(samples, "toy_control_words_total") == 0
        assert total(samples, "toy_metric_records_total") == 2
    later = UsageMeter(settings, "dev-a", wall=lambda: NOW)
    await later.load_earlier()
    assert later.budget.exhausted == "day"


async def _spend(settings: Settings, amount: int) -> None:
    async with AsyncExitStack() as stack:
        hub = MetricsHub(settings.state_dir / "run")
        await stack.enter_async_context(hub)
        await stack.enter_async_context(CostLedger(cost_path(settings), hub, open_sums(settings), wall=lambda: NOW))
        UsageMeter(settings, "dev-a", wall=lambda: NOW).use(Usage("llm", "writer", input_tokens=amount))


async def _spent_today(settings: Settings) -> float:
    visit = UsageMeter(settings, "dev-a", wall=lambda: NOW)
    await visit.load_earlier()
    return visit.budget.spent["day"]


async def test_the_days_budget_is_granted_once_by_all_machines_that_share_a_redis(
    tmp_path: Path, redis: RedisServer
) -> None:
    one, other = (
        _settings(state_dir=tmp_path / name, budget_per_day=9, redis_url=redis.url) for name in ("one", "other")
    )
    await _spend(one, 4)
    await _spend(other, 3)
    assert await _spent_today(one) == await _spent_today(other) == 7
    client = connect(redis.url, timeout=10)
    (name,) = client.keys("*cost*")
    assert 0 < client.ttl(name) <= 3 * 86400
    client.close()


@pytest.mark.usefixtures("redis")  # where none is installed this is skipped, too
async def test_without_redis_the_day_is_this_machines_and_is_added_when_it_is_back(tmp_path: Path) -> None:
    away = _settings(state_dir=tmp_path, budget_per_day=9, redis_url=f"redis://127.0.0.1:{free_port()}/0")
    await _spend(away, 4)
    assert await _spent_today(away) == 4
    clock = [0.0]
    async with RedisServer() as server:
        sums = DaySums(server.url, clock=lambda: clock[0])
        await server.stop()
        sums.add(day_of(NOW), "dev-b", 2)
        assert sums.spent(day_of(NOW), "dev-b") is None
        await server.start()
        sums.add(day_of(NOW), "dev-b", 1)
        assert sums.spent(day_of(NOW), "dev-b") == 0, "it is left alone for a while"
        clock[0] += 10
        sums.add(day_of(NOW), "dev-b", 4)
        assert sums.spent(day_of(NOW), "dev-b") == 7
        sums.add(day_of(NOW), "dev-b", 1)
        sums.close()
        reader = DaySums(server.url)
        assert reader.spent(day_of(NOW), "dev-b") == 8
        reader.close()


async def test_a_folder_of_any_name_has_books(tmp_path: Path) -> None:
    path = tmp_path / "50% off? #1" / "cost.db"
    async with MetricsHub(tmp_path / "run") as hub, CostLedger(path, hub, wall=lambda: NOW):
        hub.take(["u", day_of(NOW), "dev-a", {"service": "llm", "model": "writer"}, 1])
    assert spent_on(path, day_of(NOW), "dev-a") == 1
    assert len(read_costs(path, days=1, wall=lambda: NOW)) == 1


async def test_damaged_books_are_set_aside_and_nothing_stops(tmp_path: Path) -> None:
    path = tmp_path / "cost.db"
    path.write_bytes(b"this is no database" * 200)
    assert spent_on(path, "2027-01-15", "dev-a") == 0
    async with MetricsHub(tmp_path / "run") as hub, CostLedger(path, hub) as ledger:
        UsageMeter(_settings(state_dir=tmp_path), "dev-a").use(Usage("llm", "writer", input_tokens=1))
        hub.take(["u", "2027-01-15", "dev-a", {"service": "llm"}, 1])
        samples = await scrape(hub)
        assert total(samples, "toy_metric_records_total", result="refused") == 1
    assert ledger.failures == 0
    assert len(read_costs(path, days=1)) == 1


async def test_books_damaged_inside_are_set_aside_without_losing_the_entry(tmp_path: Path) -> None:
    path, record = tmp_path / "cost.db", ["u", "2027-01-15", "dev-a", {"service": "llm", "model": "writer"}, 1]
    async with MetricsHub(tmp_path / "run") as hub, CostLedger(path, hub, wall=lambda: NOW):
        hub.take(record)
    damage_table(path, "cost")
    async with MetricsHub(tmp_path / "run") as hub, CostLedger(path, hub, wall=lambda: NOW) as ledger:
        hub.take(record)
        hub.take(record)
    assert ledger.failures == 0
    assert spent_on(path, "2027-01-15", "dev-a") == 2


async def test_books_that_cannot_be_written_cost_the_entry_only(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    async with MetricsHub(tmp_path / "run") as hub, CostLedger(blocked / "cost.db", hub) as ledger:
        UsageMeter(_settings(state_dir=tmp_path), "dev-a").use(Usage("llm", "writer", input_tokens=1))
        samples = await until(hub, lambda found: total(found, "toy_cost_total") == 1)
        assert total(samples, "toy_usage_tokens_total") == 1
    assert ledger.failures == 1


@pytest.mark.world
@pytest.mark.timeout(120)
async def test_a_visit_that_talks_is_in_the_books_and_a_budget_ends_the_next_with_a_goodbye() -> None:
    manifest = json.loads((REPO / "greetings" / "manifest.json").read_text())
    goodbye = next(item for item in manifest["recordings"] if item["file"] == "en_goodbye.wav")
    async with talking_world(BUDGET_PER_DAY="0.000001") as world:
        device = world.device()
        await device.join()
        await device.wait_for_sound(timeout=20)
        await device.wait_for_state("listening", timeout=30)
        await device.say(SENTENCES[0])
        ended = await world.worker.wait_for_line(
            lambda line: line.event == "visit ended", timeout=40, what="the visit's end"
        )
        (told,) = world.worker.events("budget is exhausted, the visit ends")
        assert told.fields["scope"] == "day"
        usage = ended.fields["usage"]
        assert usage["cost"] > 0
        assert usage["stt_speech_s"] > 0
        await device.wait_for_message(
            "speech_created", where=lambda message: message.data.get("text") == goodbye["text"], timeout=1
        )
        await device.wait_for_mark("left", timeout=20)
        books = read_costs(world.folder / "state" / "cost.db", days=2)
        assert sum(row["cost"] for row in books) == pytest.approx(usage["cost"], abs=1e-6)
        samples = parse((await world.worker.health("/metrics"))[1])
        assert total(samples, "toy_budget_exhausted_total", scope="day") == 1
        assert total(samples, "toy_cost_total") == pytest.approx(usage["cost"], abs=1e-6)
        again = world.device(mac=device.mac)
        await again.join()
        await again.wait_for_mark("left", timeout=60)
        assert again.heard.first_loud is not None
        assert len(world.worker.events("budget is exhausted, the visit ends")) == 2


@pytest.mark.world
@pytest.mark.timeout(120)
async def test_a_visit_without_a_budget_is_in_the_books_with_all_it_used() -> None:
    async with talking_world() as world:
        device = world.device()
        await device.join()
        await talk(device)
        await device.leave()
        ended = await world.worker.wait_for_line(lambda line: line.event == "visit ended", timeout=30)
        usage = ended.fields["usage"]
        assert min(usage["llm_input_tokens"], usage["llm_output_tokens"], usage["stt_speech_s"]) > 0
        assert usage["tts_characters"] >= len("The moon is made of rock.")
        assert [turn for turn in ended.fields["turns"] if "total_ms" in turn]
        assert ended.fields["marks"]["first_word"] > 0
        samples = parse((await world.worker.health("/metrics"))[1])
        assert total(samples, "toy_turn_seconds_count") == 1
        assert total(samples, "toy_first_word_seconds_count") == 1
        assert total(samples, "toy_turn_stage_seconds_count", stage="first_token") == 1
        assert total(samples, "toy_usage_tokens_total", service="llm", kind="output") == usage["llm_output_tokens"]
        assert {row["service"] for row in read_costs(world.folder / "state" / "cost.db", days=2)} == {
            "llm",
            "stt",
            "tts",
        }
