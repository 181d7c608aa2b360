"""What a stranger's template may take: it is ended in whatever it does, and nothing of the bound is left."""

import functools
import os
import resource
import signal
import time
from collections.abc import Callable

import pytest

from finetune_api.data import Columns, Task, Template
from finetune_api.trainer_config import ModelSource
from finetune_trainer.data import bounded, chat, encoding, parallel, tokenizer
from finetune_trainer.data.readers import Raw
from finetune_trainer.data.records import Place
from finetune_trainer.errors import DataInvalid
from finetune_trainer.sources import modelfolder
from tests import tiny_model

SHORT = 0.2
LIMITS = (resource.getrlimit(resource.RLIMIT_AS), signal.getitimer(signal.ITIMER_PROF))


def for_ever() -> str:
    while True:
        pass


def for_ever_in_one_number() -> str:
    number = 10
    while True:  # soon each turn takes longer than the whole of the allowance
        number *= number


def swallows_its_end() -> str:
    try:
        for_ever()
    except BaseException:  # noqa: BLE001 - that is the point
        return for_ever()
    raise AssertionError


def fills_memory() -> str:
    return "a" * (100 * bounded.MEMORY)


WORK: dict[str, tuple[Callable[[], str], str]] = {
    "a loop": (for_ever, "of processor time"),
    "one long operation": (for_ever_in_one_number, "of processor time"),
    "a loop that swallows its end": (swallows_its_end, "of processor time"),
    "one huge text": (fills_memory, "512 MiB of memory"),
}


@pytest.mark.parametrize(("work", "why"), WORK.values(), ids=WORK)
def test_it_is_ended_and_no_bound_is_left(work: Callable[[], str], why: str) -> None:
    with pytest.raises(bounded.Exceeded, match=why):
        bounded.Allowance(SHORT).spend(work, messages=1)
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getitimer(signal.ITIMER_PROF)) == LIMITS
    os.kill(os.getpid(), signal.SIGPROF)  # one that comes late
    assert len("a" * (bounded.MEMORY + 1)) > bounded.MEMORY


def test_what_it_gives_and_what_it_raises_stays_so() -> None:
    allowance = bounded.Allowance()
    assert allowance.spend(lambda: "text", messages=1) == "text"
    with pytest.raises(ZeroDivisionError):
        allowance.spend(lambda: str(1 / 0), messages=1)
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getitimer(signal.ITIMER_PROF)) == LIMITS


def test_all_records_together_use_it_up() -> None:
    allowance = bounded.Allowance(SHORT)

    def work() -> str:
        end = time.process_time() + SHORT / 4
        while time.process_time() < end:
            pass
        return ""

    assert allowance.spend(work, messages=1) == ""
    with pytest.raises(bounded.Exceeded):
        _spend(allowance, work, times=100)


def _spend(allowance: bounded.Allowance, work: Callable[[], str], *, times: int) -> None:
    for _ in range(times):
        allowance.spend(work, messages=1)


def test_long_conversations_have_more() -> None:
    allowance = bounded.Allowance(SHORT)
    allowance.spend(lambda: "", messages=1_000_000)
    assert allowance.seconds > SHORT + 50


def test_other_processes_are_bounded_too_and_name_the_record() -> None:
    places = [Place("train.jsonl", line) for line in (1, 2)]
    chunks: list[list[Raw]] = [[Raw(place, {"prompt": "p", "response": "r"})] for place in places]
    folder = modelfolder.find(
        ModelSource(uri="pvc://m", path=str(tiny_model.build(chat_template="{{ 'a' * 10**10 }}")))
    )
    encoder = tokenizer.load(folder)
    settings = encoding.Settings(Task.INSTRUCTION_FINE_TUNE, Columns(), Template(), encoder, longest=64)
    work = functools.partial(encoding.encode, settings=settings)
    with pytest.raises(
        DataInvalid, match=r"^train\.jsonl line 1: the model's chat template was ended .* dataset\.temp"
    ):
        list(parallel.mapped(work, chunks, workers=2))


def test_a_text_out_of_all_proportion_is_refused() -> None:
    messages = [{"role": "user", "content": "x" * 10_000}]
    within, beyond = chat.LONGEST - 1, 20 * 10_000
    assert len(chat.ChatTemplate(f"{{{{ 'a' * {within} }}}}", {}).render(messages)) == within
    with pytest.raises(bounded.Exceeded, match=r"writes 200,000 characters for a conversation of 10,0"):
        chat.ChatTemplate(f"{{{{ 'a' * {beyond} }}}}", {}).render(messages)
    long = [{"role": "user", "content": "x" * 100_000}]
    assert len(chat.ChatTemplate("{{ messages[0].content * 10 }}", {}).render(long)) == 1_000_000
