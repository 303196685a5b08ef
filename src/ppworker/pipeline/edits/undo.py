"""Takes a post-processor's output of a version away again, but for what people looked at.

Its kept answers stay, so that a reapply can bring the output back. Text that it wrote stays too:
somebody, or a later post-processor, may have built on it.
"""

from functools import partial
from uuid import UUID

from ppworker.domain.measurements import AnnotationsWritten
from ppworker.errors import Conflict, NotFound
from ppworker.pipeline.control.operations import Chunk, Write
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.edits import passage
from ppworker.pipeline.edits.held import held
from ppworker.pipeline.edits.passage import Passage
from ppworker.store import annotations, suggestions
from ppworker.store.db import Tx
from ppworker.store.operations import Operation
from ppworker.store.suggestions import Suggestions

KIND = "undo"


def begin(
    deps: Deps, dataset_id: UUID, user_id: UUID, version_id: UUID, post_processor_id: UUID
) -> UUID:
    """Create the operation that undoes a post-processor's output in a version; returns its id.

    Args:
        deps: the collaborators.
        dataset_id: of the version.
        user_id: the dataset's owner.
        version_id: where.
        post_processor_id: whose output; it may be deleted.

    Raises:
        NotFound: the dataset never had such a post-processor.
        Conflict: jobs of it are not over in that version: their answers would come afterwards.
    """
    with deps.db.look() as tx:
        name = suggestions.find_any_processor(tx, dataset_id, post_processor_id)
        if name is None:
            raise NotFound(
                f"there is no post-processor '{post_processor_id}' here", field="post-processor"
            )
        live = suggestions.count_live_jobs(tx, version_id, post_processor_id)
    if live:
        raise Conflict(
            f"{live} jobs of '{name}' are pending or processing in this version, and would write "
            "again; wait for them or cancel them first",
            field="version_id",
        )
    arguments = {"version_id": str(version_id), "post_processor_id": str(post_processor_id)}
    on_its_way = passage.Begun(
        kind=KIND,
        dataset_id=dataset_id,
        user_id=user_id,
        version_id=version_id,
        arguments={**arguments, "post_processor": name},
    )
    return passage.begin(deps, on_its_way)


def step(deps: Deps, operation: Operation) -> Write:
    """Prepare the next chunk of an undo, as `ppworker.pipeline.control.operations.Step` asks.

    Raises:
        NotFound: the version was deleted.
    """
    wanted = Suggestions(
        version_id=UUID(operation.arguments["version_id"]),
        post_processor_id=UUID(operation.arguments["post_processor_id"]),
        source="model",
    )
    passed = passage.prepare(deps, operation, wanted)
    return partial(_write, deps, operation, wanted, passed)


def _write(deps: Deps, operation: Operation, wanted: Suggestions, passed: Passage, tx: Tx) -> Chunk:
    processor_id = UUID(operation.arguments["post_processor_id"])
    with held(tx, wanted.version_id, passed.items):
        # Jobs that were planned since it began: their end writes anew, whatever is taken away now.
        busy = suggestions.find_busy(tx, wanted.version_id, processor_id, passed.items)
        found = suggestions.find_suggestions(tx, wanted, passed.items - busy)
        annotations.delete_suggestions(tx, list(found))
    counts = {
        "annotations_removed": len(found),
        "items_changed": len(set(found.values())),
        "skipped_live_job": len(busy),
    }
    written = AnnotationsWritten(
        post_processor=operation.arguments["post_processor"], deleted=len(found)
    )
    return passed.chunk(counts, after=partial(deps.emit, [written]))
