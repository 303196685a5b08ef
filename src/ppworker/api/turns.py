"""Lets few requests ask models at a time, and the others queue without holding a thread."""

import math
from functools import partial

import anyio
import anyio.to_thread

from ppworker.errors import Unavailable
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.inferences.predict import Input, Predictor, Said
from ppworker.pipeline.setup.models import Chosen

MOST_WAITING = 32
"""Requests that queue for models; whoever comes then is told so at once."""


class Turns:
    """The models of a server, and the queue before them."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._predictor = Predictor(deps.settings)
        self._places: anyio.Semaphore | None = None
        self._threads: anyio.CapacityLimiter | None = None

    async def ask(self, chosen: Chosen, given: Input) -> Said:
        """Ask a model when it is this request's turn.

        Raises:
            Unavailable: too many wait already, or the turn did not come in time.
            Invalid: as ``Predictor.ask``.
        """
        settings = self._deps.settings
        if self._places is None:
            # Here: they belong to the loop that serves.
            self._places = anyio.Semaphore(settings.inference_models)
            self._threads = anyio.CapacityLimiter(math.inf)
        if self._places.statistics().tasks_waiting >= MOST_WAITING:
            raise Unavailable("too many requests wait for models; try again")
        try:
            with anyio.fail_after(settings.inference_timeout_s):
                await self._places.acquire()
        except TimeoutError:
            raise Unavailable("other requests keep all models busy; try again") from None
        try:
            return await anyio.to_thread.run_sync(
                partial(self._predictor.ask, self._deps, chosen, given),
                limiter=self._threads,
            )
        finally:
            self._places.release()

    def close(self) -> None:
        """End all models."""
        self._predictor.close()
