"""Every method on two real processes over gloo: different examples, equal weights."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from tests.conftest import ROOT
from tests.helpers.battery import METHODS


def test_ranks_stay_equal_to_the_bit() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "callbacks")])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": "2"}
    env |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "helpers" / "ranks_battery.py")],
            env={**env, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    (said, complaint), _ = [rank.communicate(timeout=300) for rank in ranks]
    assert ranks[0].returncode == ranks[1].returncode == 0, complaint
    assert said.splitlines() == list(METHODS)
