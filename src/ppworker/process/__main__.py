"""Entry of one process: ``python -m ppworker.process ROLE``; loads what its role needs, no more."""

import gc
import importlib
import sys

from ppworker import crash_points, settings, telemetry
from ppworker.errors import ConfigurationError, StoreUnavailable
from ppworker.monitoring.folder import Place
from ppworker.worker.process import leave
from ppworker.worker.signals import Signals
from ppworker.worker.supervisor import CONFIGURATION_ERROR

ROLES = ("worker", "api", "monitor")


def main() -> None:
    """Run one process; exits 0 after a stop, 2 on a configuration error, 3 when a slot
    hung in a model, 1 otherwise."""
    role = sys.argv[1] if len(sys.argv) > 1 else "worker"
    if role not in ROLES:
        sys.stderr.write(f"ppworker: no role '{role}'; there are {', '.join(ROLES)}\n")
        leave(CONFIGURATION_ERROR)
    run = importlib.import_module(f"ppworker.process.{role}").run
    # What is loaded by now lives as long as the process; a batch makes thousands of short-lived
    # values, and looking through everything for each few hundred took a sixth of a worker's time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    with Signals() as signals:  # to the very end: a late signal must not change the exit code
        try:
            found = settings.load()
            crash_points.arm(found.crash_at)
            if found.crash_at:  # in no production, unless by mistake
                telemetry.configure(found)
                telemetry.warn(f"{role}.will_crash", at=found.crash_at, set_by="PPWORKER_CRASH_AT")
            in_time = run(found, signals, Place.of_this_process())
        except ConfigurationError as error:
            sys.stderr.write(f"ppworker: {error}\n")
            leave(CONFIGURATION_ERROR)
        except StoreUnavailable as error:
            telemetry.warn(f"{role}.no_database", error=str(error))
            leave(1)
        telemetry.info(f"{role}.stopped", in_time=in_time)
        leave(0)


if __name__ == "__main__":
    main()
