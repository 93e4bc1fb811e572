"""The outbox in Redis, shared by workers on several machines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final

from redis.commands.core import Script

from agent.errors import OutboxError
from agent.outbox.items import CLOCK_SLACK_S, DEAD_KEPT, DELIVERED_KEPT_S, Lane, OutboxItem, OutboxStats
from agent.redis_client import FAILURES, PREFIX, connect

_COMMON: Final = (
    f'local P = "{PREFIX}outbox:"\nlocal SLACK = {CLOCK_SLACK_S}\n'
    + """
local now = tonumber(ARGV[1])
if not now then
    local time = redis.call("TIME")
    now = tonumber(time[1]) + tonumber(time[2]) / 1e6
end
local function number(value) return string.format("%.6f", value) end
local function item_of(key) return P .. "item:" .. key end
local function lane_of(kind, lane) return P .. "lane:" .. kind .. ":" .. lane end
local function count(kind, name, by)
    if by > 0 then redis.call("HINCRBY", P .. "counters", kind .. ":" .. name, by) end
end
local function remove(key)
    local kind, lane = unpack(redis.call("HMGET", item_of(key), "kind", "lane"))
    if not kind then return nil end
    redis.call("DEL", item_of(key))
    redis.call("ZREM", lane_of(kind, lane), key)
    redis.call("ZREM", P .. "ages:" .. kind, key)
    redis.call("ZREM", P .. "order", key)
    return kind
end
local function give_up(kind, lane)
    redis.call("HDEL", P .. "owner:" .. kind, lane)
    redis.call("ZREM", P .. "until:" .. kind, lane)
end
local function drop(keys)
    for _, key in ipairs(keys) do
        local kind = remove(key)
        if kind then count(kind, "dropped", 1) end
    end
    return #keys
end
local function drop_surplus(most)
    local surplus = redis.call("ZCARD", P .. "order") - most
    if surplus <= 0 then return 0 end
    return drop(redis.call("ZRANGE", P .. "order", 0, surplus - 1))
end
local function add(key, kind, lane, body, created_at, hold)
    if redis.call("ZSCORE", P .. "delivered", key) or redis.call("EXISTS", P .. "dead:" .. key) == 1 then return 0 end
    local ready_at, kept = now + hold, 0
    local held_until = redis.call("HGET", item_of(key), "not_before")
    if not held_until then
        redis.call("HSET", item_of(key), "kind", kind, "lane", lane, "body", body, "created_at", created_at,
            "attempts", 0, "not_before", number(ready_at))
        redis.call("SADD", P .. "kinds", kind)
        local seq = redis.call("INCR", P .. "seq")
        redis.call("ZADD", lane_of(kind, lane), seq, key)
        redis.call("ZADD", P .. "order", seq, key)
        redis.call("ZADD", P .. "ages:" .. kind, created_at, key)
        kept = 1
    elseif tonumber(held_until) > now then
        redis.call("HSET", item_of(key), "body", body, "not_before", number(ready_at))
        kept = 1
    end
    -- A lane that waits for an item on hold moves with it; one that waits after a failure keeps waiting.
    local first = redis.call("ZRANGE", lane_of(kind, lane), 0, 0)[1]
    local open = redis.call("ZSCORE", P .. "ready:" .. kind, lane)
    if not open then
        redis.call("ZADD", P .. "ready:" .. kind, number(ready_at), lane)
    elseif tonumber(redis.call("HGET", item_of(first), "attempts")) == 0 then
        redis.call("ZADD", P .. "ready:" .. kind, number(math.min(tonumber(open), ready_at)), lane)
    end
    return kept
end
"""
)
_ADD: Final = """
local kept = 0
for i = 3, #ARGV, 6 do
    kept = kept + add(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], tonumber(ARGV[i + 5]))
end
drop_surplus(tonumber(ARGV[2]))
return kept
"""
_KNOWS: Final = """
local key, body, digest = ARGV[2], ARGV[3], ARGV[4]
for _, place in ipairs({item_of(key), P .. "dead:" .. key}) do
    if redis.call("HGET", place, "body") == body then return 1 end
end
return redis.call("HGET", P .. "delivered_bodies", key) == digest and 1 or 0
"""
_CLAIM: Final = """
local owner, kind, limit, lease = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local taken = {}
local function take(from, to)
    for _, lane in ipairs(redis.call("ZRANGEBYSCORE", P .. "ready:" .. kind, from, to)) do
        if #taken >= limit then return end
        local lease_until = tonumber(redis.call("ZSCORE", P .. "until:" .. kind, lane) or 0)
        if redis.call("HEXISTS", P .. "owner:" .. kind, lane) == 0 or lease_until <= now or lease_until > now + SLACK
        then
            redis.call("HSET", P .. "owner:" .. kind, lane, owner)
            redis.call("ZADD", P .. "until:" .. kind, number(now + lease), lane)
            table.insert(taken, lane)
        end
    end
end
take("-inf", number(now))
take("(" .. number(now + SLACK), "+inf")
return taken
"""
_HEAD: Final = """
local kind, lane, owner, lease = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
if redis.call("HGET", P .. "owner:" .. kind, lane) ~= owner then return nil end
redis.call("ZADD", P .. "until:" .. kind, number(now + lease), lane)
local key = redis.call("ZRANGE", lane_of(kind, lane), 0, 0)[1]
if not key then
    redis.call("ZREM", P .. "ready:" .. kind, lane)
    give_up(kind, lane)
    return nil
end
local found = redis.call("HMGET", item_of(key), "body", "created_at", "attempts", "not_before")
local not_before = tonumber(found[4])
if now < not_before and not_before < now + SLACK then
    redis.call("ZADD", P .. "ready:" .. kind, found[4], lane)
    give_up(kind, lane)
    return nil
end
return {key, found[1], found[2], found[3]}
"""
_RENEW: Final = """
local owner, lease_until = ARGV[2], number(now + ARGV[3])
for i = 4, #ARGV, 2 do
    local kind, lane = ARGV[i], ARGV[i + 1]
    if redis.call("HGET", P .. "owner:" .. kind, lane) == owner then
        redis.call("ZADD", P .. "until:" .. kind, lease_until, lane)
    end
end
"""
_RELEASE: Final = """
for _, kind in ipairs(redis.call("SMEMBERS", P .. "kinds")) do
    local held = redis.call("HGETALL", P .. "owner:" .. kind)
    for i = 1, #held, 2 do
        if held[i + 1] == ARGV[2] then give_up(kind, held[i]) end
    end
end
"""
_DELIVERED: Final = """
remove(ARGV[3])
count(ARGV[2], "delivered", redis.call("ZADD", P .. "delivered", "NX", number(now), ARGV[3]))
redis.call("HSETNX", P .. "delivered_bodies", ARGV[3], ARGV[4])
"""
_BURY: Final = """
local kind, lane, key = ARGV[2], ARGV[3], ARGV[4]
if redis.call("ZADD", P .. "dead", "NX", number(now), key) == 1 then
    redis.call("HSET", P .. "dead:" .. key, "kind", kind, "lane", lane, "body", ARGV[5], "created_at", ARGV[6],
        "reason", ARGV[7])
    count(kind, "dead", 1)
end
remove(key)
"""
_POSTPONE: Final = """
local kind, lane, owner, key, delay = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
if redis.call("EXISTS", item_of(key)) == 1 then redis.call("HINCRBY", item_of(key), "attempts", 1) end
if redis.call("HGET", P .. "owner:" .. kind, lane) == owner then
    redis.call("ZADD", P .. "ready:" .. kind, number(now + delay), lane)
    give_up(kind, lane)
end
count(kind, "retried", 1)
"""
_PRUNE: Final = """
local max_age, most, delivered_kept, dead_kept = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local dropped = 0
for _, kind in ipairs(redis.call("SMEMBERS", P .. "kinds")) do
    dropped = dropped + drop(redis.call("ZRANGEBYSCORE", P .. "ages:" .. kind, "-inf", "(" .. number(now - max_age)))
end
dropped = dropped + drop_surplus(most)
for _, key in ipairs(redis.call("ZRANGEBYSCORE", P .. "delivered", "-inf", "(" .. number(now - delivered_kept))) do
    redis.call("ZREM", P .. "delivered", key)
    redis.call("HDEL", P .. "delivered_bodies", key)
end
local function forget(keys)
    for _, key in ipairs(keys) do
        redis.call("ZREM", P .. "dead", key)
        redis.call("DEL", P .. "dead:" .. key)
    end
end
forget(redis.call("ZRANGEBYSCORE", P .. "dead", "-inf", "(" .. number(now - max_age)))
forget(redis.call("ZRANGE", P .. "dead", 0, -dead_kept - 1))
return dropped
"""
_STATS: Final = """
local found = {}
for i = 2, #ARGV do
    local kind = ARGV[i]
    local oldest = redis.call("ZRANGE", P .. "ages:" .. kind, 0, 0, "WITHSCORES")[2]
    table.insert(found, redis.call("ZCARD", P .. "ages:" .. kind))
    table.insert(found, oldest and number(math.max(0, now - oldest)) or "0")
    for _, name in ipairs({"delivered", "retried", "dropped", "dead"}) do
        table.insert(found, tonumber(redis.call("HGET", P .. "counters", kind .. ":" .. name) or 0))
    end
end
return found
"""
_DEAD: Final = """
local found = {}
for _, key in ipairs(redis.call("ZREVRANGE", P .. "dead", 0, ARGV[2] - 1)) do
    table.insert(found, key)
    for _, value in ipairs(redis.call("HMGET", P .. "dead:" .. key, "kind", "lane", "body", "created_at", "reason")) do
        table.insert(found, value)
    end
end
return found
"""
_REVIVE: Final = """
local dead = {}
for _, key in ipairs(redis.call("ZRANGE", P .. "dead", 0, -1)) do
    local item = redis.call("HMGET", P .. "dead:" .. key, "kind", "lane", "body", "created_at")
    table.insert(dead, {key, unpack(item)})
    redis.call("DEL", P .. "dead:" .. key)
end
redis.call("DEL", P .. "dead")
table.sort(dead, function(a, b)
    if a[5] == b[5] then return a[1] < b[1] end
    return tonumber(a[5]) < tonumber(b[5])
end)
for _, item in ipairs(dead) do add(item[1], item[2], item[3], item[4], item[5], 0) end
return #dead
"""
# A script that has written may go on although Redis has no memory left: what empties the outbox must not be refused.
_WRITES: Final = 'redis.call("DEL", P .. "nothing")'
_MAY_BE_REFUSED: Final = (_ADD, _KNOWS, _STATS, _DEAD)


class RedisOutbox:
    """An `OutboxStore` in Redis 6 or newer; connected at first use.

    Each method is one script, so it happens whole or not at all. What was added survives a loss of power as far as
    Redis writes it to disk before it answers (`appendonly yes`, `appendfsync always`). `max_age_s` and `max_items`
    bound what waits, over all workers. Time is Redis', so that machines need not agree on theirs; `clock` (Unix
    seconds) replaces it.
    """

    def __init__(
        self,
        url: str,
        *,
        max_age_s: float = 7 * 86400.0,
        max_items: int = 100_000,
        timeout_s: float = 2.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._redis = connect(url, timeout=timeout_s)
        self._max_age_s = max_age_s
        self._max_items = max_items
        self._clock = clock
        self._scripts: dict[str, Script] = {}

    def add(self, items: Sequence[OutboxItem]) -> int:
        fields = [
            value
            for item in items
            for value in (item.key, item.kind, item.lane, item.body, repr(item.created_at), item.hold_s)
        ]
        return int(self._run(_ADD, self._max_items, *fields))

    def knows(self, item: OutboxItem) -> bool:
        return bool(self._run(_KNOWS, item.key, item.body, item.digest))

    def claim(self, owner: str, kind: str, limit: int, lease_s: float) -> list[Lane]:
        return [Lane(kind, lane) for lane in self._run(_CLAIM, owner, kind, limit, lease_s)]

    def head(self, lane: Lane, owner: str, lease_s: float) -> OutboxItem | None:
        found = self._run(_HEAD, lane.kind, lane.device, owner, lease_s)
        if found is None:
            return None
        key, body, created_at, attempts = found
        return OutboxItem(lane.kind, lane.device, body, key, float(created_at), int(attempts))

    def renew(self, owner: str, lanes: Collection[Lane], lease_s: float) -> None:
        self._run(_RENEW, owner, lease_s, *(name for lane in lanes for name in (lane.kind, lane.device)))

    def delivered(self, lane: Lane, item: OutboxItem) -> None:
        self._run(_DELIVERED, lane.kind, item.key, item.digest)

    def bury(self, lane: Lane, item: OutboxItem, reason: str) -> None:
        self._run(_BURY, lane.kind, lane.device, item.key, item.body, repr(item.created_at), reason[:500])

    def postpone(self, lane: Lane, owner: str, item: OutboxItem, delay_s: float) -> None:
        self._run(_POSTPONE, lane.kind, lane.device, owner, item.key, delay_s)

    def release(self, owner: str) -> None:
        self._run(_RELEASE, owner)

    def prune(self) -> int:
        return int(self._run(_PRUNE, self._max_age_s, self._max_items, DELIVERED_KEPT_S, DEAD_KEPT))

    def stats(self, kinds: Collection[str]) -> dict[str, OutboxStats]:
        found = self._run(_STATS, *kinds)
        return {
            kind: OutboxStats(int(depth), float(age), *map(int, counters))
            for kind, (depth, age, *counters) in zip(kinds, _groups(found, 6), strict=True)
        }

    def dead_items(self, limit: int = 100) -> list[tuple[OutboxItem, str]]:
        return [
            (OutboxItem(kind, lane, body, key, float(created_at)), reason)
            for key, kind, lane, body, created_at, reason in _groups(self._run(_DEAD, limit), 6)
        ]

    def revive(self) -> int:
        return int(self._run(_REVIVE))

    def close(self) -> None:
        with contextlib.suppress(*FAILURES):
            self._redis.close()

    def _run(self, body: str, *arguments: str | float) -> Any:
        script = self._scripts.get(body)
        if script is None:
            script = self._scripts[body] = self._redis.register_script(
                _COMMON + ("" if body in _MAY_BE_REFUSED else _WRITES) + body
            )
        now = "" if self._clock is None else repr(self._clock())
        try:
            return script(args=[now, *arguments])
        except FAILURES as error:
            raise OutboxError(f"the outbox in Redis cannot be used: {type(error).__name__}") from error


def _groups(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))
