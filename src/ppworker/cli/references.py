"""What commands share: how people name things, and how they are told about progress."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from uuid import UUID

from ppworker.cli.session import progress_shown
from ppworker.domain.post_processor import PostProcessor
from ppworker.store import datasets, post_processors
from ppworker.store.db import Tx


def get_processor(
    tx: Tx, user_id: UUID, reference: str, *, dataset_id: UUID | None = None
) -> PostProcessor:
    """The post-processor that an id, ``DATASET/NAME`` or a bare name means.

    Raises:
        NotFound: none is meant, or several.
    """
    dataset, slash, name = reference.rpartition("/")
    if slash:
        dataset_id = datasets.get_dataset(tx, user_id, dataset).id
    return post_processors.get_post_processor(
        tx, user_id, name if slash else reference, dataset_id=dataset_id
    )


class Tell(Protocol):
    """Replaces the line that is shown."""

    def __call__(self, text: str, /) -> None: ...


@contextmanager
def status_line() -> Iterator[Tell]:
    """A line on the terminal that changes; nothing where nobody watches."""
    if not progress_shown():
        yield lambda text: None  # noqa: ARG005  nobody is told
        return
    from rich.console import Console  # noqa: PLC0415  only people wait for it

    with Console(stderr=True).status("") as status:
        yield status.update
