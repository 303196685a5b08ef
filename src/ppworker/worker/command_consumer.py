"""Takes commands and has them followed, one at a time; each is acknowledged after its COMMIT.

While PostgreSQL is away messages stay where they are: the one in hand goes back, and nothing is
taken until the database answers. While redis is away this thread looks for it now and then; neither
keeps a process from stopping.
"""

import logging
import random
import threading
import time
from collections.abc import Callable

from redis import RedisError

from ppworker import crash_points
from ppworker.errors import StoreUnavailable
from ppworker.worker.circuit import Circuit
from ppworker.worker.command_link import CommandLink, Taken
from ppworker.worker.link import BLOCK_S

log = logging.getLogger(__name__)

_COOLDOWN_S = 1.5
_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 5.0
_LOOK_FOR_DELAYED_S = 5.0
_BEAT_ENDS_S = 0.5


class NotNow(Exception):  # noqa: N818  an outcome
    """A command cannot be followed now for no fault of its own that is known: a disk is full, or
    the code has a fault. It is tried again a few times, and then refused."""


class CommandConsumer:
    """The thread of one process that follows commands, and the one that gives its life signs."""

    def __init__(
        self,
        link: CommandLink,
        follow: Callable[[Taken], None],
        probe: Callable[[], None],
        *,
        stopping: threading.Event,
    ) -> None:
        """Build on collaborators.

        Args:
            link: where commands come from.
            follow: does what a message says, or keeps it as a dead letter. Returns when either is
                committed; raises StoreUnavailable or NotNow when neither is.
            probe: asks PostgreSQL anything; raises StoreUnavailable.
            stopping: set when nothing more shall be taken.
        """
        self._link = link
        self._follow = follow
        self._probe = probe
        self._stopping = stopping
        self._ended = threading.Event()
        self._redis = Circuit("taking commands", cooldown_s=_COOLDOWN_S)
        self._failures = 0
        self._look_for_delayed_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="commands", daemon=True)
        self._beats = threading.Thread(target=self._beat, name="command-beats", daemon=True)

    def start(self) -> None:
        """Begin to take commands."""
        self._thread.start()
        self._beats.start()

    def stop(self, *, wait_s: float) -> bool:
        """End both threads; whether the command in hand was followed within ``wait_s`` seconds.

        One that was not goes back into the queue. Should it be followed all the same, by this
        thread a moment later, then its key lets the next delivery do nothing.
        """
        self._stopping.set()
        self._ended.set()
        self._thread.join(wait_s)
        in_time = not self._thread.is_alive()
        if not in_time:
            self._give_back()
        self._beats.join(_BEAT_ENDS_S)
        try:
            self._link.close()
        except (RedisError, OSError) as error:
            log.debug("redis did not see the end of this consumer: %s", error)
        return in_time

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not self._redis.allows():
                self._stopping.wait(min(self._redis.seconds_left(), BLOCK_S) + 0.01)
                continue
            try:
                taken = self._take()
                if taken is not None:
                    self._work_on(taken)
            except (RedisError, OSError) as error:
                self._redis.failed(error)
            except Exception:
                log.exception("taking commands failed")
                self._stopping.wait(_LONGEST_WAIT_S)
            else:
                self._redis.succeeded()
        self._give_back()

    def _give_back(self) -> None:
        """Leave nothing behind; a redis that is away sees it by the missing life signs."""
        if self._redis.seconds_left():
            return  # it failed a moment ago: stopping does not wait for it
        try:
            self._link.give_back()
        except (RedisError, OSError) as error:
            self._redis.failed(error)

    def _take(self) -> Taken | None:
        now = time.monotonic()
        if now >= self._look_for_delayed_at:
            self._look_for_delayed_at = now + _LOOK_FOR_DELAYED_S
            if (delayed := self._link.take_delayed()) is not None:
                self._look_for_delayed_at = now  # there may be more
                return delayed
        return self._link.take(block_s=BLOCK_S)

    def _work_on(self, taken: Taken) -> None:
        try:
            self._follow(taken)
        except StoreUnavailable as error:
            self._put_off(taken, error, is_its_fault=False)
        except NotNow as error:
            self._put_off(taken, error, is_its_fault=True)
        except BaseException:  # the panic of a library in Rust is no Exception
            # Not even its dead letter could be written: it must not block those behind it.
            log.exception("a command was moved to redis' dead letters")
            self._link.reject(taken)
        else:
            if self._failures:
                log.info("commands are followed again")
            self._failures = 0
            crash_points.reach("before_ack")
            self._link.done(taken)

    def _put_off(self, taken: Taken, error: Exception, *, is_its_fault: bool) -> None:
        """Give the message back and rest, longer each time, until PostgreSQL answers."""
        if not self._failures:
            log.warning("commands wait: %s", error)
        try:
            self._link.give_back(taken, keeps_tries=is_its_fault)
        except (RedisError, OSError) as lost:
            self._redis.failed(lost)  # it goes back before the next one is taken
        while True:
            wait_s = min(_FIRST_WAIT_S * 2.0 ** min(self._failures, 8), _LONGEST_WAIT_S)
            self._failures += 1
            if self._stopping.wait(wait_s * random.uniform(0.5, 1)):  # noqa: S311  only spreads
                return
            try:
                self._probe()
            except StoreUnavailable:
                continue
            return

    def _beat(self) -> None:
        """Show that this process lives, and put back what dead ones hold; failures show in _run."""
        while not self._ended.wait(self._link.silence_s / 4 * random.uniform(0.8, 1)):  # noqa: S311
            try:
                self._link.beat()
            except (RedisError, OSError) as error:
                log.debug("no life sign of the command consumer: %s", error)
            except Exception:
                log.exception("no life sign of the command consumer")
