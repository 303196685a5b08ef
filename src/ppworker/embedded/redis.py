"""The embedded Redis: one server per data folder, on a private socket, its commands on disk."""

import os
import signal
import socket
from contextlib import suppress
from urllib.parse import quote

from ppworker.embedded import process
from ppworker.embedded.binaries import Program, executable_by
from ppworker.embedded.folder import Folder
from ppworker.embedded.process import Account
from ppworker.embedded.server import Server, State

ANSWER_LIMIT_S = 2.0

# Relative names: the server works in its folder.
_SETTINGS = {
    "port": "0",
    "unixsocket": "redis.sock",
    "unixsocketperm": "700",
    "pidfile": "redis.pid",
    "dir": ".",
    "appendonly": "yes",
    "save": "",  # the append-only file is the only copy needed
    "daemonize": "no",
}


class Redis(Server):
    """redis-server on the ``redis`` folder of the data folder."""

    title = "Redis"
    programs = ("redis-server",)
    socket_name = _SETTINGS["unixsocket"]
    pid_name = _SETTINGS["pidfile"]
    log_name = "redis.log"
    stop_signal = signal.SIGTERM  # writes its append-only file and exits
    abort_signal = signal.SIGKILL

    def __init__(self, folder: Folder, program: Program) -> None:
        # Redis does not mind root, but in somebody's folder its files must stay somebody's.
        account = process.current_account()
        if account.uid == 0 and folder.uid != 0:
            account = Account(folder.uid, folder.gid)
        super().__init__(folder, folder.path / "redis", account)
        self._program = program

    @property
    def url(self) -> str:
        """Address for redis-py."""
        return "unix://" + quote(str(self.address / self.socket_name))

    def state(self) -> State:
        """Ready when it answered anything but that it is still loading."""
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(ANSWER_LIMIT_S)
                client.connect(str(self.address / self.socket_name))
                client.sendall(b"PING\r\n")
                answer = client.recv(64)
        except OSError:
            return State.SILENT
        if answer.startswith(b"-LOADING"):
            return State.BUSY
        return State.READY if answer else State.SILENT

    def answers(self) -> bool:
        """Whether it answers now."""
        return self.state() is State.READY

    def hasten(self) -> None:
        """Nothing helps a loading Redis but time."""

    def launch(self) -> int:
        """Start it; its data file is made at the first command."""
        with suppress(FileExistsError):
            self.folder.make("redis", self.account.uid, self.account.gid)
        for name in (self.pid_name, self.socket_name):
            (self.data / name).unlink(missing_ok=True)
        command = [str(executable_by(self.account, self._program))]
        for name, value in _SETTINGS.items():
            command += [f"--{name}", value]
        log = self.folder.open_log(self.log_name)
        try:
            return process.spawn(command, cwd=self.data, log=log, account=self.account)
        finally:
            os.close(log)
