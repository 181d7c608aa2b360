"""Compiled parts give what the network's own give; whether they stay is measured. Compiles for the CPU, with its C
compiler: on CUDA the same code makes other kernels, which isn't tried here.
"""

import hashlib
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.llama import modeling_llama

from finetune_api.method import Switch, Training
from finetune_api.snapshot import ExitCode
from finetune_trainer import loop, preflight
from finetune_trainer.data.plan import Plan
from finetune_trainer.distributed import Device
from finetune_trainer.errors import ConfigInvalid
from finetune_trainer.learning import compiling, model
from finetune_trainer.learning.objective import NextToken
from tests import trainer_process
from tests.trainer_builders import configuration, merged, parsed

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler, which torch.compile needs"
)
ENABLED: dict[str, Any] = {"training": {"compile": "Enabled"}}


def _load(tmp_path: Path, **changes: Any) -> tuple[NextToken, Plan, Training]:
    config = parsed(tmp_path, merged({"training": {"precision": "FP32"}}, changes))
    prepared = preflight.check(config)
    learner = model.load(prepared.model, config, Device("cpu", "cpu", 1), most_tokens=prepared.plan.most_tokens)
    return NextToken(learner, prepared.data), prepared.plan, config.training


def _gradient(objective: NextToken, plan: Plan, step: int) -> tuple[float, list[torch.Tensor]]:
    torch.manual_seed(step)
    found = loop.gradient(objective, plan.batch(step), 0.0)
    assert found is not None
    gradients = [weight.grad for weight in objective.learner.trained.values() if weight.grad is not None]
    for weight in objective.learner.trained.values():
        weight.grad = None
    return found[0], gradients


def _computing(network: Any) -> dict[str, Any]:
    """What computes norms and rotation."""
    norms = {name: module.forward.__func__ for name, module in network.named_modules() if name.endswith("norm")}
    return {"rotation": modeling_llama.apply_rotary_pos_emb, **norms}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where torch keeps what it has compiled, for the next test."""
    return tmp_path_factory.mktemp("inductor")


@pytest.fixture(autouse=True)
def _nothing_compiled_in_this_process(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    own = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", own)  # so that it is put back at the end
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@needs_compiler
def test_compiled_parts_give_the_same_gradient_for_every_length_and_are_compiled_once(tmp_path: Path) -> None:
    objective, plan, _ = _load(tmp_path)
    before = _computing(objective.learner.network)
    for step in range(4):
        loss, gradient = _gradient(objective, plan, step)
        objective.learner.kernels.compile()
        compiled_loss, compiled = _gradient(objective, plan, step)
        objective.learner.kernels.fuse()
        assert compiled_loss == pytest.approx(loss, rel=1e-5)
        pairs = zip(compiled, gradient, strict=True)
        assert all(torch.allclose(one, other, rtol=1e-3, atol=1e-6) for one, other in pairs)
    # Rotation, activation, and norms of what needs a gradient and, behind the embeddings, of what needs none.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4
    assert _computing(objective.learner.network) == before


@needs_compiler
def test_it_stays_where_it_is_faster_and_pays_back_and_leaves_no_trace_where_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, plan, _ = _load(tmp_path)
    network, records = objective.learner.network, plan.batch(0)[0]
    before, state = _computing(network), torch.get_rng_state()

    def kept(*, passes: int) -> bool:
        return compiling.keep_if_faster(objective, records, passes=passes)

    assert not kept(passes=1)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0
    monkeypatch.setattr(compiling, "WORTH_KEEPING", 0.0)
    assert not kept(passes=10**9)
    assert _computing(network) == before
    monkeypatch.setattr(compiling, "WORTH_KEEPING", 1000.0)
    assert kept(passes=10**9)
    assert all(now is not before[name] for name, now in _computing(network).items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in objective.learner.trained.values())


@needs_compiler
def test_parts_that_give_something_else_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, plan, _ = _load(tmp_path)
    network = objective.learner.network
    before = _computing(network)
    monkeypatch.setattr(compiling, "WORTH_KEEPING", 1000.0)
    monkeypatch.setattr(network.base_model.model.model.norm, "variance_epsilon", 1e-5)
    kernels = objective.learner.kernels
    compiled = kernels.compile

    def wrong() -> None:
        compiled()
        network.base_model.model.model.norm.variance_epsilon = 1.0

    monkeypatch.setattr(kernels, "compile", wrong)
    assert not compiling.keep_if_faster(objective, plan.batch(0)[0], passes=10**9)
    assert _computing(network) == before


def test_what_cannot_be_compiled_ends_a_run_only_if_it_must_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, plan, training = _load(tmp_path, training={"compile": "Enabled"})
    before = _computing(objective.learner.network)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        with pytest.raises(ConfigInvalid, match=r"training.compile is Enabled.*set it to Auto or Disabled"):
            compiling.settle(objective, plan, training)
        assert _computing(objective.learner.network) == before
        assert not compiling.keep_if_faster(objective, plan.batch(0)[0], passes=10**9)
    assert _computing(objective.learner.network) == before


def test_auto_leaves_a_cpu_alone_and_disabled_everything(tmp_path: Path) -> None:
    objective, plan, training = _load(tmp_path)
    before = _computing(objective.learner.network)
    assert training.compile == Switch.AUTO
    assert not compiling.settle(objective, plan, training)
    assert not compiling.settle(objective, plan, training, known=True)
    assert not compiling.settle(objective, plan, training.model_copy(update={"compile": Switch.DISABLED}))
    assert _computing(objective.learner.network) == before


@needs_compiler
def test_a_compiled_run_that_is_killed_ends_with_the_same_weights(tmp_path: Path) -> None:
    digests = []
    for name in ("whole", "killed"):
        config = configuration(tmp_path / name, ENABLED)
        attempt = trainer_process.start(config)
        if name == "killed":
            attempt.until("CHECKPOINT_SAVED", times=4)
            attempt.signal(signal.SIGKILL)
            assert attempt.wait() == -signal.SIGKILL
            attempt = trainer_process.start(merged(config, {"run": {"attempt": 2}}))
        assert attempt.wait() == ExitCode.DONE
        assert "partly compiled" in attempt.messages("MODEL_INITIALIZED")[0]
        product = (tmp_path / name / "run/output/adapter_model.safetensors").read_bytes()
        digests.append(hashlib.sha256(product).hexdigest())
    assert digests[0] == digests[1]
