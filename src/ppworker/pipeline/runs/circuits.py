"""Notes what batches tell of a post-processor's model, so that all workers pause together."""

import logging
import random
from collections.abc import Sequence
from uuid import UUID

from ppworker.domain.circuit import Circuit, Limits, Seen, State, judge, see
from ppworker.domain.events import CircuitClosed, CircuitOpened, Event
from ppworker.domain.post_processor import PostProcessor
from ppworker.errors import Invalid, StoreRefused, StoreUnavailable
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs.answers import Ended
from ppworker.runners import registry
from ppworker.store import circuits
from ppworker.store.db import Tx

log = logging.getLogger(__name__)


def note(
    deps: Deps,
    processor: PostProcessor,
    ended: Sequence[Ended],
    *,
    lost: int,
    is_watched: bool,
    apart: bool,
) -> None:
    """Note the ends of a batch, after its finish was committed; never raises.

    To be told twice or not at all does little harm, so this is no part of the finish. A healthy
    post-processor has no row, and costs no statement.

    Args:
        deps: the collaborators.
        processor: whose batch it was.
        ended: its attempts.
        lost: how many of them were somebody else's by then. If all were, the batch says nothing:
            a stopping worker gives its jobs back and then ends its models.
        is_watched: whether something was noted of this post-processor when the batch was claimed.
        apart: whether they were suspects. Where the model shares the worker's process they ran in a
            second copy: that it cannot be loaded, for instance, says nothing of the first.
    """
    seen = see(each.outcome for each in ended)
    if lost >= len(ended):
        return
    if apart and not seen.answers and not _is_isolated(processor):
        return
    try:
        if seen.is_trouble:
            _note_trouble(deps, processor, seen)
        elif is_watched and seen.answers:
            _note_answer(deps, processor)
    except (StoreUnavailable, StoreRefused) as error:
        log.warning("post-processor %s: not noted how its model does: %s", processor.name, error)


def close(deps: Deps, post_processor_id: UUID, name: str) -> bool:
    """End the pause that failures brought about, as a person wishes; the operator's own pause
    stays as it is. Returns whether there was one."""

    def work(tx: Tx) -> bool:
        return circuits.close_circuit(tx, post_processor_id, by_force=True)

    was_open = deps.db.transact(work)
    if was_open:
        deps.emit([CircuitClosed(post_processor=name, by="operator")])
    deps.hint([post_processor_id])
    return was_open


def _is_isolated(processor: PostProcessor) -> bool:
    try:
        return registry.spec(processor.runner).isolated
    except Invalid:  # whoever ran it knows it from elsewhere
        return False


def _note_trouble(deps: Deps, processor: PostProcessor, seen: Seen) -> None:
    given = deps.settings
    limits = Limits(
        failures=given.circuit_failures,
        pause_s=given.circuit_pause_s,
        max_pause_s=given.circuit_max_pause_s,
    )
    jitter = random.random()  # noqa: S311  only spreads

    def work(tx: Tx) -> tuple[Circuit, Circuit]:
        before = circuits.lock_circuit(tx, processor.id)
        after = judge(before, seen, limits, jitter=jitter)
        circuits.write_circuit(tx, processor.id, after)
        return before, after

    before, after = deps.db.transact(work)
    events: list[Event] = []
    if after.state is State.OPEN and before.state is not State.OPEN:
        opened = CircuitOpened(
            post_processor=processor.name,
            cause="failures" if seen.asked_s is None else "asked",
            reason=after.reason,
            failures=after.failures,
            trips=after.trips,
            seconds=round(after.rests_s or 0.0, 3),
        )
        events.append(opened)
    deps.emit(events)


def _note_answer(deps: Deps, processor: PostProcessor) -> None:
    was_open = deps.db.transact(lambda tx: circuits.close_circuit(tx, processor.id))
    if was_open:
        deps.emit([CircuitClosed(post_processor=processor.name, by="answer")])
        deps.hint([processor.id])  # those that looked while the probe ran found nothing to claim
