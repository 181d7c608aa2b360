"""MLflow, against a real server: what it has of a run, whatever became of the run or of the server meanwhile."""

import csv
import io
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from finetune_api.snapshot import ExitCode, Snapshot
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.reporting.metrics import DeviceSample
from finetune_trainer.tracking import run as mlflow_run
from finetune_trainer.tracking import server as client
from finetune_trainer.tracking import state, tracker
from finetune_trainer.tracking.sender import Ending, Sender
from tests import mlflow_server, trainer_process
from tests.mlflow_server import Answer, Door
from tests.trainer_builders import configuration, merged, parsed, write_rows

LONG = {"training": {"maxDuration": "5000ba"}, "checkpoint": {"interval": "20ba"}}
STEPS = [*range(1, 13)]
NOW = 1_750_000_000_000


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mlflow_server.Server]:
    found = mlflow_server.Server(tmp_path_factory.mktemp("mlflow"))
    yield found
    found.stop()


@pytest.fixture
def door(mlflow: mlflow_server.Server) -> Iterator[Door]:
    with mlflow_server.door(mlflow) as found:
        yield found


def tracked(folder: Path, uri: str, uid: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The configuration of a run that is told to a server."""
    mlflow = {"trackingUri": uri, "experiment": "support", "image": "registry.example.com/trainer@sha256:0a1b"}
    return configuration(folder, merged({"run": {"uid": uid}, "mlflow": mlflow}, changes or {}))


def often() -> None:
    """In the trainer's process: look for news five times a second, so that a short training sends some."""
    tracker.INTERVAL = 0.2


def alone() -> None:
    """In the trainer's process: look often, and on one CPU, so that the data is read without helper processes."""
    often()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def impatient() -> None:
    """In the trainer's process: wait for a server that does nothing as long as a test may take."""
    often()
    client.TIMEOUT, tracker.PATIENCE = 1.0, 3.0


@pytest.fixture(scope="module")
def recorded(mlflow: mlflow_server.Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Snapshot]:
    """Two runs, the first with evaluation and a name in the registry; its folder and last word."""
    folder = tmp_path_factory.mktemp("recorded")
    changes: dict[str, Any] = {
        "mlflow": {"registerAs": "support-bot", "tags": {"team": "support"}, "queue": "team-a"},
        "dataset": {"eval": {"uri": "pvc://datasets/train.jsonl", "path": str(folder / "one" / "train.jsonl")}},
        "training": {"evaluationInterval": "1ep"},
    }
    attempt = trainer_process.run(tracked(folder / "one", mlflow.uri, "one", changes))
    assert attempt.process.exitcode == ExitCode.DONE, attempt.log.read_text()[-3000:]
    other = {"method": {"lora": {"rank": 2}}, "training": {"learningRate": 0.0005}}
    assert trainer_process.run(tracked(folder / "two", mlflow.uri, "two", other)).process.exitcode == ExitCode.DONE
    return folder / "one" / "run", attempt.last_word()


def test_a_run_is_there_with_all_that_it_is(mlflow: mlflow_server.Server, recorded: tuple[Path, Snapshot]) -> None:
    folder, word = recorded
    [run] = mlflow.runs("one")
    info, data = run["info"], run["data"]
    assert (info["run_name"], info["status"]) == ("support-bot", "FINISHED")
    assert info["end_time"] > info["start_time"]
    params = {each["key"]: each["value"] for each in data["params"]}
    assert params["learning_rate"] == "0.003"
    assert params["method_type"] == "LoRA"
    assert (params["lora_rank"], params["lora_alpha"], params["lora_dropout"]) == ("4", "8.0", "0.1")
    assert params["model_uri"] == "pvc://models/tiny"
    tags = {each["key"]: each["value"] for each in data["tags"]}
    assert tags["team"] == "support"
    assert tags["finetune.queue"] == "team-a"
    assert (tags["finetune.namespace"], tags["finetune.run"], tags["finetune.attempt"]) == ("ml", "support-bot", "1")
    assert {name: tags[f"finetune.{name}"] for name in ("precision", "records-a-pass", "passes-a-step", "packed")} == {
        "precision": "FP32",
        "records-a-pass": "2",
        "passes-a-step": "2",
        "packed": "true",
    }
    assert tags["mlflow.docker.image.uri"] == "registry.example.com/trainer@sha256:0a1b"
    assert tags["mlflow.note.content"] == (folder / "output" / "README.md").read_text()
    assert word.tracked is not None
    assert word.tracked.mlflow_run_id == info["run_id"]
    assert word.tracked.url.endswith(f"/#/experiments/{info['experiment_id']}/runs/{info['run_id']}")
    assert (word.tracked.pending_steps, word.tracked.problem) == (0, "")


def test_each_step_is_there_once_as_the_history_has_it(
    mlflow: mlflow_server.Server, recorded: tuple[Path, Snapshot]
) -> None:
    [run] = mlflow.runs("one")
    lines = [json.loads(line) for line in (recorded[0] / "training_logs" / "metrics.jsonl").read_text().splitlines()]
    for metric, key in {"loss": "loss", "learning_rate": "learningRate", "grad_norm": "gradNorm"}.items():
        assert mlflow.history(run["info"]["run_id"], metric) == [(line["step"], line[key]) for line in lines]
    assert [step for step, _ in mlflow.history(run["info"]["run_id"], "eval_loss")] == [6, 12]
    assert {each["key"] for each in run["data"]["metrics"]} >= {"tokens_per_second", "step_seconds", "epoch", "tokens"}


TOOLS = """
import sys, mlflow
from mlflow.experiments import generate_csv_with_runs
from mlflow.server.security_utils import is_allowed_host_header

client, (run_id, experiment_id, host) = mlflow.MlflowClient(), sys.argv[1:]
mlflow.artifacts.download_artifacts("models:/support-bot@candidate", dst_path="model")
mlflow.artifacts.download_artifacts(f"runs:/{run_id}/config.json", dst_path=".")
generate_csv_with_runs.callback(experiment_id, "runs.csv")
client.delete_run(run_id)
assert client.get_run(run_id).info.lifecycle_stage == "deleted"
client.restore_run(run_id)
assert client.get_run(run_id).info.lifecycle_stage == "active"
assert is_allowed_host_header([host], host)
"""
HOST = "mlflow.mlflow.svc:5000"


@pytest.fixture(scope="module")
def taken(
    mlflow: mlflow_server.Server, recorded: tuple[Path, Snapshot], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What MLflow's own library and command line make of them, in one process: it takes long to start."""
    folder = tmp_path_factory.mktemp("taken")
    [run] = mlflow.runs("one")
    mlflow.script(TOOLS, run["info"]["run_id"], run["info"]["experiment_id"], HOST, cwd=folder)
    return folder


def test_the_adapter_its_card_and_the_settings_are_stored_and_registered(
    recorded: tuple[Path, Snapshot], taken: Path
) -> None:
    folder, word = recorded
    assert word.tracked is not None
    assert word.tracked.registered_model == "support-bot/1"
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md", "tokenizer.json"):
        assert (taken / "model" / name).read_bytes() == (folder / "output" / name).read_bytes()
    assert TrainerConfig.decode((taken / "config.json").read_text()).run.uid == "one"


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("metrics.loss > 0.3", {"one", "two"}),
        ("metrics.loss > 100", set()),
        ("params.lora_rank = '2' AND metrics.loss > 0.3", {"two"}),
        ("params.learning_rate = '0.003' AND metrics.eval_loss > 0.3", {"one"}),
        ("tags.team = 'support'", {"one"}),
        ("tags.`finetune.namespace` = 'ml' AND tags.`finetune.queue` = 'team-a'", {"one"}),
        ("attributes.status = 'FINISHED' AND params.method_type = 'LoRA'", {"one", "two"}),
    ],
)
def test_searches_find_it(
    mlflow: mlflow_server.Server, recorded: tuple[Path, Snapshot], wanted: str, found: set[str]
) -> None:
    assert {_tags(run)["finetune.run-uid"] for run in mlflow.search(wanted)} & {"one", "two"} == found


def test_two_are_exported_and_compared_and_one_was_deleted_and_restored(
    mlflow: mlflow_server.Server, taken: Path
) -> None:
    rows = csv.DictReader(io.StringIO((taken / "runs.csv").read_text()))
    exported = {row["tags.finetune.run-uid"]: row for row in rows}
    one, two = exported["one"], exported["two"]
    assert (one["params.lora_rank"], two["params.lora_rank"]) == ("4", "2")
    assert (one["params.seed"], two["params.seed"]) == ("17", "17")
    assert float(one["metrics.loss"]) != float(two["metrics.loss"])
    assert len(mlflow.runs("one")) == len(mlflow.runs("two")) == 1


def test_a_killed_run_goes_on_in_the_same_mlflow_run(mlflow: mlflow_server.Server, tmp_path: Path) -> None:
    config = tracked(tmp_path, mlflow.uri, "killed", LONG | {"training": {"maxDuration": "20ep"}})
    attempt = trainer_process.start(config, before=often)
    _wait(lambda: mlflow.runs("killed") and mlflow.history(_id(mlflow, "killed"), "loss"), "steps of a run", attempt)
    attempt.signal(signal.SIGKILL)
    attempt.wait()
    [before] = mlflow.runs("killed")
    assert before["info"]["status"] == "RUNNING"
    again = trainer_process.start(merged(config, {"run": {"attempt": 2}}))
    assert again.wait(240) == ExitCode.DONE
    [run] = mlflow.runs("killed")
    assert (run["info"]["run_id"], run["info"]["status"]) == (before["info"]["run_id"], "FINISHED")
    assert _tags(run)["finetune.attempt"] == "2"
    assert mlflow.history(run["info"]["run_id"], "loss") == _losses(tmp_path)
    for key in ("loss", "grad_norm", "tokens_per_second", "epoch"):
        assert [step for step, _ in mlflow.history(run["info"]["run_id"], key)] == [*range(1, 121)]


def test_a_server_that_comes_late_gets_all_of_it(mlflow: mlflow_server.Server, door: Door, tmp_path: Path) -> None:
    """The stop finds it there, and so does the next attempt."""
    config = tracked(tmp_path, door.uri, "late", LONG)
    attempt = trainer_process.start(config, before=often)
    attempt.until("TRACKING_FAILED")
    attempt.until("TRAIN_UPDATED", times=10)
    door.open()
    _wait(lambda: mlflow.runs("late") and mlflow.history(_id(mlflow, "late"), "loss"), "steps of a run", attempt)
    attempt.signal(signal.SIGTERM)
    assert attempt.wait() == ExitCode.STOPPED
    word = attempt.last_word()
    assert word.tracked is not None
    assert word.progress is not None
    assert (word.tracked.pending_steps, word.tracked.problem, word.troubles) == (0, "", ())
    [run] = mlflow.runs("late")
    assert run["info"]["status"] == "KILLED"
    assert mlflow.history(run["info"]["run_id"], "loss") == _losses(tmp_path)
    assert len(_losses(tmp_path)) == word.progress.batch


def test_a_server_that_is_away_costs_a_finished_training_seconds_and_is_told_by_a_later_attempt(
    mlflow: mlflow_server.Server, door: Door, tmp_path: Path
) -> None:
    config = tracked(tmp_path, door.uri, "away")
    attempt = trainer_process.run(config, before=impatient)
    assert attempt.process.exitcode == ExitCode.DONE
    word = attempt.last_word()
    assert word.output is not None
    assert word.tracked is not None
    assert word.tracked.pending_steps == 12
    assert "can't be reached" in word.tracked.problem
    assert [trouble.reason for trouble in word.troubles] == ["TrackingFailed"]
    door.open()
    later = trainer_process.run(merged(config, {"run": {"attempt": 2}}))
    assert later.process.exitcode == ExitCode.DONE
    assert later.messages("ALREADY_FINISHED")
    [run] = mlflow.runs("away")
    assert run["info"]["status"] == "FINISHED"
    assert mlflow.history(run["info"]["run_id"], "loss") == _losses(tmp_path)


@pytest.mark.parametrize(
    ("answers", "says"), [("hang", "nothing within 1 s"), ("500", "answers 500: oops")], ids=["hangs", "is broken"]
)
def test_a_server_that(answers: Answer, says: str, door: Door, tmp_path: Path) -> None:
    door.open(answers)
    attempt = trainer_process.run(tracked(tmp_path, door.uri, answers), before=impatient)
    assert attempt.process.exitcode == ExitCode.DONE
    word = attempt.last_word()
    assert word.output is not None
    assert word.tracked is not None
    assert says in word.tracked.problem


def test_a_run_that_fails_says_so_there(mlflow: mlflow_server.Server, tmp_path: Path) -> None:
    config = tracked(tmp_path, mlflow.uri, "failing")
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "respnse": "b"}\n')
    attempt = trainer_process.run(config)
    assert attempt.process.exitcode == ExitCode.BAD_DATA
    [run] = mlflow.runs("failing")
    assert run["info"]["status"] == "FAILED"
    assert "respnse" in _tags(run)["finetune.failure"]


def test_a_run_that_is_stopped_before_it_trains_says_so_there(mlflow: mlflow_server.Server, tmp_path: Path) -> None:
    rows = [{"prompt": f"question {n}", "response": "answer " * 20} for n in range(60_000)]
    write_rows(tmp_path / "train.jsonl", rows)
    attempt = trainer_process.start(tracked(tmp_path, mlflow.uri, "early"), before=alone)
    _wait(lambda: mlflow.runs("early"), "MLflow run", attempt)
    attempt.signal(signal.SIGTERM)
    assert attempt.wait() == ExitCode.STOPPED, attempt.log.read_text()[-3000:]
    [run] = mlflow.runs("early")
    assert run["info"]["status"] == "KILLED"
    assert not run["data"].get("metrics")


def test_another_runs_folder_is_left_alone(mlflow: mlflow_server.Server, tmp_path: Path) -> None:
    trainer_process.run(tracked(tmp_path, mlflow.uri, "first", {"mlflow": None}))
    second = trainer_process.run(tracked(tmp_path, mlflow.uri, "second"))
    assert second.process.exitcode == ExitCode.BAD_CONFIG
    assert mlflow.runs("second") == []
    assert not (tmp_path / "run" / "tracking").exists()


class TestWhatTheServerRefuses:
    """Each with a sentence that says what to set."""

    def test_a_host_that_it_is_not_told_to_be(self, mlflow: mlflow_server.Server) -> None:
        found = _refusal(f"http://localhost:{mlflow.port}")
        host = f"localhost:{mlflow.port}"
        assert f"--allowed-hosts {host}, or MLFLOW_SERVER_ALLOWED_HOSTS={host}" in found

    def test_a_login(self, door: Door) -> None:
        door.open("401")
        assert "refuses the login (401): set tracking.mlflow.credentials to a Secret with" in _refusal(door.uri)

    def test_a_redirect_is_not_followed(self, door: Door) -> None:
        door.open("redirect")
        found = _refusal(door.uri)
        assert "redirects to http://169.254.169.254/latest: set tracking.mlflow.trackingUri" in found
        assert "token" not in found

    def test_a_metadata_service_is_not_asked(self) -> None:
        assert "169.254.169.254, an address of the network's own services" in _refusal("http://169.254.169.254")

    def test_a_port_that_there_cannot_be(self) -> None:
        assert "names a port that there can't be" in _refusal("http://127.0.0.1:99999")

    def test_an_id_that_is_none(self) -> None:
        with pytest.raises(client.Refused, match="answers '<script>' for an ID"):
            mlflow_run._id(client.Server("http://mlflow:5000"), "<script>")

    def test_an_experiment_that_was_deleted(self, mlflow: mlflow_server.Server, tmp_path: Path) -> None:
        made = mlflow.post("experiments/create", name="gone")["experiment_id"]
        mlflow.post("experiments/delete", experiment_id=made)
        with pytest.raises(client.Refused, match=f"mlflow experiments restore --experiment-id {made}"):
            _sender(tmp_path, mlflow.uri, {"mlflow": {"experiment": "gone"}}).send(now=NOW)

    def test_a_server_that_is_none(self, tmp_path: Path) -> None:
        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"<html>hello</html>")

            def log_message(self, *_: object) -> None: ...

        with HTTPServer(("127.0.0.1", 0), Page) as other:
            Thread(target=other.handle_request, daemon=True).start()
            assert "doesn't answer as it should" in _refusal(f"http://127.0.0.1:{other.server_port}")


@pytest.mark.parametrize(
    ("variables", "sent"),
    [
        ({"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "s3"}, "Basic YW5uOnMz"),
        ({"MLFLOW_TRACKING_TOKEN": "abc"}, "Bearer abc"),
        ({"MLFLOW_TRACKING_TOKEN": "abc\n"}, "Bearer abc"),
        ({}, None),
    ],
    ids=["a login", "a token", "a token with the line's end after it", "nothing"],
)
def test_is_sent_to_the_server_as(variables: dict[str, str], sent: str | None) -> None:
    heard: list[str | None] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers.get("Authorization"))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Listener) as listener:
        Thread(target=listener.handle_request, daemon=True).start()
        client.Server(f"http://127.0.0.1:{listener.server_port}", variables).get("runs/get")
    assert heard == [sent]


def test_a_login_that_makes_no_sense_is_not_told(door: Door) -> None:
    door.open()
    with pytest.raises(client.Refused, match="a login that makes no sense") as caught:
        client.Server(door.uri, {"MLFLOW_TRACKING_TOKEN": "very\nsecret"}).get("runs/get")
    assert "secret" not in str(caught.value)


def test_what_was_stored_though_nobody_heard_of_it_is_not_stored_twice(
    mlflow: mlflow_server.Server, door: Door, tmp_path: Path
) -> None:
    """As when a pod is killed between the request and its answer; the steps are done again, at other times."""
    door.open()
    sender = _sender(tmp_path, door.uri)
    sender.send(now=NOW)
    _write(tmp_path, range(1, 6), time=NOW + 1)
    door.open("lose")
    with pytest.raises(client.Refused):
        sender.send(now=NOW)
    [run] = mlflow.runs("7f1c")
    _until(lambda: len(mlflow.history(run["info"]["run_id"], "loss")) == 5, "5 steps that are stored")
    door.open()
    _write(tmp_path, range(1, 13), time=NOW + 2)
    again = _sender(tmp_path, door.uri)
    again.send(now=NOW)
    assert [step for step, _ in mlflow.history(run["info"]["run_id"], "loss")] == STEPS
    mlflow.post("runs/delete", run_id=run["info"]["run_id"])


def test_a_crash_before_the_id_is_saved_makes_no_second_one(mlflow: mlflow_server.Server, tmp_path: Path) -> None:
    changes = {"run": {"uid": "crashed"}}
    _sender(tmp_path, mlflow.uri, changes).send(now=NOW)
    (tmp_path / "run" / state.FOLDER / state.FILE).unlink()
    _write(tmp_path, STEPS)
    _sender(tmp_path, mlflow.uri, changes).send(now=NOW)
    [run] = mlflow.runs("crashed")
    assert [step for step, _ in mlflow.history(run["info"]["run_id"], "loss")] == STEPS


def test_a_server_that_has_lost_everything_is_told_everything_again(
    mlflow: mlflow_server.Server, tmp_path: Path
) -> None:
    changes = {"run": {"uid": "lost"}}
    sender = _sender(tmp_path, mlflow.uri, changes)
    sender.send(now=NOW)
    lost = state.State(
        run_uid="lost", tracking_uri=mlflow.uri, experiment_id="1", mlflow_run_id="0" * 32, artifact_uri="x", step=12
    )
    lost.save(tmp_path / "run")
    _write(tmp_path, STEPS)
    sender = _sender(tmp_path, mlflow.uri, changes)
    with pytest.raises(client.Refused):
        sender.send(now=NOW)
    sender.send(now=NOW)
    [run] = mlflow.runs("lost")
    assert [step for step, _ in mlflow.history(run["info"]["run_id"], "loss")] == STEPS


def test_a_changed_hyperparameter_is_no_obstacle(mlflow: mlflow_server.Server, tmp_path: Path) -> None:
    _sender(tmp_path, mlflow.uri, {"run": {"uid": "changed"}}).send(now=NOW)
    _sender(tmp_path, mlflow.uri, {"run": {"uid": "changed"}, "training": {"learningRate": 0.1}}).send(now=NOW)
    [run] = mlflow.runs("changed")
    assert next(each["value"] for each in run["data"]["params"] if each["key"] == "learning_rate") == "0.003"


def test_readings_of_the_system_have_mlflows_names(mlflow: mlflow_server.Server, tmp_path: Path) -> None:
    sender = _sender(tmp_path, mlflow.uri, {"run": {"uid": "system"}})
    sample = DeviceSample(
        device="0", utilization=0.5, cpu_cores=1.0, memory_used=5_000_000, memory_total=10_000_000, power_watts=300.0
    )
    for number in range(3):
        sender.sample(sample, step=number, now=NOW + number)
    sender.send(now=NOW)
    [run] = mlflow.runs("system")
    found = {each["key"]: each["value"] for each in run["data"]["metrics"]}
    assert found["system/gpu_0_utilization_percentage"] == 50
    assert found["system/gpu_0_memory_usage_megabytes"] == 5
    assert found["system/gpu_0_power_usage_watts"] == 300
    assert len(mlflow.history(run["info"]["run_id"], "system/cpu_utilization_percentage")) == 3


@pytest.mark.parametrize(
    ("method", "register", "weights"),
    [("LoRA", None, True), ("Full", None, False), ("Full", "support-bot-whole", True)],
    ids=["an adapter is sent", "full weights are not", "full weights that are registered are"],
)
def test_of_the_model(
    method: str,
    register: str | None,
    weights: bool,
    mlflow: mlflow_server.Server,
    recorded: tuple[Path, Snapshot],
    tmp_path: Path,
) -> None:
    uid = f"model-{method}-{register}"
    lora = {"lora": None} if method == "Full" else {}
    changes = {"run": {"uid": uid}, "method": {"type": method, **lora}, "mlflow": {"registerAs": register}}
    shutil.copytree(recorded[0] / "output", tmp_path / "run" / "output")
    sender = _sender(tmp_path, mlflow.uri, changes)
    sender.send(now=NOW)
    sender.finish(Ending(code=0))
    [run] = mlflow.runs(uid)
    there = mlflow.get(f"artifacts/list?run_id={run['info']['run_id']}&path=model")["files"]
    assert ("model/adapter_model.safetensors" in {each["path"] for each in there}) is weights
    assert "model/README.md" in {each["path"] for each in there}


def _sender(folder: Path, uri: str, changes: Mapping[str, Any] | None = None) -> Sender:
    config = parsed(folder, merged({"mlflow": {"trackingUri": uri, "experiment": "parts"}}, changes or {}))
    assert config.mlflow is not None
    (folder / "run").mkdir(exist_ok=True)
    return Sender(config, config.mlflow, client.Server(uri))


def _write(folder: Path, steps: range | list[int], *, time: int = NOW) -> None:
    logs = folder / "run" / "training_logs"
    logs.mkdir(exist_ok=True)
    lines = ({"time": time, "step": step, "loss": step / 10, "tokens": 8, "seconds": 0.1} for step in steps)
    (logs / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _refusal(uri: str) -> str:
    with pytest.raises(client.Refused) as caught:
        client.Server(uri).get("experiments/get-by-name", experiment_name="a")
    return str(caught.value)


def _tags(run: dict[str, Any]) -> dict[str, str]:
    return {each["key"]: each["value"] for each in run["data"]["tags"]}


def _id(mlflow: mlflow_server.Server, uid: str) -> str:
    return str(mlflow.runs(uid)[0]["info"]["run_id"])


def _losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "run" / "training_logs" / "metrics.jsonl").read_text().splitlines()
    return [(line["step"], line["loss"]) for line in map(json.loads, lines)]


def _wait(condition: Callable[[], object], what: str, attempt: trainer_process.Attempt) -> None:
    def met() -> object:
        assert attempt.process.is_alive(), attempt.log.read_text()[-3000:]
        return condition()

    _until(met, what)


def _until(condition: Callable[[], object], what: str, timeout: float = 90) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"no {what} within {timeout} s"
        time.sleep(0.1)
