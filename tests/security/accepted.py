"""Runs that the API accepts, made from the CRD's schema, with the pod template that each would get."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from finetune_api.spec import FineTuneRunSpec
from finetune_api.status import ResolvedModel
from finetune_api.uris import Scheme, Uri
from finetune_operator import manifests
from finetune_operator.run import Run
from finetune_operator.settings import Settings
from tests import worlds
from tests.odd.generator import Generator, Oddity, repaired

COUNT = int(os.environ.get("SECURITY_RUNS", "1000"))
SEED = int(os.environ.get("SECURITY_SEED", "0"))

Object = dict[str, Any]


def runs(count: int = COUNT) -> Iterator[Run]:
    """So many, each valid; what this version refuses for want of a feature is among them: its pod must be safe too."""
    for number in range(count):
        make = Generator(SEED * 1_000_000 + number)
        body = make.run(f"odd-{number}", namespace="odd", oddity=make.random.choice((Oddity.VALID, Oddity.TAME)))
        spec = _custom(body["spec"]) if number % 5 == 0 else body["spec"]
        run = Run.parse(worlds.body() | {"metadata": body["metadata"] | {"uid": f"uid-{number}"}, "spec": spec})
        assert run.spec is not None, f"run {number} is valid"
        yield run


def _custom(spec: Object) -> Object:
    """The same with a command of its own, which says all that a command can."""
    own: Object = {"image": "registry.example.com/any", "command": ["run", "$(HOME)", "; id", "\n"]}
    own |= {"args": ["--privileged"], "env": {"LD_PRELOAD": "/tmp/x.so", "FINETUNE_CONFIG": "{}", "HF_TOKEN": "mine"}}
    pulls = spec.get("trainer", {}).get("imagePullSecrets", [])
    storage = {
        k: v for k, v in spec.get("storage", {}).items() if k not in ("uploadUri", "credentials", "mergeAdapter")
    }
    return repaired({**spec, "task": "Custom", "storage": storage, "trainer": {**own, "imagePullSecrets": pulls}})


def jobs(count: int = COUNT) -> Iterator[Object]:
    """The Job of each."""
    for number, run in enumerate(runs(count)):
        attempt = 1 + number % 3
        yield manifests.job(_resolved(run), attempt=attempt, settings=Settings())


def _resolved(run: Run) -> Run:
    """As it is once a Job is made for it: a run:// has become the place of that run's output."""
    spec: FineTuneRunSpec | None = run.spec
    if spec is None or spec.model is None or Uri.parse(spec.model.uri).scheme != Scheme.RUN:
        return run
    model = ResolvedModel(uri="pvc://models/base", adapter_uri="pvc://other-run/output")
    return dataclasses.replace(run, status=run.status.model_copy(update={"model": model}))
