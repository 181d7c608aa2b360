"""The chart through the real helm: what it renders, what it refuses, and releases on a cluster."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.chart import tools
from tests.chart.generate import CHART

Object = Mapping[str, Any]
Values = Mapping[str, Any]

NAMESPACE = "finetune-system"
RELEASE = "finetune-operator"


class HelmError(Exception):
    """What helm complained of."""


@dataclasses.dataclass(frozen=True)
class Helm:
    """Helm of one major version, with nothing of the user's; for a cluster it needs a kubeconfig."""

    major: int
    home: Path
    kubeconfig: Path | None = None

    def __call__(self, *arguments: str, values: Values | None = None, seconds: float = 120) -> str:
        """What it prints. Raises HelmError."""
        given = [] if values is None else ["--values", "-"]
        own = {f"HELM_{name}_HOME": str(self.home / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
        found = subprocess.run(
            [str(tools.helm(self.major)), *arguments, *given],
            input=None if values is None else json.dumps(values),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env={**os.environ, **own, "KUBECONFIG": str(self.kubeconfig or os.devnull)},
        )
        if found.returncode != 0:
            raise HelmError(found.stderr.strip())
        return found.stdout

    def render(
        self, values: Values | None = None, *, version: str = "1.36.0", namespace: str = NAMESPACE
    ) -> Sequence[Object]:
        """The objects of the chart."""
        text = self(
            *("template", RELEASE, str(CHART), "--namespace", namespace, "--kube-version", version), values=values or {}
        )
        return [found for found in yaml.load_all(text, Loader=yaml.CSafeLoader) if found]

    def refusal(self, values: Values) -> str:
        """Why these values can't be rendered."""
        try:
            self.render(values)
        except HelmError as error:
            return str(error)
        raise AssertionError(f"helm {self.major} takes {values}")


def one(objects: Sequence[Object], kind: str, name: str = RELEASE) -> Object:
    """The object of that kind and name."""
    (found,) = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


def kinds(objects: Sequence[Object]) -> Sequence[str]:
    """Which kinds there are."""
    return sorted({o["kind"] for o in objects})
