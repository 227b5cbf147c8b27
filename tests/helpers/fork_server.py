"""Starts commands as real processes in a fraction of a second: a process that has imported zolit, and forks.

As a script it is the server. It reads one request in JSON for each line of its input, and answers with one line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


class Process:
    """A command that the server started.

    Attributes:
        pid: Its process id.
        output: The file with all that it printed.
    """

    def __init__(self, server: ForkServer, pid: int, output: Path) -> None:
        self._server = server
        self.pid = pid
        self.output = output
        self.status: int | None = None

    def poll(self) -> int | None:
        """Returns the exit status, minus the signal if one ended the process; None while it runs."""
        if self.status is None:
            self.status = self._server.ask({"poll": self.pid})
        return self.status

    def wait(self, seconds: float = 120.0) -> int:
        """Returns the exit status when the process has ended."""
        deadline = time.monotonic() + seconds
        while (status := self.poll()) is None:
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.01)
        return status

    def send(self, signum: int) -> None:
        """Sends a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def said(self) -> str:
        """Returns all that the process printed."""
        return self.output.read_text(errors="replace")


class ForkServer:
    """Runs the server, and asks it."""

    def __init__(self) -> None:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "callbacks")])
        env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, __file__], cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, request: Mapping[str, Any]) -> Any:
        """Sends a request, and returns the answer."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(self, args: list[str], output: Path, env: Mapping[str, str] | None = None) -> Process:
        """Starts ``zolit ARGS``; what it prints goes to a file."""
        output.parent.mkdir(parents=True, exist_ok=True)
        return Process(self, self.ask({"args": args, "output": str(output), "env": dict(env or {})}), output)

    def close(self) -> None:
        """Ends the server."""
        self._server.communicate()


def _serve() -> None:
    from zolit.cli.main import main

    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = None if pid == 0 else os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                _become(request)
                _run(main)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _become(request: Mapping[str, Any]) -> None:
    """Makes this process look as if it had been started with a command."""
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(request["env"])
    sys.argv = ["zolit", *request["args"]]


def _run(main: Any) -> None:
    status = 0
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _serve()
