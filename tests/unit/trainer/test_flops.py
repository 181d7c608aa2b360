"""How much of a device's peak a step uses: the work by hand, and the devices whose peak is known."""

from pathlib import Path
from typing import Any

import pytest

from finetune_api.method import Precision
from finetune_trainer import distributed, preflight
from finetune_trainer.learning import flops, model
from finetune_trainer.learning.objective import NextToken
from finetune_trainer.learning.stopwatch import Stopwatch
from tests.trainer_builders import parsed

HIDDEN, LAYERS, KEYS, INNER, VOCABULARY = 64, 2, 32, 128, 512
"""The tiny model: 4 heads of 16, 2 of them for keys and values."""
EACH_LAYER = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * KEYS + 3 * HIDDEN * INNER
ADAPTER = 4 * (4 * HIDDEN + 2 * (HIDDEN + KEYS) + 3 * (HIDDEN + INNER))
"""Numbers that LoRA of rank 4 adds to a layer: rank times both ends of each matrix."""


@pytest.mark.parametrize(
    ("changes", "each_token", "each_target"),
    [
        ({"method": {"type": "Full", "lora": None}}, 6 * LAYERS * EACH_LAYER, 6 * HIDDEN * VOCABULARY),
        ({}, LAYERS * (4 * EACH_LAYER + 6 * ADAPTER), 4 * HIDDEN * VOCABULARY),
        ({"method": {"type": "QLoRA"}}, LAYERS * (4 * EACH_LAYER + 6 * ADAPTER), 4 * HIDDEN * VOCABULARY),
    ],
    ids=["full", "LoRA", "4 bits"],
)
def test_the_work_is_that_of_the_matrices(
    tmp_path: Path, changes: dict[str, Any], each_token: int, each_target: int
) -> None:
    work = flops.Work.of(_objective(tmp_path, changes).learner)
    assert work == flops.Work(each_token=each_token, each_target=each_target, each_square=6 * LAYERS * HIDDEN)


def test_of_8_bits_it_is_not_told(tmp_path: Path) -> None:
    changes = {"method": {"type": "QLoRA", "quantization": {"bits": 8}}}
    assert flops.Work.of(_objective(tmp_path, changes).learner) is None


def test_a_step_on_two_devices_is_shared(tmp_path: Path) -> None:
    objective = _objective(tmp_path, {"training": {"precision": "BF16"}})
    found = flops.Utilization.of(objective, device="NVIDIA H100 80GB HBM3", devices=2)
    assert found is not None
    lengths = [objective.data.lengths[record] for record in (3, 4, 5)]
    targets = objective.units((3, 4)) + objective.units((5,))
    work = found.work
    operations = work.each_token * sum(lengths) + work.each_target * targets
    operations += work.each_square * sum(length**2 for length in lengths)
    assert found.share(((3, 4), (5,)), seconds=0.5) == pytest.approx(operations / (0.5 * 2 * 989e12))


@pytest.mark.parametrize(
    ("device", "bf16", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA H200", 989e12, 67e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A10G", 70e12, 31.2e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA L40S", 362e12, 91.6e12),
        ("NVIDIA L40", None, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None),
        ("NVIDIA GeForce RTX 4090", None, None),
        ("cpu", None, None),
    ],
)
def test_the_peak_is_known_by_the_devices_whole_name(device: str, bf16: float | None, fp32: float | None) -> None:
    assert (flops.peak(device, Precision.BF16), flops.peak(device, Precision.FP32)) == (bf16, fp32)


def test_a_stopwatch_counts_what_lies_within_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((10.0, 13.0, 20.0, 24.0))
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    watch = Stopwatch()
    with watch, watch:
        pass
    assert watch.taken() == 3.0
    with pytest.raises(KeyError), watch:
        raise KeyError
    assert (watch.taken(), watch.taken()) == (4.0, 0.0)


def _objective(folder: Path, changes: dict[str, Any]) -> NextToken:
    config = parsed(folder, changes)
    prepared = preflight.check(config)
    learner = model.load(prepared.model, config, distributed.choose_device("CPU"), most_tokens=999)
    return NextToken(learner, prepared.data)
