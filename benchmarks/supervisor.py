"""The real worker processes under the real supervisor, as ``ppworker worker`` starts them."""

import sys

from ppworker import settings
from ppworker.monitoring.folder import Place, RuntimeFolder
from ppworker.worker.supervisor import Child, supervise

if __name__ == "__main__":
    loaded = settings.load()
    slots = [f"worker-{index}" for index in range(loaded.processes)]
    runtime = RuntimeFolder.make(slots)
    children = [
        Child(
            name=slot,
            argv=[sys.executable, "-m", "ppworker.process", "worker"],
            environment=Place(slot, runtime.path).environment(),
        )
        for slot in slots
    ]
    try:
        sys.exit(supervise(children, grace_s=loaded.grace_s, ended=runtime.forget))
    finally:
        runtime.remove()
