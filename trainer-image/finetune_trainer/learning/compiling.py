"""torch.compile of what lies between a model's matrix products (norms, rotation, gated activation) where it pays back.

Each of these goes over its tensors several times, by the fused formulas too; compiled, once. Products and attention
gain nothing, so they stay as they are. Lengths differ from pass to pass, so shapes are dynamic. Whether it pays is
measured before the first step. It must never change more than the rounding, and what can't be compiled must never end a
training that could do without.
"""

import logging
import shutil
import time
from dataclasses import dataclass

import torch

from finetune_api.method import Precision, Switch, Training
from finetune_trainer.data.plan import MicroBatch, Plan
from finetune_trainer.errors import ConfigInvalid
from finetune_trainer.learning import generators, sharding
from finetune_trainer.learning.objective import Objective
from finetune_trainer.learning.probe import let_go
from finetune_trainer.reporting import journal

logger = logging.getLogger(__name__)

WORTH_A_TRIAL = 600.0
"""Seconds of forward and backward passes that must be left: compiling takes up to a minute."""
WORTH_KEEPING = 0.98
"""Share of its time that a pass may take when compiled: what is between is noise."""
TIMED = 3
"""Passes that are timed; the quickest counts."""


def settle(
    objective: Objective, plan: Plan, training: Training, *, steps_done: int = 0, known: bool | None = None
) -> bool:
    """Compile or don't, as the settings, the attempt before (`known`) or a measurement say; returns which.

    Raises ConfigInvalid where it must be compiled and can't be.
    """
    against = _reason_against(objective, training)
    if against or known is False:
        level = logging.INFO if objective.learner.device.type == "cuda" else logging.DEBUG
        logger.log(level, "nothing is compiled: %s", against or "it wasn't in the attempt before")
        return False
    records = _usual(objective, plan)
    if training.compile == Switch.AUTO and known is None:
        passes = (plan.steps - steps_done) * plan.accumulation // plan.devices
        return keep_if_faster(objective, records, passes=passes)
    why = _try(objective, records)
    if why and training.compile == Switch.ENABLED:
        raise ConfigInvalid(f"training.compile is Enabled, and {why}; set it to Auto or Disabled")
    return not why


def _usual(objective: Objective, plan: Plan) -> MicroBatch:
    """One of the passes that this process will make."""
    drawn = plan.batch(0)
    return next((records for records, _ in objective.learner.ranks.share(drawn)), drawn[0])


def _reason_against(objective: Objective, training: Training) -> str:
    """Why it needn't even be tried; empty if it should be."""
    if training.compile == Switch.DISABLED:
        return "training.compile is Disabled"
    if training.compile == Switch.ENABLED:
        return ""
    if objective.learner.device.type != "cuda":
        return "on a CPU it wins nothing over the fused formulas"
    if training.deterministic:
        return "training.deterministic wants the same bits each time"
    if objective.learner.spread:
        return "a trial with full weights spread over several devices isn't made; Enabled does without one"
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "there is no C compiler in the image"
    return ""


@dataclass(frozen=True)
class _Pass:
    """One forward and backward pass."""

    seconds: float
    loss: float
    norm: float
    """Of the gradient."""

    def resembles(self, other: "_Pass", precision: Precision) -> bool:
        """Whether they differ by rounding alone."""
        most = 0.02 if precision == Precision.BF16 else 1e-3
        pairs = ((self.loss, other.loss), (self.norm, other.norm))
        return all(abs(one - two) <= most * max(abs(one), abs(two)) for one, two in pairs)


def keep_if_faster(objective: Objective, records: MicroBatch, *, passes: int) -> bool:
    """Whether it is compiled now, since that pays back in so many passes; if not, all is as before."""
    ranks = objective.learner.ranks
    eager = _timed(objective, records)
    left = eager.seconds * passes
    if not ranks.any(left >= WORTH_A_TRIAL):
        logger.info("nothing is compiled: the %.0f s of passes that are left are too few to pay back", left)
        return False
    began = time.monotonic()
    why = _try(objective, records)
    if why:
        journal.event(logger, "COMPILING_TRIED", f"nothing is compiled: {why}", logging.WARNING)
        return False
    took = time.monotonic() - began
    compiled = _timed(objective, records)
    same = compiled.resembles(eager, objective.learner.precision)
    keeps = not ranks.any(not same or compiled.seconds > eager.seconds * WORTH_KEEPING)
    told = f"compiled in {took:.0f} s a pass takes {compiled.seconds / eager.seconds:.2f} of its time"
    told += "" if same else f" and gives something else ({compiled} for {eager})"
    journal.event(logger, "COMPILING_TRIED", f"{told}: {'kept' if keeps else 'nothing is compiled'}")
    if not keeps:
        objective.learner.kernels.fuse()
    return keeps


def _try(objective: Objective, records: MicroBatch) -> str:
    """Compile, and see whether it runs. If it doesn't for any process, returns why, and all is as before."""
    why = ""
    torch._dynamo.config.suppress_errors = False
    objective.learner.kernels.compile()
    try:
        _pass(objective, records)
    except Exception as error:  # noqa: BLE001 - whatever a compiler can't do with a model
        why = f"this model can't be compiled here: {str(error).strip().partition(chr(10))[0]}"
    if objective.learner.ranks.any(bool(why)):
        objective.learner.kernels.fuse()
        return why or "another of its processes can't compile"
    torch._dynamo.config.suppress_errors = True  # from now on, a new shape that can't be compiled is computed without
    return ""


def _timed(objective: Objective, records: MicroBatch) -> _Pass:
    passes = [_pass(objective, records) for _ in range(TIMED + 1)]
    return min(passes[1:], key=lambda one: one.seconds)


def _pass(objective: Objective, records: MicroBatch) -> _Pass:
    """A pass that leaves nothing behind, and draws what the one before has drawn."""
    learner = objective.learner
    drawn = generators.take(learner.device)
    try:
        began = _now(learner.device)
        loss = objective.loss(records)
        loss.backward()  # type: ignore[no-untyped-call]
        seconds = _now(learner.device) - began
        gradients = [weight.grad for weight in learner.trained.values() if weight.grad is not None]
        norm = sharding.whole(torch.nn.utils.get_total_norm(gradients))
        return _Pass(seconds, float(loss.detach()), float(norm))
    finally:
        drawn.put_back()
        let_go(objective)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()
