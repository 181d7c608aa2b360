"""A run without a cluster, from its file to its end; processes are real, the training is a stub's but for one."""

import asyncio
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from finetune_operator import documents, local, poller
from finetune_operator.console import Console
from finetune_operator.documents import ManifestError
from finetune_operator.local import Session
from tests import builders, tiny_model

ROOT = Path(__file__).parents[3]
STUB = ROOT / "tests" / "stub_trainer.py"
MAP = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "data", "namespace": "ml"},
    "data": {"t.jsonl": "$$(x)"},
}


def manifest(**spec: Any) -> str:
    """A run on CPU whose data is in the file."""
    least = {"dataset": {"train": {"uri": "configmap://data/t.jsonl"}}, "resources": {"deviceResource": ""}}
    return yaml.safe_dump_all([MAP, builders.run("bot", namespace="ml", **builders.merged(least, spec))])


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """With the model's claim."""
    (tmp_path / "volumes" / "models" / "tiny").mkdir(parents=True)
    return tmp_path / "volumes"


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """For the trainer's answers."""
    async with aiohttp.ClientSession() as session:
        yield session


Made = Callable[..., tuple[Session, io.StringIO]]


@pytest.fixture
def made(volumes: Path, http: aiohttp.ClientSession) -> Made:
    """Makes a session whose trainer ends with a code, and what it prints."""

    def make(text: str, *, code: int = 0) -> tuple[Session, io.StringIO]:
        printed = io.StringIO()
        session = Session(
            documents.read(text),
            volumes=volumes,
            console=Console(printed),
            access=poller.by_address(http),
            trainer=(sys.executable, str(STUB), str(code)),
        )
        return session, printed

    return make


def record(volumes: Path) -> Any:
    """The run as it was kept."""
    (path,) = (volumes / ".runs").glob("bot-*.json")
    return json.loads(path.read_text())


def said(volumes: Path) -> Any:
    """What the first attempt's stub printed."""
    (log,) = (volumes / ".logs").glob("bot-1-*.log")
    return json.loads(log.read_text())


def events(volumes: Path) -> list[str]:
    return [event["type"] for event in record(volumes)["status"]["events"]]


async def test_a_run_completes_and_says_where_the_model_lies(
    made: Made, volumes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", "/my/own/hub")
    session, printed = made(manifest())
    assert await session.train() == 0
    shown = printed.getvalue()
    assert "STARTED" in shown
    assert "COMPLETED" in shown
    output = record(volumes)["status"]["output"]["uri"].removeprefix("pvc://")
    assert f"The model: {volumes / output}" in shown
    assert "bot    Completed   pvc://models/tiny   100%" in shown
    assert said(volumes) == {"read": "$$(x)", "hub": "/my/own/hub"}, "the ConfigMap's data, as it was written"


async def test_its_progress_is_polled(made: Made, volumes: Path) -> None:
    session, _ = made(manifest(), code=75)
    working = asyncio.create_task(session.train())
    await appears(working, volumes, "TRAIN_UPDATED")
    os.kill(os.getpid(), signal.SIGTERM)
    assert await working == 128 + signal.SIGTERM


async def appears(working: asyncio.Task[int], volumes: Path, kind: str) -> None:
    """Until the run's history has an event of that kind."""
    async with asyncio.timeout(30):
        while not list((volumes / ".runs").glob("bot-*.json")) or kind not in events(volumes):
            assert not working.done()
            await asyncio.sleep(0.05)


async def test_stopped_and_started_again_it_goes_on_as_the_next_attempt(made: Made, volumes: Path) -> None:
    session, printed = made(manifest(), code=75)
    working = asyncio.create_task(session.train())
    await appears(working, volumes, "TRAIN_UPDATED")
    os.kill(os.getpid(), signal.SIGINT)
    assert await working == 128 + signal.SIGINT
    assert "Start it again to go on" in printed.getvalue()
    assert record(volumes)["status"]["attempt"] == 2
    assert events(volumes)[-1] == "RESTARTED"
    session, printed = made(manifest())
    assert await session.train() == 0
    assert "RESUMED" in events(volumes)
    assert record(volumes)["status"]["attempt"] == 2
    session, printed = made(manifest())
    assert await session.train() == 0, "it has ended, and only says so"
    assert "attempt 2" in printed.getvalue()
    assert record(volumes)["status"]["attempt"] == 2


async def test_stopped_before_the_trainer_can_save_it_uses_up_no_restart(made: Made, volumes: Path) -> None:
    session, _ = made(manifest(recovery={"maxRestartsWithoutProgress": 0}), code=75)
    working = asyncio.create_task(session.train())
    await appears(working, volumes, "STARTED")
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    assert await working == 128 + signal.SIGINT
    assert (record(volumes)["status"]["attempt"], events(volumes)[-1]) == (2, "RESTARTED")
    assert record(volumes)["status"]["restartsWithoutProgress"] == 0


async def test_a_failure_is_explained_and_the_next_start_is_a_new_run(made: Made, volumes: Path) -> None:
    session, printed = made(manifest(), code=65)
    assert await session.train() == 1
    assert "Told: it was told to end with 65 (Pod bot-1-" in printed.getvalue()
    assert ".log" in printed.getvalue()
    session, _ = made(manifest())
    assert await session.train() == 0
    assert events(volumes).count("CREATED") == 1
    assert "FAILED" not in events(volumes)


async def test_a_queue_of_kueue_is_refused(made: Made) -> None:
    with pytest.raises(ManifestError, match=r"spec\.queue\.name: there is no Kueue"):
        await made(manifest(queue={"name": "team-a"}))[0].train()


async def test_a_trainer_that_cannot_be_started_says_why(
    made: Made, volumes: Path, http: aiohttp.ClientSession
) -> None:
    printed = io.StringIO()
    found = documents.read(manifest(recovery={"maxRestartsWithoutProgress": 0}))
    access = poller.by_address(http)
    session = Session(found, volumes=volumes, console=Console(printed), access=access, trainer=("/no/such/program",))
    assert await session.train() == 1
    assert "/no/such/program" in printed.getvalue()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        pytest.param({"trainer": {"image": "other:1"}}, "spec.trainer.image: no image can be run", id="another image"),
        pytest.param(
            {"model": {"uri": "pvc://nowhere/x"}}, "spec.model.uri: claim nowhere is the folder", id="no model"
        ),
        pytest.param(
            {"dataset": {"train": {"uri": "pvc://nowhere/x"}}}, "spec.dataset.train.uri: claim nowhere", id="no data"
        ),
        pytest.param({"storage": {"claimName": "nowhere"}}, "spec.storage.claimName: claim nowhere", id="no claim"),
        pytest.param(
            {"dataset": {"train": {"uri": "configmap://data/other"}}},
            "spec.dataset.train.uri: ConfigMap data with the key other isn't in the file",
            id="no such key",
        ),
        pytest.param(
            {"model": {"credentials": {"secretName": "s"}}},
            "spec.model.credentials: there are no Secrets",
            id="a secret",
        ),
    ],
)
async def test_what_this_machine_lacks_is_told(
    made: Made, spec: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    session, _ = made(manifest(**spec))
    with pytest.raises(ManifestError) as raised:
        await session.train()
    assert [problem for problem in raised.value.problems if problem.startswith(says)]


async def test_a_run_that_is_under_way_is_not_started_twice(made: Made, volumes: Path) -> None:
    session, _ = made(manifest(), code=75)
    working = asyncio.create_task(session.train())
    await appears(working, volumes, "STARTED")
    with pytest.raises(ManifestError, match="under way already"):
        await made(manifest())[0].train()
    os.kill(os.getpid(), signal.SIGTERM)
    await working


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("kind: Pod", "run.yaml: document 1: kind: must be", id="another kind"),
        pytest.param(manifest(training={"maxDuration": "3 epochs"}), "spec.training.maxDuration", id="a bad value"),
        pytest.param(manifest(model={"uri": "pvc://nowhere/x"}), "spec.model.uri: claim nowhere", id="no model"),
        pytest.param(None, "No such file", id="no file"),
    ],
)
def test_a_file_that_cannot_be_run_ends_with_64(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, says: str
) -> None:
    file = tmp_path / "run.yaml"
    if text is not None:
        file.write_text(text)
    assert local.main([str(file), "--volumes", str(tmp_path / "volumes")]) == local.USAGE == 64
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_training_leaves_a_model_and_no_process(tmp_path: Path) -> None:
    models = tmp_path / "volumes" / "models"
    shutil.copytree(tiny_model.build(), models / "tiny")
    tiny_model.write_questions(models / "train.jsonl", 40)
    run = builders.run(
        "bot",
        dataset={"train": {"uri": "pvc://models/train.jsonl"}},
        training={"maxDuration": "4ba", "maxSequenceLength": 64},
        resources={"deviceResource": ""},
    )
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    command = [sys.executable, "-m", "finetune_operator.local", "run.yaml"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (output,) = (tmp_path / "volumes").glob("bot-*/output")
    assert (output / "adapter_model.safetensors").exists()


def offered(**spec: Any) -> str:
    return yaml.safe_dump(builders.profile("small", deviceResource="", **spec))


async def test_a_profile_in_the_file_gives_defaults_and_limits(made: Made, volumes: Path) -> None:
    run = manifest(profile="small", resources={"deviceResource": None})
    session, _ = made(f"{run}---\n{offered(defaults={'training': {'learningRate': 0.5}})}")
    assert await session.train() == 0
    assert record(volumes)["status"]["profile"] == {
        "name": "small",
        "generation": 1,
        "given": '{"resources":{"deviceResource":""},"training":{"learningRate":0.5}}',
    }


async def test_more_than_its_profile_allows_is_refused(made: Made) -> None:
    session, printed = made(f"{manifest(profile='small')}---\n{offered(limits={'memory': '1Gi'})}")
    assert await session.train() == 0, "the default is brought within the limit"
    asked = manifest(profile="small", resources={"memory": "2Gi"})
    session, printed = made(f"{asked}---\n{offered(limits={'memory': '1Gi'})}")
    assert await session.train() == 1
    assert "NotAllowed: spec.resources.memory: 2Gi is more than profile small allows: 1Gi at most" in printed.getvalue()


async def test_a_profile_that_is_not_in_the_file_is_named(made: Made) -> None:
    session, _ = made(manifest(profile="large"))
    with pytest.raises(ManifestError, match="ClusterFineTuneProfile large isn't in the file: add it"):
        await session.train()


def test_a_mistake_in_a_profile_is_named_by_its_path() -> None:
    with pytest.raises(ManifestError) as caught:
        documents.read(f"{manifest()}---\n{offered(limits={'node': 1, 'memory': '1 GB'})}")
    format_, unknown = sorted(caught.value.problems)
    assert unknown == "document 3 (ClusterFineTuneProfile): spec.limits.node: unknown field; did you mean nodes?"
    assert format_.startswith("document 3 (ClusterFineTuneProfile): spec.limits.memory: must be a number of bytes")
