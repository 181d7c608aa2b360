"""What is said of a data line that can't be used."""

import json

import pytest

from finetune_api.data import Columns, Task
from finetune_trainer import records

BAD_INSTRUCTIONS = {
    "a misspelt key is named beside what is expected": (
        {"prompt": "a", "respnse": "b"},
        "unknown key 'respnse'; expected 'prompt' and 'response'",
    ),
    "of several unknown keys the similar one is named": (
        {"prompt": "a", "id": 1, "reponse": "b"},
        "unknown key 'reponse'; expected",
    ),
    "a missing key is named": ({"prompt": "a"}, "key 'response' is missing; expected 'prompt' and 'response'"),
    "a number where text belongs": ({"prompt": "a", "response": 3}, "'response' is a number; expected text"),
    "null where text belongs": ({"prompt": None, "response": "b"}, "'prompt' is null; expected text"),
    "an empty answer": ({"prompt": "a", "response": "  "}, "'response' is empty"),
    "a list instead of an object": ([1, 2], "a list where an object {…} is expected"),
    "a history that isn't pairs": (
        {"prompt": "a", "response": "b", "history": [["x"]]},
        "'history' must be a list of [prompt, response] pairs",
    ),
    "a history with a number in it": (
        {"prompt": "a", "response": "b", "history": [["x", 1]]},
        "'history[0][1]' is a number; expected text",
    ),
    "half a surrogate pair": ({"prompt": "a", "response": "b\ud800"}, "half of a surrogate pair"),
}

BAD_CHATS = {
    "no assistant turn": ([{"role": "user", "content": "a"}], "no assistant turn"),
    "the last turn isn't the assistant's": (
        [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}],
        "the last message is from user; expected assistant",
    ),
    "an unknown role": ([{"role": "bot", "content": "a"}], "messages[0]: role 'bot' is unknown; expected system, user"),
    "no content": ([{"role": "user"}], "messages[0]: key 'content' is missing; expected 'role' and 'content'"),
    "a misspelt key in a message": ([{"role": "user", "contents": "a"}], "messages[0]: unknown key 'contents'"),
    "content that isn't text": ([{"role": "user", "content": ["a"]}], "'messages[0].content' is a list; expected text"),
    "an empty answer": (
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}],
        "messages[1].content is empty",
    ),
    "a message that isn't an object": (["hello"], "messages[0] is text; expected an object"),
    "no message at all": ([], "'messages' is empty"),
    "not a list": ("hello", "'messages' is text; expected a list"),
}


@pytest.mark.parametrize(("row", "said"), BAD_INSTRUCTIONS.values(), ids=BAD_INSTRUCTIONS)
def test_a_bad_instruction_is_described(row: object, said: str) -> None:
    assert said in _problem(row, Task.INSTRUCTION_FINE_TUNE)


@pytest.mark.parametrize(("messages", "said"), BAD_CHATS.values(), ids=BAD_CHATS)
def test_a_bad_conversation_is_described(messages: object, said: str) -> None:
    assert said in _problem({"messages": messages}, Task.CHAT_COMPLETION)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"prompt": "a"', "not JSON: Expecting ',' delimiter at column 15"),
        (b'{"prompt": "a\xff"}', "not UTF-8: byte 0xff at column 14"),
        (b"[" * 100_000, "not JSON"),
        (b"\x00", "not JSON"),
    ],
    ids=["cut off", "another encoding", "nested without end", "binary"],
)
def test_a_line_that_is_no_json_is_described(line: bytes, said: str) -> None:
    with pytest.raises(records.Problem) as caught:
        records.parse(line, task=Task.INSTRUCTION_FINE_TUNE, columns=Columns())
    assert said in str(caught.value)


def test_keys_that_nobody_asked_for_are_told_but_allowed() -> None:
    found = _parse({"prompt": "a", "response": "b", "source": "web"})
    assert found.ignored == ("source",)
    assert [message["content"] for message in found.messages] == ["a", "b"]


def test_columns_can_have_other_names() -> None:
    columns = Columns(prompt="question", response="answer")
    line = json.dumps({"question": "a", "answer": "b"}).encode()
    assert records.parse(line, task=Task.INSTRUCTION_FINE_TUNE, columns=columns).messages[1]["content"] == "b"


def test_only_the_response_is_learned_when_there_is_a_history() -> None:
    found = _parse({"prompt": "c", "response": "d", "history": [["a", "b"]]})
    assert [message["content"] for message in found.messages] == ["a", "b", "c", "d"]
    assert found.learned == {3}


def test_every_assistant_turn_of_a_conversation_is_learned() -> None:
    roles = ("system", "user", "assistant", "user", "assistant")
    row = {"messages": [{"role": role, "content": role} for role in roles]}
    line = json.dumps(row).encode()
    assert records.parse(line, task=Task.CHAT_COMPLETION, columns=Columns()).learned == {2, 4}


def _parse(row: object) -> records.Conversation:
    return records.parse(json.dumps(row).encode(), task=Task.INSTRUCTION_FINE_TUNE, columns=Columns())


def _problem(row: object, task: Task) -> str:
    with pytest.raises(records.Problem) as caught:
        records.parse(json.dumps(row).encode(), task=task, columns=Columns())
    return str(caught.value)
