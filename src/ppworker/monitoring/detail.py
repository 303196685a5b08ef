"""What a person who looks into a group of processes wants to see, as plain values."""

import platform
import time
from dataclasses import asdict
from typing import Any

from ppworker.monitoring.health import Health
from ppworker.monitoring.vitals import Vitals


def describe(health: Health, *, version: str, schema_version: str) -> dict[str, Any]:
    """Versions, verdicts, and each worker process with the ages of what it did last."""
    verdicts = {"live": health.live(), "started": health.started(), "ready": health.ready()}
    return {
        "version": version,
        "python_version": platform.python_version(),
        "schema_version": schema_version,
        "database": health.database(),
        "redis": health.redis(),
        **{name: asdict(verdict) for name, verdict in verdicts.items()},
        "workers": [_worker(each) for each in health.living()],
    }


def _worker(found: Vitals) -> dict[str, Any]:
    now = time.monotonic()

    def age_s(at: float | None) -> float | None:
        return None if at is None else round(max(0.0, now - at), 3)

    return {
        "slot": found.slot,
        "pid": found.pid,
        "version": found.version,
        "worker": found.worker,
        "is_draining": found.is_draining,
        "slots": found.slots,
        "slots_in_use": found.busy,
        "leases": sum(found.in_progress.values()),
        "in_progress": found.in_progress,
        "database_connections": found.connections,
        "uptime_s": age_s(found.started_at),
        "noted_s": age_s(found.noted_at),
        "heartbeat_s": age_s(found.heartbeat_at),
        "renewed_s": age_s(found.renewed_at),
        "looked_s": age_s(found.looked_at),
        "swept_s": age_s(found.swept_at),
    }
