"""Full weights spread over the processes that train together (FSDP2): each keeps its part of every layer's weights.

A layer is whole on a device only while it is computed. Gradients come out as the mean over the processes, so the loss
is multiplied by their number before. Nothing here knows of files.
"""

from collections.abc import Iterator
from typing import Any

import torch

from finetune_trainer.ranks import Ranks


def spread(network: Any, ranks: Ranks, device: torch.device) -> None:
    """Let each process keep its part, on the device; in place."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (ranks.place.size,))
    for layer in _layers(network):
        fully_shard(layer, mesh=mesh)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)  # or its parameters are no part after a look at them


def visiting_bytes(network: Any) -> int:
    """How much of others' parts a backward pass holds at once.

    Of a layer its weights, their gradients, these once more on their way out, and the weights of the next layer; of
    what is in no layer (embeddings, output layer) weights and gradients.
    """
    layers = [_bytes(layer) for layer in _layers(network)]
    return 4 * max(layers, default=0) + 2 * (_bytes(network) - sum(layers))


def _bytes(module: torch.nn.Module) -> int:
    """Of all its weights, wherever their parts are."""
    return sum(weight.nbytes for weight in module.parameters())


def is_spread(tensor: torch.Tensor) -> bool:
    """Whether it is the part of one process."""
    return hasattr(tensor, "full_tensor")


def here(tensor: torch.Tensor) -> torch.Tensor:
    """What this process has of a tensor."""
    found: torch.Tensor = tensor.to_local() if is_spread(tensor) else tensor  # type: ignore[attr-defined]
    return found


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, wherever its parts are. Every process must ask."""
    found: torch.Tensor = tensor.full_tensor() if is_spread(tensor) else tensor  # type: ignore[attr-defined]
    return found


def gathered(network: Any, *, keep: bool, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """All weights in main memory, tensor by tensor; nothing where they are not to be kept. Every process must ask.

    What is tied is one tensor under several names.
    """
    found: dict[str, torch.Tensor] = {}
    known: dict[int, torch.Tensor] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) not in known:
            with torch.no_grad():
                full = whole(tensor.detach())
                kept = full.to("cpu", dtype if full.is_floating_point() else None) if keep else torch.empty(0)
            known[id(tensor)] = kept
        found[name] = known[id(tensor)]
    return found if keep else {}


def _layers(network: Any) -> Iterator[torch.nn.Module]:
    """The blocks that the model's authors say belong together."""
    names = set(network._no_split_modules or ())
    return (module for module in network.modules() if type(module).__name__ in names)
