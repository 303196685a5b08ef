"""Follows commands from outside: each in one transaction with its idempotency key, or not at all.

A key that is known ends a command before anything it names is looked at: a message that comes again
must not stumble over a file that was cleared away since.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from ppworker.errors import Conflict, Forbidden, Invalid, NotFound
from ppworker.pipeline.control import operate
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.inferences import inferences
from ppworker.pipeline.setup.accounts import WRITE
from ppworker.pipeline.uploads import ingest, sources
from ppworker.store import accounts, datasets, idempotency
from ppworker.store.db import Tx

_MOST_TEXT_BYTES = 64 * 1024 * 1024
"""Most bytes of all texts of one upload: a short message may name one long file very often."""
_PRIORITIES = {"interactive": 0, "bulk": 1}


class Outcome(StrEnum):
    """What came of a command that was understood."""

    DONE = "done"
    REPEATED = "repeated"
    """Its key was known: it is done already."""
    NOTHING = "nothing"
    """There was nothing to do: the job to be retried has not failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Who commands, and how the same command is recognised."""

    user_id: UUID
    key: str
    digest: str
    """Hash of all that the command says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Where bytes are: exactly one of the three."""

    text: str | None = None
    blob: str | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One thing to become an item."""

    name: str
    content: Content
    metadata: str = ""


def find_sender(deps: Deps, *, user: str | None, api_key: str | None) -> UUID:
    """The user that a message names, or whose key it carries.

    Raises:
        NotFound: there is none; the key is unknown, disabled or expired.
        Forbidden: the key may only read.
    """
    with deps.db.look() as tx:
        if api_key is not None:
            holder = accounts.find_key(tx, api_key)
            if holder is None:
                raise NotFound("the key is unknown, disabled or expired", field="api_key")
            if holder.scopes and WRITE not in holder.scopes:
                raise Forbidden(f"the key is not for '{WRITE}'", field="api_key")
            return holder.user_id
        found = accounts.find_user(tx, user or "")
    if found is None:
        raise NotFound("there is no such user; `ppworker users list` shows all", field="user")
    return found.id


def take_upload(
    deps: Deps, ask: Ask, split: str, sent: Sequence[Sent], *, priority: str = "interactive"
) -> Outcome:
    """Take items into a split and plan their jobs.

    Raises:
        RequestError: something named is not there, not the user's, or breaks a limit.
    """
    with deps.db.look() as tx:
        if _is_known(tx, ask):
            return Outcome.REPEATED
        into = _split(tx, ask.user_id, split)
        uploads = [
            _upload(deps, tx, ask.user_id, each, f"items[{number}]")
            for number, each in enumerate(sent)
        ]
    taken = ingest.take_upload(
        deps,
        into,
        uploads,
        key=ask.key,
        digest=ask.digest,
        priority=_PRIORITIES[priority],
        most_text_bytes=max(_MOST_TEXT_BYTES, deps.settings.max_text_bytes),
    )
    return Outcome.REPEATED if taken.repeated else Outcome.DONE


def apply_inferences(
    deps: Deps,
    ask: Ask,
    split: str,
    given: Sequence[Mapping[str, Any]] | Content,
    *,
    keep_annotations: bool = True,
) -> Outcome:
    """Begin the operation that applies inferences to a split.

    Args:
        deps: the collaborators.
        ask: who asks.
        split: where they go.
        given: the inferences, or where the file of JSON Lines is that holds them.
        keep_annotations: whether predictions become annotations.

    Raises:
        RequestError: as ``take_upload``.
    """
    with deps.db.look() as tx:
        if _is_known(tx, ask):
            return Outcome.REPEATED
        into = _split(tx, ask.user_id, split)
    add = partial(
        inferences.add_file if isinstance(given, Content) else inferences.add,
        deps, into, keep_annotations=keep_annotations, key=ask.key, digest=ask.digest,
    )  # fmt: skip
    if not isinstance(given, Content):
        return _accepted(add(given))
    with _file(deps, ask.user_id, given) as path:
        return _accepted(add(path))


def retry_job(deps: Deps, ask: Ask, job_id: UUID, *, successors: bool = False) -> Outcome:
    """Start a failed job again.

    Raises:
        NotFound: the user has no such job.
        Conflict: the key was used for something else.
    """
    with deps.db.look() as tx:
        if _is_known(tx, ask):
            return Outcome.REPEATED
    once = operate.Once(key=ask.key, digest=ask.digest)
    done = operate.retry_once(deps, ask.user_id, job_id, once, successors=successors)
    if done is None:
        return Outcome.REPEATED
    return Outcome.DONE if done.changed else Outcome.NOTHING


def _is_known(tx: Tx, ask: Ask) -> bool:
    known = idempotency.find_key(tx, ask.user_id, ask.key)
    if known is not None and known.request_sha256 != ask.digest:
        raise Conflict(
            f"key '{ask.key}' was used for another command; choose a new key", field="key"
        )
    return known is not None


def _split(tx: Tx, user_id: UUID, split: str) -> datasets.Split:
    try:
        return datasets.get_split(tx, user_id, split)
    except NotFound as error:
        error.field = "split"  # which names the dataset, too
        raise


def _upload(deps: Deps, tx: Tx, user_id: UUID, sent: Sent, field: str) -> ingest.Upload:
    content = sent.content
    if content.blob is not None:
        field += ".blob"
        path = sources.stored_file(deps, tx, user_id, content.blob, field=field)
        return ingest.Upload(name=sent.name, path=path, metadata=sent.metadata, field=field)
    if content.path is not None:
        field += ".path"
        opened = partial(sources.inbox_file, deps.settings.inbox_dir, content.path, field=field)
        return ingest.Upload(name=sent.name, open=opened, metadata=sent.metadata, field=field)
    return ingest.Upload(
        name=sent.name, text=content.text, metadata=sent.metadata, field=field + ".text"
    )


@contextmanager
def _file(deps: Deps, user_id: UUID, content: Content) -> Iterator[Path]:
    """A file to read at leisure: the stored one, or a copy of the one in the inbox."""
    if content.blob is not None:
        with deps.db.look() as tx:
            path = sources.stored_file(deps, tx, user_id, content.blob, field="blob")
        yield path
        return
    with ExitStack() as open_files:
        source = open_files.enter_context(
            sources.inbox_file(deps.settings.inbox_dir, content.path or "", field="path")
        )
        try:
            copy = deps.blobs.receive(source, limit=deps.settings.max_file_bytes)
            path = open_files.enter_context(copy)
        except Invalid as error:
            error.field = "path"
            raise
        yield path


def _accepted(accepted: inferences.Accepted) -> Outcome:
    return Outcome.REPEATED if accepted.repeated else Outcome.DONE
