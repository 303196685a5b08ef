"""What is told of jobs that took an edge, after it was committed."""

from collections.abc import Sequence

from ppworker.domain.events import Event, JobMoved, LeaseRefused
from ppworker.domain.job import ENDS, PREDECESSOR_FAILED, Status, Transition
from ppworker.store import jobs
from ppworker.store.claims import ClaimedJob


def moved_event(post_processor: str, job: jobs.HeldJob, transition: Transition) -> JobMoved:
    """The fact that a processing job took an edge."""
    return JobMoved(
        job_id=job.id,
        item_id=job.item_id,
        post_processor=post_processor,
        attempt=job.attempts,
        lease_token=job.lease_token,
        source=Status.PROCESSING,
        to=transition.to,
        cause=transition.cause,
        reason=transition.reason,
        error=transition.error,
        seconds=job.ran_s,
        age_s=job.age_s,
    )


def ended_event(post_processor: str, job: ClaimedJob, attempt: jobs.EndedAttempt) -> JobMoved:
    """The fact that a job took an edge, as its history tells it."""
    return JobMoved(
        job_id=job.id,
        item_id=job.item_id,
        post_processor=post_processor,
        attempt=attempt.attempt,
        lease_token=job.lease_token,
        source=Status.PROCESSING,
        to=ENDS[attempt.cause],
        cause=attempt.cause,
        reason=attempt.reason,
        error=attempt.error,
        seconds=attempt.seconds,
        age_s=attempt.age_s,
    )


def stopped_events(rows: Sequence[jobs.Stopped]) -> list[Event]:
    """The facts that pending jobs were failed because an earlier one failed."""
    return [
        JobMoved(
            job_id=row.id,
            item_id=row.item_id,
            post_processor=row.post_processor,
            attempt=row.attempts,
            lease_token=row.lease_token,
            source=Status.PENDING,
            to=Status.FAILED,
            cause=PREDECESSOR_FAILED,
            reason=PREDECESSOR_FAILED,
            age_s=row.age_s,
        )
        for row in rows
    ]


def refused_events(post_processor: str, lost: Sequence[ClaimedJob]) -> list[Event]:
    """The facts that answers were dropped whose leases were somebody else's by then."""
    return [
        LeaseRefused(
            job_id=job.id,
            item_id=job.item_id,
            post_processor=post_processor,
            attempt=job.attempts,
            lease_token=job.lease_token,
        )
        for job in lost
    ]
