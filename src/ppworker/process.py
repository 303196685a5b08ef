"""Entry of one worker process, started by the supervisor: small, so that it stays light."""

import gc
import sys

from ppworker import settings, telemetry, wiring
from ppworker.errors import ConfigurationError, StoreUnavailable
from ppworker.worker.process import leave
from ppworker.worker.signals import Signals
from ppworker.worker.supervisor import CONFIGURATION_ERROR


def main() -> None:
    """Run one worker process; exits 0 after a stop, 2 on a configuration error, 1 otherwise."""
    # What is loaded by now lives as long as the process; a batch makes thousands of short-lived
    # values, and looking through everything for each few hundred took a sixth of a worker's time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    with Signals() as signals:  # to the very end: a late signal must not change the exit code
        try:
            in_time = wiring.run_worker_process(settings.load(), signals)
        except ConfigurationError as error:
            sys.stderr.write(f"ppworker: {error}\n")
            leave(CONFIGURATION_ERROR)
        except StoreUnavailable as error:
            telemetry.warn("worker.no_database", error=str(error))
            leave(1)
        telemetry.info("worker.stopped", in_time=in_time)
        leave(0)


if __name__ == "__main__":
    main()
