"""Notices that another process of a run died or stands still, so that no process waits for it without end.

Each process has a thread that exchanges a beat a second with the first process, over a TCP connection of its own. A
process that dies closes its connections. A process that stands still (stopped, or cut off from the network) sends no
beats. The first process tells the others which process is lost. A busy process keeps beating, because its thread runs
beside its work. Only a single call that holds Python's lock for as long as the patience would look like a stop. The
longest one is in the tokenizer: it holds the lock for about 1 second in 100,000 prompts, on all processes together.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

import torch.distributed as dist

from zolit.errors import UserError

INTERVAL = 1.0
"""Seconds between two beats."""

PATIENCE = 30
"""Own beats without one of the other process, after which that process is lost. Own beats are counted, not seconds:
processes that sleep together, as on a laptop, do not miss each other's beats."""

GRACE = 3.0
"""Seconds that the main thread has to end by itself, with the exception that a broken connection raises in it."""

ADVICE = "resume the run from its last.ckpt with --ckpt_path"

_LOST = re.compile(
    r"gloo.*(closed by peer|reset by peer|broken pipe|refused|timed out|socket closed|read error|write error)"
    r"|nccl.*(remote error|remote process|closed by peer|reset by peer|timed out|timeout|aborted)",
    re.IGNORECASE | re.DOTALL,
)
_END = "end"


class LostProcessError(UserError):
    """Raised when another process of the run has ended, stands still or cannot be reached."""


def explain_lost_process(error: BaseException) -> str | None:
    """Explains an error that torch.distributed raises when another process is lost.

    Args:
        error: Any error, also one that was raised because of that error.

    Returns:
        One sentence for the user; None for errors of another kind.
    """
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause).strip()
        network = isinstance(cause, dist.DistNetworkError | dist.DistStoreError)
        if network or (isinstance(cause, RuntimeError) and _LOST.search(text)):
            said = re.sub(r"^\[\S+\] ", "", text.split("\n")[0]).split(". ")[0].rstrip(".")
            return f"another process of this run has ended or cannot be reached ({said}); {ADVICE}"
        cause = cause.__cause__ or cause.__context__
    return None


def ended(rank: int, size: int) -> str:
    """Returns the sentence for the user when a process of a run of ``size`` processes has ended before the others."""
    return f"process {rank + 1} of {size} has ended: it was killed, or has printed an error of its own; {ADVICE}"


def silent(rank: int, size: int) -> str:
    """Returns the sentence for the user when a process of a run of ``size`` processes sends no beats any more."""
    waited = f"{PATIENCE * INTERVAL:.0f} s"
    return f"process {rank + 1} of {size} has not answered for {waited}: it is stopped or cut off; {ADVICE}"


class Heartbeat:
    """Watches the other processes of a run while a trainer runs.

    Args:
        leave: Called by the thread with one sentence if a process is lost and the main thread does not end by itself,
            for instance because it waits for the lost process. Must end this process.

    Attributes:
        lost: The sentence that says which process is lost; None while all are there.
        started: Set once this process watches the others.
    """

    def __init__(self, leave: Callable[[str], None]) -> None:
        self.lost: str | None = None
        self.started = threading.Event()
        self._leave = leave
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._noticed = threading.Event()
        self._links: list[_Link] = []
        self._server: socket.socket | None = None

    def start(self, store: dist.distributed_c10d.Store, rank: int, size: int) -> None:
        """Connects to the other processes and starts to beat. Called on each process when the group exists.

        Args:
            store: Store of the process group, in which the first process tells the others its port.
            rank: Index of this process.
            size: Number of processes.

        Raises:
            LostProcessError: If the first process cannot be reached.
        """
        if size == 1 or self._thread is not None:
            return
        self._size = size
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        key = f"zolit heartbeat {store.add(f'zolit heartbeats of {rank}', 1)}"
        self._links, self._hellos = [], {}
        if rank == 0:
            token = secrets.token_hex(16)  # so that no other program takes part
            self._hellos = {f"{token} {other}": other for other in range(1, size)}
            self._server = _listen(host)
            store.set(key, f"{self._server.getsockname()[1]} {token}")
        else:
            port, token = store.get(key).decode().split()
            try:
                first = socket.create_connection((host, int(port)), timeout=PATIENCE * INTERVAL)
            except OSError as error:
                raise LostProcessError(f"process 1 cannot be reached at {host}:{port} ({error}); {ADVICE}") from None
            self._links = [_Link(first, 0)]
            self._links[0].write(f"{token} {rank}")
        self._stopped.clear()
        self._thread = threading.Thread(target=self._run, daemon=True, name="zolit heartbeat")
        self._thread.start()
        self.started.set()

    def stop(self, *, finished: bool) -> None:
        """Ends the thread. Called at the end of a trainer's run, and at its first exception.

        Args:
            finished: Whether this process has done its work. The others then do not miss it.
        """
        if self._thread is None:
            return
        self._stopped.set()
        self._thread.join()
        self._thread = None
        for link in list(self._links) if finished else ():  # a failure shows when this process ends
            link.write(_END)
            self._drop(link)
        if self._server is not None:
            self._server.close()

    def explain(self, error: BaseException) -> str | None:
        """Returns the sentence that says which process is lost, if the error says that one is; else None."""
        sentence = explain_lost_process(error)
        if sentence is not None and self._thread is not None:
            self._noticed.wait(GRACE)  # a broken collective is faster than the next beat
        return sentence and (self.lost or sentence)

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL):
            self._accept()
            for link in list(self._links):
                sentence = self._news(link)
                if sentence is not None:
                    self._lose(sentence)
                    return

    def _accept(self) -> None:
        """Takes the processes that have connected since the last beat."""
        with suppress(BlockingIOError):
            while self._server is not None:
                self._links.append(_Link(self._server.accept()[0]))

    def _news(self, link: _Link) -> str | None:
        """Reads what another process sent and sends it a beat; returns a sentence if a process is lost."""
        rank = link.rank
        try:
            lines = link.read()
        except OSError:
            self._drop(link)
            return None if rank is None else ended(rank, self._size)
        for line in filter(None, lines):
            if link.rank is None:
                link.rank = self._hellos.get(line)
            if line == _END or link.rank is None:
                self._drop(link)
                return None
            if link.rank == 0:
                return line  # the first process has lost another one
        if link.quiet >= PATIENCE:
            self._drop(link)
            return None if rank is None else silent(rank, self._size)
        link.write()
        return None

    def _drop(self, link: _Link) -> None:
        self._links.remove(link)
        link.close()

    def _lose(self, sentence: str) -> None:
        for link in self._links:
            link.write(sentence)
        self.lost = sentence
        self._noticed.set()
        if not self._stopped.wait(GRACE):
            self._leave(sentence)


class _Link:
    """A connection that carries lines of text; an empty line is a beat.

    Attributes:
        rank: The process at the other end; None until it has introduced itself.
        quiet: How many times in a row there was nothing to read.
    """

    def __init__(self, connection: socket.socket, rank: int | None = None) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._rest = b""
        self.rank = rank
        self.quiet = 0

    def read(self) -> list[str]:
        """Returns the lines that have come since the last call, without waiting.

        Raises:
            OSError: If the other end is closed.
        """
        try:
            received = self._connection.recv(1 << 16)
        except BlockingIOError:
            self.quiet += 1
            return []
        if not received:
            raise ConnectionResetError
        self.quiet = 0
        *lines, self._rest = (self._rest + received).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def close(self) -> None:
        """Closes this end. What it has sent still arrives."""
        with suppress(OSError):
            self.read()  # data that nobody has read would make the system reset the connection
        self._connection.close()

    def write(self, line: str = "") -> None:
        """Sends a line. A broken connection shows when it is read."""
        with suppress(OSError):
            self._connection.send(line.encode() + b"\n")


def _listen(host: str) -> socket.socket:
    """Returns a socket that accepts connections: from this machine alone if all processes are on it."""
    if host in ("127.0.0.1", "localhost"):
        server = socket.create_server(("127.0.0.1", 0))
    elif socket.has_dualstack_ipv6():
        server = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        server = socket.create_server(("", 0))
    server.setblocking(False)
    return server
