"""A trainer that only pretends: it speaks the run protocol on a script, in fractions of a second.

The script is the data set, a JSON object (see Script) that the run mounts as its training file; a data file that isn't
one means the defaults. Standard library alone, so that it starts in a blink. It must never touch a model.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import http.server
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

PORT = 9400
TERMINATION_LOG = Path("/dev/termination-log")


@dataclasses.dataclass(frozen=True)
class Script:
    """What to play. `exits` are the exit codes of attempt 1, 2 and so on, the last for all that follow."""

    start_seconds: float = 0.0
    validate_seconds: float = 0.0
    load_seconds: float = 0.0
    steps: int = 4
    step_seconds: float = 0.02
    checkpoint_every: int = 2
    save_seconds: float = 0.0
    hang_at: int = 0
    """The step before which an attempt stops working for ever; 0 for none. It answers all the same."""
    hang_for: int = 100_000
    """Attempts that do so."""
    hung_since: float = 3600.0
    """Seconds ago at which an attempt that hangs claims to have made its last step."""
    hung_cpu: float = 0.0
    """CPU cores that an attempt that hangs claims to keep busy."""
    exits: tuple[int, ...] = (0,)
    fail_at: int = 1
    """The step before which an attempt that fails ends."""
    further: int = 0
    """Steps that each attempt gets further than the one before it."""
    reason: str = "Scripted"
    message: str = "the script says so"
    last_word: str = "snapshot"
    """The termination message: `snapshot`, nothing (""), or the text itself."""
    gates: str = ""
    """A folder: each part of attempt 2 waits there for its file (`a2.validate`, `a2.step-3`), or for `a2.all`."""

    @classmethod
    def read(cls, path: Path) -> Script:
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict):
            return cls()
        return cls(**{**found, "exits": tuple(found.get("exits", cls.exits))})

    def exit_code(self, attempt: int) -> int:
        return self.exits[min(attempt, len(self.exits)) - 1]


class Stop(Exception):
    """SIGTERM was received."""


class Trainer:
    """One attempt: the snapshot as it grows."""

    def __init__(self, config: dict[str, Any], script: Script) -> None:
        run = config["run"]
        self.script = script
        self.attempt: int = run["attempt"]
        self.lock = threading.Lock()
        self.snapshot: dict[str, Any] = {
            "version": 1,
            "runUid": run["uid"],
            "attempt": self.attempt,
            "sequence": 0,
            "time": now(),
            "milestones": [],
            "checkpoints": [],
        }

    def say(self, **fields: Any) -> None:
        """The next snapshot."""
        with self.lock:
            fields = {"sequence": self.snapshot["sequence"] + 1, "time": now(), **fields}
            self.snapshot = {**self.snapshot, **fields}

    def milestone(self, kind: str, message: str) -> None:
        reached = {"type": kind, "time": now(), "message": message}
        self.say(milestones=[*self.snapshot["milestones"], reached])
        sys.stdout.write(json.dumps({"event": kind, "time": reached["time"]}) + "\n")
        sys.stdout.flush()

    def encoded(self) -> bytes:
        with self.lock:
            return json.dumps(self.snapshot).encode()

    def metrics(self) -> bytes:
        step = self.snapshot.get("progress", {}).get("batch", 0)
        about = "# HELP finetune_run_step Optimizer steps done.\n# TYPE finetune_run_step gauge"
        return f"{about}\nfinetune_run_step {step}\n".encode()

    def pass_gate(self, name: str) -> None:
        """Wait until a test lets this attempt go on."""
        if not self.script.gates:
            return
        folder = Path(self.script.gates)
        ways = [folder / f"a{self.attempt}.{gate}" for gate in (name, "all")]
        while not any(way.exists() for way in ways):
            time.sleep(0.02)

    def play(self) -> int:
        """The whole attempt; its exit code."""
        script, code = self.script, self.script.exit_code(self.attempt)
        try:
            self.pass_gate("validate")
            time.sleep(script.validate_seconds)
            self.milestone("DATA_VALIDATED", "Data validated: 8 records.")
            self.pass_gate("load")
            time.sleep(script.load_seconds)
            self.milestone("MODEL_INITIALIZED", "Model data downloaded and initialized.")
            for step in range(1, script.steps + 1):
                self.pass_gate(f"step-{step}")
                if code and step == script.fail_at + script.further * (self.attempt - 1):
                    return self.fail(code, script.reason, script.message)
                if step == script.hang_at and self.attempt <= script.hang_for:
                    self.hang()
                self.step(step)
            self.milestone("TRAIN_FINISHED", "Training finished.")
            self.pass_gate("end")
            time.sleep(script.save_seconds)
        except Stop:
            self.save(self.snapshot["progress"]["batch"] if "progress" in self.snapshot else 0)
            return self.fail(75, "Stopped", "stopped on request, checkpoint saved")
        self.say(output={"path": "output", "checkpoint": f"ep1-ba{script.steps}"})
        return 0

    def hang(self) -> None:
        """Answer for ever, and do nothing. It saves nothing either: who asks it to stop has to kill it in the end."""
        progress = {**self.snapshot["progress"], "lastStepTime": now(-self.script.hung_since)}
        try:
            while True:
                self.say(progress={**progress, "cpuUtilization": self.script.hung_cpu})
                time.sleep(0.2)
        except Stop:  # the end of its grace period isn't waited for
            os.kill(os.getpid(), signal.SIGKILL)

    def step(self, step: int) -> None:
        time.sleep(self.script.step_seconds)
        self.say(
            progress={
                "epoch": 1,
                "totalEpochs": 1,
                "batch": step,
                "totalBatches": self.script.steps,
                "tokens": step * 128,
                "etaSeconds": round((self.script.steps - step) * self.script.step_seconds),
                "loss": 3.0 / step,
                "learningRate": 0.0002,
                "deviceMemoryBytes": 7_000_000,
                "stepSeconds": step * self.script.step_seconds,
                "lastStepTime": now(),
                "cpuUtilization": 0.9,
                "tokensPerSecondPerDevice": 128 / max(self.script.step_seconds, 0.001),
            }
        )
        if step % self.script.checkpoint_every == 0 or step == self.script.steps:
            self.save(step)

    def save(self, step: int) -> None:
        name = f"ep1-ba{step}"
        saved = {
            "name": name,
            "step": step,
            "time": now(),
            "sizeBytes": 1000,
            "path": f"checkpoints/{name}",
            "sha256": hashlib.sha256(name.encode()).hexdigest(),
        }
        kept = [checkpoint for checkpoint in self.snapshot["checkpoints"] if checkpoint["name"] != name]
        self.say(checkpoints=[*kept, saved][-3:])

    def fail(self, code: int, reason: str, message: str) -> int:
        if code == 128 + signal.SIGKILL:
            os.kill(os.getpid(), signal.SIGKILL)
        self.say(error={"reason": reason, "message": message, "exitCode": code})
        return code

    def leave_last_word(self) -> None:
        said = self.script.last_word
        TERMINATION_LOG.write_bytes(self.encoded() if said == "snapshot" else said.encode())


def serve(trainer: Trainer) -> None:
    """Answer /progress, /metrics and /healthz from a thread."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = {"/progress": trainer.encoded, "/metrics": trainer.metrics, "/healthz": bytes}.get(
                self.path, bytes
            )()
            self.send_response(200)
            self.send_header(
                "Content-Type", "text/plain; version=0.0.4" if self.path == "/metrics" else "application/json"
            )
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Standard output is for events alone."""

    address = os.environ.get("FINETUNE_BIND_ADDRESS", "0.0.0.0")
    server = http.server.ThreadingHTTPServer((address, PORT), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def stop(number: int, frame: object) -> None:
    raise Stop


def now(seconds: float = 0) -> str:
    """The time, so many seconds from now."""
    time = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return time.isoformat().replace("+00:00", "Z")


def main() -> int:
    config = json.loads(os.environ["FINETUNE_CONFIG"])
    script = Script.read(Path(config["dataset"]["train"]["path"]))
    signal.signal(signal.SIGTERM, stop)
    trainer = Trainer(config, script)
    try:
        time.sleep(script.start_seconds)
        serve(trainer)
        code = trainer.play()
    except Stop:
        code = trainer.fail(75, "Stopped", "stopped on request before the first step")
    trainer.leave_last_word()
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
