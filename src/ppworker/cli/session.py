"""How a command gets its database: the configured one, or the embedded one of the data folder."""

import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from pydantic import SecretStr

from ppworker import embedded, settings, telemetry, wiring
from ppworker.cli import render
from ppworker.errors import ConfigurationError, Invalid
from ppworker.pipeline.deps import Deps
from ppworker.settings import Settings
from ppworker.store import datasets, schema
from ppworker.store.db import Database, Tx

USER = "local"
"""Name of the user that the command line acts as."""
_CONNECTIONS = 3


@dataclass(frozen=True, slots=True)
class Call:
    """What every command is told: how to print, and where the data lie."""

    as_json: bool
    data_dir: Path | None


JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
DataDir = Annotated[
    str | None,
    typer.Option(
        "--data-dir", metavar="DIR", help="Data folder; overrides PPWORKER_DATA_DIR.",
        show_default=False,
    ),
]  # fmt: skip


def command(
    app: typer.Typer, name: str, *, summary: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command; it is given a ``Call`` before its own arguments.

    The command has ``--json`` and ``--data-dir`` beside the options of its own.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def run(*, as_json: bool, data_dir: str | None, **arguments: Any) -> None:
            function(Call(as_json, _checked_folder(data_dir)), **arguments)

        own = list(inspect.signature(function).parameters.values())[1:]
        shared = [
            inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=d, annotation=a)
            for n, d, a in (("as_json", False, JsonFlag), ("data_dir", None, DataDir))
        ]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + shared
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name, help=summary)(run)
        return function

    return decorate


def group(root: typer.Typer, app: typer.Typer, name: str, summary: str) -> None:
    """Add a group of commands to the program."""
    root.add_typer(app, name=name, help=summary)


@dataclass(frozen=True, slots=True)
class Reached:
    """Servers that answer, as settings that name them."""

    settings: Settings
    servers: embedded.Servers | None
    """The hold on the embedded ones, None when the database is configured."""


@dataclass(frozen=True, slots=True)
class Session:
    """What a command works with."""

    deps: Deps
    user_id: UUID

    def read(self, ask: Callable[[Tx], Any]) -> Any:
        """The answer to a question, in a transaction of its own."""
        with self.deps.db.begin() as tx:
            return ask(tx)


@contextmanager
def reach(call: Call, **overrides: object) -> Iterator[Reached]:
    """Start or join the servers that the settings mean; let go of them at the end.

    Raises:
        ConfigurationError: the settings are malformed, or servers cannot run here.
    """
    found = settings.load(data_dir=call.data_dir, **overrides)
    found = found.model_copy(update={"data_dir": found.data_dir.expanduser().absolute()})
    if found.database_url is not None:
        yield Reached(found, None)
        return
    servers = embedded.acquire(found.data_dir)
    try:
        urls = {"database_url": SecretStr(servers.database_url)}
        if found.redis_url is None and servers.redis_url is not None:
            urls["redis_url"] = SecretStr(servers.redis_url)
        yield Reached(found.model_copy(update=urls), servers)
    finally:
        # Servers left behind by an impatient second signal would run on unseen.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        servers.close()


@contextmanager
def connect(reached: Reached, *, migrate: bool) -> Iterator[Database]:
    """Open the database on a schema that fits: brought up to date, or else refused.

    Raises:
        ConfigurationError: the schema does not fit; names the remedy.
        StoreUnavailable: the database does not answer.
    """
    db = wiring.open_database(reached.settings, name="ppworker cli", connections=_CONNECTIONS)
    try:
        if migrate or reached.servers is not None:
            bring_up_to_date(db)
        else:
            schema.check(db)
        yield db
    finally:
        db.close()


def bring_up_to_date(db: Database) -> None:
    """Migrate a schema that is missing or old; a newer one is refused, not touched."""
    try:
        schema.check(db)
    except ConfigurationError:
        schema.migrate(db)
        schema.check(db)


@contextmanager
def session(call: Call, **overrides: object) -> Iterator[Session]:
    """Everything a command needs that works on the data."""
    with reach(call, **overrides) as reached, connect(reached, migrate=False) as db:
        configure_logging(reached.settings)
        broker = wiring.hint_broker(reached.settings)
        try:
            with db.begin() as tx:
                user_id = datasets.ensure_user(tx, USER)
            yield Session(wiring.build_deps(reached.settings, db, broker=broker), user_id)
        finally:
            broker.close()


def configure_logging(found: Settings) -> None:
    """Log warnings only, unless a level is asked for: the command's own output tells the rest."""
    if "log_level" not in found.model_fields_set:
        found = found.model_copy(update={"log_level": "warning"})
    telemetry.configure(found)


def progress_shown() -> bool:
    """Whether a person is watching."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def as_uuid(text: str, field: str) -> UUID:
    """The id that an argument must be.

    Raises:
        Invalid: it is none.
    """
    found = datasets.as_id(text)
    if found is None:
        raise Invalid(f"'{render.line(text)}' is no id; lists print them", field=field)
    return found


def page_size(limit: int) -> int:
    """The most rows that a list prints.

    Raises:
        Invalid: it is not from 1 to 10,000.
    """
    if not 1 <= limit <= render.MOST_ROWS:
        raise Invalid(f"must be from 1 to {render.MOST_ROWS}", field="--limit")
    return limit


def _checked_folder(data_dir: str | None) -> Path | None:
    if data_dir is None:
        return None
    if not data_dir:  # Path takes it for the working directory
        raise Invalid("is empty; name a folder", field="--data-dir")
    if os.path.exists(data_dir) and not os.path.isdir(data_dir):  # noqa: PTH110, PTH112  never raise
        raise Invalid(f"'{data_dir}' is a file; name a folder", field="--data-dir")
    return Path(data_dir)
