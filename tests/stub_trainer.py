"""A program that speaks the run protocol and trains nothing: `python tests/stub_trainer.py CODE`.

It answers /progress, reads its data, makes ten steps, saves a checkpoint and an output, and ends with CODE; with 75 it
goes on until it is told to stop.
"""

import http.server
import json
import os
import signal
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api.snapshot import (
    PORT,
    EventType,
    LastError,
    Milestone,
    SavedCheckpoint,
    SavedOutput,
    Snapshot,
    TrainProgress,
)
from finetune_api.trainer_config import BIND_VARIABLE, CONFIG_VARIABLE, TrainerConfig

STEPS = 10
CONFIG = TrainerConfig.decode(os.environ[CONFIG_VARIABLE])
RUN = Path(CONFIG.run_path)


def say(step: int, **more: Any) -> Snapshot:
    now = datetime.now(UTC)
    milestones = [Milestone(type=EventType.DATA_VALIDATED, time=now, message="Read.")]
    if resumed():
        milestones.insert(0, Milestone(type=EventType.RESUMED, time=now, message="Resumed."))
    progress = TrainProgress(epoch=1, total_epochs=1, batch=step, total_batches=STEPS, tokens=step, loss=1.0)
    return Snapshot(
        run_uid=CONFIG.run.uid,
        attempt=CONFIG.run.attempt,
        sequence=step,
        time=now,
        milestones=tuple(milestones),
        progress=progress,
        **more,
    )


def resumed() -> bool:
    saved = RUN / "checkpoints" / "ep1-ba5"
    return saved.exists() and saved.read_text() != str(CONFIG.run.attempt)


def save() -> SavedCheckpoint:
    folder = RUN / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ep1-ba5").write_text(str(CONFIG.run.attempt))
    now = datetime.now(UTC)
    return SavedCheckpoint(name="ep1-ba5", step=5, time=now, size_bytes=1, path="checkpoints/ep1-ba5", sha256="0" * 64)


class Answer(http.server.BaseHTTPRequestHandler):
    snapshot = say(0)

    def do_GET(self) -> None:
        text = self.snapshot.encode().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """The log has what it read, and nothing else."""


def main(code: int) -> int:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    server = http.server.ThreadingHTTPServer((os.environ[BIND_VARIABLE], PORT), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(
        json.dumps({"read": Path(CONFIG.dataset.train.path or "").read_text(), "hub": os.environ.get("HF_HOME")})
    )
    step = 0
    while not stop.is_set() and (step < STEPS or code == 75):
        step = min(step + 1, STEPS)
        Answer.snapshot = say(step)
        time.sleep(0.05)
    end = 75 if stop.is_set() else code
    error = LastError(reason="Told", message=f"it was told to end with {end}", exit_code=end) if end else None
    output = None if end else SavedOutput(path="output", checkpoint="ep1-ba5")
    if output:
        (RUN / "output").mkdir(exist_ok=True)
    Path("/dev/termination-log").write_text(say(step, checkpoints=(save(),), output=output, error=error).last_word())
    return end


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
