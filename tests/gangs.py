"""Runs several processes of the trainer that train together, each on a loopback address of its own.

They are forked from one that has imported torch already; `trainer_process` says how.
"""

import functools
import itertools
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests import trainer_process
from tests.trainer_process import Attempt

_NUMBERS = itertools.count(1)
PORT = 9402


def start(
    config: Mapping[str, Any],
    size: int,
    *,
    nodes: bool = False,
    special: Mapping[int, Mapping[str, Any]] | None = None,
) -> list[Attempt]:
    """Start so many processes, of one machine or a node each; `special` are options of single ones."""
    prefix = f"127.{os.getpid() % 200 + 30}.{next(_NUMBERS) % 250}"
    told = _as_nodes if nodes else _as_torchrun_does
    return [
        trainer_process.start(
            config,
            environment={**told(rank, size, f"{prefix}.1"), "FINETUNE_BIND_ADDRESS": f"{prefix}.{rank + 1}"},
            **(special or {}).get(rank, {}),
        )
        for rank in range(size)
    ]


def run(config: Mapping[str, Any], size: int, **options: Any) -> list[Attempt]:
    """Start them and wait for their ends."""
    gang = start(config, size, **options)
    codes(gang)
    return gang


def codes(gang: Sequence[Attempt]) -> list[int]:
    """How they end."""
    return [attempt.wait() for attempt in gang]


def _as_torchrun_does(rank: int, size: int, address: str) -> dict[str, str]:
    told = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    return {name: str(value) for name, value in told.items()} | {"MASTER_ADDR": address, "MASTER_PORT": str(PORT)}


def _as_nodes(rank: int, size: int, address: str) -> dict[str, str]:
    told = {"NNODES": size, "NPROC_PER_NODE": 1, "NODE_RANK": rank, "MASTER_ADDR": address, "MASTER_PORT": PORT}
    return {f"PET_{name}": str(value) for name, value in told.items()}


def killed_before_step(number: int) -> Callable[[], None]:
    """For `before`: the process is killed in place of the n-th step that it makes."""
    return functools.partial(_at_step, number, signal.SIGKILL)


def stopped_before_step(number: int) -> Callable[[], None]:
    """For `before`: the process is asked to stop at that step."""
    return functools.partial(_at_step, number, signal.SIGTERM)


def _at_step(number: int, what: signal.Signals) -> None:
    from finetune_trainer import loop

    real, steps = loop.gradient, itertools.count(1)

    def gradient(*given: Any, **options: Any) -> Any:
        if next(steps) == number:
            os.kill(os.getpid(), what)
        return real(*given, **options)

    loop.gradient = gradient
