"""What a hint is: "look whether this post-processor has jobs", or "fold the label stats".

A hint carries no work. It may be lost, late or doubled, so everything here may drop one; what must
happen is already a row in PostgreSQL, and polling finds it.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from dramatiq import Message
from dramatiq.errors import DecodeError

NAMESPACE = "ppworker"
"""Prefix of every key in redis; a plain dramatiq producer uses the same one."""
QUEUE = "default"
"""The queue of a dramatiq actor declared without a queue name, so that the simplest stub works."""
RUN_JOBS = "run_jobs"
REFRESH_LABEL_STATS = "refresh_label_stats"
MAX_AGE_S = 60
"""Seconds after which a hint is worthless: polling has looked many times since."""


class MalformedHint(ValueError):  # noqa: N818  named as an outcome, like the project's error tree
    """A message that is no hint; says why, without repeating what a stranger wrote in it."""


@dataclass(frozen=True, slots=True)
class Hint:
    """Wake-up for one post-processor, or for the label stats when it names none."""

    post_processor_id: UUID | None

    @property
    def actor_name(self) -> str:
        """The dramatiq actor that follows this hint."""
        return REFRESH_LABEL_STATS if self.post_processor_id is None else RUN_JOBS

    @property
    def mark(self) -> str:
        """The redis key that says "one of these is queued already"."""
        return f"{NAMESPACE}:hint:{self.post_processor_id or REFRESH_LABEL_STATS}"

    def to_message(self, **options: Any) -> Message[None]:
        """Build the dramatiq message; a stock worker that reads it keeps our limits too.

        One that is ``local`` goes to a thread of this process, which is told that polling found it.
        """
        is_polled = self.post_processor_id is not None and options.get("local")
        return Message(
            queue_name=QUEUE,
            actor_name=self.actor_name,
            args=() if self.post_processor_id is None else (str(self.post_processor_id),),
            kwargs={"is_polled": True} if is_polled else {},
            options={"max_retries": 0, "max_age": MAX_AGE_S * 1000, **options},
        )


REFRESH = Hint(None)


def decode(data: bytes | None) -> Message[Any]:
    """Read the envelope of a message as it lies in redis.

    Raises:
        MalformedHint: there is no message, or it is not dramatiq's JSON.
    """
    if data is None:
        raise MalformedHint("its body is gone")
    try:
        return Message.decode(data)
    except DecodeError:
        raise MalformedHint("it is not a dramatiq message") from None


def read(message: Message[Any]) -> Hint:
    """Read the hint out of a message that anybody may have written.

    Raises:
        MalformedHint: the actor is unknown or its arguments are not what it takes.
    """
    args, kwargs = list(message.args), message.kwargs
    if not isinstance(kwargs, dict):
        raise MalformedHint("its keyword arguments are no object")
    if message.actor_name == REFRESH_LABEL_STATS:
        if args or kwargs:
            raise MalformedHint("refresh_label_stats takes no arguments")
        return REFRESH
    if message.actor_name != RUN_JOBS:
        raise MalformedHint("its actor is unknown")
    if list(kwargs) == ["post_processor_id"] and not args:
        args = list(kwargs.values())
        kwargs = {}
    if len(args) != 1 or kwargs or not isinstance(args[0], str):
        raise MalformedHint("run_jobs takes one post_processor_id, a string")
    try:
        return Hint(UUID(args[0]))
    except ValueError:
        raise MalformedHint("its post_processor_id is no UUID") from None


def is_stale(message: Message[Any], *, now_s: float) -> bool:
    """Whether a message is too old to be worth a look.

    Args:
        message: as decoded; its time stamp is the producer's wall clock.
        now_s: our wall clock, seconds since 1970.

    Raises:
        MalformedHint: the time stamp is no number.
    """
    stamp: object = message.message_timestamp
    if isinstance(stamp, bool) or not isinstance(stamp, int | float):
        raise MalformedHint("its time stamp is no number")
    # Compared as it is: an integer of JSON may be too large to divide.
    return stamp <= (now_s - MAX_AGE_S) * 1000
