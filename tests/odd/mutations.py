"""What another client may make of an object of ours: labels, annotations and status that nobody would expect.

Each is something that an API server keeps: types are right where its own schemas say so, values are not.
"""

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

from finetune_operator import names
from finetune_operator.children import Body
from tests.odd.generator import TIMES, WORDS

Object = dict[str, Any]
Mutation = Callable[[Object, random.Random], None]

CONDITIONS: Sequence[Any] = (
    None,
    [],
    [{"type": "Complete", "status": "True"}],
    [{"type": "Failed", "status": "True", "reason": None, "message": None}],
    [{"type": "Failed", "status": "True", "lastTransitionTime": "0001-01-01T00:00:00Z", "message": "x" * 32_768}],
    [{"type": "Complete", "status": "True"}, {"type": "Failed", "status": "True"}],
    [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "\x00🙂" * 5000}],
    [{"type": "DisruptionTarget", "status": "True", "reason": ""}],
    [{"type": "", "status": ""}],
    [{}],
)
CODES = (0, 1, 65, 75, 137, 255, 256, 300, -1, 2**31 - 1, -(2**31))


def attempt_label(body: Object, chance: random.Random) -> None:
    labels = body["metadata"]["labels"] = body["metadata"].get("labels") or {}
    labels[names.ATTEMPT_LABEL] = chance.choice(("", "abc", "-1", "0", "1.5", "99999999999999999999", "٣", "100001"))


def no_labels(body: Object, chance: random.Random) -> None:
    body["metadata"]["labels"] = chance.choice((None, {}))


def no_annotations(body: Object, chance: random.Random) -> None:
    body["metadata"]["annotations"] = chance.choice((None, {}, {names.RUN_UID_ANNOTATION: chance.choice(WORDS)}))


def another_s(body: Object, chance: random.Random) -> None:
    others: Sequence[Any] = (None, [], [{"uid": "x"}], [{"uid": "", "controller": True}])
    body["metadata"]["ownerReferences"] = chance.choice(others)


def no_status(body: Object, chance: random.Random) -> None:
    body["status"] = chance.choice((None, {}, {"phase": ""}, {"phase": "Unknown"}, {"phase": "Succeeded"}))


def conditions(body: Object, chance: random.Random) -> None:
    body["status"] = dict(body.get("status") or {}) | {"conditions": copy.deepcopy(chance.choice(CONDITIONS))}


def containers(body: Object, chance: random.Random) -> None:
    end = {"exitCode": chance.choice(CODES), "message": chance.choice((None, "[]", '{"', *WORDS, "x" * 5000))}
    end |= {"startedAt": chance.choice((None, *TIMES)), "finishedAt": chance.choice((None, *TIMES))}
    state: Any = chance.choice((None, {}, {"terminated": end}, {"running": {}}, {"waiting": {"reason": "\x00"}}))
    found: Any = chance.choice(
        ([], None, [{}], [{"name": "other"}], [{"name": names.TRAINER_CONTAINER, "state": state}])
    )
    body["status"] = dict(body.get("status") or {}) | {
        "containerStatuses": found,
        "phase": chance.choice(("Pending", "Running", "Failed", "Succeeded", "Unknown")),
    }


def times(body: Object, chance: random.Random) -> None:
    body["metadata"]["creationTimestamp"] = chance.choice((None, *TIMES))
    if chance.random() < 0.3:
        body["metadata"]["deletionTimestamp"] = chance.choice(TIMES)


ALL: Sequence[Mutation] = (
    attempt_label,
    no_labels,
    no_annotations,
    another_s,
    no_status,
    conditions,
    containers,
    times,
)


def mutated(body: Body, chance: random.Random) -> Object:
    """A copy with one to three of them."""
    found = copy.deepcopy(dict(body))
    for mutate in chance.sample(ALL, chance.randint(1, 3)):
        mutate(found, chance)
    return found
