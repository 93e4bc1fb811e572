"""Everything the worker measures, put together: one call in the composition root."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Protocol

import structlog

from agent.errors import OutboxError
from agent.settings import Settings
from agent.telemetry.cost import CostLedger, cost_path, open_sums
from agent.telemetry.hub import MetricsHub, Source
from agent.telemetry.lag import LagProbe
from agent.telemetry.processes import ProcessGauges, Roles

log = structlog.get_logger(__name__)


class OutboxView(Protocol):
    """What is shown of one kind of outbox items."""

    @property
    def depth(self) -> int: ...
    @property
    def oldest_age_s(self) -> float: ...
    @property
    def delivered(self) -> int: ...
    @property
    def retried(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def dead(self) -> int: ...


async def open_hub(
    stack: AsyncExitStack, settings: Settings, *, roles: Callable[[], Roles], show: Source
) -> MetricsHub:
    """Start measuring; ends with `stack`. `roles` and `show` tell of the processes and the worker's own gauges.

    Call it before processes are started: they find it by an environment variable. With METRICS off only the worker's
    own gauges and costs are shown; the books are kept all the same, for budgets.
    """
    hub = MetricsHub(settings.state_dir.absolute() / "run", usage_only=not settings.metrics)
    hub.sources += [show, ProcessGauges(roles)]
    await stack.enter_async_context(hub)
    await stack.enter_async_context(CostLedger(cost_path(settings), hub, open_sums(settings)))
    if not settings.metrics:
        return hub
    probe = LagProbe("worker")
    stack.callback(probe.stop)
    probe.start()
    return hub


def outbox_source(stats: Mapping[str, Callable[[], Awaitable[Mapping[str, OutboxView]]]]) -> Source:
    """A source of the outbox's gauges; `stats` are the couriers', by home. A home that cannot be asked is not shown."""

    async def show(hub: MetricsHub) -> None:
        found: dict[tuple[str, str], OutboxView] = {}
        for home, ask in stats.items():
            try:
                found.update({(kind, home): view for kind, view in (await ask()).items()})
            except OutboxError as error:
                log.warning("the outbox cannot be shown", home=home, error=str(error))
        hub.replace("toy_outbox_items", {labels: view.depth for labels, view in found.items()})
        hub.replace("toy_outbox_oldest_age_seconds", {labels: view.oldest_age_s for labels, view in found.items()})
        hub.replace(
            "toy_outbox_results",
            {
                (*labels, result): getattr(view, result)
                for labels, view in found.items()
                for result in ("delivered", "retried", "dropped", "dead")
            },
        )

    return show
