"""A process that dies or stands still is noticed by the others, which end with one sentence."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch.distributed as dist

from zolit.training import heartbeat
from zolit.training.heartbeat import Heartbeat, explain_lost_process

SIZE = 3


class Ranks:
    """Heartbeats of several ranks in one process, which share a store."""

    def __init__(self) -> None:
        self.said: list[list[str]] = [[] for _ in range(SIZE)]
        self.hearts = [Heartbeat(said.append) for said in self.said]
        self._store = dist.HashStore()

    def start(self) -> None:
        for rank, heart in enumerate(self.hearts):
            heart.start(self._store, rank, SIZE)

    def wait(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.02)
    monkeypatch.setattr(heartbeat, "PATIENCE", 10)
    monkeypatch.setattr(heartbeat, "GRACE", 0.1)
    made = Ranks()
    made.start()
    made.wait(lambda: [link.rank for link in made.hearts[0]._links].count(None) == 0)
    made.wait(lambda: len(made.hearts[0]._links) == SIZE - 1)
    yield made
    for heart in made.hearts:
        heart.stop(finished=True)
        for link in heart._links:
            link.close()


def hang_up(heart: Heartbeat) -> None:
    """Closes the connections, as the system does when a process ends."""
    heart.stop(finished=False)
    for link in heart._links:
        link.close()


def pause(heart: Heartbeat, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Stops a thread until the returned event is set, as SIGSTOP does."""
    resume = threading.Event()
    accept = heart._accept
    monkeypatch.setattr(heart, "_accept", lambda: (resume.wait(10), accept())[1])
    return resume


def test_the_first_process_tells_the_others_who_has_ended(ranks: Ranks) -> None:
    hang_up(ranks.hearts[2])
    ranks.wait(lambda: ranks.said[0] and ranks.said[1])
    assert ranks.said[0] == ranks.said[1]
    assert "process 3 of 3 has ended" in ranks.said[0][0]


def test_the_others_notice_the_end_of_the_first_process(ranks: Ranks) -> None:
    hang_up(ranks.hearts[0])
    ranks.wait(lambda: ranks.said[1] and ranks.said[2])
    assert "process 1 of 3 has ended" in ranks.said[1][0]
    assert "process 1 of 3 has ended" in ranks.said[2][0]


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_that_stands_still(ranks: Ranks, monkeypatch: pytest.MonkeyPatch, stopped: int) -> None:
    resume = pause(ranks.hearts[stopped], monkeypatch)
    ranks.wait(lambda: ranks.said[2])
    assert f"process {stopped + 1} of 3 has not answered for" in ranks.said[2][0]
    resume.set()


def test_a_short_stop_and_a_common_stop_are_no_loss(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    short = pause(ranks.hearts[1], monkeypatch)
    time.sleep(0.1)  # half of the patience
    short.set()
    time.sleep(0.1)
    for resume in [pause(heart, monkeypatch) for heart in ranks.hearts]:
        threading.Timer(1, resume.set).start()  # five times the patience
    time.sleep(1.5)
    assert ranks.said == [[], [], []]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_finished_processes_are_not_missed(ranks: Ranks, order: tuple[int, ...]) -> None:
    """Also if another trainer of the same processes runs afterwards."""
    for rank in order:
        ranks.hearts[rank].stop(finished=True)
        time.sleep(0.3)
    ranks.start()
    time.sleep(0.3)
    assert ranks.said == [[], [], []]
    hang_up(ranks.hearts[1])
    ranks.wait(lambda: ranks.said[0])


def test_other_programs_are_not_listened_to(ranks: Ranks) -> None:
    server = ranks.hearts[0]._server
    assert server is not None
    with socket.create_connection(server.getsockname()) as stranger:
        stranger.send(b"some token 1\nprocess 2 is lost\n")
        time.sleep(0.1)
    with socket.create_connection(server.getsockname()):
        time.sleep(0.3)
    time.sleep(0.1)
    assert ranks.said == [[], [], []]


def test_a_main_thread_that_ends_by_itself_is_not_interrupted(ranks: Ranks) -> None:
    hang_up(ranks.hearts[1])
    error = RuntimeError("[pair.cc:553] gloo: Connection closed by peer [127.0.0.1]:1. This is typically")
    assert "process 2 of 3 has ended" in str(ranks.hearts[0].explain(error))
    assert "process 2 of 3 has ended" in str(ranks.hearts[2].explain(error))
    for heart in ranks.hearts:
        heart.stop(finished=False)
    time.sleep(0.3)
    assert ranks.said == [[], [], []]


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:7. GLHF!"


def test_errors_of_lost_processes() -> None:
    said = explain_lost_process(RuntimeError(GLOO))
    assert said is not None
    assert said.startswith("another process of this run has ended or cannot be reached (Connection closed by peer")
    assert "GLHF" not in said
    assert explain_lost_process(dist.DistNetworkError("Broken pipe")) is not None
    assert (
        explain_lost_process(dist.DistBackendError("NCCL error: remote error; last error: closed by peer")) is not None
    )
    assert explain_lost_process(dist.DistBackendError("NCCL error: Duplicate GPU detected")) is None
    assert explain_lost_process(RuntimeError("shapes do not match")) is None
    assert explain_lost_process(ValueError("gloo: connection closed by peer")) is None
    outer = ValueError("the model cannot be evaluated")
    outer.__cause__ = RuntimeError(GLOO)
    assert explain_lost_process(outer) == said
