"""``zolit bench``: what a step costs on this machine, in units of the forwards that it cannot do without."""

from zolit.bench.command import run

__all__ = ["run"]
