"""How the demo looks: a few lines a step, a progress bar on a terminal, plain lines elsewhere."""

import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any

_STARTED = time.monotonic()
_BAR_WIDTH = 24
_last_percent = -100
_bar_is_open = False


def say(text: str) -> None:
    """Plain text."""
    _close_bar()
    print(text, flush=True)


def title(text: str) -> None:
    """The first line."""
    say(_bold(text))


def step(text: str) -> None:
    """What is done now, with the time since the beginning."""
    minutes, seconds = divmod(int(time.monotonic() - _STARTED), 60)
    say(f"\n{_dim(f'[{minutes}:{seconds:02}]')} {text}")


def command(line: str, *, note: str = "") -> None:
    """A command as one would type it."""
    say(f"\n{_bold('$ ' + line)}{_dim(f'   # {note}') if note else ''}")


def output(text: str) -> None:
    """What a command printed."""
    say(text.rstrip())


def talk(question: str, answer: str) -> None:
    """A question to the model and its answer."""
    say(f"  Q: {question}\n  A: {' '.join(answer.split())}")


def event(entry: Mapping[str, Any]) -> None:
    """One entry of a run's history."""
    say(f"{entry['sequence']:3} {entry['time'][11:19]} {entry['type']:<17} {entry['message']}")


def progress(text: str) -> None:
    """Something long that is under way; rewritten in place on a terminal."""
    global _bar_is_open  # noqa: PLW0603 - one screen a process
    if sys.stdout.isatty():
        print(f"\r\033[K{text[: _width()]}", end="", flush=True)
        _bar_is_open = True
    elif time.monotonic() - _progress_said[0] > 15:
        _progress_said[0] = time.monotonic()
        print(text, flush=True)


_progress_said = [0.0]


def bar(percent: int, text: str) -> None:
    """How far the training is; elsewhere than on a terminal a line every tenth."""
    global _last_percent  # noqa: PLW0603 - one screen a process
    filled = percent * _BAR_WIDTH // 100
    line = f"    {'█' * filled}{'░' * (_BAR_WIDTH - filled)} {percent:3}%  {text}"
    if sys.stdout.isatty():
        progress(line)
    elif percent >= _last_percent + 10:
        _last_percent = percent
        say(line)


def samples(text: str, prefix: str, count: int) -> None:
    """The first samples of a metrics page whose name begins with `prefix`."""
    found = [
        line
        for line in text.splitlines()
        if line.startswith(prefix) and "_bucket{" not in line and "_created" not in line
    ]
    output("\n".join(line[: _width()] for line in found[:count]))


def quoted(argument: str) -> str:
    """As a shell wants it."""
    return shlex.quote(argument)


def _close_bar() -> None:
    global _bar_is_open  # noqa: PLW0603 - one screen a process
    if _bar_is_open:
        print(flush=True)
        _bar_is_open = False


def _width() -> int:
    return shutil.get_terminal_size((120, 24)).columns


def _bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text


def _dim(text: str) -> str:
    return f"\033[2m{text}\033[0m" if sys.stdout.isatty() else text
