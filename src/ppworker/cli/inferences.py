"""``inferences``: add predictions that were made elsewhere to a split."""

from pathlib import Path
from typing import Annotated

import typer

from ppworker.cli import operations, render
from ppworker.cli.session import Call, command, group
from ppworker.cli.session import session as open_session
from ppworker.errors import Invalid
from ppworker.pipeline.inferences import inferences
from ppworker.store import datasets
from ppworker.store import operations as store

_inferences = typer.Typer()


def register(root: typer.Typer, name: str, summary: str) -> None:
    """Add the group to the program."""
    # With one command a group would become that command, and lose its name.
    _inferences.callback()(_nothing)
    group(root, _inferences, name, summary)


def _nothing() -> None:
    """Add inferences made elsewhere to a split."""


@command(_inferences, "add")
def add(
    call: Call,
    *,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="JSON Lines, one inference a line.", show_default=False
        ),
    ],
    split: Annotated[
        str,
        typer.Option(
            "--split", metavar="SPLIT", help="DATASET/SPLIT or an id.", show_default=False
        ),
    ],
    keep_annotations: Annotated[
        bool,
        typer.Option(
            "--keep-annotations/--no-keep-annotations",
            help="Make annotations of the predictions, or only add the items.",
        ),
    ] = True,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY", help="Idempotency key: twice adds once."),
    ] = None,
    wait: Annotated[
        bool,
        typer.Option("--wait/--no-wait", help="Wait for the end, or leave it to the workers."),
    ] = True,
) -> None:
    """Check a file of inferences, then add them all; exit 1 if that failed on the way."""
    with open_session(call) as s:
        into = s.read(lambda tx: datasets.get_split(tx, s.user_id, split))
        try:
            accepted = inferences.add_file(
                s.deps, into, Path(file), keep_annotations=keep_annotations, key=key
            )
        except OSError as error:
            if error.filename != file:
                raise  # our own store, whose disk is full for instance
            raise Invalid(f"'{file}' cannot be read ({error.strerror})", field="FILE") from error
        if wait:
            done = operations.follow(s, accepted.operation_id)
        else:
            done = s.read(lambda tx: store.find_operation(tx, s.user_id, accepted.operation_id))
    if accepted.repeated and not call.as_json:
        render.say("the key is known: this is what was added the first time")
    operations.finish(call, done, repeated=accepted.repeated)
