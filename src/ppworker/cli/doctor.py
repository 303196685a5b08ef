"""``doctor``: looks for what will go wrong at night, while it is still day."""

from collections.abc import Iterator

import typer
from sqlalchemy.exc import DBAPIError

from ppworker import __version__, wiring
from ppworker.cli import render
from ppworker.cli.session import Call, Reached, command, configure_logging, reach
from ppworker.errors import ConfigurationError, StoreUnavailable
from ppworker.monitoring import checkup
from ppworker.monitoring.checkup import Finding, MachineFacts, State
from ppworker.runners import registry
from ppworker.settings import Settings
from ppworker.store import checkup as server
from ppworker.store import overview, schema
from ppworker.store.db import Database

_ORDER = (State.PROBLEM, State.WARNING, State.OK)


def register(root: typer.Typer, name: str, summary: str) -> None:
    """Add the command to the program."""
    command(root, name, summary=summary)(doctor)


def doctor(call: Call) -> None:
    """Check settings, servers and machine; exit 1 when something is a problem."""
    with reach(call) as reached:
        configure_logging(reached.settings)
        findings = sorted(_findings(reached), key=lambda each: _ORDER.index(each.state))
    if call.as_json:
        render.as_json(findings)
    else:
        render.table(render.plain(findings), ("state", "check", "said", "remedy"))
    if any(each.state is State.PROBLEM for each in findings):
        raise typer.Exit(1)


def _findings(reached: Reached) -> Iterator[Finding]:
    found = reached.settings
    yield from checkup.of_settings(found)
    yield from checkup.of_machine(MachineFacts.here(found.data_dir), found.data_dir)
    yield from _of_redis(found)
    db = wiring.open_database(found, name="ppworker doctor", connections=3)
    try:
        yield from checkup.of_server(server.read(db, old_after_s=checkup.OLD_TRANSACTION_S), found)
        yield from _of_content(db)
    except StoreUnavailable as error:
        yield Finding(
            check="PostgreSQL",
            state=State.PROBLEM,
            said=f"does not answer: {error}",
            remedy="start it, or mend PPWORKER_DATABASE_URL",
        )
    except DBAPIError as error:
        yield Finding(
            check="rights",
            state=State.PROBLEM,
            said=f"PostgreSQL refuses a look: {str(error.orig).splitlines()[0]}",
            remedy="run as the role that owns the tables",
        )
    finally:
        db.close()


def _of_redis(found: Settings) -> Iterator[Finding]:
    from ppworker.worker import checkup as redis  # noqa: PLC0415  loads redis, which few commands need

    if found.redis_url is not None:
        yield from checkup.of_redis(redis.read(found.redis_url.get_secret_value()))


def _of_content(db: Database) -> Iterator[Finding]:
    try:
        schema.check(db, limit_s=server.LIMIT_S)
    except ConfigurationError as error:
        yield Finding(check="schema", state=State.PROBLEM, said=str(error))
        return
    yield Finding(check="schema", state=State.OK, said=f"is at revision {schema.REVISION}")
    with db.begin(limit_s=server.LIMIT_S) as tx:
        processors, _, _ = overview.read_processors(tx, with_completed=False)
        found = overview.read_workers(tx)
    wanted = {(f"{each.dataset}/{each.name}", each.runner) for each in processors if each.enabled}
    yield from checkup.of_runners(wanted, registry.names())
    live = [each for each in found if each.state != "lost"]
    yield from checkup.of_workers(
        live=len(live),
        lost=len(found) - len(live),
        versions=[each.version for each in live],
        mine=__version__,
    )
