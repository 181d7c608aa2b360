"""examples/tensorboard.sh: one command opens a run's TensorBoard from its volume, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest

from finetune_trainer.reporting.progress import Step
from finetune_trainer.reporting.tensorboard import Events
from tests import trainer_builders
from tests.cluster.conftest import Kubectl
from tests.cluster.stage import Stage, until

pytestmark = pytest.mark.cluster
SCRIPT = Path(__file__).parents[2] / "examples" / "tensorboard.sh"
RUNS = "http://127.0.0.1:6006/data/runs"
KUBECTL = """#!/bin/sh
# The test's node forwards no ports: its pods share this machine's loopback.
[ "$1" = port-forward ] && exec sleep 600
exec "{kubectl}" --kubeconfig "{kubeconfig}" "$@"
"""


@pytest.mark.slow
def test_a_run_of_a_namespace_that_enforces_restricted_is_shown_and_the_pod_removed(
    shared: Stage, kubectl: Kubectl, kubeconfig: Path, tmp_path: Path
) -> None:
    kubectl("label", "namespace", shared.namespace, "pod-security.kubernetes.io/enforce=restricted", "--overwrite")
    shared.submit("shown", tracking={"tensorBoard": True}, script={"steps": 2})
    shared.finished("shown")
    (claim,) = shared.list("persistentvolumeclaims", of="shown")
    volume = shared.api.request("GET", f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}")["spec"]
    _write_events(Path(str((volume.get("hostPath") or volume["local"])["path"])), tmp_path)
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL.format(kubectl=kubectl.binary, kubeconfig=kubeconfig))
    program.chmod(0o755)
    with (tmp_path / "log").open("w") as log:
        opened = subprocess.Popen(
            [str(SCRIPT), "shown", "-n", shared.namespace],
            env={**os.environ, "KUBECTL": str(program), "IMAGE": "shell"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        until(lambda: _shown() or (tmp_path / "log").read_text(), lambda told: told == '["shown"]', what="TensorBoard")
    except AssertionError as error:
        raise AssertionError(kubectl("describe", "pod", "tensorboard-shown", "-n", shared.namespace)) from error
    finally:
        os.killpg(opened.pid, signal.SIGINT)
        opened.wait(timeout=30)
    pods = f"/api/v1/namespaces/{shared.namespace}/pods/tensorboard-shown"
    until(lambda: shared.gone(pods), bool, what="the pod's end")


def _write_events(folder: Path, scratch: Path) -> None:
    """As the real trainer does: the stub writes none."""
    config = trainer_builders.parsed(scratch, {"runPath": str(folder), "run": {"name": "shown"}})
    events = Events(config, steps_done=0)
    events.step(
        Step(number=1, epoch=1, loss=1.5, grad_norm=0.1, learning_rate=0.01, tokens=100, records=4, seconds=0.5)
    )
    events.close()
    shutil.move(folder / "tensorboard" / "shown", folder / "shown")  # so that its name is the run's alone


def _shown() -> str:
    """What TensorBoard has, once it answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(RUNS, timeout=5) as answer:
            text: str = answer.read().decode()
    except OSError:
        return ""
    return text if text != "[]" else ""
