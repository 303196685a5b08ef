"""``blobs``: store files that messages name by their hash."""

from pathlib import Path
from typing import Annotated

import typer

from ppworker.cli import render
from ppworker.cli.session import Call, command, group
from ppworker.cli.session import session as open_session
from ppworker.errors import Invalid
from ppworker.pipeline.uploads import sources

_blobs = typer.Typer()


def register(root: typer.Typer, name: str, summary: str) -> None:
    """Add the group to the program."""
    group(root, _blobs, name, summary)


@command(_blobs, "add")
def add(
    call: Call,
    file: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Files.", show_default=False)
    ],
) -> None:
    """Store files and print their hashes, by which this user's messages may name them."""
    with open_session(call) as s:
        rows = []
        for path in map(Path, file):
            if not path.is_file():
                raise Invalid(f"'{path}' is no file", field="FILE")
            rows.append({"sha256": sources.keep_file(s.deps, s.user_id, path), "file": str(path)})
    if call.as_json:
        render.as_json(rows)
    else:  # as sha256sum does, for pipes
        render.say(*(f"{row['sha256']}  {row['file']}" for row in rows))
