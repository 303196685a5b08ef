"""One small process that serves health and metrics beside workers, and nothing else."""

from fastapi import FastAPI

from ppworker import __version__, telemetry
from ppworker.monitoring import ports, server
from ppworker.monitoring.folder import Place
from ppworker.monitoring.vitals import Journal
from ppworker.process.watch import watch
from ppworker.settings import Settings
from ppworker.worker.parent import bind_to_parent
from ppworker.worker.signals import Signals


def run(settings: Settings, signals: Signals, place: Place) -> bool:
    """Serve until a signal; whether requests under way were answered in time.

    It starts without the database too: to say that the database is away is what it is for.

    Raises:
        ConfigurationError: settings do not fit.
    """
    telemetry.configure(settings)
    bind_to_parent()
    endpoints, close = watch(settings, place)
    app = FastAPI(openapi_url=None)
    app.include_router(endpoints)
    journal = Journal(place, version=__version__)
    try:
        return server.serve(
            app, ports.inherited(), signals.wait, started=journal.begin, tick=journal.note
        )
    finally:
        close()
