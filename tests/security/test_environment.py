"""S11: what a run's texts become in its pod's environment and command line is what was written, and nothing else.

Kubernetes expands $(NAME) in both. The configuration never is expanded; a Custom task's own words are, as in any pod.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune_api.credentials import STORE_KEYS
from finetune_operator import custom, manifests
from finetune_operator.settings import Settings
from tests import worlds
from tests.cluster import podspec
from tests.odd.generator import WORDS

TRICKS = (
    *(word for word in WORDS if "\x00" not in word),
    *("$(FINETUNE_CONFIG)", "$$(HOME)", "$$$(HOME)", "$(", "$()", "$(A)$(B)", "\\$(HOME)", "$(TMPDIR)/x"),
    *("; id", "`id`", "$(id)", "${IFS}", "| cat", "&& id", "\n--privileged", "\r\n", "--", "-c", '"; import os; "'),
    *("LD_PRELOAD=/x", "PYTHONPATH=/x", "PYTHONSTARTUP=/x", "BASH_ENV=/x"),
)
TEXTS = ("dataset.template.prefix", "dataset.template.instruction", "dataset.template.response")
DANGEROUS = ("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONSTARTUP", "BASH_ENV", "PATH", "HTTPS_PROXY")


def container(changes: dict[str, Any]) -> dict[str, Any]:
    job = manifests.job(worlds.run(changes), attempt=1, settings=Settings())
    found: dict[str, Any] = job["spec"]["template"]["spec"]["containers"][0]
    return found


def as_the_kubelet_does(found: dict[str, Any]) -> dict[str, str]:
    values = {"HOME": "/root", "HOSTNAME": "pod"}
    for entry in found["env"]:
        if "value" in entry:
            values[entry["name"]] = podspec.expand(entry["value"], values)
    return values


@pytest.mark.parametrize("path", TEXTS)
def test_a_text_reaches_the_trainer_byte_for_byte(path: str) -> None:
    for text in TRICKS:
        at: Any = json.loads(as_the_kubelet_does(container({path: text}))["FINETUNE_CONFIG"])
        for part in path.split("."):
            at = at[part]
        assert at == text


def custom_task(**trainer: Any) -> dict[str, Any]:
    return container({"task": "Custom", "trainer": {"image": "any", "command": ["train"], **trainer}})


def test_a_custom_commands_words_stay_words() -> None:
    words = [word for word in TRICKS if word and "$" not in word]
    found = custom_task(command=["train", *words], args=words)
    argv = podspec.command_line(found, image=podspec.Image(), env=as_the_kubelet_does(found))
    assert list(argv) == ["python3", f"{custom.FOLDER}/{custom.FILE}", "--", "train", *words, *words]


def test_a_custom_task_can_override_neither_its_identity_nor_what_a_secret_gives() -> None:
    names = ["FINETUNE_CONFIG", custom.GRACE_VARIABLE, *STORE_KEYS]
    spec = {
        "task": "Custom",
        "trainer": {"image": "any", "command": ["train"], "env": dict.fromkeys(names, "mine")},
        "dataset": {"train": {"uri": "s3://data/x.jsonl"}, "credentials": {"secretName": "keys"}},
    }
    found = container(spec)
    entries = [entry for entry in found["env"] if entry["name"] in names]
    assert sorted(entry["name"] for entry in entries) == sorted(names), "each is there once"
    assert not any(entry.get("value") == "mine" for entry in entries)


def test_a_custom_tasks_variables_are_its_own_pods_alone() -> None:
    """It may set what it likes for its own process: the operator's is another, and so is every other run's."""
    found = custom_task(env=dict.fromkeys(DANGEROUS, "/x"))
    assert {entry["name"] for entry in found["env"]} >= set(DANGEROUS)
    plain = container({})
    assert not {entry["name"] for entry in plain["env"]} & set(DANGEROUS)


def test_only_a_custom_task_has_a_command_and_variables_at_all() -> None:
    for trainer in ({"env": {"A": "b"}}, {"command": ["x"]}, {"args": ["x"]}):
        assert worlds.run({"trainer": trainer}).spec is None
