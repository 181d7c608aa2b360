"""Runs any command as a run's trainer and speaks the run protocol for it: `python3 -m finetune_api.wrapper -- COMMAND`.

In a cluster the operator hands this file as it is to the python3 of the user's image (task Custom): it must stay one
file, use the standard library of Python 3.8 alone, and import nothing of ours. The command tells how far it is by lines
in the file that FINETUNE_PROGRESS_FILE names: `iteration|loss|throughput`, or JSON objects. Whatever stands there, and
whatever the command prints, must never end a training.
"""

from __future__ import annotations

import codecs
import ctypes
import errno
import hashlib
import json
import math
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, Any

REASONS = {
    64: "ConfigInvalid", 65: "DataInvalid", 66: "NotFound", 73: "StorageFailed", 75: "Stopped",
    77: "PermissionDenied", 78: "Diverged", 137: "Killed",
}  # fmt: skip
STOPPED, BAD_CONFIG = 75, 64
FINAL = (64, 65, 66, 77, 78)
"""Codes after which another attempt would end the same way: they stay what they are, also after a SIGTERM."""
EVENTS = ("RESUMED", "DATA_VALIDATED", "MODEL_INITIALIZED", "TRAIN_FINISHED")
NUMBERS = {"loss": "loss", "evalLoss": "evalLoss", "learningRate": "learningRate", "gradNorm": "gradNorm",
           "throughput": "tokensPerSecondPerDevice"}  # fmt: skip
COUNTS = {"epoch": "epoch", "totalEpochs": "totalEpochs", "batch": "batch", "iteration": "batch",
          "totalBatches": "totalBatches", "totalIterations": "totalBatches", "tokens": "tokens"}  # fmt: skip
LINE_BYTES, LAST_WORD_BYTES, LARGEST = 65536, 4096, 2**53 - 1
POLL_SECONDS, CPU_SECONDS, WINDOW_SECONDS = 0.5, 2.0, 60.0
KILL_EARLY_SECONDS = 5.0
"""So long before the end of the grace period a command that doesn't end is killed, so that this can be told."""


def timestamp() -> str:
    """Now, as JSON has it."""
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"


def cut(text: object, limit: int = 300) -> str:
    """Text of a bounded length, without control characters."""
    plain = "".join(char if char.isprintable() else " " for char in str(text)).strip()
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


class Log:
    """One JSON object a line on stdout. When nobody reads it any more, it is dropped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def say(self, event: str, message: str, level: str = "info", **fields: Any) -> None:
        """Write one line."""
        line: dict[str, Any] = {"time": timestamp(), "level": level, "event": event, "message": message}
        line.update(fields)
        with self._lock, suppress(OSError, ValueError):
            sys.stdout.buffer.write(json.dumps(line).encode() + b"\n")
            sys.stdout.buffer.flush()


class Account:
    """What is known of the training: the state behind /progress and the last word."""

    def __init__(self, log: Log, *, uid: str, attempt: int, total: int, checkpoints: str) -> None:
        self._log, self._checkpoint_folder = log, checkpoints
        self._lock = threading.RLock()
        self._seen: deque[tuple[float, int]] = deque(maxlen=20)
        self._garbage = 0
        self._sequence = 0
        self._troubles: dict[str, dict[str, str]] = {}
        self._now: dict[str, Any] = {"version": 1, "runUid": uid, "attempt": attempt}
        self._now.update(milestones=[], checkpoints=[])
        self._progress: dict[str, Any] = {"epoch": 1, "totalEpochs": 1, "batch": 0, "totalBatches": total, "tokens": 0}
        self.cpu: float | None = None

    def snapshot(self) -> dict[str, Any]:
        """All there is to say at this moment."""
        with self._lock:
            self._sequence += 1
            said = dict(self._now, sequence=self._sequence, time=timestamp())
            said["milestones"] = [dict(milestone) for milestone in self._now["milestones"]]
            said["troubles"] = [dict(trouble) for trouble in self._troubles.values()]
            if self._seen:
                said["progress"] = dict(self._progress)
                if self.cpu is not None:
                    said["progress"]["cpuUtilization"] = round(self.cpu, 4)
            return said

    def last_word(self) -> bytes:
        """The snapshot in as many bytes as the kubelet takes: the oldest checkpoints go first, then long messages."""
        said, text = self.snapshot(), b""
        for kept, length in ((100, 300), (10, 300), (3, 300), (3, 40), (1, 10), (0, 2)):
            for told in (*said["milestones"], *said["troubles"]):
                told["message"] = cut(told["message"], length)
            said["checkpoints"] = said["checkpoints"][-kept:] if kept else []
            text = json.dumps(said, ensure_ascii=False).encode()
            if len(text) <= LAST_WORD_BYTES:
                break
        return text

    def milestone(self, kind: str, message: object) -> None:
        """Something that happens once in an attempt."""
        with self._lock:
            others = [earlier for earlier in self._now["milestones"] if earlier["type"] != kind]
            others.append({"type": kind, "time": timestamp(), "message": cut(message)})
            self._now["milestones"] = others
        self._log.say(kind, cut(message))

    def failed(self, reason: str, message: str, code: int) -> None:
        """Why the training ends."""
        with self._lock:
            self._now["error"] = {"reason": reason, "message": cut(message, 900), "exitCode": code}
        self._log.say(reason, cut(message, 900), "warning" if code == STOPPED else "error", exitCode=code)

    def is_finished(self) -> bool:
        """Whether the command has said that the training is done."""
        return any(milestone["type"] == "TRAIN_FINISHED" for milestone in self._now["milestones"])

    def batch(self) -> int | None:
        """Iterations so far; None before the first."""
        return self._progress["batch"] if self._seen else None

    def line(self, raw: bytes) -> None:
        """A line of the progress file."""
        text = raw.decode("utf-8", "replace").strip()
        if not text or text.replace(" ", "").lower().startswith("iteration|"):
            return
        try:
            self._object(json.loads(text)) if text.startswith("{") else self._bars(text)
        except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
            self.garbage(text, error)

    def garbage(self, text: str, why: object) -> None:
        """A line that says nothing: it is told, and the training goes on."""
        self._garbage += 1
        if self._garbage == 1:
            self._log.say("BAD_PROGRESS_LINE", f"{cut(why, 200)}: {cut(text, 200)}", "warning")
        message = (
            f"{self._garbage} lines of the progress file say nothing that is understood, the last: {cut(text, 100)}"
        )
        self._trouble("ProgressUnreadable", message)

    def _trouble(self, reason: str, message: str) -> None:
        with self._lock:
            since = self._troubles.get(reason, {}).get("since", timestamp())
            self._troubles[reason] = {"reason": reason, "message": message, "since": since}

    def _bars(self, text: str) -> None:
        """iteration|loss|throughput; the last may be missing."""
        parts = [part.strip() for part in text.split("|")]
        if len(parts) not in (2, 3):
            raise ValueError("expected iteration|loss|throughput")
        found: dict[str, Any] = {"iteration": int(parts[0]), "loss": float(parts[1])}
        if len(parts) == 3:
            found["throughput"] = float(parts[2])
        self._step(found)

    def _object(self, found: dict[str, Any]) -> None:
        if "event" in found:
            if found["event"] not in EVENTS:
                raise ValueError("event must be one of " + ", ".join(EVENTS))
            self.milestone(found["event"], found.get("message", ""))
        elif "checkpoint" in found:
            self._checkpoint(str(found["checkpoint"]), count(found.get("step", self._progress["batch"])))
        elif "output" in found:
            self._output(str(found["output"]))
        else:
            self._step(found)

    def _step(self, found: dict[str, Any]) -> None:
        known = {COUNTS[key]: count(value) for key, value in found.items() if key in COUNTS}
        figures = {NUMBERS[key]: float(value) for key, value in found.items() if key in NUMBERS and value is not None}
        if not known and not figures:
            raise ValueError("it has none of " + ", ".join([*COUNTS, *NUMBERS]))
        odd = [key for key, value in figures.items() if not math.isfinite(value)]
        with self._lock:
            self._progress.update(known)
            self._progress.update((key, None if key in odd else value) for key, value in figures.items())
            if odd:
                self._trouble("LossNotFinite", f"{odd[0]} is no number at iteration {self._progress['batch']}")
            else:
                self._troubles.pop("LossNotFinite", None)
            self._seen.append((time.monotonic(), self._progress["batch"]))
            self._progress["lastStepTime"] = timestamp()
            self._progress["etaSeconds"] = self._eta()
        self._log.say("TRAIN_UPDATED", f"iteration {self._progress['batch']}", **self._progress)

    def _eta(self) -> int | None:
        (began, first), (now, last) = self._seen[0], self._seen[-1]
        left = self._progress["totalBatches"] - last
        if last <= first or left < 0:
            return None
        eta: int = min(round((now - began) / (last - first) * left), LARGEST)
        return eta

    def _checkpoint(self, name: str, step: int) -> None:
        if not re.fullmatch("[a-z0-9-]{1,64}", name):
            raise ValueError("a checkpoint's name has lower-case letters, digits and - only")
        folder = os.path.join(self._checkpoint_folder, name)
        if not os.path.isdir(folder):
            raise ValueError("there is no folder " + folder)
        files = sorted(os.path.join(place, file) for place, _, files in os.walk(folder) for file in files)
        listing = [(os.path.relpath(file, folder), os.stat(file).st_size) for file in files]
        saved = {
            "name": name, "step": step, "time": timestamp(), "path": "checkpoints/" + name,
            "sizeBytes": sum(size for _, size in listing),
            "sha256": hashlib.sha256(json.dumps(listing).encode()).hexdigest(),
        }  # fmt: skip
        with self._lock:
            others = [one for one in self._now["checkpoints"] if one["name"] != name and self._is_there(one["name"])]
            self._now["checkpoints"] = [*others, saved][-100:]
        self._log.say("CHECKPOINT_SAVED", f"checkpoint {name} saved", bytes=saved["sizeBytes"])

    def _is_there(self, name: str) -> bool:
        return os.path.isdir(os.path.join(self._checkpoint_folder, name))

    def _output(self, path: str) -> None:
        part = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
        if len(path) > 512 or not re.fullmatch(f"{part}(/{part})*", path):
            raise ValueError("output is a path below the run's folder, e.g. output/model")
        with self._lock:
            self._now["output"] = {"path": path}


def count(value: Any) -> int:
    """A whole number from 0. Raises ValueError."""
    if isinstance(value, bool) or int(value) != float(value) or not 0 <= int(value) <= LARGEST:
        raise ValueError(f"{value!r} is no whole number from 0")
    return int(value)


class Tail:
    """Reads what is added to a file that may not be there yet, be cut, or be replaced."""

    def __init__(self, path: str, account: Account) -> None:
        self._path, self._account = path, account
        self._file: int | None = None
        self._rest, self._skips = b"", False

    def follow(self, ended: threading.Event) -> None:
        """Until `ended` is set."""
        while not ended.wait(POLL_SECONDS):
            self.look()

    def look(self, *, last: bool = False) -> None:
        """Take what is new; at the end also a line that nothing ends."""
        try:
            self._open()
            while self._file is not None and (found := os.read(self._file, LINE_BYTES)):
                self._take(found)
        except OSError as error:
            self._account.garbage(self._path, error)
        if last and self._rest:
            self._take(b"\n")

    def _open(self) -> None:
        try:
            there = os.stat(self._path)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return
            raise
        if self._file is not None:
            mine = os.fstat(self._file)
            same = (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
            if same and there.st_size >= os.lseek(self._file, 0, os.SEEK_CUR):
                return
            os.close(self._file)
            self._file, self._rest, self._skips = None, b"", False
        if stat.S_ISREG(there.st_mode):
            self._file = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def _take(self, found: bytes) -> None:
        *lines, self._rest = (self._rest + found).split(b"\n")
        for line in lines:
            if not self._skips:
                self._account.line(line)
            self._skips = False
        if len(self._rest) > LINE_BYTES:
            if not self._skips:
                self._account.garbage(self._rest[:100].decode("utf-8", "replace"), "a line of more than 64 KiB")
            self._rest, self._skips = b"", True


def descendants() -> dict[int, float]:
    """Process ids below this one, each with the CPU seconds that it and its ended children have used."""
    parents: dict[int, int] = {}
    used: dict[int, float] = {}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
            parents[pid], used[pid] = int(fields[1]), sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    below: dict[int, float] = {}
    new = [os.getpid()]
    while new:
        new = [pid for pid, parent in parents.items() if parent in new and pid not in below]
        below.update((pid, used[pid]) for pid in new)
    return below


def watch_cpu(account: Account, ended: threading.Event) -> None:
    """CPU cores that the command and all below it kept busy over the last minute."""
    readings: deque[tuple[float, float]] = deque()
    while True:
        own = os.times()
        readings.append((time.monotonic(), own.children_user + own.children_system + sum(descendants().values())))
        while len(readings) > 2 and readings[1][0] <= readings[-1][0] - WINDOW_SECONDS:
            readings.popleft()
        (began, before), (now, after) = readings[0], readings[-1]
        if now > began:
            account.cpu = max(0.0, after - before) / (now - began)
        if ended.wait(CPU_SECONDS):
            return


def serve(account: Account, log: Log) -> None:
    """Answer /progress, /metrics and /healthz. Where the address can't be had, the last word is still read."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version, timeout = "HTTP/1.1", 10
        server_version, sys_version = "finetune-wrapper", ""

        def do_GET(self) -> None:
            asked = self.path.partition("?")[0]
            if asked not in ("/progress", "/metrics", "/healthz"):
                self.send_error(404, explain="there are /progress, /metrics and /healthz")
                return
            said = account.snapshot()
            text = {"/progress": json.dumps(said), "/metrics": exposition(said), "/healthz": "ok\n"}[asked]
            self.send_response(200)
            self.send_header("Content-Type", "application/json" if asked == "/progress" else "text/plain")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            """Say nothing: every poll would be a line."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Say nothing of who didn't wait for the answer."""
            if not isinstance(sys.exc_info()[1], ConnectionError):
                super().handle_error(request, client_address)

    try:
        address = (os.environ.get("FINETUNE_BIND_ADDRESS", ""), int(os.environ.get("FINETUNE_PORT", "9400")))
        server = Server(address, Handler)
    except (OSError, ValueError, OverflowError) as error:
        log.say("NO_PROGRESS_SERVED", f"nothing can listen there: {error}", "warning")
        return
    threading.Thread(target=server.serve_forever, daemon=True).start()


def exposition(said: dict[str, Any]) -> str:
    """The figures under the names that the trainer of this project gives them."""
    names = {"loss": "loss", "evalLoss": "eval_loss", "learningRate": "learning_rate", "gradNorm": "grad_norm",
             "batch": "step", "epoch": "epoch", "tokensPerSecondPerDevice": "tokens_per_second",
             "cpuUtilization": "cpu_utilization_cores"}  # fmt: skip
    found = ((names[key], value) for key, value in said.get("progress", {}).items() if key in names)
    return "".join(
        f"# TYPE finetune_trainer_{name} gauge\nfinetune_trainer_{name} {value!r}\n"
        for name, value in found
        if value is not None
    )


class Command:
    """The user's command, its output, its signals and its end."""

    def __init__(self, arguments: list[str], log: Log, *, grace: float) -> None:
        self._log, self._grace = log, grace
        self._process: subprocess.Popen[bytes] | None = None
        self.stop_requested = False
        self.overdue = False
        self.last_line = ""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._forward)
        process = self._process = subprocess.Popen(  # noqa: S603 - to start it is what this is for
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        assert process.stdout is not None
        assert process.stderr is not None
        streams = {"stdout": process.stdout, "stderr": process.stderr}
        self._copies = [threading.Thread(target=self._copy, args=each, daemon=True) for each in streams.items()]
        for copy in self._copies:
            copy.start()
        if self.stop_requested:  # asked for while it was being started
            self._stop(signal.SIGTERM)

    def wait(self) -> int:
        """Its exit code; what it leaves behind is ended too. Adopted children are reaped all along."""
        process = self._process
        assert process is not None
        pid, status = 0, 0
        while pid != process.pid:
            pid, status = os.waitpid(-1, 0)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # how it ends is decided
        process.returncode = code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        self._end_the_rest()
        for copy in self._copies:
            copy.join(2)
        return 128 - code if code < 0 else code

    def _forward(self, number: int, _frame: object) -> None:
        first, self.stop_requested = not self.stop_requested, True
        if self._process is None:
            return
        if first:
            self._stop(number)
        else:
            self._send(number)

    def _stop(self, number: int) -> None:
        self._send(number)
        message = f"the command has {self._grace:.0f} s to save and end"
        self._log.say("STOPPING", message, signal=signal.Signals(number).name, graceSeconds=self._grace)
        late = threading.Timer(max(1.0, self._grace - KILL_EARLY_SECONDS), self._kill_late)
        late.daemon = True
        late.start()

    def _kill_late(self) -> None:
        self.overdue = True
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _end_the_rest(self) -> None:
        for number, patience in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)):
            until = time.monotonic() + patience
            for pid in descendants():
                with suppress(OSError):
                    os.kill(pid, number)
            while time.monotonic() < until:
                try:
                    if os.waitpid(-1, os.WNOHANG)[0] == 0:
                        time.sleep(0.02)
                except ChildProcessError:
                    return

    def _copy(self, name: str, stream: IO[bytes]) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        with stream:
            while piece := stream.readline(8192):
                text = decoder.decode(piece).rstrip("\n")
                if name == "stderr" and text.strip():
                    self.last_line = text.strip()
                self._log.say("OUTPUT", text, stream=name)


def adopt_orphans() -> None:
    """Become the parent of what outlives its own. As the first process of a container this one is that anyway."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def write_last_word(account: Account, log: Log) -> None:
    """Leave the snapshot where the kubelet reads it."""
    named = os.environ.get("FINETUNE_TERMINATION_LOG")
    target = named or "/dev/termination-log"
    if not named and not os.path.exists(target):
        return
    try:
        with open(target, "wb") as file:
            file.write(account.last_word())
    except OSError as error:
        log.say("NO_LAST_WORD", f"it can't be written to {target}: {error}", "warning")


def how_it_ended(code: int, command: Command, account: Account) -> tuple[int, str, str]:
    """The code to end with, and why if it isn't 0."""
    told = f" Its last line on stderr: {cut(command.last_line, 500)}" if command.last_line else ""
    if command.overdue:
        return 137, "Killed", "the command did not end within the grace period after SIGTERM and was killed"
    if command.stop_requested and code not in FINAL and not (code == 0 and account.is_finished()):
        return STOPPED, "Stopped", f"stopped on request after iteration {account.batch() or 0}"
    if code == 0:
        return 0, "", ""
    how = f"was killed by signal {code - 128}" if code > 128 else f"ended with exit code {code}"
    return code, REASONS.get(code, "CommandFailed"), f"the command {how}.{told}"


def settings() -> tuple[str, int, int, str, dict[str, str]]:
    """Run, attempt, iterations in all, folder and what is mounted, by the configuration. Raises ValueError."""
    found = json.loads(os.environ.get("FINETUNE_CONFIG") or "{}")
    run = found.get("run") or {}
    length = re.fullmatch(r"(\d+)ba", str((found.get("training") or {}).get("maxDuration", "")))
    total = min(int(length.group(1)), LARGEST) if length else 0
    data = found.get("dataset") or {}
    places = {"MODEL": found.get("model"), "TRAIN": data.get("train"), "EVAL": data.get("eval")}
    mounted = {f"FINETUNE_{name}_PATH": place["path"] for name, place in places.items() if (place or {}).get("path")}
    return str(run.get("uid", ""))[:64], int(run.get("attempt", 1)), total, str(found.get("runPath", "run")), mounted


def main(arguments: list[str]) -> int:
    """Run the command to its end."""
    log = Log()
    try:
        uid, attempt, total, run_path, mounted = settings()
    except (ValueError, TypeError, AttributeError) as error:
        log.say("ConfigInvalid", f"FINETUNE_CONFIG can't be read: {error}", "error", exitCode=BAD_CONFIG)
        return BAD_CONFIG
    folders = {"FINETUNE_RUN_PATH": run_path, "FINETUNE_CHECKPOINTS": os.path.join(run_path, "checkpoints"),
               "FINETUNE_OUTPUT": os.path.join(run_path, "output")}  # fmt: skip
    for name, folder in folders.items():
        os.environ.setdefault(name, os.path.abspath(folder))
    os.environ.update(mounted)
    progress = os.environ.setdefault("FINETUNE_PROGRESS_FILE", os.path.join(os.path.abspath(run_path), "progress"))
    account = Account(log, uid=uid, attempt=attempt, total=total, checkpoints=os.environ["FINETUNE_CHECKPOINTS"])
    arguments = arguments[1:] if arguments[:1] == ["--"] else arguments
    code, reason, message = BAD_CONFIG, "ConfigInvalid", "usage: python3 -m finetune_api.wrapper -- COMMAND..."
    if arguments:
        code, reason, message = run(arguments, account, log, progress)
    if code:
        account.failed(reason, message, code)
    elif not account.is_finished():
        done = account.batch()
        account.milestone("TRAIN_FINISHED", f"Command ended well{f' after iteration {done:,}' if done else ''}.")
    write_last_word(account, log)
    return code


def run(arguments: list[str], account: Account, log: Log, progress: str) -> tuple[int, str, str]:
    """The code to end with, and why if it isn't 0."""
    try:
        for folder in (os.environ["FINETUNE_CHECKPOINTS"], os.environ["FINETUNE_OUTPUT"], os.path.dirname(progress)):
            os.makedirs(folder, exist_ok=True)
    except OSError as error:
        return 73, "StorageFailed", f"the run's folder can't be written: {error}"
    adopt_orphans()
    serve(account, log)
    ended, tail = threading.Event(), Tail(progress, account)
    try:
        command = Command(arguments, log, grace=float(os.environ.get("FINETUNE_GRACE_SECONDS", "30")))
    except (OSError, ValueError) as error:
        return BAD_CONFIG, "ConfigInvalid", f"trainer.command can't be started: {error}"
    threads = [threading.Thread(target=tail.follow, args=(ended,), daemon=True),
               threading.Thread(target=watch_cpu, args=(account, ended), daemon=True)]  # fmt: skip
    for thread in threads:
        thread.start()
    code = command.wait()
    ended.set()
    threads[0].join(10)
    tail.look(last=True)
    return how_it_ended(code, command, account)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
