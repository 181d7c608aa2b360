"""A training in plain PyTorch that a run of task Custom can follow, stop and resume.

What it takes to be followed is marked: a line an iteration in a file, a checkpoint when asked to stop, exit code 75.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

STEPS, BATCH, SAVE_EVERY = int(os.environ.get("STEPS", "200")), 256, 50
PROGRESS = Path(os.environ.get("FINETUNE_PROGRESS_FILE", "progress"))
CHECKPOINTS = Path(os.environ.get("FINETUNE_CHECKPOINTS", "checkpoints"))
OUTPUT = Path(os.environ.get("FINETUNE_OUTPUT", "output"))


def spirals(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of two spirals, and which one each belongs to."""
    which = torch.randint(0, 2, (count,))
    along = torch.rand(count).sqrt() * 3 * torch.pi
    angle = along + which * torch.pi
    points = torch.stack((angle.cos(), angle.sin()), 1) * along[:, None] / 10
    return points + torch.randn(count, 2) * 0.02, which


def main() -> int:
    """Train to the end, or until asked to stop."""
    torch.manual_seed(17)
    model = nn.Sequential(nn.Linear(2, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    step = resume(model, optimizer)

    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))  # asked to stop: suspended, preempted, a node drained

    with PROGRESS.open("a", buffering=1) as progress:  # a line at a time
        while step < STEPS:
            started = time.perf_counter()
            points, which = spirals(BATCH)
            loss = nn.functional.cross_entropy(model(points), which)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
            progress.write(f"{step}|{loss.item():.4f}|{BATCH / (time.perf_counter() - started):.1f}\n")
            if step % SAVE_EVERY == 0 or stop:
                name = save(model, optimizer, step)
                progress.write(f'{{"checkpoint": "{name}", "step": {step}}}\n')
            if stop:
                return 75  # not an error: the next attempt goes on from here
    OUTPUT.mkdir(exist_ok=True)
    torch.save(model.state_dict(), OUTPUT / "model.pt")
    return 0


def save(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> str:
    """A checkpoint that appears whole or not at all."""
    name = f"ba{step}"
    part = CHECKPOINTS / f".{name}"
    part.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "generator": torch.get_rng_state()}
    torch.save(state, part / "state.pt")
    part.rename(CHECKPOINTS / name)
    return name


def resume(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Go on from the newest checkpoint, if there is one; returns its step."""
    steps = [int(folder.name[2:]) for folder in CHECKPOINTS.glob("ba*")]
    if not steps:
        return 0
    state = torch.load(CHECKPOINTS / f"ba{max(steps)}" / "state.pt", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["generator"])
    return max(steps)


if __name__ == "__main__":
    sys.exit(main())
