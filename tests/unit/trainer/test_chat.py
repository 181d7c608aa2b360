"""Conversations as text: the same text that transformers makes, and the right part of it learned."""

import re
from typing import Any

import pytest
import transformers

from finetune_api.data import Template
from finetune_trainer.data import chat
from finetune_trainer.data.messages import Problem
from finetune_trainer.data.records import Conversation
from tests import tiny_model

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

TEMPLATES = {
    "chatml": tiny_model.CHAT_TEMPLATE,
    "zephyr": (
        "{% for m in messages %}\n{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + eos_token }}\n"
        "{% elif m['role'] == 'system' %}\n{{ '<|system|>\n' + m['content'] + eos_token }}\n"
        "{% elif m['role'] == 'assistant' %}\n{{ '<|assistant|>\n' + m['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    "llama 2": (
        "{% for m in messages %}"
        "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] | trim + ' [/INST]' }}"
        "{% elif m['role'] == 'system' %}{{ '<<SYS>>\\n' + m['content'] + '\\n<</SYS>>\\n\\n' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "generation tag": (
        "{% for m in messages %}{{ '<' + m['role'] + '>' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}"
        "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    ),
}

REWRITES_EARLIER_TURNS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and not loop.last %}"
    "{{ '<a>' + m['content'].split('</think>')[-1] }}{% else %}{{ '<' + m['role'][0] + '>' + m['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)

MESSAGES = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Say hi. "},
    {"role": "assistant", "content": "Hi, ünïcode 🙂."},
    {"role": "user", "content": "And bye?"},
    {"role": "assistant", "content": "Bye."},
)
TALK = Conversation(MESSAGES, frozenset({2, 4}))


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
def test_the_text_is_what_transformers_makes(source: str, tokenizer: Any) -> None:
    rendered = tokenizer.apply_chat_template(list(MESSAGES), chat_template=source, tokenize=False)
    assert chat.ChatTemplate(source, SPECIAL).write(TALK).text == rendered


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
def test_both_answers_and_nothing_of_the_questions_are_learned(source: str) -> None:
    written = chat.ChatTemplate(source, SPECIAL).write(TALK)
    learned = [written.text[start:stop] for start, stop in written.learned]
    assert not written.reduced
    bare = [re.sub(r"</s>|<\|im_end\|>|<\|assistant\|>", "", part).strip() for part in learned]
    assert bare == ["Hi, ünïcode 🙂.", "Bye."]


def test_a_template_that_rewrites_earlier_turns_leaves_the_last_answer_and_says_so() -> None:
    thought = {"role": "assistant", "content": "<think>hm</think>Hi."}
    messages = ({"role": "user", "content": "a"}, thought, {"role": "user", "content": "b"}, thought)
    written = chat.ChatTemplate(REWRITES_EARLIER_TURNS, SPECIAL).write(Conversation(messages, frozenset({1, 3})))
    assert written.reduced
    assert [written.text[start:stop] for start, stop in written.learned] == ["<think>hm</think>Hi."]


def test_a_template_that_refuses_a_record_makes_it_a_problem() -> None:
    source = "{% for m in messages %}{{ raise_exception('no ' + m['role'] + ' here') }}{% endfor %}"
    with pytest.raises(Problem, match="chat template refuses it: no system here"):
        chat.ChatTemplate(source, SPECIAL).write(TALK)


def test_a_template_can_not_reach_out_of_its_sandbox() -> None:
    source = "{{ messages.__class__.__mro__[1].__subclasses__() }}{{ messages.append(1) }}"
    with pytest.raises(Problem, match="refuses"):
        chat.ChatTemplate(source, SPECIAL).write(TALK)


def test_a_template_that_asks_for_the_date_gives_the_same_text_every_day() -> None:
    source = "{{ strftime_now('%Y') }}" + TEMPLATES["chatml"]
    assert chat.ChatTemplate(source, SPECIAL).write(TALK).text.startswith("2024")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (Template(), "a\nb\nc\nd"),
        (Template(prefix="P ", instruction="Q: ", response=" A: "), "P Q: a A: bQ: c A: d"),
    ],
    ids=["without a template", "with the run's own"],
)
def test_plain_text_without_a_chat_template(template: Template, text: str) -> None:
    roles = ("user", "assistant", "user", "assistant")
    messages = tuple({"role": role, "content": content} for role, content in zip(roles, "abcd", strict=True))
    written = chat.plain(Conversation(messages, frozenset({3})), template)
    assert written.text == text
    assert [written.text[start:stop] for start, stop in written.learned] == ["d"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    loaded = transformers.AutoTokenizer.from_pretrained(tiny_model.build())
    loaded.bos_token, loaded.eos_token = SPECIAL["bos_token"], SPECIAL["eos_token"]
    return loaded
