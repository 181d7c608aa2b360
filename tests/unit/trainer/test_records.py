"""What is said of a record that can't be used, for each task."""

import json

import pytest

from finetune_api.data import Columns, Task
from finetune_trainer.data import records
from finetune_trainer.data.messages import Problem

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
        "the last message of 'messages' is from user; expected assistant",
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
    "no message at all": ([], "'messages' is empty; expected a list of {role, content} objects"),
    "not a list": ("hello", "'messages' is text; expected a list"),
}


BAD_TEXTS = {
    "a misspelt key": ({"txt": "a"}, "unknown key 'txt'; expected 'text'"),
    "no text": ({}, "key 'text' is missing; expected 'text'"),
    "nothing in it": ({"text": " \n"}, "'text' is empty"),
    "a list of texts": ({"text": ["a"]}, "'text' is a list; expected text"),
}

ASKED, YES, NO = ({"role": "user", "content": "a"}, *({"role": "assistant", "content": c} for c in ("b", "c")))
BAD_PREFERENCES = {
    "a misspelt key": (
        {"prompt": "a", "chosen": "b", "rejectd": "c"},
        "unknown key 'rejectd'; expected 'chosen' and 'rejected'",
    ),
    "a misspelt prompt": (
        {"promt": "a", "chosen": "b", "rejected": "c"},
        "unknown key 'promt'; expected 'prompt' and 'chosen' and 'rejected'",
    ),
    "no prompt": (
        {"chosen": "b", "rejected": "c"},
        "key 'prompt' is missing; expected 'prompt' and 'chosen' and 'rejected'",
    ),
    "a prompt that is null": ({"prompt": None, "chosen": "b", "rejected": "c"}, "'prompt' is null; expected text"),
    "an empty answer": ({"prompt": "a", "chosen": "b", "rejected": ""}, "'rejected' is empty"),
    "equal answers": (
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        "'chosen' and 'rejected' are equal, so there is nothing to prefer",
    ),
    "a text and a list": (
        {"prompt": "a", "chosen": "b", "rejected": [NO]},
        "'chosen' is text and 'rejected' is a list; expected two texts, or two lists of messages",
    ),
    "an answer that isn't the assistant's": (
        {"prompt": "a", "chosen": [YES, ASKED], "rejected": [NO]},
        "the last message of 'chosen' is from user; expected assistant",
    ),
    "conversations about different things": (
        {"chosen": [ASKED, YES], "rejected": [{"role": "user", "content": "x"}, NO]},
        "'chosen' and 'rejected' are conversations that don't begin alike",
    ),
    "a bad message": ({"prompt": "a", "chosen": [{"role": "assistant"}], "rejected": [NO]}, "chosen[0]: key 'content'"),
}


@pytest.mark.parametrize(("row", "said"), BAD_INSTRUCTIONS.values(), ids=BAD_INSTRUCTIONS)
def test_a_bad_instruction_is_described(row: object, said: str) -> None:
    assert said in _problem(row, Task.INSTRUCTION_FINE_TUNE)


@pytest.mark.parametrize(("messages", "said"), BAD_CHATS.values(), ids=BAD_CHATS)
def test_a_bad_conversation_is_described(messages: object, said: str) -> None:
    assert said in _problem({"messages": messages}, Task.CHAT_COMPLETION)


@pytest.mark.parametrize(("row", "said"), BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_a_bad_text_is_described(row: object, said: str) -> None:
    assert _problem(row, Task.CONTINUED_PRETRAIN) == said


@pytest.mark.parametrize(("row", "said"), BAD_PREFERENCES.values(), ids=BAD_PREFERENCES)
def test_a_bad_preference_is_described(row: object, said: str) -> None:
    assert _problem(row, Task.PREFERENCE).startswith(said)


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
    with pytest.raises(Problem) as caught:
        records.decode(line)
    assert said in str(caught.value)


PREFERENCES = {
    "texts": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "lists of messages after a list": {"prompt": [ASKED], "chosen": [YES], "rejected": [NO]},
    "lists of messages after a text": {"prompt": "a", "chosen": [YES], "rejected": [NO]},
    "whole conversations": {"chosen": [ASKED, YES], "rejected": [ASKED, NO]},
    "whole conversations, and the prompt once more": {"prompt": "a", "chosen": [ASKED, YES], "rejected": [ASKED, NO]},
}


@pytest.mark.parametrize("row", PREFERENCES.values(), ids=PREFERENCES)
def test_a_preference_may_be_written_in_several_ways(row: dict[str, object]) -> None:
    found, _ = records.parse(row, task=Task.PREFERENCE, columns=Columns())
    assert found == records.Preference(
        records.Conversation((ASKED, YES), frozenset({1})), records.Conversation((ASKED, NO), frozenset({1}))
    )


def test_what_two_conversations_share_is_not_learned() -> None:
    start = [ASKED, YES, {"role": "user", "content": "d"}]
    row = {"chosen": [*start, YES], "rejected": [*start, NO]}
    found, _ = records.parse(row, task=Task.PREFERENCE, columns=Columns())
    assert isinstance(found, records.Preference)
    assert found.chosen.learned == found.rejected.learned == {3}


def test_keys_of_a_table_that_are_null_are_no_keys_of_a_message() -> None:
    messages = [ASKED | {"tool_calls": None}, YES | {"tool_calls": None, "name": None}]
    found, _ = records.parse({"messages": messages}, task=Task.CHAT_COMPLETION, columns=Columns())
    assert isinstance(found, records.Conversation)
    assert found.messages == (ASKED, YES)


def test_keys_that_nobody_asked_for_are_told_but_allowed() -> None:
    found, ignored = _parse({"prompt": "a", "response": "b", "source": "web"})
    assert ignored == ("source",)
    assert [message["content"] for message in found.messages] == ["a", "b"]


def test_columns_can_have_other_names() -> None:
    columns = Columns(prompt="question", response="answer")
    found, _ = records.parse({"question": "a", "answer": "b"}, task=Task.INSTRUCTION_FINE_TUNE, columns=columns)
    assert isinstance(found, records.Conversation)
    assert found.messages[1]["content"] == "b"


def test_only_the_response_is_learned_when_there_is_a_history() -> None:
    found, _ = _parse({"prompt": "c", "response": "d", "history": [["a", "b"]]})
    assert [message["content"] for message in found.messages] == ["a", "b", "c", "d"]
    assert found.learned == {3}


def test_every_assistant_turn_of_a_conversation_is_learned() -> None:
    roles = ("system", "user", "assistant", "user", "assistant")
    row = {"messages": [{"role": role, "content": role} for role in roles]}
    found, _ = records.parse(row, task=Task.CHAT_COMPLETION, columns=Columns())
    assert isinstance(found, records.Conversation)
    assert found.learned == {2, 4}


def _parse(row: object) -> tuple[records.Conversation, tuple[str, ...]]:
    found, ignored = records.parse(row, task=Task.INSTRUCTION_FINE_TUNE, columns=Columns())
    assert isinstance(found, records.Conversation)
    return found, ignored


def _problem(row: object, task: Task) -> str:
    with pytest.raises(Problem) as caught:
        records.parse(json.loads(json.dumps(row)), task=task, columns=Columns())
    return str(caught.value)
