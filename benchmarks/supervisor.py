"""The real worker processes under the real supervisor, as ``ppworker worker`` starts them."""

import sys

from ppworker import settings
from ppworker.worker.supervisor import supervise

if __name__ == "__main__":
    loaded = settings.load()
    sys.exit(
        supervise(
            lambda _: [sys.executable, "-m", "ppworker.process"],
            loaded.processes,
            grace_s=loaded.grace_s,
        )
    )
