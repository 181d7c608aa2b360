"""The random generators that a training draws from: taken and put back, in memory, as tensors and as JSON."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class Generators:
    """Where all of them stand."""

    tensors: Mapping[str, torch.Tensor]
    """torch's, by device."""
    python: tuple[Any, ...]
    numpy: Mapping[str, Any]

    def put_back(self) -> None:
        """Let them go on from here."""
        torch.set_rng_state(self.tensors["torch"])
        if "cuda" in self.tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.tensors["cuda"])
        random.setstate(self.python)
        np.random.set_state(dict(self.numpy))

    def as_json(self) -> dict[str, Any]:
        """Python's and numpy's."""
        version, numbers, gauss = self.python
        drawn = json.loads(json.dumps(self.numpy, default=lambda array: array.tolist()))
        return {"python": [version, list(numbers), gauss], "numpy": drawn}


def take(device: torch.device) -> Generators:
    """As they stand now."""
    tensors = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state()
    numpy: Mapping[str, Any] = np.random.get_state(legacy=False)
    return Generators(tensors, random.getstate(), numpy)


def read(tensors: Mapping[str, torch.Tensor], described: Mapping[str, Any]) -> Generators:
    """From a checkpoint."""
    version, numbers, gauss = described["python"]
    drawn = dict(described["numpy"])
    drawn["state"] = {**drawn["state"], "key": np.array(drawn["state"]["key"], dtype=np.uint32)}
    return Generators(tensors, (version, tuple(numbers), gauss), drawn)
