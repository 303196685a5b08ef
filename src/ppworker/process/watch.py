"""Joins the parts of monitoring for a process that serves a port."""

from collections.abc import Callable

from fastapi import APIRouter

from ppworker import __version__, wiring
from ppworker.errors import StoreUnavailable
from ppworker.monitoring import router
from ppworker.monitoring.detail import describe
from ppworker.monitoring.folder import Place
from ppworker.monitoring.health import Health
from ppworker.monitoring.patience import Bounded
from ppworker.monitoring.scrape import Scrape
from ppworker.settings import Settings
from ppworker.store import accounts, gauges, overview, schema
from ppworker.store.connections import WORKER_LIMITS
from ppworker.store.db import Database
from ppworker.worker.link import COMMAND_TIMEOUT_S, open_client

_CONNECTIONS = 3
"""Of its own: a probe must not wait behind requests that use up a pool."""
_PING_S = 1.0
_GAUGES_S = 1.2
"""Seconds the gauges of the database may take; a scrape is to answer in two."""
_GAUGES_KEPT_S = 10.0


def watch(settings: Settings, place: Place) -> tuple[APIRouter, Callable[[], None]]:
    """The endpoints of monitoring, and what closes their connections.

    Args:
        settings: with the database's URL.
        place: where the process stands that serves them.
    """
    db = wiring.open_database(
        settings, name="ppworker monitor", connections=_CONNECTIONS, limits=WORKER_LIMITS
    )
    schema_version = schema.REVISION

    def read_gauges() -> gauges.Readings:
        with db.begin() as tx:
            return gauges.read(tx, timeout_s=_GAUGES_S)

    ping = Bounded(lambda: _ping(db), limit_s=_PING_S)
    redis = _redis(settings)
    health = Health(
        place=place.folder,
        lease_s=settings.lease_s,
        poll_s=settings.poll_s,
        database=lambda: bool(ping()),
        redis=redis,
    )
    scrape = Scrape(
        place.folder,
        version=__version__,
        schema_version=schema_version,
        database=Bounded(read_gauges, limit_s=_GAUGES_S, keep_s=_GAUGES_KEPT_S),
        redis=redis,
    )
    built = router.build(
        health=health,
        scrape=scrape,
        detail=lambda: describe(health, version=__version__, schema_version=schema_version),
        allowed=lambda key: _is_good(db, key) if ping() else None,
    )
    return built, db.close


def _ping(db: Database) -> bool:
    with db.look(limit_s=_PING_S) as tx:
        overview.read_clock(tx)
    return True


def _is_good(db: Database, key: str) -> bool | None:
    """Whether anybody's live key it is; None when the database does not say."""
    try:
        with db.look() as tx:
            return accounts.find_key(tx, key) is not None
    except StoreUnavailable:
        return None


def _redis(settings: Settings) -> Callable[[], bool | None]:
    if settings.redis_url is None:
        return lambda: None
    client = open_client(settings.redis_url.get_secret_value(), timeout_s=COMMAND_TIMEOUT_S)
    ask = Bounded(lambda: bool(client.ping()), limit_s=COMMAND_TIMEOUT_S)
    return lambda: bool(ask())
