"""The processes that train one model together, one for each device: who they are, and how they agree.

Whatever one of them alone knows (a stop, a full memory, the time) is agreed on before it changes what it does: two that
go different ways wait for each other for ever. Nothing is pickled on the way. One process alone agrees with itself.
"""

import json
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from finetune_api.trainer_config import BIND_VARIABLE
from finetune_trainer import memory
from finetune_trainer.distributed import LISTEN_VARIABLE, Place
from finetune_trainer.errors import ConfigInvalid, PeerLost

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long one waits for the others: checkpoints and downloads take minutes; that one has ended is noticed at once."""
_FINE, _OTHER, _MEMORY = 0, 1, 2
_LOST = re.compile(r"onnection (was )?(closed|reset|refused)|[Bb]roken pipe|[Tt]imed out|[Rr]emote process|peer")
"""What torch's libraries say of another process that is gone."""


class Ranks:
    """One process alone."""

    place = Place()

    @property
    def is_first(self) -> bool:
        """Whether this one reports and publishes."""
        return self.place.rank == 0

    def share(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        """What of all items is this process's, equally many for each; False for one that is there for the number."""
        return [(item, True) for item in items]

    def any(self, here: bool) -> bool:  # noqa: FBT001 - as the builtin
        """Whether it is so for one of them."""
        return here

    def sum(self, tensor: "torch.Tensor") -> None:
        """Add all processes' numbers, in place."""

    def sum_gradients(self, weights: "Iterable[torch.nn.Parameter]") -> None:
        """Add all processes' gradients, in place: one message, the same at each step, so that the bits are the same."""

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """What fails in this block fails for all. There may be no other agreement in it."""
        yield

    def from_first(self, find: Callable[[], T]) -> T:
        """What the first finds, JSON, known to all."""
        return find()

    def for_saves(self) -> "Ranks":
        """The same processes, for a thread that writes while they train."""
        return self

    def group(self) -> Any:
        """As torch's functions want it."""
        return None

    def leave(self) -> None:
        """There is nothing more to agree on."""


class Several(Ranks):
    """One of several processes."""

    def __init__(self, place: Place, group: Any, saves: "Several | None" = None) -> None:
        self.place = place
        self._group = group
        self._saves = saves

    def share(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        """Every n-th, so that a step's lengths are spread."""
        rank, size = self.place.rank, self.place.size
        rounds = range(rank, -(-len(items) // size) * size, size)
        return [(items[n], True) if n < len(items) else (items[0], False) for n in rounds]

    def any(self, here: bool) -> bool:  # noqa: FBT001 - as the builtin
        """Whether it is so for one of them."""
        return self._most(int(here)) > 0

    def sum(self, tensor: "torch.Tensor") -> None:
        """Add all processes' numbers, in place."""
        import torch.distributed as dist

        dist.all_reduce(tensor, group=None if tensor.is_cuda else self._group)

    def sum_gradients(self, weights: "Iterable[torch.nn.Parameter]") -> None:
        """Add all processes' gradients, in place. One may have none for a weight, such as that of an expert."""
        import torch

        every = list(weights)
        there = torch.tensor([float(weight.grad is not None) for weight in every])
        self.sum(there)
        used = (weight for weight, count in zip(every, there.tolist(), strict=True) if count)
        found = [_gradient(weight) for weight in used]
        flat = torch.cat([gradient.flatten() for gradient in found])
        self.sum(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in found])
        for gradient, part in zip(found, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """What fails in this block fails for all."""
        try:
            yield
        except Exception as error:
            self._most(_MEMORY if memory.trouble(error) else _OTHER)
            raise
        elsewhere = self._most(_FINE)
        if elsewhere == _MEMORY:
            raise MemoryError("the device of another process of this training is full")
        if elsewhere:
            raise PeerLost("another process of this training has failed")

    def from_first(self, find: Callable[[], T]) -> T:
        """What the first finds, JSON, known to all; what it raises there is raised there, and noticed elsewhere."""
        import torch
        import torch.distributed as dist

        text = json.dumps(find()).encode() if self.is_first else b""
        size = torch.tensor([len(text)])
        dist.broadcast(size, 0, group=self._group)
        content = torch.frombuffer(bytearray(text), dtype=torch.uint8) if self.is_first else None
        content = torch.empty(int(size), dtype=torch.uint8) if content is None else content
        dist.broadcast(content, 0, group=self._group)
        found: T = json.loads(content.numpy().tobytes())
        return found

    def for_saves(self) -> Ranks:
        """The same processes, for a thread that writes while they train."""
        return self._saves or self

    def group(self) -> Any:
        """As torch's functions want it."""
        return self._group

    def leave(self) -> None:
        """There is nothing more to agree on."""
        import torch.distributed as dist

        dist.destroy_process_group()

    def _most(self, here: int) -> int:
        import torch
        import torch.distributed as dist

        flag = torch.tensor([here])
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group)
        return int(flag)


def _gradient(weight: "torch.nn.Parameter") -> "torch.Tensor":
    """A weight's gradient: zeros where there was none."""
    if weight.grad is None:
        weight.grad = weight.new_zeros(weight.shape)
    return weight.grad


def join(environment: Mapping[str, str], *, cuda: bool) -> Ranks:
    """Meet the other processes. Raises PeerLost if they don't come."""
    place = Place.of(environment)
    if place.size == 1:
        return Ranks()
    import torch
    import torch.distributed as dist

    if cuda:
        torch.cuda.set_device(place.local_rank)
    options: dict[str, Any] = {"backend": "cpu:gloo,cuda:nccl" if cuda else "gloo", "timeout": PATIENCE}
    if "TORCHELASTIC_RUN_ID" not in environment:  # else torchrun keeps the store
        options |= {"store": _store(environment, place), "rank": place.rank, "world_size": place.size}
    with told_as_loss():
        dist.init_process_group(**options)
        groups = [dist.new_group(backend="gloo", timeout=PATIENCE) for _ in range(2)]
    return Several(place, groups[0], Several(place, groups[1]))


@contextmanager
def told_as_loss() -> Iterator[None]:
    """What torch says when another process is gone, as PeerLost."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not _LOST.search(text):
            raise
        raise PeerLost(f"another process of this training has ended or can't be reached ({text[:200]})") from error


def _store(environment: Mapping[str, str], place: Place) -> Any:
    """Where they find each other. The first one listens at the pod's own address alone, or at a socket it was given."""
    import torch.distributed as dist

    address, given_port = (environment.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    if not address or not given_port.isdecimal():
        raise ConfigInvalid(f"MASTER_ADDR is {address!r} and MASTER_PORT {given_port!r}: where is the first process?")
    port = int(given_port)
    own = environment.get(BIND_VARIABLE, "")
    options: dict[str, Any] = {"is_master": place.rank == 0, "timeout": PATIENCE, "wait_for_workers": False}
    if place.rank == 0:
        given = environment.get(LISTEN_VARIABLE)
        options["master_listen_fd"] = int(given) if given else _listen(own, port)
        address = address if given else own or "localhost"  # its name may not be known yet
    with told_as_loss():
        return dist.TCPStore(address, port, place.size, **options)  # type: ignore[attr-defined]  # only its stub is missing


def _listen(address: str, port: int) -> int:
    server = socket.create_server((address, port), backlog=1024, reuse_port=False)
    return server.detach()
