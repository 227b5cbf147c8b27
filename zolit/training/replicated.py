"""Data parallelism: each process has the whole model, and processes exchange losses alone."""

from __future__ import annotations

import torch.distributed as dist
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import Tensor, nn
from typing_extensions import override

from zolit.optim.collectives import Collectives
from zolit.training.exchange import Exchange
from zolit.training.launcher import Launcher


class ProcessCollectives(Collectives):
    """Collectives of processes that hold the whole model and see different examples.

    Args:
        model: The model that is tuned.
    """

    def __init__(self, model: nn.Module) -> None:
        self.size = dist.get_world_size()
        self._exchange = Exchange(model)

    @override
    def all_mean(self, own: Tensor) -> Tensor:
        """Sums by an all-reduce, and divides; see ``Collectives.all_mean``."""
        return self._exchange.total(own).div_(self.size)

    @override
    def all_gather(self, own: Tensor) -> Tensor:
        """Gathers the examples, rank after rank; see ``Collectives.all_gather``."""
        return self._exchange.joined(own)

    @override
    def broadcast(self, own: Tensor) -> Tensor:
        """Returns the tensor of the first rank; see ``Collectives.broadcast``."""
        return self._exchange.first(own)


class ReplicatedStrategy(DDPStrategy):
    """Uses DDP's launchers and process group without DDP's wrapper.

    Replicas stay bitwise equal, because each rank draws the same directions and gets the same mean losses. A step
    exchanges its losses alone: two numbers for two-point SPSA. DDP's wrapper would allocate gradient buckets as large
    as the trainable weights, which a forward-only step never uses.
    """

    @override
    def configure_ddp(self) -> None:
        """Makes the weights of all ranks equal, without DDP's wrapper; see ``DDPStrategy.configure_ddp``."""
        assert self.model is not None
        _sync_module_states(self.model)

    @override
    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        assert self.cluster_environment is not None
        if self._start_method == "popen":
            self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    @override
    def setup_environment(self) -> None:
        """Creates the process group, and starts to watch the other processes; see ``Strategy.setup_environment``."""
        super().setup_environment()
        if isinstance(self._launcher, Launcher):
            store = dist.distributed_c10d._get_default_store()
            self._launcher.heartbeat.start(store, dist.get_rank(), dist.get_world_size())

    @override
    def teardown(self) -> None:
        """Ends the watch and cleans up; see ``Strategy.teardown``. Called at the end of a run, also of a failed one."""
        if isinstance(self._launcher, Launcher):
            self._launcher.heartbeat.stop(finished=True)
        super().teardown()


if "replicated" not in StrategyRegistry:
    StrategyRegistry.register(
        "replicated", ReplicatedStrategy, description="a whole model per process; losses are exchanged"
    )
