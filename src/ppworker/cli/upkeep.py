"""``migrate``, ``sweep`` and ``verify``: looking after the data."""

import typer

from ppworker import wiring
from ppworker.cli import render
from ppworker.cli.session import Call, command, reach, session
from ppworker.store import schema, verify as invariants


def register(root: typer.Typer, name: str, summary: str) -> None:
    """Add one of the commands to the program."""
    functions = {"migrate": migrate, "sweep": sweep, "verify": verify}
    command(root, name, summary=summary)(functions[name])
