"""What a user's answers took, by day and model, and lasting changes of a model's speed."""

import statistics
from collections import defaultdict

from msgspec import Struct

from ..db import Connection

SEARCHED_DAYS = 200  # with answers of a model, the newest ones: the time grows with the square
COMPARED_DAYS = 10  # with answers, before and after a change
MIN_DAYS = 3  # with answers, on either side of a change
MIN_CHANGE = 0.1
MIN_STEPS = 3.0  # that a change is larger than the usual difference between days
SMALLEST_DIFFERENCE = 0.01  # between two days, as a fraction: the usual one may be 0


class UsageEntry(Struct):
    day: str  # UTC
    model: str | None
    answers: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    tokens_per_second: float | None
    ttft_ms: int | None  # the median of the day
    engine: str | None  # the newest version that the server reported


class SpeedChange(Struct):
    """A model that has become slower or faster, and has stayed so."""

    model: str
    since: str  # the first day of the new speed
    percent: int  # of the old speed; below 0: slower
    engine_before: str | None
    engine: str | None


def list_usage(conn: Connection, user_id: int) -> list[UsageEntry]:
    """Return the sums of the answers of each day and model, newest day first. Edited texts and copies were not generated.

    Speed counts only answers that have one. Each answer's own statistics show the same speed.
    """
    rows = conn.execute(
        """
        WITH answers AS (
            SELECT substr(m.created_at, 1, 10) AS day, m.model,
                json_extract(m.token_usage, '$.prompt_tokens') AS prompt_tokens,
                json_extract(m.token_usage, '$.completion_tokens') AS completion_tokens,
                json_extract(m.stats, '$.total_ms') AS total_ms,
                json_extract(m.stats, '$.ttft_ms') AS ttft_ms,
                json_extract(m.stats, '$.engine') AS engine,
                coalesce(
                    json_extract(m.stats, '$.generation_ms'), -- missing in answers of older versions and of other programs
                    (json_extract(m.token_usage, '$.completion_tokens') - 1) * 1000.0 / json_extract(m.stats, '$.tokens_per_second')
                ) AS generation_ms
            FROM conversations c JOIN messages m ON m.conversation_id = c.id
            WHERE c.user_id = ? AND c.hidden = 0 AND c.temporary = 0 AND m.role = 'assistant' AND m.status <> 'generating'
                AND NOT m.edited AND NOT m.copied
        ), ranked AS (
            SELECT *, row_number() OVER (PARTITION BY day, model ORDER BY ttft_ms) AS rank,
                count(*) OVER (PARTITION BY day, model) - count(ttft_ms) OVER (PARTITION BY day, model) AS untimed,
                count(ttft_ms) OVER (PARTITION BY day, model) AS timed
            FROM answers
        )
        SELECT day, model, count(*) AS answers,
            coalesce(sum(prompt_tokens), 0) AS prompt_tokens,
            coalesce(sum(completion_tokens), 0) AS completion_tokens,
            round(coalesce(sum(total_ms), 0) / 1000.0, 3) AS seconds,
            round(sum(completion_tokens - 1) FILTER (WHERE generation_ms > 0) * 1000.0
                / sum(generation_ms) FILTER (WHERE completion_tokens > 1), 2) AS tokens_per_second,
            max(ttft_ms) FILTER (WHERE rank - untimed = (timed + 1) / 2) AS ttft_ms, -- NULL is sorted first
            max(engine) AS engine
        FROM ranked GROUP BY day, model ORDER BY day DESC, model
        """,
        (user_id,),
    )
    return [UsageEntry(**dict(row)) for row in rows]


def find_changes(usage: list[UsageEntry]) -> list[SpeedChange]:
    """Return the newest lasting change of speed of each model that has one, newest first.

    The medians of the days before and after it are compared. A change must be large beside the usual difference between days.
    """
    by_model: defaultdict[str, list[UsageEntry]] = defaultdict(list)
    for entry in reversed(usage):
        if entry.model and (entry.tokens_per_second or 0) > 0:  # figures that were imported may be below 0
            by_model[entry.model].append(entry)
    changes = filter(None, (_newest_change(days[-SEARCHED_DAYS:]) for days in by_model.values()))
    return sorted(changes, key=lambda change: change.since, reverse=True)


def _newest_change(days: list[UsageEntry]) -> SpeedChange | None:
    """`days`: of one model, oldest first."""
    speeds = [entry.tokens_per_second or 0.0 for entry in days]
    places = range(MIN_DAYS, len(days) - MIN_DAYS + 1)
    best = max(places, key=lambda place: abs(_compare(speeds, place)[1]), default=None)
    if best is None:
        return None
    ratio, steps = _compare(speeds, best)
    if abs(ratio - 1) < MIN_CHANGE or steps < MIN_STEPS:
        return None
    change = SpeedChange(
        days[best].model or "", days[best].day, round((ratio - 1) * 100), days[best - 1].engine, days[best].engine
    )
    return _newest_change(days[best:]) or change


def _compare(speeds: list[float], place: int) -> tuple[float, float]:
    """Return the ratio of the speeds from `place` on to those before, and their distance in usual differences between days."""
    before, after = speeds[max(0, place - COMPARED_DAYS) : place], speeds[place : place + COMPARED_DAYS]
    old, new = statistics.median(before), statistics.median(after)
    if abs(after[0] - old) < abs(after[0] - new):  # the first day still has the old speed
        return 1.0, 0.0
    usual = statistics.fmean([abs(one - old) for one in before] + [abs(one - new) for one in after])
    return new / old, abs(new - old) / (usual + SMALLEST_DIFFERENCE * old)
