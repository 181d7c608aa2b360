"""When a checkpoint is saved, that the training goes on meanwhile, and what is told of it."""

import errno
import json
import random
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_api.durations import Duration
from finetune_api.snapshot import SavedCheckpoint, TrainProgress
from finetune_trainer import loop
from finetune_trainer.errors import StorageFailed
from finetune_trainer.learning import generators
from finetune_trainer.learning.evaluation import Watch
from finetune_trainer.learning.generators import Generators
from finetune_trainer.reporting.reporter import Reporter
from finetune_trainer.saves import staging
from finetune_trainer.saves.content import Content, Position, Reached
from finetune_trainer.saves.saving import Saver


class Volume:
    """Where checkpoints go; it can be slow, and it can be broken."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.written: list[SavedCheckpoint] = []
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.error: Exception | None = None
        self.reporter = Reporter("7f1c", attempt=1)

    def write(self, content: Content) -> SavedCheckpoint:
        name = content.reached.position.name
        self.begun.append(name)
        assert self.goes_on.wait(20)
        if self.error is not None:
            raise self.error
        step = content.reached.position.step
        now = datetime.now(UTC)
        saved = SavedCheckpoint(
            name=name, step=step, time=now, size_bytes=1, path=f"checkpoints/{name}", sha256="0" * 64
        )
        self.written.append(saved)
        return saved

    def saver(
        self, interval: str = "2ba", *, copies: bool = True, thread_begins: Callable[[], None] | None = None
    ) -> Saver:
        return Saver(
            interval=Duration.parse(interval),
            steps_per_epoch=6,
            saved_step=0,
            take=_content,
            write=self.write,
            complete=lambda: tuple(self.written),
            reporter=self.reporter,
            copies=copies,
            thread_begins=thread_begins,
        )

    @property
    def told(self) -> list[str]:
        """The checkpoints that the world knows of."""
        return [saved.name for saved in self.reporter.snapshot().checkpoints]

    @property
    def troubles(self) -> list[str]:
        return [trouble.message for trouble in self.reporter.snapshot().troubles]


@pytest.fixture
def volume() -> Iterator[Volume]:
    made = Volume()
    yield made
    made.goes_on.set()


def test_the_training_goes_on_while_one_is_written_and_it_is_told_when_it_is_complete(volume: Volume) -> None:
    volume.goes_on.clear()
    with volume.saver() as saver:
        saver.save(_at(2), must=False)
        assert volume.told == []
        volume.goes_on.set()
    assert volume.told == ["ep1-ba2"]


def test_on_cuda_the_thread_that_writes_takes_the_device_of_the_training(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[str, int]] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda n: taken.append((threading.current_thread().name, n)))
    with volume.saver(thread_begins=loop._taking_device(torch.device("cuda"))) as saver:
        saver.save(_at(2), must=True)
    assert taken == [("save_0", 3)]
    assert loop._taking_device(torch.device("cpu")) is None


def test_one_that_must_be_is_complete_when_the_call_is_over(volume: Volume) -> None:
    with volume.saver() as saver:
        saver.save(_at(2), must=True)
        assert volume.told == ["ep1-ba2"]


def test_without_a_copy_the_training_waits(volume: Volume) -> None:
    with volume.saver(copies=False) as saver:
        saver.save(_at(2), must=False)
        assert volume.told == ["ep1-ba2"]


def test_the_next_one_waits_for_the_one_under_way(volume: Volume) -> None:
    volume.goes_on.clear()
    with volume.saver() as saver:
        saver.save(_at(2), must=False)
        later = threading.Timer(0.2, volume.goes_on.set)
        later.start()
        saver.save(_at(4), must=False)
        assert volume.told[:1] == ["ep1-ba2"]
    assert volume.told == ["ep1-ba2", "ep1-ba4"]


def test_a_stop_at_the_step_that_is_being_saved_waits_for_it_and_saves_nothing_twice(volume: Volume) -> None:
    volume.goes_on.clear()
    with volume.saver() as saver:
        saver.save(_at(2), must=False)
        threading.Timer(0.2, volume.goes_on.set).start()
        saver.save(_at(2), must=True)
        assert volume.told == ["ep1-ba2"]
    assert volume.begun == ["ep1-ba2"]


def test_minutes_count_from_the_end_of_a_save_and_none_is_due_during_one(volume: Volume) -> None:
    volume.goes_on.clear()
    with volume.saver("1min") as saver:
        saver._saved_at -= 61
        assert saver.is_due(_at(1))
        saver.save(_at(1), must=False)
        assert not saver.is_due(_at(2))
        volume.goes_on.set()
        saver.save(_at(3), must=True)
        assert not saver.is_due(_at(3))
        saver._saved_at -= 61
        assert saver.is_due(_at(3))


def test_one_that_fails_in_the_background_is_a_trouble_until_one_succeeds(volume: Volume) -> None:
    volume.error = OSError(errno.ENOSPC, "No space left on device")
    with volume.saver() as saver:
        saver.save(_at(2), must=False)
    assert volume.told == []
    assert "checkpoint ep1-ba2 could not be saved: [Errno 28] No space left on device" in volume.troubles[0]
    volume.error = None
    with volume.saver() as saver:
        saver.save(_at(4), must=False)
    assert (volume.told, volume.troubles) == (["ep1-ba4"], [])


def test_one_that_must_be_is_tried_again_where_it_has_failed_and_then_ends_the_training(volume: Volume) -> None:
    volume.error = OSError(errno.EIO, "Input/output error")
    with volume.saver() as saver:
        saver.save(_at(2), must=False)
        with pytest.raises(StorageFailed, match="checkpoint ep1-ba2 could not be saved"):
            saver.save(_at(2), must=True)
        volume.error = None
        saver.save(_at(2), must=True)
    assert volume.begun == ["ep1-ba2"] * 3
    assert volume.told == ["ep1-ba2"]


def test_an_error_that_is_not_the_volumes_ends_the_training(volume: Volume) -> None:
    volume.error = ZeroDivisionError("a mistake")
    with volume.saver() as saver:
        saver.save(_at(2), must=False)
        with pytest.raises(ZeroDivisionError):
            saver.save(_at(4), must=False)
    with pytest.raises(ZeroDivisionError), volume.saver() as saver:  # and so at the end of the block
        saver.save(_at(2), must=False)


def test_a_training_that_ends_badly_waits_for_the_save_under_way(volume: Volume) -> None:
    volume.goes_on.clear()
    with pytest.raises(KeyError):
        _end_badly(volume)
    assert volume.told == ["ep1-ba2"]


def test_a_copy_stays_as_it_was_made_and_the_room_is_used_again() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    stage = staging.Stage({"weights": {"a": weight}}, pinned=False)
    first, ready = stage.copy({"weights": {"a": weight}})
    ready()
    weight += 1
    assert first["weights"]["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    second, _ = stage.copy({"weights": {"a": weight}})
    assert second["weights"]["a"].data_ptr() == first["weights"]["a"].data_ptr()
    assert second["weights"]["a"].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_tied_weights_stay_tied_and_what_has_only_a_shape_gets_room_of_its_own() -> None:
    weight = torch.ones(4)
    copies, _ = staging.Stage({}, pinned=False).copy({"weights": {"embedding": weight, "head": weight}})
    assert copies["weights"]["embedding"] is copies["weights"]["head"]
    shape = torch.empty(4, device="meta")
    stage = staging.Stage({"moments": {"first": shape, "second": shape}}, pinned=False)
    copies, _ = stage.copy({"moments": {"first": torch.zeros(4), "second": torch.ones(4)}})
    assert copies["moments"]["first"].tolist() == [0] * 4
    assert copies["moments"]["second"].tolist() == [1] * 4


def test_without_memory_for_a_copy_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"weights": {"a": torch.zeros(1000)}}
    monkeypatch.setattr("finetune_trainer.memory.free_bytes", lambda: 8000)
    assert staging.reserve(tensors, pinned=False) is not None
    monkeypatch.setattr("finetune_trainer.memory.free_bytes", lambda: 7999)
    assert staging.reserve(tensors, pinned=False) is None


def test_every_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    """Through the files' own forms: safetensors for torch, JSON for Python and numpy."""

    def draw() -> list[float]:
        return [random.random(), random.gauss(), np.random.random(), np.random.standard_normal(), torch.rand(1).item()]

    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    draw()
    taken = generators.take(torch.device("cpu"))
    save_file(dict(taken.tensors), tmp_path / "rng.safetensors")
    text = json.dumps(taken.as_json())
    expected = [draw(), draw()]
    generators.read(load_file(tmp_path / "rng.safetensors"), json.loads(text)).put_back()
    assert [draw(), draw()] == expected


def _end_badly(volume: Volume) -> None:
    with volume.saver() as saver:
        saver.save(_at(2), must=False)
        threading.Timer(0.2, volume.goes_on.set).start()
        raise KeyError


def _at(step: int) -> Position:
    return Position(step=step, epoch=1, tokens=step * 10)


def _content(position: Position) -> Content:
    progress = TrainProgress(epoch=1, total_epochs=1, batch=position.step, total_batches=9, tokens=position.tokens)
    return Content(
        reached=Reached(position=position, watch=Watch(), progress=progress),
        learning_rate=0.1,
        drawn=Generators({}, (), dict(np.random.get_state(legacy=False))),
        tensors={},
        wait_for_copies=staging.nothing_to_wait_for,
    )
