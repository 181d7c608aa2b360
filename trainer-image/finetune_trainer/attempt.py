"""One attempt: configuration in, exit code out. The one place where errors become exit codes.

Cheap checks come first: nothing heavy is imported before settings, model descriptions and data are known to be good.
"""

import json
import logging
import os
from collections.abc import Callable

from pydantic import ValidationError

from finetune_api import mistakes
from finetune_api.snapshot import EventType, ExitCode
from finetune_api.trainer_config import CONFIG_VARIABLE, TrainerConfig
from finetune_trainer import distributed, memory, preflight
from finetune_trainer.errors import ConfigInvalid, TrainerError
from finetune_trainer.reporting import history, journal, metrics, server
from finetune_trainer.reporting.reporter import Reporter
from finetune_trainer.saves import upload
from finetune_trainer.stopping import StopRequest
from finetune_trainer.tracking.tracker import Tracker

logger = logging.getLogger(__name__)


def main(configuration: str | None = None) -> int:
    """Train as the configuration says, or FINETUNE_CONFIG without one."""
    distributed.take_place(os.environ)
    log = journal.open_journal(quiet=os.environ.get("RANK", "0") != "0")
    given = os.environ.get(CONFIG_VARIABLE, "") if configuration is None else configuration
    uid, attempt = _identity(given)
    reporter = Reporter(uid, attempt=attempt)
    tracker = Tracker(reporter)

    def say_stopped() -> None:
        _end(
            reporter, "Stopped", "stopped on request while there was nothing to save; nothing is lost", ExitCode.STOPPED
        )
        tracker.end(ExitCode.STOPPED, stop_requested=lambda: True)
        log.drain()

    stop = StopRequest(last_act=say_stopped)
    stop.listen()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        server.start(reporter)
    code = _exit_code(reporter, lambda: run(_configuration(given), reporter, stop, tracker))
    stop.training_begins()  # how it ends is decided: a stop cuts short what is still told to MLflow, no more
    reporter.write_last_word()
    tracker.end(code, stop_requested=stop.is_requested)
    stop.ignore()
    reporter.write_last_word()
    log.drain()
    return code


def run(config: TrainerConfig, reporter: Reporter, stop: StopRequest, tracker: Tracker) -> None:
    """One attempt. Raises a TrainerError where it ends before its time."""
    metrics.describe(config, device="")
    if os.environ.get("RANK", "0") == "0":
        tracker.begin(config)
    earlier = history.finished(config)
    if earlier is not None:
        reporter.recall(earlier)
        journal.event(logger, "ALREADY_FINISHED", "the output of this run is complete; there is nothing to train")
        if earlier.output is not None and os.environ.get("RANK", "0") == "0":
            stop.training_begins()  # a stop waits until the copy can be left
            upload.send(config, reporter, earlier.output, stop_requested=stop.is_requested)
        return
    distributed.Place.of(os.environ)
    distributed.tune_threads(os.environ)
    if config.training.deterministic:
        distributed.allow_determinism(os.environ)
    prepared = preflight.check(config)
    reporter.milestone(EventType.DATA_VALIDATED, prepared.summary)

    from finetune_trainer import training  # imports torch and transformers: seconds

    journal.adopt()
    training.run(config, prepared, reporter, stop)


def _configuration(given: str) -> TrainerConfig:
    """What the user asks for. Raises ConfigInvalid with the field's name."""
    if not given:
        raise ConfigInvalid(f"the variable {CONFIG_VARIABLE} is not set; it holds the configuration as JSON")
    try:
        return TrainerConfig.decode(given)
    except ValidationError as error:
        raise ConfigInvalid(f"the configuration can't be used: {mistakes.told(error, TrainerConfig)}") from error


def _identity(given: str) -> tuple[str, int]:
    """Run and attempt, even of a configuration that can't be used."""
    try:
        run = json.loads(given)["run"]
        return str(run["uid"])[:64], max(1, int(run["attempt"]))
    except (ValueError, KeyError, TypeError):
        return "", 1


def _exit_code(reporter: Reporter, work: Callable[[], None]) -> int:
    """Do the work; tell of its failure, if it fails."""
    try:
        work()
    except TrainerError as error:
        return _end(reporter, error.reason, str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 - told with its traceback, and the process ends
        full = memory.trouble(error)
        if full is not None:
            return _end(reporter, full.reason, str(full), full.exit_code)
        text = f"{type(error).__name__}: {error}"
        return _end(reporter, "TrainerFailed", text, 1, traceback=True)
    return ExitCode.DONE


def _end(reporter: Reporter, reason: str, message: str, code: int, *, traceback: bool = False) -> int:
    reporter.failed(reason=reason, message=message, exit_code=code, traceback=traceback)
    reporter.write_last_word()
    return code
