"""What Kubernetes does with the Jobs and pods of a `Memory`: the Job controller, and a node's reports of its pods.

One call is one step, so that a test can stop between any two. It must never decide anything about a run.
"""

import copy
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from finetune_operator import names
from finetune_operator.children import Body, Job, Pod, owner_uid
from finetune_operator.memory import JOB, POD, Memory, Object, Ref, stamp


def control(memory: Memory) -> bool:
    """One step of the Job controller for every Job: pods for one that has none, an end for one whose pods have ended.

    The first that fails ends all.

    Returns whether anything changed.
    """
    changed = [_control_one(memory, job) for job in memory.all(JOB)]
    return any(changed)


def _control_one(memory: Memory, job: Body) -> bool:
    if Job.parse(job).ended or job["spec"].get("suspend"):
        return False
    pods = [Pod.parse(pod) for pod in memory.all(POD) if owner_uid(pod) == job["metadata"]["uid"]]
    wanted = job["spec"]["completions"]
    if not pods and not (job.get("status") or {}).get("active"):
        for index in range(wanted):
            memory.add(_pod(job, index))
        memory.update({**job, "status": {**(job.get("status") or {}), "active": wanted}})
        return True
    if len(pods) == wanted and all(pod.phase != "Failed" for pod in pods) and not all(pod.ended for pod in pods):
        return False
    memory.update({**job, "status": _end(job, pods, wanted=wanted, now=memory.clock())})
    for pod in pods:
        if not pod.ended:
            memory.delete_object(Ref(POD, job["metadata"]["namespace"], pod.name))
    return True


def _end(job: Body, pods: Sequence[Pod], *, wanted: int, now: datetime) -> Object:
    succeeded = len(pods) == wanted and all(pod.phase == "Succeeded" for pod in pods)
    failed = next((pod for pod in pods if pod.phase == "Failed"), None)
    kind, (reason, message) = ("Complete", _COMPLETE) if succeeded else ("Failed", _failed(job, failed))
    condition = {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": stamp(now)}
    counted = {"succeeded": len(pods)} if succeeded else {"failed": 1}
    return {"active": 0, **counted, "conditions": [condition]}


_COMPLETE = ("CompletionsReached", "")


def _failed(job: Body, pod: Pod | None) -> tuple[str, str]:
    """Reason and message: of the first rule that the pod meets."""
    for index, rule in enumerate((job["spec"].get("podFailurePolicy") or {}).get("rules", ())):
        if pod is not None and _meets(pod, rule):
            return "PodFailurePolicy", f"Pod {pod.name} met what it met, matching FailJob rule at index {index}"
    return "BackoffLimitExceeded", "Job has reached the specified backoff limit"


def _meets(pod: Pod, rule: Body) -> bool:
    if "onExitCodes" in rule:
        return pod.exit_code in rule["onExitCodes"]["values"]
    return bool(pod.disrupted)


def _pod(job: Body, index: int) -> Object:
    """A pod of a Job's template; its name is the Job's and a part of its UID, with its index if there are several."""
    template = copy.deepcopy(job["spec"]["template"])
    owner = {"apiVersion": "batch/v1", "kind": JOB, "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
    metadata = template.get("metadata") or {}
    several = job["spec"].get("completionMode") == "Indexed"
    if several:
        metadata["annotations"] = {**(metadata.get("annotations") or {}), names.INDEX_ANNOTATION: str(index)}
    metadata |= {
        "name": f"{job['metadata']['name']}{f'-{index}' if several else ''}-{job['metadata']['uid'][:5]}",
        "namespace": job["metadata"]["namespace"],
        "ownerReferences": [owner | {"controller": True}],
    }
    status = {"phase": "Pending"}
    return {"apiVersion": "v1", "kind": POD, "metadata": metadata, "spec": template["spec"], "status": status}


def start_pod(memory: Memory, ref: Ref, *, ip: str = "127.0.0.1", node: str = "node-1") -> None:
    """Its container runs."""
    pod = _existing(memory, ref)
    pod["spec"]["nodeName"] = node
    state = {"running": {"startedAt": stamp(memory.clock())}}
    memory.update(pod | {"status": {"phase": "Running", "podIP": ip, "containerStatuses": [_container(state)]}})


def end_pod(
    memory: Memory, ref: Ref, *, exit_code: int, last_word: str = "", reason: str = "", disrupted: str = ""
) -> None:
    """Its container has ended; `disrupted` if a node's trouble or an eviction ended it. A deleted pod goes now."""
    pod = _existing(memory, ref)
    running = ((pod["status"].get("containerStatuses") or [{}])[0].get("state") or {}).get("running") or {}
    terminated = {
        "exitCode": exit_code,
        "reason": reason or ("Completed" if exit_code == 0 else "Error"),
        "message": last_word,
        "startedAt": running.get("startedAt"),
        "finishedAt": stamp(memory.clock()),
    }
    status = pod["status"] | {
        "phase": "Succeeded" if exit_code == 0 else "Failed",
        "containerStatuses": [_container({"terminated": terminated})],
    }
    _finish(memory, ref, pod | {"status": status | _disruption(disrupted)})


def evict_pod(memory: Memory, ref: Ref, *, reason: str = "EvictionByEvictionAPI") -> None:
    """It is gone before its container ran, or without a word of it."""
    pod = _existing(memory, ref)
    status = pod["status"] | {"phase": "Failed", "reason": "Evicted"} | _disruption(reason)
    _finish(memory, ref, pod | {"status": status})


def _finish(memory: Memory, ref: Ref, pod: Object) -> None:
    """Report the end. The Job's tracking finalizer keeps a deleted pod until the Job controller has counted it."""
    memory.update(pod)
    if "deletionTimestamp" in pod["metadata"]:
        control(memory)
        memory.delete_object(ref)


def _disruption(reason: str) -> dict[str, Any]:
    return {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason}]} if reason else {}


def _container(state: Object) -> Object:
    return {"name": names.TRAINER_CONTAINER, "state": state}


def _existing(memory: Memory, ref: Ref) -> Object:
    pod = memory.get(ref)
    assert pod is not None, f"{ref} is gone"
    return pod
