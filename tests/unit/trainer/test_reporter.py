"""What the trainer says of itself."""

import contextlib
import dataclasses
import json
import logging
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from finetune_api.snapshot import EventType, Snapshot
from finetune_trainer.reporting import background, journal, metrics
from finetune_trainer.reporting.progress import Evaluated, Extent, Step
from finetune_trainer.reporting.reporter import Reporter

NOW = datetime(2026, 11, 22, tzinfo=UTC)
TEN = Extent(epochs=1, steps=10, tokens=1000, in_tokens=False)


def test_the_time_left_is_that_of_this_attempts_own_rate() -> None:
    reporter = _reporter()
    reporter.training_begins(TEN, tokens_done=500)
    reporter.step_done(_step(6, seconds=2.0))
    progress = reporter.snapshot().progress
    assert progress is not None
    assert progress.tokens == 600
    assert progress.tokens_per_second_per_device == 50
    assert progress.eta_seconds == 8


def test_only_the_last_steps_decide_the_rate() -> None:
    reporter = _reporter()
    reporter.training_begins(TEN, tokens_done=0)
    for seconds in (100.0, *[1.0] * 20):
        reporter.step_done(_step(1, seconds=seconds))
    progress = reporter.snapshot().progress
    assert progress is not None
    assert progress.tokens_per_second_per_device == 100


def test_the_devices_use_is_told_with_the_progress() -> None:
    reporter = _reporter()
    reporter.training_begins(TEN, tokens_done=0)
    reporter.step_done(_step(1))
    reporter.device_sampled(
        metrics.DeviceSample(device="0", utilization=0.5, cpu_cores=1.5, memory_used=7, memory_total=9)
    )
    progress = reporter.snapshot().progress
    assert progress is not None
    assert (progress.device_utilization, progress.cpu_utilization, progress.device_memory_bytes) == (0.5, 1.5, 7)


def test_the_shares_of_the_last_steps_are_told_and_only_what_is_known() -> None:
    reporter = _reporter()
    reporter.training_begins(TEN, tokens_done=0)
    reporter.step_done(dataclasses.replace(_step(1, seconds=3.0), data_seconds=0.3))
    first = reporter.snapshot().progress
    assert first is not None
    assert (first.data_wait_ratio, first.mfu_ratio) == (0.1, None)
    assert b"finetune_trainer_mfu_ratio" not in metrics.exposition()
    reporter = _reporter()
    for seconds, mfu in ((3.0, 0.5), (1.0, 0.1)):
        reporter.step_done(dataclasses.replace(_step(2, seconds=seconds), mfu=mfu))
    second = reporter.snapshot().progress
    assert second is not None
    assert (second.data_wait_ratio, second.mfu_ratio) == (0.0, 0.4)
    assert b"finetune_trainer_mfu_ratio 0.4" in metrics.exposition()


def test_a_gauge_has_no_series_before_its_first_value_which_may_be_0() -> None:
    gauge = metrics.Known("finetune_trainer_tried", "Tried.")
    try:
        assert b"finetune_trainer_tried" not in metrics.exposition()
        gauge.set(0)
        assert b"\nfinetune_trainer_tried 0.0\n" in metrics.exposition()
    finally:
        REGISTRY.unregister(gauge)


def test_a_trouble_is_told_once_from_when_it_began_until_it_is_gone() -> None:
    times = iter(NOW + timedelta(seconds=n) for n in range(100))
    reporter = Reporter("7f1c", attempt=1, clock=lambda: next(times))
    for name in ("ep1-ba2", "ep1-ba4"):
        reporter.checkpoint_failed(name, OSError(28, "No space left on device"))
    reporter.trouble("EvaluationNotFinite", "the loss is nan")
    first, second = reporter.snapshot().troubles
    assert (first.reason, second.reason) == ("CheckpointFailed", "EvaluationNotFinite")
    assert first.message.startswith("checkpoint ep1-ba4 could not be saved: [Errno 28] No space left on device")
    assert first.since == NOW + timedelta(seconds=1)
    reporter.cured("CheckpointFailed")
    assert [trouble.reason for trouble in reporter.snapshot().troubles] == ["EvaluationNotFinite"]


def test_the_loss_of_an_evaluation_stays_until_the_next() -> None:
    reporter = _reporter()
    reporter.training_begins(TEN, tokens_done=0)
    for step, loss in ((1, 2.5), (2, float("nan")), (3, 2.0)):
        reporter.step_done(_step(step))
        reporter.evaluated(Evaluated(step=step, epoch=1, loss=loss, records=3, seconds=0.1))
        reporter.step_done(_step(step))
        progress, troubles = reporter.snapshot().progress, reporter.snapshot().troubles
        assert progress is not None
        assert progress.eval_loss == (None if step == 2 else loss)
        assert [trouble.reason for trouble in troubles] == (["EvaluationNotFinite"] if step == 2 else [])


def test_a_milestone_said_again_takes_the_place_of_the_first() -> None:
    reporter = _reporter()
    for message in ("first", "second"):
        reporter.milestone(EventType.RESUMED, message)
    assert [milestone.message for milestone in reporter.snapshot().milestones] == ["second"]


def test_a_snapshot_passes_its_own_schema_and_grows_in_sequence() -> None:
    reporter = _reporter()
    reporter.milestone(EventType.DATA_VALIDATED, "x" * 5000)
    first, second = reporter.snapshot(), reporter.snapshot()
    assert Snapshot.decode(first.encode()) == first
    assert second.sequence == first.sequence + 1


def test_the_last_word_of_a_long_story_fits_the_kubelets_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_TERMINATION_LOG", str(tmp_path / "word"))
    reporter = _reporter()
    for kind in (EventType.DATA_VALIDATED, EventType.MODEL_INITIALIZED, EventType.RESUMED, EventType.TRAIN_FINISHED):
        reporter.milestone(kind, "long " * 300)
    reporter.failed(reason="DataInvalid", message="line " * 500, exit_code=65)
    reporter.write_last_word()
    word = (tmp_path / "word").read_bytes()
    assert len(word) <= 4096
    assert Snapshot.decode(word).error is not None


def test_a_last_word_that_can_not_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_TERMINATION_LOG", str(tmp_path / "missing" / "word"))
    _reporter().write_last_word()


def test_a_reader_that_stopped_reading_stops_nobody() -> None:
    """A pipe that nobody empties: lines are dropped, the writer goes on, and closing gives up."""
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w")
    log = journal.Journal(stream)
    record = logging.LogRecord("x", logging.INFO, "", 0, "y" * 1000, None, None)
    for _ in range(background.QUEUED + 500):
        log.emit(record)
    drain = threading.Thread(target=log.drain, args=(0.2,), daemon=True)
    drain.start()
    drain.join(5)
    assert not drain.is_alive()
    os.close(reading)
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_a_line_is_json_with_its_fields_and_traceback(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w") as stream:
        log = journal.Journal(stream)
        logger = logging.getLogger("finetune_trainer.test_reporter")
        logger.setLevel(logging.INFO)
        logger.addHandler(log)
        journal.event(logger, "SOMETHING", "happened", bytes=7)
        try:
            raise ValueError("wrong")
        except ValueError:
            logger.exception("failed")
        log.drain()
        logger.removeHandler(log)
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["event"], first["message"], first["bytes"], first["level"]) == ("SOMETHING", "happened", 7, "info")
    assert "ValueError: wrong" in second["traceback"]


def _reporter() -> Reporter:
    return Reporter("7f1c", attempt=1, clock=lambda: NOW)


def _step(number: int, *, seconds: float = 1.0) -> Step:
    return Step(
        number=number, epoch=1, loss=1.5, grad_norm=0.1, learning_rate=0.01, tokens=100, records=4, seconds=seconds
    )
