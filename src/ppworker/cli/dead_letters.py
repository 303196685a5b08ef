"""``dead-letters``: look at messages that could not be followed, replay them, or forget them."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ppworker.cli import render
from ppworker.cli.items import After, Limit
from ppworker.cli.session import Call, as_uuid, command, group, page_size
from ppworker.cli.session import session as open_session
from ppworker.errors import Invalid, NotFound, RequestError
from ppworker.store import dead_letters
from ppworker.worker import commands

_SHOWN_BODY = 4000
_OWN_FIELDS = {"ID", "--body"}

Letter = Annotated[str, typer.Argument(metavar="ID", show_default=False)]

_letters = typer.Typer()


def register(root: typer.Typer, name: str, summary: str) -> None:
    """Add the group to the program."""
    group(root, _letters, name, summary)


@command(_letters, "list")
def list_letters(
    call: Call,
    *,
    limit: Limit = 100,
    after: After = None,
    replayed: Annotated[
        bool, typer.Option("--replayed", help="Also those that were replayed.")
    ] = False,
) -> None:
    """List dead letters by id: everybody's, as this is for operators."""
    limit = page_size(limit)
    behind = None if after is None else as_uuid(after, "--after")
    with open_session(call) as s:
        found = s.read(
            lambda tx: dead_letters.list_letters(tx, after=behind, limit=limit, replayed=replayed)
        )
    rows = [_about(letter) for letter in found]
    for row in rows:
        del row["body"]
    if call.as_json:
        render.as_json(rows)
        return
    for row in rows:
        row["error"] = render.shortened(row["error"])
    columns = ["id", "created_at", "actor", "username", "key", "field", "error"]
    if replayed:
        columns.append("replayed_at")
    render.table(rows, columns, empty="no dead letters")


@command(_letters, "show")
def show(call: Call, letter: Letter) -> None:
    """Show a dead letter with the message it holds, secrets taken out."""
    letter_id = as_uuid(letter, "ID")
    with open_session(call) as s:
        about = _about(s.read(lambda tx: dead_letters.get_letter(tx, letter_id)))
    if call.as_json:
        render.as_json(about)
        return
    facts = ("id", "message_id", "created_at", "replayed_at", "actor", "username", "key", "field",
             "error", "is_cut")  # fmt: skip
    render.say(*(f"{name:<11} {render.cell(about[name])}" for name in facts))
    render.say("", "body", render.shortened(render.compact(about["body"]), _SHOWN_BODY))


@command(_letters, "replay")
def replay(
    call: Call,
    *,
    letter: Letter,
    body: Annotated[
        str | None,
        typer.Option(
            "--body",
            metavar="FILE",
            help="The command's fields as they should be, a JSON object; - reads it from input.",
        ),
    ] = None,
    actor: Annotated[
        str | None,
        typer.Option("--actor", metavar="NAME", help="The command it should have been."),
    ] = None,
) -> None:
    """Follow a dead letter again, as it is or mended; it stays one if it fails again."""
    letter_id = as_uuid(letter, "ID")
    fields = None if body is None else _fields(body)
    with open_session(call) as s:
        found = s.read(lambda tx: dead_letters.get_letter(tx, letter_id))
        try:
            outcome = commands.replay(s.deps, found, fields=fields, actor=actor)
        except RequestError as error:
            if error.field in _OWN_FIELDS:
                raise
            # As the message calls it, which is not as an option of this command is called.
            raise Invalid(f"{error.field}: {error}") from error
    if call.as_json:
        render.as_json({"id": letter_id, "outcome": outcome})
    else:
        said = {
            "done": "followed",
            "repeated": "it was followed before: its key is known",
            "nothing": "understood, but there is nothing to do",
        }
        render.say(said[outcome])


@command(_letters, "discard")
def discard(
    call: Call,
    letter: Annotated[list[str], typer.Argument(metavar="ID...", show_default=False)],
) -> None:
    """Delete dead letters that nobody will replay."""
    ids = [as_uuid(each, "ID") for each in dict.fromkeys(letter)]
    with open_session(call) as s:
        gone = s.deps.db.transact(lambda tx: dead_letters.delete_letters(tx, ids))
    if not gone:
        raise NotFound("none of them is a dead letter", field="ID")
    if call.as_json:
        render.as_json({"discarded": gone})
    else:
        render.say(f"{gone} dead letters discarded")


def _about(letter: dead_letters.Letter) -> dict[str, Any]:
    about: dict[str, Any] = render.plain(letter)
    about["body"] = json.loads(letter.body)
    return about


def _fields(path: str) -> dict[str, Any]:
    """The object that a file holds."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        fields = json.loads(text)
    except OSError as error:
        raise Invalid(f"'{path}' cannot be read ({error.strerror})", field="--body") from None
    except (ValueError, RecursionError):
        raise Invalid(f"'{path}' is not JSON in UTF-8", field="--body") from None
    if not isinstance(fields, dict):
        raise Invalid(f"'{path}' holds no JSON object", field="--body")
    return fields
