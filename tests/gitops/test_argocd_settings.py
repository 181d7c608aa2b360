"""examples/gitops/argocd/argocd-cm.yaml by Argo CD's own code, over runs of every phase; no cluster is needed.

`make gitops` builds it; without it these tests are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune_api.status import Phase
from finetune_api.types import API_VERSION, KIND
from finetune_operator.world import World
from tests.chart.test_gitops import NEW, OFFERED, STORIES, body, health
from tests.gitops import build, runs
from tests.gitops.argocd import settings

BUILT = build.ARGOCD.found()
pytestmark = pytest.mark.skipif(BUILT is None, reason="Argo CD isn't built: make gitops")

Ask = Callable[..., str]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """What a command of it says of a run."""
    assert BUILT
    program, config = BUILT / "argocd", runs.GITOPS / "argocd" / "argocd-cm.yaml"

    def asked(command: str, run: Mapping[str, Any], *arguments: str) -> str:
        whole = {"apiVersion": API_VERSION, "kind": KIND, **run}
        return settings(program, command, whole, *arguments, folder=tmp_path, config=config)

    return asked


@pytest.mark.parametrize(("story", "wait", "phase", "argo", "flux"), STORIES.values(), ids=STORIES)
def test_it_sees_how_a_run_is(ask: Ask, story: World, wait: Any, phase: Phase, argo: str, flux: str) -> None:
    run = body(story, wait)
    _, message = health(run)
    assert ask("health", run) == f"STATUS: {argo}\nMESSAGE: {message}\n"


def test_it_waits_for_the_first_look(ask: Ask) -> None:
    assert ask("health", NEW).startswith("STATUS: Progressing\n")


@pytest.mark.parametrize(("run", "wanted"), OFFERED.values(), ids=OFFERED)
def test_it_offers_what_can_be_done(ask: Ask, run: Mapping[str, Any], wanted: Sequence[str]) -> None:
    _, *rows = [line.split() for line in ask("list-actions", run).splitlines()]
    assert {name for name, _ in rows} == {"cancel", "resume", "suspend"}
    assert [name for name, disabled in rows if disabled == "false"] == wanted


@pytest.mark.parametrize(
    ("action", "run", "changed"),
    [
        ("suspend", NEW, "> suspend: true"),
        ("resume", OFFERED["is paused"][0], "> suspend: false"),
        ("cancel", NEW, "> cancel: true"),
    ],
)
def test_an_action_changes_one_field_that_is_no_drift(ask: Ask, action: str, run: dict[str, Any], changed: str) -> None:
    said = [" ".join(line.split()) for line in ask("run-action", run, action).splitlines()]
    assert [line for line in said if line.startswith(">")] == [changed]
    field, value = changed.removeprefix("> ").split(": ")
    acted = {**run, "spec": {**run["spec"], field: value == "true"}}
    ignored = [" ".join(line.split()) for line in ask("ignore-differences", acted).splitlines()]
    assert changed.replace(">", "<") in ignored
    assert [line for line in ignored if line.startswith("<") and "model:" in line and "uri" in line] == []
