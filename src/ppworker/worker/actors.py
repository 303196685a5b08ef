"""The two actors that follow hints. Nothing they do is retried by dramatiq: rows and polls are."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import dramatiq

from ppworker.errors import StoreUnavailable
from ppworker.worker.broker import HintBroker
from ppworker.worker.hints import QUEUE, REFRESH_LABEL_STATS, RUN_JOBS

log = logging.getLogger(__name__)

_SHORTEST_TURN_S = 0.05
"""Least seconds between two turns of a post-processor that has more and did nothing."""


@dataclass(frozen=True, slots=True)
class Handlers:
    """What the actors call.

    Attributes:
        run_slice: works on a post-processor for one time slice and answers whether more is due
            that a slot could start now. It calls its second argument when its claim came back
            full, to recruit one more slot; calling it again does nothing. Its third one says what
            began the turn: wakeup or poll.
        refresh: folds the deltas of the label stats.
    """

    run_slice: Callable[[UUID, Callable[[], None], str], bool]
    refresh: Callable[[], None]


def declare_actors(broker: HintBroker, handlers: Handlers) -> None:
    """Declare ``run_jobs`` and ``refresh_label_stats`` on the broker; once per broker."""

    def run_jobs(post_processor_id: str, *, is_polled: bool = False) -> None:
        woken_by = "poll" if is_polled else "wakeup"
        _take_turn(broker, handlers.run_slice, UUID(post_processor_id), woken_by)

    def refresh_label_stats() -> None:
        if broker.stopping.is_set():
            return
        try:
            handlers.refresh()
        except StoreUnavailable as error:
            log.warning("label stats were not refreshed: %s", error)
        except Exception:
            log.exception("label stats were not refreshed")

    dramatiq.actor(broker=broker, actor_name=RUN_JOBS, queue_name=QUEUE)(run_jobs)
    # A higher figure waits behind a lower one.
    dramatiq.actor(broker=broker, actor_name=REFRESH_LABEL_STATS, queue_name=QUEUE, priority=10)(
        refresh_label_stats
    )


def _take_turn(
    broker: HintBroker,
    run_slice: Callable[[UUID, Callable[[], None], str], bool],
    post_processor_id: UUID,
    woken_by: str,
) -> None:
    if broker.stopping.is_set():
        broker.hint(post_processor_id)
        return
    has_recruited = False

    def recruit() -> None:
        nonlocal has_recruited
        if not has_recruited:
            has_recruited = True
            broker.looks.has_more(post_processor_id)
            broker.hint(post_processor_id)

    started = time.monotonic()
    try:
        has_more = run_slice(post_processor_id, recruit, woken_by)
    except StoreUnavailable as error:
        log.warning("post-processor %s: its turn ended early: %s", post_processor_id, error)
        return
    except Exception:
        log.exception("post-processor %s: its turn failed", post_processor_id)
        return
    if not has_more:
        return
    # To the tail of the queue, so that post-processors take turns. One that has more but could do
    # nothing (its cap is reached) would spin through redis without this pause.
    if time.monotonic() - started < _SHORTEST_TURN_S:
        broker.stopping.wait(_SHORTEST_TURN_S)
    broker.looks.has_more(post_processor_id)
    broker.hint(post_processor_id)
