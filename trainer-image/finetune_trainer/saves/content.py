"""What a checkpoint holds: everything that a training needs to go on as if nothing had happened. No pickle anywhere.

Weights, optimizer, random generators, position in the data, evaluations. The learning rate and the order of the records
are functions of the step; there is no loss scaler, as bf16 and fp32 need none; and it is made between two steps, so
that no accumulated gradient is under way.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from finetune_api.snapshot import TrainProgress
from finetune_trainer.learning import generators
from finetune_trainer.learning.evaluation import Watch
from finetune_trainer.learning.model import Learner
from finetune_trainer.ranks import Ranks
from finetune_trainer.saves import sharded, staging, weights
from finetune_trainer.sources.modelfolder import ModelFolder

OPTIMIZER, GENERATORS, STATE = "optimizer.safetensors", "rng.safetensors", "state.json"
REFERENCE = "reference.safetensors"

_WEIGHTS, _MOMENTS = "weights", "moments"
_EACH = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a training is."""

    step: int
    epoch: int
    tokens: int

    @property
    def name(self) -> str:
        """The checkpoint's name."""
        return f"ep{self.epoch}-ba{self.step}"

    def after(self, tokens: int, *, steps_per_epoch: int) -> "Position":
        """One step further, in which there were so many tokens."""
        return Position(step=self.step + 1, epoch=self.step // steps_per_epoch + 1, tokens=self.tokens + tokens)


@dataclass(frozen=True, kw_only=True)
class Reached:
    """How far a training came: all of its state but weights, optimizer and generators."""

    position: Position
    watch: Watch
    progress: TrainProgress
    """What was told of it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Content:
    """The state of a training at one moment."""

    reached: Reached
    learning_rate: float
    drawn: generators.Generators
    tensors: staging.Groups
    """Weights and moments: copies, or the training's own if it waits."""
    wait_for_copies: Callable[[], None]


def tensors(learner: Learner, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    """What changes with every step and is saved."""
    return {_WEIGHTS: weights.tensors(learner), _MOMENTS: _moments(learner, optimizer)}


def _moments(learner: Learner, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value
        for name, parameter in learner.trained.items()
        for key, value in optimizer.state[parameter].items()
    }


def expected(learner: Learner) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors of the sizes that `tensors` will have once there was a step."""
    shapes = {name: torch.empty_like(parameter, device="meta") for name, parameter in learner.trained.items()}
    moments = {f"{name}.{key}": shape for name, shape in shapes.items() for key in _EACH}
    return {_WEIGHTS: weights.tensors(learner), _MOMENTS: moments}


def take(
    learner: Learner, optimizer: torch.optim.Optimizer, reached: Reached, *, stage: staging.Stage | None
) -> Content:
    """The state now. Without a stage it holds only until the next step."""
    found: staging.Groups = tensors(learner, optimizer)
    found, wait = (found, staging.nothing_to_wait_for) if stage is None else stage.copy(found)
    return Content(
        reached=reached,
        learning_rate=optimizer.param_groups[0]["lr"],
        drawn=generators.take(learner.device),
        tensors=found,
        wait_for_copies=wait,
    )


def write(
    content: Content,
    folder: Path,
    learner: Learner,
    *,
    model: ModelFolder,
    reference: Mapping[str, torch.Tensor],
) -> None:
    """Write all of it. Of the learner only what doesn't change is looked at."""
    content.wait_for_copies()
    weights.write(learner, model, folder, content.tensors[_WEIGHTS])
    if learner.spread:
        sharded.write(content.tensors[_MOMENTS], folder, learner.ranks)
    else:
        moments = {name: moment.contiguous() for name, moment in content.tensors[_MOMENTS].items()}
        save_file(moments, folder / OPTIMIZER)
    save_file(dict(content.drawn.tensors), folder / GENERATORS)
    if reference:
        save_file(dict(reference), folder / REFERENCE)
    reached = content.reached
    described = {
        "step": reached.position.step,
        "epoch": reached.position.epoch,
        "tokens": reached.position.tokens,
        "learningRate": content.learning_rate,
        "watch": reached.watch.to_wire(),
        "progress": reached.progress.model_dump(mode="json", by_alias=True),
        **content.drawn.as_json(),
    }
    (folder / STATE).write_text(json.dumps(described) + "\n", encoding="utf-8")


def write_part(content: Content, folder: Path, learner: Learner) -> None:
    """Write what a process that isn't the first has of its own."""
    content.wait_for_copies()
    if learner.spread:
        sharded.write(content.tensors[_MOMENTS], folder, learner.ranks)
    tensors, rest = _generator_files(folder, learner.ranks)
    save_file(dict(content.drawn.tensors), tensors)
    rest.write_text(json.dumps(content.drawn.as_json()) + "\n", encoding="utf-8")


def put_back(folder: Path, learner: Learner, optimizer: torch.optim.Optimizer) -> Reached:
    """Put everything back as it was when the checkpoint was made; returns how far it was."""
    if not learner.full:
        weights.read_adapter(learner, folder)
    _put_back_moments(folder, learner, optimizer)
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    _put_back_generators(folder, learner.ranks, state)
    return Reached(
        position=Position(step=state["step"], epoch=state["epoch"], tokens=state["tokens"]),
        watch=Watch.model_validate(state.get("watch", {})),
        progress=TrainProgress.model_validate(state["progress"]),
    )


def _put_back_moments(folder: Path, learner: Learner, optimizer: torch.optim.Optimizer) -> None:
    """Made by as many processes as now, or by any other number of them."""
    if not learner.spread and (folder / OPTIMIZER).exists():
        found = load_file(folder / OPTIMIZER)
        for name, parameter in learner.trained.items():
            optimizer.state[parameter] = {key: found[f"{name}.{key}"].to(parameter.device) for key in ("step", *_EACH)}
        return
    for parameter in learner.trained.values():
        step = torch.zeros((), device=parameter.device)
        optimizer.state[parameter] = {"step": step, **{key: torch.zeros_like(parameter) for key in _EACH}}
    spread = folder / sharded.FOLDER
    sharded.read(_moments(learner, optimizer), spread if spread.is_dir() else folder, learner.ranks)


def _put_back_generators(folder: Path, ranks: Ranks, state: Mapping[str, Any]) -> None:
    """Each process's own; one that there was none of begins with the seed."""
    files = (folder / GENERATORS, folder / STATE) if ranks.is_first else _generator_files(folder, ranks)
    if not files[0].exists():
        return
    described = state if ranks.is_first else json.loads(files[1].read_text(encoding="utf-8"))
    generators.read(load_file(files[0]), described).put_back()


def _generator_files(folder: Path, ranks: Ranks) -> tuple[Path, Path]:
    return folder / f"rng-{ranks.place.rank}.safetensors", folder / f"rng-{ranks.place.rank}.json"


def read_reference(folder: Path) -> dict[str, torch.Tensor]:
    """What was computed once, before the first step."""
    return load_file(folder / REFERENCE)
