"""``migrate``, ``sweep`` and ``verify``: looking after the data."""

import typer

from ppworker import wiring
from ppworker.cli import render
from ppworker.cli.session import Call, command, configure_logging, reach, session
from ppworker.store import schema
from ppworker.store import verify as invariants


def register(root: typer.Typer, name: str, summary: str) -> None:
    """Add one of the commands to the program."""
    functions = {"migrate": migrate, "sweep": sweep, "verify": verify}
    command(root, name, summary=summary)(functions[name])


def migrate(call: Call) -> None:
    """Bring the database's schema up to date."""
    with reach(call) as reached:
        configure_logging(reached.settings)
        db = wiring.open_database(reached.settings, name="ppworker migrate", connections=1)
        try:
            revision = schema.migrate(db)
            schema.check(db)
        finally:
            db.close()
    if call.as_json:
        render.as_json({"revision": revision})
    else:
        render.say(f"the schema is at revision {revision}")


def sweep(call: Call) -> None:
    """Run every periodic repair once: rescue, fold, remove what is old."""
    with session(call) as s:
        # Not through the sweeper, which logs a failure and goes on: here it is the answer.
        touched = {each.name: each.run() for each in wiring.sweeps(s.deps, at_once=True)}
    if call.as_json:
        render.as_json(touched)
    else:
        rows = [{"sweep": name, "rows": rows} for name, rows in touched.items()]
        render.table(rows, ("sweep", "rows"))


def verify(call: Call) -> None:
    """Check every invariant of the data; exit 1 when one is broken."""
    with session(call) as s:
        findings = s.read(invariants.run)
    if call.as_json:
        render.as_json(findings)
    elif findings:
        render.table(render.plain(findings), ("invariant", "count", "examples"))
    else:
        render.say("every invariant holds")
    if findings:
        raise typer.Exit(1)
