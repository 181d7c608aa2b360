"""What a run without a cluster prints, on a terminal and elsewhere."""

import io

import pytest

from finetune_api.status import FineTuneRunStatus
from finetune_operator.console import Console, table
from tests import worlds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def status(*events: tuple[str, str], percent: int = 50) -> FineTuneRunStatus:
    listed = [{"sequence": n, "type": t, "time": worlds.NOW, "message": m} for n, (t, m) in enumerate(events, 1)]
    return FineTuneRunStatus.model_validate({"events": listed, "progress": {"percent": percent}})


def shown(stream: io.StringIO, *statuses: FineTuneRunStatus) -> list[str]:
    console = Console(stream)
    for one in statuses:
        console.show(worlds.run(status=one))
    console.say("end")
    return stream.getvalue().splitlines()


CREATED, STEP, LATER = ("CREATED", "Run created."), ("TRAIN_UPDATED", "step 5"), ("TRAIN_UPDATED", "step 6")


def test_each_event_is_shown_once() -> None:
    lines = shown(io.StringIO(), status(CREATED), status(CREATED), status(CREATED, ("FAILED", "It failed.")))
    assert [line[10:] for line in lines[:-1]] == ["CREATED           Run created.", "FAILED            It failed."]


def test_a_checkpoint_is_shown_whenever_there_is_a_new_one() -> None:
    lines = shown(io.StringIO(), status(("CHECKPOINT_SAVED", "one")), status(("CHECKPOINT_SAVED", "two")))
    assert [line[-3:] for line in lines] == ["one", "two", "end"]


def test_where_there_is_no_terminal_progress_is_a_line_now_and_then() -> None:
    assert [line[-6:] for line in shown(io.StringIO(), status(STEP), status(LATER))] == ["step 5", "end"]


def test_on_a_terminal_progress_is_a_bar_that_is_rewritten() -> None:
    lines = shown(Terminal(), status(STEP), status(LATER))
    assert lines == [
        "[############............]  50% step 5",
        "\033[K[############............]  50% step 6",
        "\033[Kend",
    ]


@pytest.mark.parametrize(
    ("found", "row"),
    [
        pytest.param({}, ["support-bot", "pvc://models/tiny", "2min"], id="a new run"),
        pytest.param(
            {"phase": "Running", "progress": {"done": "89%", "eta": "5min", "loss": "1.7100"}},
            ["support-bot", "Running", "pvc://models/tiny", "89%", "5min", "1.7100", "2min"],
            id="it trains",
        ),
    ],
)
def test_the_table_is_the_one_of_kubectl(found: dict[str, object], row: list[str]) -> None:
    lines = table(worlds.body(status=found), now=worlds.at(120)).splitlines()
    assert lines[0].split() == ["NAME", "PHASE", "MODEL", "PROGRESS", "ETA", "LOSS", "AGE"]
    assert lines[1].split() == row
