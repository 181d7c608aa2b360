"""examples/gitops: what Argo CD and Flux make of a run in every phase, by their own languages."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import celpy
import pytest
import yaml
from celpy.adapter import json_to_cel
from lupa import lua51  # type: ignore[import-untyped] # ships no types

from finetune_api.status import Phase
from finetune_operator.world import World
from tests import worlds
from tests.chart.generate import CHART, ROOT
from tests.unit.operator import test_status as stories

GITOPS = ROOT / "examples" / "gitops"
ARGO = yaml.safe_load((GITOPS / "argocd" / "argocd-cm.yaml").read_text())["data"]
KIND = "finetune.dev_FineTuneRun"
WITHIN_ARGO = "string, math, io, debug, require, loadstring, dofile = nil"
"""Argo CD opens the base and table libraries, and a part of os."""

STORIES: Mapping[str, tuple[World, Any, Phase, str, str]] = {
    "starts": (stories.STARTING, None, Phase.STARTING, "Progressing", "InProgress"),
    "waits for room": (stories.STARTING, stories.ROOM, Phase.QUEUED, "Progressing", "InProgress"),
    "trains": (stories.RUNNING, None, Phase.RUNNING, "Progressing", "InProgress"),
    "hangs": (stories.HUNG, None, Phase.RUNNING, "Progressing", "InProgress"),
    "is being paused": (stories.STOPPING, None, Phase.RUNNING, "Progressing", "InProgress"),
    "is paused": (stories.STOPPED, None, Phase.SUSPENDED, "Suspended", "Current"),
    "goes on": (stories.RESUMES, None, Phase.STARTING, "Progressing", "InProgress"),
    "has a model": (stories.DONE, None, Phase.COMPLETED, "Healthy", "Current"),
    "has failed": (stories.BAD_DATA, None, Phase.FAILED, "Degraded", "Failed"),
    "never fits": (stories.NEVER, None, Phase.FAILED, "Degraded", "Failed"),
    "is canceled": (stories.CANCELED, None, Phase.CANCELED, "Degraded", "Failed"),
}


def body(story: World, wait: Any) -> dict[str, Any]:
    """The run as the API server has it, once the operator has looked at it."""
    status = stories.compute(story, wait=wait)
    found = dataclasses.replace(story, run=dataclasses.replace(story.run, status=status))
    spec = found.run.spec.to_wire() if found.run.spec else {}
    meta = {"name": found.run.metadata.name, "generation": found.run.metadata.generation}
    wire: dict[str, Any] = json.loads(
        json.dumps({"metadata": meta, "spec": spec, "status": status.to_wire()}, default=str)
    )
    return wire


NEW = worlds.body()
"""As it is created: with the CRD's default, and no look at it yet."""


def lua(script: str, run: Mapping[str, Any]) -> Any:
    """What a script of Argo CD returns for a run."""
    runtime = lua51.LuaRuntime(register_eval=False, register_builtins=False)
    runtime.globals().obj = runtime.table_from(run, recursive=True)
    runtime.execute(WITHIN_ARGO)
    return runtime.execute(script)


def health(run: Mapping[str, Any]) -> tuple[str, str]:
    """Status and message in Argo CD."""
    found = lua(ARGO[f"resource.customizations.health.{KIND}"], run)
    return found["status"], found["message"]


def test_every_phase_has_a_story() -> None:
    assert {phase for _, _, phase, _, _ in STORIES.values()} == set(Phase) - {Phase.PENDING}


@pytest.mark.parametrize(("story", "wait", "phase", "argo", "flux"), STORIES.values(), ids=STORIES)
def test_both_see_how_a_run_is(story: World, wait: Any, phase: Phase, argo: str, flux: str) -> None:
    run = body(story, wait)
    assert run["status"]["phase"] == phase
    status, message = health(run)
    assert (status, message != "") == (argo, True)
    assert flux_status(run) == flux


def test_both_wait_for_the_first_look() -> None:
    assert health(NEW)[0] == "Progressing"
    assert flux_status(NEW) == "InProgress"
    assert health({"metadata": {"generation": 1}, "spec": {}})[0] == "Progressing"


def test_both_wait_for_a_look_at_the_last_change() -> None:
    run = body(stories.DONE, None)
    run["metadata"]["generation"] += 1
    assert health(run)[0] == "Progressing"
    assert flux_status(run) == "InProgress"


def test_argo_says_why_and_how_far() -> None:
    failed, trains = body(stories.BAD_DATA, None), body(stories.RUNNING, None)
    assert health(failed)[1] == failed["status"]["failure"]["message"]
    assert health(trains)[1] == f"Attempt 1 runs. {trains['status']['progress']['percent']}%"
    assert "hang" in health(body(stories.HUNG, None))[1] or "step" in health(body(stories.HUNG, None))[1]


FLUX = yaml.safe_load((GITOPS / "flux" / "runs.yaml").read_text())


def flux_status(run: Mapping[str, Any]) -> str:
    """As Flux evaluates them: in progress, failed, current; nothing of these means in progress."""
    (check,) = FLUX["spec"]["healthCheckExprs"]
    environment = celpy.Environment()
    variables = {key: json_to_cel(value) for key, value in run.items()}
    for name, found in (("inProgress", "InProgress"), ("failed", "Failed"), ("current", "Current")):
        if environment.program(environment.compile(check[name])).evaluate(variables):
            return found
    return "InProgress"


ACTIONS = yaml.safe_load(ARGO[f"resource.customizations.actions.{KIND}"])
OFFERED: Mapping[str, tuple[dict[str, Any], Sequence[str]]] = {
    "new": (NEW, ["cancel", "suspend"]),
    "trains": (body(stories.RUNNING, None), ["cancel", "suspend"]),
    "is paused": (body(stories.STOPPED, None), ["cancel", "resume"]),
    "is being canceled": ({**NEW, "spec": {**NEW["spec"], "cancel": True}}, []),
    "has a model": (body(stories.DONE, None), []),
    "has failed": (body(stories.BAD_DATA, None), []),
}


@pytest.mark.parametrize(("run", "wanted"), OFFERED.values(), ids=OFFERED)
def test_argo_offers_what_can_be_done(run: Mapping[str, Any], wanted: Sequence[str]) -> None:
    found = lua(ACTIONS["discovery.lua"], run)
    assert sorted(name for name, action in found.items() if not action["disabled"]) == wanted
    assert {action["name"] for action in ACTIONS["definitions"]} == set(found.keys())


@pytest.mark.parametrize(
    ("action", "changed"),
    [("suspend", {"suspend": True}), ("resume", {"suspend": False}), ("cancel", {"cancel": True})],
)
def test_an_action_changes_one_field_that_is_no_drift(action: str, changed: Mapping[str, bool]) -> None:
    script = next(found["action.lua"] for found in ACTIONS["definitions"] if found["name"] == action)
    spec = dict(lua(script, NEW)["spec"].items())
    assert {key: value for key, value in spec.items() if NEW["spec"].get(key) is None} == changed
    ignored = yaml.safe_load(ARGO[f"resource.customizations.ignoreDifferences.{KIND}"])["jsonPointers"]
    application = yaml.safe_load((GITOPS / "argocd" / "runs.yaml").read_text())["spec"]
    (rule,) = application["ignoreDifferences"]
    assert next(f"/spec/{key}" for key in changed) in ignored
    assert rule["jsonPointers"] == ignored
    assert "RespectIgnoreDifferences=true" in application["syncPolicy"]["syncOptions"]


def test_the_operators_charts_are_where_the_examples_look() -> None:
    argo = yaml.safe_load((GITOPS / "argocd" / "operator.yaml").read_text())["spec"]["source"]
    repository, flux = yaml.safe_load_all((GITOPS / "flux" / "operator.yaml").read_text())
    assert [found["name"] for found in FLUX["spec"]["dependsOn"]] == [flux["metadata"]["name"]], "a Kustomization"
    assert flux["spec"]["sourceRef"]["name"] == repository["metadata"]["name"]
    release = yaml.safe_load((ROOT / flux["spec"]["path"] / "helmrelease.yaml").read_text())
    assert ROOT / argo["path"] == ROOT / release["spec"]["chart"]["spec"]["chart"] == CHART
    assert argo["helm"]["valuesObject"] == release["spec"]["values"]
