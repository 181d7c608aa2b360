"""A pod's status as a kubelet writes it, from what its containers do: pure.

Conditions are merged by type on the API server: PodScheduled stays the scheduler's, DisruptionTarget the evictor's.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_operator.processes import Exit
from tests.cluster.api import Object

NOT_STARTED = 128  # the exit code of a container that couldn't be started


@dataclasses.dataclass(frozen=True)
class Waiting:
    """Not started, and why."""

    reason: str = "ContainerCreating"
    message: str = ""


@dataclasses.dataclass(frozen=True)
class Running:
    """Started."""

    started: datetime.datetime
    pid: int


@dataclasses.dataclass(frozen=True)
class Terminated:
    """Ended."""

    exit: Exit
    reason: str


State = Waiting | Running | Terminated


@dataclasses.dataclass(frozen=True)
class Ended:
    """A verdict that isn't the containers' own, such as DeadlineExceeded."""

    reason: str
    message: str


def ended(end: Exit) -> Terminated:
    """A container whose process has ended."""
    return Terminated(end, "Completed" if end.code == 0 else "Error")


def not_started(message: str, now: datetime.datetime) -> Terminated:
    """A container whose process couldn't be started."""
    end = Exit(code=NOT_STARTED, signal=None, termination_message=message, started=now, finished=now)
    return Terminated(end, "StartError")


def phase(states: Sequence[State], *, verdict: Ended | None = None) -> str:
    """The phase of a pod that is never restarted."""
    if verdict:
        return "Failed"
    if all(isinstance(state, Terminated) for state in states):
        return (
            "Succeeded" if all(isinstance(state, Terminated) and state.exit.code == 0 for state in states) else "Failed"
        )
    return "Pending" if any(isinstance(state, Waiting) for state in states) else "Running"


def build(
    pod: Object,
    states: Mapping[str, State],
    *,
    pod_ip: str | None,
    now: datetime.datetime,
    verdict: Ended | None = None,
) -> Mapping[str, Any]:
    """The body of a strategic merge patch of the pod's status."""
    found = phase(list(states.values()), verdict=verdict)
    status: dict[str, Any] = {
        "observedGeneration": pod["metadata"].get("generation", 1),
        "phase": found,
        "hostIP": "127.0.0.1",
        "hostIPs": [{"ip": "127.0.0.1"}],
        "startTime": pod.get("status", {}).get("startTime") or time(now),
        "conditions": _conditions(pod, found, now=now),
        "containerStatuses": [_container(pod, name, state) for name, state in states.items()],
    }
    if pod_ip:
        status |= {"podIP": pod_ip, "podIPs": [{"ip": pod_ip}]}
    if verdict:
        status |= {"reason": verdict.reason, "message": verdict.message}
    return {"metadata": {"uid": pod["metadata"]["uid"]}, "status": status}


def _conditions(pod: Object, phase: str, *, now: datetime.datetime) -> list[Mapping[str, Any]]:
    running, over = phase == "Running", phase in ("Succeeded", "Failed")
    reason = {"Succeeded": "PodCompleted", "Failed": "PodFailed", "Pending": "ContainersNotReady", "Running": ""}[phase]
    wanted = {"PodReadyToStartContainers": not over, "Initialized": True, "ContainersReady": running, "Ready": running}
    before = {condition["type"]: condition for condition in pod.get("status", {}).get("conditions", ())}
    return [_condition(name, str(value), reason, before.get(name), now=now) for name, value in wanted.items()]


def _condition(
    name: str, status: str, reason: str, before: Object | None, *, now: datetime.datetime
) -> Mapping[str, Any]:
    since = before["lastTransitionTime"] if before and before["status"] == status else time(now)
    condition: dict[str, Any] = {"type": name, "status": status, "lastTransitionTime": since, "lastProbeTime": None}
    return condition | {"reason": None if status == "True" else reason}


def _container(pod: Object, name: str, state: State) -> Mapping[str, Any]:
    image = next(container["image"] for container in pod["spec"]["containers"] if container["name"] == name)
    running = isinstance(state, Running)
    status = {"name": name, "image": image, "imageID": "", "restartCount": 0, "ready": running, "started": running}
    return (
        status
        | {"state": _state(state)}
        | ({"containerID": f"process://{state.pid}"} if isinstance(state, Running) else {})
    )


def _state(state: State) -> Mapping[str, Any]:
    if isinstance(state, Waiting):
        return {"waiting": {"reason": state.reason} | ({"message": state.message} if state.message else {})}
    if isinstance(state, Running):
        return {"running": {"startedAt": time(state.started)}}
    end = state.exit
    terminated = {
        "exitCode": end.code,
        "reason": state.reason,
        "startedAt": time(end.started),
        "finishedAt": time(end.finished),
    }
    if end.signal:
        terminated["signal"] = end.signal
    if end.termination_message:
        terminated["message"] = end.termination_message
    return {"terminated": terminated}


def time(moment: datetime.datetime) -> str:
    """A time as Kubernetes writes it."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
