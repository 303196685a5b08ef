"""``items``: add files, folders and texts; look at what became of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from ppworker.cli import paths, render
from ppworker.cli.session import Call, Session, as_uuid, command, group, page_size, progress_shown
from ppworker.cli.session import session as open_session
from ppworker.errors import Invalid, NotFound, PpworkerError
from ppworker.pipeline.edits import moves
from ppworker.pipeline.uploads import ingest
from ppworker.pipeline.uploads.ingest import Upload
from ppworker.store import annotations, datasets, items, job_operations

_CHUNK = 200
"""Uploads of one transaction."""
_MAX_KEY = 200
_MAX_JOBS = 1000

SplitRef = Annotated[
    str, typer.Argument(metavar="SPLIT", help="DATASET/SPLIT or an id.", show_default=False)
]
Limit = Annotated[int, typer.Option("--limit", metavar="N", help="Most rows.")]
After = Annotated[
    str | None,
    typer.Option("--after", metavar="ID", help="Begin behind this id.", show_default=False),
]

_items = typer.Typer()


def register(root: typer.Typer, name: str, summary: str) -> None:
    """Add the group to the program."""
    group(root, _items, name, summary)


@command(_items, "add")
def add(
    call: Call,
    *,
    split: Annotated[
        str,
        typer.Option(
            "--split", metavar="SPLIT", help="DATASET/SPLIT or an id.", show_default=False
        ),
    ],
    path: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH]...", help="Files and folders.", show_default=False),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", metavar="TEXT", help="An item of text. Repeatable."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY", help="Idempotency key: twice adds once."),
    ] = None,
    bulk: Annotated[bool, typer.Option("--bulk", help="Let interactive uploads go first.")] = False,
) -> None:
    """Add files, folders and texts as items; their jobs are planned with them."""
    if not path and not text:
        raise Invalid("nothing to add; name files or folders, or give --text", field="PATH")
    if key is not None and not 1 <= len(key) <= _MAX_KEY:
        raise Invalid(f"has 1 to {_MAX_KEY} characters", field="--key")
    with open_session(call) as s:
        into = s.read(lambda tx: datasets.get_split(tx, s.user_id, split))
        found = paths.find(path or [], s.deps.settings)
        uploads = [Upload(name=each.name, path=each) for each in found.files]
        uploads += [_text(s, each) for each in text or []]
        done = _add(s, into, uploads, key=key, priority=int(bulk))
    done["skipped"] = [{"path": str(each), "reason": reason} for each, reason in found.skipped]
    if call.as_json:
        render.as_json(done)
        return
    again = " (they were there already: the key is known)" if done["repeated"] else ""
    render.say(f"{len(done['items'])} items, {done['jobs']} jobs{again}")
    render.say(*(f"skipped {each['path']}: {each['reason']}" for each in done["skipped"]))


def _text(s: Session, text: str) -> Upload:
    size, most = len(text.encode()), s.deps.settings.max_text_bytes
    if size > most:
        raise Invalid(
            f"has {size} bytes, more than {most}; cut it up, or raise PPWORKER_MAX_TEXT_BYTES",
            field="--text",
        )
    return Upload(name="text", text=text)


def _add(
    s: Session, into: datasets.Split, uploads: Sequence[Upload], *, key: str | None, priority: int
) -> dict[str, Any]:
    done: dict[str, Any] = {"items": [], "jobs": 0, "repeated": False}
    with _progress(len(uploads), "items") as advance:
        for number, start in enumerate(range(0, len(uploads), _CHUNK), start=1):
            chunk = uploads[start : start + _CHUNK]
            own_key = key if key is None or len(uploads) <= _CHUNK else f"{key}#{number}"
            try:
                taken = ingest.take_upload(s.deps, into, chunk, key=own_key, priority=priority)
            except OSError as error:
                if error.filename is None or Path(error.filename) not in {u.path for u in chunk}:
                    raise  # not the caller's file but our store: its disk is full, for instance
                raise Invalid(
                    f"'{error.filename}' cannot be read any more ({error.strerror}); {start} "
                    "items were added before it",
                    field="PATH",
                ) from error
            except PpworkerError as error:
                if start:
                    error.args = (f"{error} ({start} items were added before)",)
                raise
            done["items"] += [str(id_) for id_ in taken.item_ids]
            done["jobs"] += taken.jobs
            done["repeated"] = done["repeated"] or taken.repeated
            advance(len(chunk))
    return done


class Advance(Protocol):
    """Says that so many more are done."""

    def __call__(self, count: int, /) -> None: ...


@contextmanager
def _progress(total: int, unit: str) -> Iterator[Advance]:
    """A progress bar on the terminal; nothing where nobody watches."""
    if not progress_shown() or total <= _CHUNK:
        yield lambda count: None  # noqa: ARG005  nobody is told
        return
    from rich.console import Console  # noqa: PLC0415  only people wait for it
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TimeRemainingColumn,
    )

    columns = (unit, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(unit, total=total)
        yield lambda count: bar.advance(task, count)


@command(_items, "list")
def list_items(call: Call, split: SplitRef, limit: Limit = 100, after: After = None) -> None:
    """List items of a split by id, with their jobs by status."""
    limit = page_size(limit)
    behind = None if after is None else as_uuid(after, "--after")
    with open_session(call) as s:
        into = s.read(lambda tx: datasets.get_split(tx, s.user_id, split))
        found = s.read(lambda tx: items.list_items(tx, into.id, after=behind, limit=limit))
    rows = [_item(row) for row in found]
    if call.as_json:
        render.as_json(rows)
        return
    for row in rows:
        row["text"] = render.shortened(row["text"], 40)
    columns = ("id", "name", "media_type", "size_bytes", "text", "annotations", "jobs")
    render.table(rows, columns, empty="no items")


@command(_items, "move")
def move(
    call: Call,
    *,
    item: Annotated[list[str], typer.Argument(metavar="ITEM...", show_default=False)],
    source: Annotated[
        str,
        typer.Option("--from", metavar="SPLIT", help="DATASET/SPLIT or an id.", show_default=False),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="SPLIT", help="Another split of that version.", show_default=False
        ),
    ],
) -> None:
    """Move items to another split, with their annotations; all of them or none."""
    ids = [as_uuid(each, "item") for each in item]
    if len(ids) > moves.MOST:
        raise Invalid(f"at most {moves.MOST} at a time", field="item")
    with open_session(call) as s:
        old = s.read(lambda tx: datasets.get_split(tx, s.user_id, source))
        new = s.read(lambda tx: datasets.get_split(tx, s.user_id, to))
        done = {"moved": moves.move(s.deps, ids, source=old, to=new)}
    if call.as_json:
        render.as_json(done)
    else:
        render.say(f"{done['moved']} items moved to {new.dataset_name}/{new.name}")


@command(_items, "show")
def show(
    call: Call, item: Annotated[str, typer.Argument(metavar="ITEM", show_default=False)]
) -> None:
    """Show an item: its text, annotations and jobs."""
    item_id = as_uuid(item, "item")
    with open_session(call) as s, s.deps.db.begin() as tx:
        row = items.find_item(tx, s.user_id, item_id)
        if row is None:
            raise NotFound(
                f"no item {item_id}; `ppworker items list SPLIT` shows those there are",
                field="item",
            )
        said = annotations.list_annotations(tx, item_id)
        planned = job_operations.list_jobs(tx, s.user_id, item_id=item_id, limit=_MAX_JOBS)
    about = _item(row) | {
        "annotations": [render.plain(each) for each in said],
        "jobs": [_job(each) for each in planned],
    }
    if call.as_json:
        render.as_json(about)
    else:
        _print(about)


def _print(about: dict[str, Any]) -> None:
    facts = ("id", "name", "media_type", "size_bytes", "width", "height", "page_count",
             "duration_s")  # fmt: skip
    render.say(*(f"{name:<11} {about[name]}" for name in facts if about[name] is not None))
    if about["text"]:
        render.say("", "text", *(f"  {each}" for each in about["text"].splitlines()))
    render.say("", "annotations")
    columns = ("label", "kind", "coordinates", "text", "score", "source", "post_processor")
    render.table(about["annotations"], columns)
    render.say("", "jobs")
    render.table(about["jobs"], ("id", "post_processor", "status", "attempts", "reason", "error"))


def _item(row: Any) -> dict[str, Any]:
    about = render.plain(row)
    about["annotations"] = about.pop("annotation_count")
    about["jobs"] = about["jobs"] or {}
    return dict(about)


def _job(row: Any) -> dict[str, Any]:
    names = ("id", "post_processor", "status", "reason", "error", "attempts", "dropped", "seconds")
    about = render.plain(row)
    return {name: about[name] for name in names}
