"""What is served of a training, to clients of all sorts. test_run has the pages."""

import threading
import urllib.request
from collections.abc import Iterator

import pytest

from finetune_trainer.reporting import server
from finetune_trainer.reporting.reporter import Reporter
from tests import impatience, ports
from tests.cluster.stage import until


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    number = ports.free()
    monkeypatch.setenv("FINETUNE_BIND_ADDRESS", "127.0.0.1")
    monkeypatch.setenv("FINETUNE_PORT", str(number))
    serving = server.start(Reporter("7f1c", attempt=1))
    assert serving is not None
    yield number
    serving.shutdown()
    serving.server_close()


def test_who_is_gone_before_the_answer_leaves_no_line(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    before = threading.active_count()
    impatience.ask_and_go(port, "/progress")
    until(threading.active_count, lambda count: count <= before, what="answers given up")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
        assert answer.read() == b"ok\n"
    assert capfd.readouterr() == ("", "")
