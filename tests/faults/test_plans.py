"""Plans as data: names that stay, YAML that is complete, and a plan for every write and every read that was seen."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults import plans, scenario, wire
from tests.faults.plans import Seen
from tests.faults.rules import Do, Rule
from tests.faults.test_faults import SUBSET
from tests.faults.wire import Request

NOTHING = Seen(writes=(), reads=(), lines=())
STATUS = "/apis/finetune.dev/v1alpha1/namespaces/n/finetuneruns/r/status"
JOBS = "/apis/batch/v1/namespaces/n/jobs"
RUN = {"labelSelector": "app.kubernetes.io/managed-by=finetune-operator,finetune.dev/run=r"}


def status(phase: str, *events: str, attempt: int = 1) -> object:
    return {"status": {"phase": phase, "attempt": attempt, "events": [{"type": event} for event in events]}}


@pytest.mark.parametrize(
    ("request_", "label"),
    [
        (Request(verb="POST", path=JOBS), "POST-jobs"),
        (Request(verb="DELETE", path=f"{JOBS}/r-1"), "DELETE-jobs"),
        (Request(verb="GET", path=JOBS, query=RUN), "LIST-jobs-fresh"),
        (Request(verb="GET", path=JOBS, agent="finetune-operator/1"), "LIST-jobs-resync"),
        (Request(verb="GET", path=JOBS, agent="kopf/1.45"), "LIST-jobs-kopf"),
        (Request(verb="GET", path=JOBS, query={"watch": "true"}), "WATCH-jobs"),
        (Request(verb="GET", path=f"{JOBS}/r-1"), "GET-jobs"),
        (Request(verb="GET", path="/api/v1/namespaces/n/pods/p:9400/proxy/progress"), "GET-progress"),
        (Request(verb="GET", path="/apis/batch/v1"), "GET-apis.batch.v1"),
        (Request(verb="POST", path="/api/v1/namespaces/n/events", body={"reason": "Started"}), "POST-events-Started"),
        (
            Request(verb="PATCH", path=STATUS, body=status("Running", "CREATED", "STARTED", "TRAIN_UPDATED")),
            "PATCH-status-Running-STARTED",
        ),
        (
            Request(verb="PATCH", path=STATUS, body=status("Starting", "RESTARTED", attempt=2)),
            "PATCH-status-Starting-RESTARTED-a2",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_request_is_called(request_: Request, label: str) -> None:
    assert request_.label == label


def test_a_name_alone_makes_the_plan() -> None:
    plan = plans.named("retry/crash-after+job-ends/POST-jobs#2")
    assert plan.scenario == "retry"
    assert plan.meanwhile == "job-ends"
    assert plan.rules == (Rule(do=Do.CRASH_AFTER, at="POST-jobs", nth=2),)
    (rule,) = plans.named("succeed/answer-429/GET-finetuneruns").rules
    assert (rule.do, rule.code, rule.retry_after) == (Do.ANSWER, 429, 1)


def test_every_write_and_every_read_gives_its_plans() -> None:
    seen = Seen(
        writes=["POST-persistentvolumeclaims", "POST-jobs"], reads=["LIST-jobs-kopf"], lines=["EVENT-jobs-ADDED"]
    )
    chosen = scenario.Scenario(name="s", steps=(), meanwhile=["job-ends", "delete"])
    found = Counter(plan.name.split("/")[1] for plan in plans.generated(chosen, seen, done=NOTHING))
    assert found["crash-before"] == found["crash-after"] == found["crash-late"] == found["drop-reply"] == 2
    assert found["crash-after+job-ends"] == 1, "before the Job is created there is none that could end"
    assert found["crash-after+delete"] == 2
    assert [found[f"answer-{code}"] for code in plans.CODES] == [3] * 7
    assert found["drop"] == 3
    assert found["late-reply"] == found["hide"] == 1


def test_codes_are_tried_once_at_what_several_scenarios_ask() -> None:
    seen = Seen(writes=["POST-jobs"], reads=["LIST-jobs-kopf"], lines=[])
    found = plans.generated(scenario.Scenario(name="s", steps=()), seen, done=seen)
    assert {plan.name.split("/")[1] for plan in found} == {"crash-before", "crash-after", "crash-late", "drop-reply"}


def test_what_is_not_in_every_reference_is_not_planned() -> None:
    one = Seen(writes=["a", "b"], reads=["c"], lines=["d"])
    other = Seen(writes=["b"], reads=["c"], lines=[])
    assert Seen.in_all([one, other]) == Seen(writes=["b"], reads=["c"], lines=[])


def test_plans_in_yaml_have_names_of_their_own_and_scenarios_that_there_are() -> None:
    written = plans.written()
    assert max(Counter(plan.name for plan in written).values()) == 1
    assert {plan.scenario for plan in written} <= set(scenario.names())
    assert not [plan.name for plan in written if "{" in plan.name or any("{" in rule.at for rule in plan.rules)]


def test_the_subset_covers_every_scenario_and_every_kind_of_fault() -> None:
    done = {rule.do for plan in SUBSET for rule in plan.rules}
    assert {plan.scenario for plan in SUBSET} == set(scenario.names())
    assert set(Do) - done == {Do.DELAY}, "a request that is delayed comes to what a late reply does"
    assert {rule.code for plan in SUBSET for rule in plan.rules if rule.do == Do.ANSWER} == set(plans.CODES)
    assert {plan.meanwhile for plan in SUBSET} == {"", "job-ends", "edit", "delete"}


@pytest.mark.parametrize("name", scenario.names())
def test_a_scenario_says_what_may_happen_meanwhile_and_how_it_is_edited(name: str) -> None:
    found = scenario.Scenario.read(name)
    assert set(found.meanwhile) <= {"job-ends", "edit", "delete"}
    assert bool(found.edit) is ("edit" in found.meanwhile)


def test_a_code_is_said_as_an_api_server_says_it() -> None:
    assert b'"reason": "AlreadyExists"' in wire.refusal(409, verb="POST")
    assert b'"reason": "Conflict"' in wire.refusal(409, verb="PATCH")
