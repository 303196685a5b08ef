"""The program: finds the command, and turns what happens into an exit code and one line of text.

Exit codes: 0 done; 1 it went wrong at run time; 2 the caller's mistake; 130 interrupted.
"""

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from ppworker import __version__

FAILED = 1
MISTAKEN = 2
INTERRUPTED = 130

_COMMANDS = {
    "up": ("serve", "Start everything: servers, schema, workers, HTTP API."),
    "api": ("serve", "Run the HTTP API."),
    "worker": ("serve", "Run worker processes."),
    "status": ("status", "Show what is due, running, done and failed."),
    "top": ("top", "Watch the state of all jobs, live."),
    "health": ("health", "Ask a running process whether it is live, started or ready."),
    "datasets": ("catalogue", "Create, list and delete datasets."),
    "versions": ("versions", "List, duplicate and delete versions of datasets."),
    "splits": ("catalogue", "Create, list and delete splits of datasets."),
    "labels": ("catalogue", "Create, list and delete labels of datasets."),
    "processors": ("processors", "Create, try, pause and backfill post-processors."),
    "items": ("items", "Add items and look at them."),
    "inferences": ("inferences", "Add inferences made elsewhere to a split."),
    "jobs": ("jobs", "Look at jobs, retry, cancel, reapply, wait for them."),
    "operations": ("operations", "Look at long work: inferences being added, reapplies."),
    "dead-letters": ("dead_letters", "Look at messages that could not be followed, replay them."),
    "stats": ("stats", "Show, verify and rebuild label stats."),
    "users": ("accounts", "Create and list users."),
    "keys": ("accounts", "Create, list and disable API keys."),
    "blobs": ("blobs", "Store files that messages name by their hash."),
    "verify": ("upkeep", "Check every invariant of the data."),
    "doctor": ("doctor", "Look for trouble ahead: settings, servers, machine."),
    "sweep": ("upkeep", "Run every periodic repair once."),
    "migrate": ("upkeep", "Bring the database's schema up to date."),
    "chaos": ("chaos", "For developers: break a ppworker and measure what it makes of it."),
}
"""Each command with the module that holds it, imported only when it is the one that is run."""

_FLAGS = {
    "confidence_threshold": "--threshold",
    "concurrency_cap": "--cap",
    "file_types": "--file-type",
    "label_mapping": "--map",
    "label_prefix": "--prefix",
    "model_type": "--type",
    "output_target": "--target",
    "runner_config": "--config",
    "scopes": "--scope",
    "splits": "--split",
    "timeout_s": "--timeout",
} | {
    name: "--" + name.replace("_", "-")
    for name in (
        "batch_size", "email", "expires_days", "firstname", "key", "max_attempts",
        "max_new_labels", "on_failure", "order", "reason", "runner", "status",
    )
}  # fmt: skip
"""How a field of a request is written on the command line."""

# What typer raises for a wrong option; its module differs between releases of typer.
_Usage: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and end the process with its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _end_in_order_on(signal.SIGTERM, signal.SIGHUP)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal may not know every letter
    code = _guarded(arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _reader_gone()
    sys.exit(code)


def _guarded(arguments: list[str]) -> int:
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_gone()
    except _Usage as error:
        return _say(error.format_message(), MISTAKEN)
    except typer.Abort:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  the last resort: one line instead of a traceback
        return _explain(error)


def _run(arguments: list[str]) -> int:
    _check_characters(arguments)
    code = _app(arguments)(
        args=arguments or ["--help"], prog_name="ppworker", standalone_mode=False
    )
    return code if isinstance(code, int) else 0


def _app(arguments: Sequence[str]) -> typer.Typer:
    """The commands, of which only the wanted one is loaded: help must not cost a database."""
    root = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Turn uploaded data into trustworthy annotations.",
    )
    root.callback()(_root)
    wanted = next((each for each in arguments if not each.startswith("-")), None)
    for name, (module, summary) in _COMMANDS.items():
        if name == wanted:
            importlib.import_module(f"ppworker.cli.{module}").register(root, name, summary)
        else:
            root.command(name, help=summary)(_not_loaded)
    return root


def _print_version(wanted: bool) -> None:  # noqa: FBT001  typer's shape
    if wanted:
        sys.stdout.write(f"ppworker {__version__}\n")
        raise typer.Exit


def _root(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    del version  # its callback has done it


def _not_loaded() -> None:
    """Stand in for a command whose module nobody asked for."""


def _check_characters(arguments: Sequence[str]) -> None:
    for position, argument in enumerate(arguments, start=1):
        if "\0" in argument or any("\ud800" <= letter <= "\udfff" for letter in argument):
            before = arguments[position - 2] if position > 1 else ""
            name = before if before.startswith("-") else f"argument {position}"
            raise typer.BadParameter(f"{name}: holds NUL or is not UTF-8; write it in UTF-8")


def _explain(error: Exception) -> int:
    # Imported here: a command that works pays for none of it.
    from ppworker.errors import ConfigurationError, PpworkerError, RequestError  # noqa: PLC0415

    if _wants_traceback():
        import traceback  # noqa: PLC0415

        sys.stderr.write(_without_secrets("".join(traceback.format_exception(error))))
    if isinstance(error, RequestError):
        return _say(f"{_field(error.field)}{error}", MISTAKEN)
    if isinstance(error, ConfigurationError):
        return _say(str(error), MISTAKEN)
    if isinstance(error, PpworkerError):
        return _say(_at_run_time(error), FAILED)
    if isinstance(error, OSError) and error.strerror:
        where = f"'{error.filename}': " if error.filename else ""
        return _say(f"{where}{error.strerror}", FAILED)
    return _say(
        f"unexpected {type(error).__name__}: {error}"
        " (PPWORKER_LOG_LEVEL=debug shows where it happened)",
        FAILED,
    )


def _wants_traceback() -> bool:
    return os.environ.get("PPWORKER_LOG_LEVEL", "").lower() == "debug"


def _field(name: str) -> str:
    head, dot, key = name.partition(".")
    shown = _FLAGS.get(head, head)
    return f"{shown}{' ' if dot else ''}{key}: " if shown else ""


def _at_run_time(error: Exception) -> str:
    from ppworker.errors import CommitUnknown, StoreUnavailable  # noqa: PLC0415

    if isinstance(error, CommitUnknown):
        return f"the database went away during a commit, look whether it happened: {error}"
    if isinstance(error, StoreUnavailable):
        return f"the database cannot be reached: {error}"
    return f"{type(error).__name__}: {error}"


def _say(message: str, code: int) -> int:
    """Print one line for a person, whatever the message holds."""
    line = " ".join(_without_secrets(message).split())
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
    try:
        sys.stderr.write(f"ppworker: {shown}\n")
        sys.stderr.flush()
    except (BrokenPipeError, ValueError):
        return code
    return code


def _without_secrets(text: str) -> str:
    """The text without anything that looks like a secret, and without those we know of."""
    from urllib.parse import unquote, urlsplit  # noqa: PLC0415  only errors need them

    from ppworker.telemetry import REDACTED, redacted  # noqa: PLC0415

    for variable in ("PPWORKER_DATABASE_URL", "PPWORKER_REDIS_URL"):
        try:
            secret = urlsplit(os.environ.get(variable, "")).password or ""
        except ValueError:
            continue
        for form in {secret, unquote(secret)} - {""}:
            text = text.replace(form, REDACTED)
    return str(redacted(text))


def _reader_gone() -> int:
    """Whoever read our output has left, as ``head`` does; what is buffered goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED


def _end_in_order_on(*signals: signal.Signals) -> None:
    """Have a signal unwind the stack, so that servers this process started are stopped."""

    def end(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001  signal's shape
        raise SystemExit(128 + number)

    for number in signals:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, end)
