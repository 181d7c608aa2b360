"""What is done at an MLflow server for one run: find or make its MLflow run, log, store files, register the model.

Each of these can be done again without doing anything twice.
"""

import re
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from finetune_trainer.tracking.content import RUN_UID, Metric
from finetune_trainer.tracking.server import Refused, Server

Item = TypeVar("Item")

EXISTS, MISSING = "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"
PARAMETERS_A_CALL = 100
TAGS_A_CALL = 100
METRICS_A_CALL = 1000


def experiment(server: Server, name: str) -> str:
    """The ID of the experiment, made if it isn't there. Raises Refused."""
    found = _experiment(server, name)
    if found is None:
        try:
            return _id(server, server.post("experiments/create", name=name)["experiment_id"])
        except Refused as refused:
            found = _experiment(server, name) if refused.code == EXISTS else None  # another run was first
            if found is None:
                raise
    if found["lifecycle_stage"] != "active":
        raise Refused(
            f"{server.uri}: the experiment {name!r} was deleted there: restore it with"
            f" `mlflow experiments restore --experiment-id {found['experiment_id']}`"
        )
    return _id(server, found["experiment_id"])


def _experiment(server: Server, name: str) -> Mapping[str, Any] | None:
    try:
        found: Mapping[str, Any] = server.get("experiments/get-by-name", experiment_name=name)["experiment"]
    except Refused as refused:
        if refused.code == MISSING:
            return None
        raise
    return found


def find_or_make(server: Server, experiment_id: str, tags: Mapping[str, str], *, name: str) -> tuple[str, str]:
    """ID and place for files of the run's MLflow run. One that was deleted is found, too. Raises Refused."""
    found = server.post(
        "runs/search",
        experiment_ids=[experiment_id],
        filter=f"tags.`{RUN_UID}` = '{tags[RUN_UID]}'",
        run_view_type="ALL",
        max_results=1,
    ).get("runs")
    if not found:
        listed = [{"key": key, "value": value} for key, value in tags.items()]
        now = round(time.time() * 1000)
        found = [
            server.post("runs/create", experiment_id=experiment_id, run_name=name, start_time=now, tags=listed)["run"]
        ]
    info = found[0]["info"]
    return _id(server, info["run_id"]), str(info["artifact_uri"])


def _id(server: Server, found: object) -> str:
    """What a server calls an ID, if it is one."""
    if not re.fullmatch("[A-Za-z0-9-]{1,64}", str(found)):
        raise Refused(f"{server.uri} answers {str(found)[:80]!r} for an ID")
    return str(found)


class MlflowRun:
    """An MLflow run at its server."""

    def __init__(self, server: Server, run_id: str, artifact_uri: str) -> None:
        self._server = server
        self.id = run_id
        self._artifact_uri = artifact_uri

    def status(self, status: str, *, ended: bool) -> None:
        """RUNNING, FINISHED, FAILED or KILLED."""
        end = {"end_time": round(time.time() * 1000)} if ended else {}
        self._server.post("runs/update", run_id=self.id, status=status, **end)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        for some in _split(tags.items(), TAGS_A_CALL):
            self._server.post(
                "runs/log-batch", run_id=self.id, tags=[{"key": key, "value": value} for key, value in some]
            )

    def parameters(self, parameters: Mapping[str, str]) -> None:
        """Those that it hasn't yet: one that is there can't be changed any more."""
        data = self._server.get("runs/get", run_id=self.id)["run"].get("data", {})
        there = {parameter["key"] for parameter in data.get("params", ())}
        missing = [(key, value) for key, value in parameters.items() if key not in there]
        for some in _split(missing, PARAMETERS_A_CALL):
            self._server.post(
                "runs/log-batch", run_id=self.id, params=[{"key": key, "value": value} for key, value in some]
            )

    def metrics(self, metrics: Iterable[Metric]) -> None:
        """Log values; equal ones are stored once."""
        for some in _split(metrics, METRICS_A_CALL):
            self._server.post("runs/log-batch", run_id=self.id, metrics=[metric.to_wire() for metric in some])

    def file(self, name: str, path: Path) -> None:
        """Store a file of the run, through the server. Raises Refused, OSError."""
        place = urllib.parse.urlsplit(self._artifact_uri)
        own = place.netloc in ("", urllib.parse.urlsplit(self._server.uri).netloc)
        if place.scheme != "mlflow-artifacts" or not own:
            raise Refused(
                f"{self._server.uri} keeps files in {self._artifact_uri[:100]}, which only it can write: let it serve"
                " them (--serve-artifacts --artifacts-destination), in a new experiment"
            )
        self._server.put_file(f"{place.path.strip('/')}/{name}", path)

    def register(self, name: str, *, alias: str, folder: str) -> str:
        """A version of the model, once, with the alias; returns `name/version`."""
        try:
            self._server.post("registered-models/create", name=name)
        except Refused as refused:
            if refused.code != EXISTS:
                raise
        versions = self._server.get("model-versions/search", filter=f"run_id = '{self.id}'").get("model_versions", ())
        found = next((version for version in versions if version["name"] == name), None)
        if found is None:
            source = f"{self._artifact_uri}/{folder}"
            found = self._server.post("model-versions/create", name=name, source=source, run_id=self.id)[
                "model_version"
            ]
        self._server.post("registered-models/alias", name=name, alias=alias, version=found["version"])
        return f"{name}/{_id(self._server, found['version'])}"


def _split(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    left = iter(items)
    while some := list(islice(left, size)):
        yield some
