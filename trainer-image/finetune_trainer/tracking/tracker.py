"""The thread that keeps MLflow told. The training never waits for it; at the end it gets a bounded time.

A thread is enough: it waits for the network nearly always, and a batch is so small that it holds the interpreter for a
few milliseconds every few seconds. Nothing that goes wrong in it ends a training.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from finetune_api.fields import cut
from finetune_api.snapshot import ExitCode
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.reporting import metrics
from finetune_trainer.reporting.reporter import Reporter
from finetune_trainer.tracking import state
from finetune_trainer.tracking.sender import Ending, Sender
from finetune_trainer.tracking.server import Refused, Server

logger = logging.getLogger(__name__)

TRACKING_FAILED = "TrackingFailed"
INTERVAL = 5.0
LONGEST_PAUSE = 60.0
"""Seconds between two tries while the server doesn't take anything; the first come after 1, 2, 4, ..."""
SAMPLE_INTERVAL = 15.0
PATIENCE, STOP_PATIENCE = 10.0, 5.0
"""Seconds without any progress after which a finished, or stopped, training doesn't wait any more."""
LIMIT, STOP_LIMIT = 900.0, 15.0
"""Seconds for all that is left at the end, weights included."""


class Tracker:
    """One attempt's account to MLflow; does nothing where none is configured."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._wake, self._done = threading.Event(), threading.Event()
        self._ending: Ending | None = None
        self._problem = ""
        self._next_sample = 0.0
        self._begun = False

    def begin(self, config: TrainerConfig) -> None:
        """Start the thread."""
        if config.mlflow is None:
            return
        self._folder, self._uid = Path(config.run_path), config.run.uid
        self._server = Server(config.mlflow.tracking_uri)
        self._sender = Sender(config, config.mlflow, self._server)
        self._begun = True
        threading.Thread(target=self._work, name="tracking", daemon=True).start()

    def end(self, code: int, *, stop_requested: Callable[[], bool]) -> None:
        """Send the rest, and how it ended, for as long as that gets on; less long once a stop is asked for."""
        if not self._begun:
            return
        error = self._reporter.snapshot().error
        self._ending = Ending(code=code, message=error.message if error else "")
        self._wake.set()
        began = time.monotonic()
        while not self._done.wait(0.05):
            now = time.monotonic()
            stopped = code == ExitCode.STOPPED or stop_requested()
            limit, patience = (STOP_LIMIT, STOP_PATIENCE) if stopped else (LIMIT, PATIENCE)
            if now - max(self._server.moved, began) > patience or now - began > limit:
                self._tell(self._problem or f"{self._server.uri} didn't take all that was left")
                return

    def _work(self) -> None:
        failures, due = 0, 0.0
        while not self._done.is_set():
            if self._wake.is_set() or time.monotonic() >= due:
                self._wake.clear()
                ending = self._ending
                problem = self._try(ending)
                failures = failures + 1 if problem else 0
                due = time.monotonic() + (_pause(failures, ending) if problem else INTERVAL)
                if failures != 1 or ending:  # one failure alone is no trouble
                    self._tell(problem)
                if ending and not problem:
                    self._done.set()
            self._wake.wait(max(0.0, due - time.monotonic()))

    def _try(self, ending: Ending | None) -> str:
        """Send all there is; what was wrong, if something was."""
        try:
            if not state.owns(self._folder, self._uid):
                return ""
            self._sample()
            self._sender.send(now=round(time.time() * 1000))
            self._sender.choose(self._reporter.chosen)
            if ending:
                self._sender.finish(ending)
            return ""
        except Refused as refused:
            problem = str(refused)
        except OSError as error:
            problem = f"the run's folder can't be read or written: {error}"
        except Exception as error:  # told with its traceback; the training goes on
            logger.warning("what is told to MLflow fails unexpectedly", exc_info=True)
            problem = f"{self._server.uri}: {type(error).__name__}: {error}"
        metrics.tracking_failures.inc()
        return cut(problem, 400)

    def _sample(self) -> None:
        """Remember how busy the device is, now and then."""
        reading, now = self._reporter.device, time.monotonic()
        if reading is None or now < self._next_sample:
            return
        self._next_sample = now + SAMPLE_INTERVAL
        self._sender.sample(reading, step=self._steps_done(), now=round(time.time() * 1000))

    def _tell(self, problem: str) -> None:
        steps = self._steps_done()
        self._reporter.tracked_is(self._sender.tracked(steps_done=steps, problem=problem))
        if problem and problem != self._problem:
            self._reporter.trouble(
                TRACKING_FAILED, f"MLflow isn't told: {problem}; the training goes on, what is missing is sent later"
            )
        elif self._problem and not problem:
            self._reporter.cured(TRACKING_FAILED)
        self._problem = problem

    def _steps_done(self) -> int:
        progress = self._reporter.snapshot().progress
        return progress.batch if progress else 0


def _pause(failures: int, ending: Ending | None) -> float:
    return 0.5 if ending else min(LONGEST_PAUSE, 2.0 ** min(failures - 1, 10))
