"""One process that serves the HTTP API, with health and metrics on the same port."""

import time
from contextlib import suppress
from threading import Event, Thread

from ppworker import __version__, telemetry, wiring
from ppworker.api.app import create_app
from ppworker.errors import ConfigurationError, StoreUnavailable
from ppworker.metrics import shared
from ppworker.monitoring import ports, server
from ppworker.monitoring.folder import Place
from ppworker.monitoring.vitals import Journal
from ppworker.process.watch import watch
from ppworker.settings import Settings
from ppworker.store import schema
from ppworker.store.connections import SERVER_LIMITS
from ppworker.store.db import Database
from ppworker.worker.parent import bind_to_parent
from ppworker.worker.signals import Signals

_AGAIN_S = 0.5
_OTHER_CONNECTIONS = 2
"""Database connections beside those of requests: the look at the schema, and one to spare."""


def run(settings: Settings, signals: Signals, place: Place) -> bool:
    """Serve until a signal; whether requests under way were answered in time.

    A database that is away does not keep it from starting: its requests fail until then, and its
    health tells why.

    Raises:
        ConfigurationError: schema or settings do not fit.
    """
    metrics = shared(place.folder, place.slot)
    telemetry.configure(settings, lost=metrics.log_lines_lost)
    bind_to_parent()
    db = wiring.open_database(
        settings,
        name="ppworker api",
        connections=settings.pool_size or settings.api_threads + _OTHER_CONNECTIONS,
        limits=SERVER_LIMITS,
        metrics=metrics,
    )
    broker = wiring.hint_broker(settings, counted=metrics.hint_counted)
    deps = wiring.build_deps(settings, db, broker=broker, emit=wiring.telling(metrics))
    endpoints, close = watch(settings, place)
    journal = Journal(place, version=__version__)
    check = _SchemaCheck(db)
    check.look()  # before the first request: those that queued while there was nobody want 200
    stopping = Event()
    app = create_app(
        deps,
        threads=settings.api_threads,
        is_open=check.is_passed,
        stopping=stopping,
        others=[endpoints],
    )

    def wait_for_signal(timeout_s: float) -> int | None:
        caught = signals.wait(timeout_s)
        if caught is not None:
            stopping.set()
        return caught

    def tick() -> None:
        if check.is_passed() and journal.vitals.started_at is None:
            journal.begin()
        journal.note()

    try:
        return server.serve(app, ports.inherited(), wait_for_signal, started=check.start, tick=tick)
    finally:
        close()
        broker.close()
        db.close()


class _SchemaCheck:
    """Looks whether the schema fits; in a thread, as long as the database is away."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._error: ConfigurationError | None = None
        self._is_passed = False

    def look(self) -> None:
        """Look once; a database that is away decides nothing.

        Raises:
            ConfigurationError: it does not fit.
        """
        with suppress(StoreUnavailable):
            schema.check(self._db)
            self._is_passed = True

    def start(self) -> None:
        """Look until the database answers."""
        Thread(target=self._run, name="schema", daemon=True).start()

    def is_passed(self) -> bool:
        """Whether it fits, as far as is known.

        Raises:
            ConfigurationError: it does not.
        """
        if self._error is not None:
            raise self._error
        return self._is_passed

    def _run(self) -> None:
        while not self._is_passed:
            try:
                self.look()
            except ConfigurationError as error:
                self._error = error
                return
            if not self._is_passed:
                time.sleep(_AGAIN_S)
