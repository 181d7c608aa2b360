"""A file with a FineTuneRun, its profiles and the ConfigMaps that it reads, checked as the API server would check it.

Each thing that is wrong is named by its path, with what would be right. It must never correct what was written.
"""

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from finetune_api import mistakes
from finetune_api.fields import ApiModel
from finetune_api.types import API_VERSION, KIND, PROFILE_KIND, ClusterFineTuneProfile, FineTuneRun
from finetune_operator.errors import OperatorError
from finetune_operator.names import Key

Document = dict[str, Any]

_PARTS = {
    KIND: ("apiVersion", "kind", "metadata", "spec", "status"),
    PROFILE_KIND: ("apiVersion", "kind", "metadata", "spec"),
    "ConfigMap": ("apiVersion", "kind", "metadata", "data"),
}
_MODELS: Mapping[str, type[ApiModel]] = {KIND: FineTuneRun, PROFILE_KIND: ClusterFineTuneProfile}
_VERBS = ("suspend", "cancel", "activeDeadlineSeconds", "ttlSecondsAfterFinished", "queue")
"""Parts of a spec that may change in a run that goes on; without a cluster there is no queue."""
_VERSIONS = {KIND: API_VERSION, PROFILE_KIND: API_VERSION, "ConfigMap": "v1"}


class ManifestError(OperatorError):
    """What is wrong with a file, problem by problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, kw_only=True)
class Documents:
    """What a file holds."""

    run: Document
    """As it is written, with a namespace."""
    config_maps: Mapping[Key, Mapping[str, str]]
    profiles: Sequence[Document] = ()

    @property
    def uid(self) -> str:
        """The run's identity: the same as long as its name, its spec without the verbs, and its data are."""
        metadata = self.run["metadata"]
        data = sorted((str(key), dict(values)) for key, values in self.config_maps.items())
        spec = {name: value for name, value in self.run["spec"].items() if name not in _VERBS}
        told = json.dumps([metadata["namespace"], metadata["name"], spec, data], sort_keys=True)
        return str(uuid.uuid5(uuid.NAMESPACE_URL, told))


def read(text: str) -> Documents:
    """Read the documents of a file. Raises ManifestError."""
    try:
        found = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise ManifestError([f"not YAML: {' '.join(str(error).split())}"]) from error
    documents = [json.loads(json.dumps(document, default=str)) for document in found]
    problems = [problem for number, document in enumerate(documents, 1) for problem in _problems(document, number)]
    runs = [document for document in documents if isinstance(document, dict) and document.get("kind") == KIND]
    if not problems and len(runs) != 1:
        problems.append(f"{len(runs)} documents of kind {KIND}: there must be exactly one")
    if problems:
        raise ManifestError(problems)
    maps = {_key(document): document["data"] for document in documents if document["kind"] == "ConfigMap"}
    profiles = [document for document in documents if document["kind"] == PROFILE_KIND]
    return Documents(run=_as_created(runs[0]), config_maps=maps, profiles=profiles)


def _key(document: Document) -> Key:
    return Key(document["metadata"].get("namespace") or "default", document["metadata"]["name"])


def _as_created(run: Document) -> Document:
    """What the API server makes of it: a status isn't taken, nor metadata that is its own to give."""
    key = _key(run)
    given = {part: run["metadata"][part] for part in ("labels", "annotations") if part in run["metadata"]}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": key.name, "namespace": key.namespace} | given,
        "spec": run["spec"],
        "status": {"observedGeneration": -1},
    }


def _problems(document: Any, number: int) -> list[str]:
    """What is wrong with a document: its frame, or else its contents."""
    where = f"document {number}"
    if not isinstance(document, dict) or document.get("kind") not in _PARTS:
        kind = document.get("kind") if isinstance(document, dict) else document
        return [f"{where}: kind: must be {KIND}, {PROFILE_KIND} or ConfigMap, not {json.dumps(kind)[:80]}"]
    kind = document["kind"]
    where = f"{where} ({kind})"
    return [f"{where}: {problem}" for problem in _frame_problems(document, kind)] or [
        f"{where}: {problem}" for problem in (_map_problems if kind == "ConfigMap" else _problems_of_ours)(document)
    ]


def _frame_problems(document: Document, kind: str) -> Iterator[str]:
    metadata = document.get("metadata")
    if document.get("apiVersion") != _VERSIONS[kind]:
        yield f"apiVersion: must be {_VERSIONS[kind]}, not {json.dumps(document.get('apiVersion'))}"
    if not isinstance(metadata, dict) or not _is_name(metadata.get("name")):
        yield "metadata.name: must be lower-case letters, digits and -, e.g. support-bot"
    elif not _is_name(metadata.get("namespace") or "default"):
        yield "metadata.namespace: must be lower-case letters, digits and -, e.g. ml"
    for part in document:
        if part not in _PARTS[kind]:
            yield f"{part}: {mistakes.unknown(part, _PARTS[kind])}"


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", value) is not None


def _map_problems(document: Document) -> Iterator[str]:
    data = document.get("data")
    if not isinstance(data, dict):
        yield "data: must be an object of texts"
        return
    for key, value in data.items():
        if not isinstance(value, str):
            yield f"data.{key}: must be a string, not {json.dumps(value)[:80]}"


def _problems_of_ours(document: Document) -> list[str]:
    model = _MODELS[document["kind"]]
    created = {part: document[part] for part in _PARTS[document["kind"]] if part in document and part != "status"}
    try:
        model.parse(created)
    except ValidationError as error:
        found: dict[str, list[str]] = {}
        for detail in error.errors(include_url=False):
            path, said = _explained(detail, created, model)
            found.setdefault(path, []).append(said)
        return [f"{path}: {' or '.join(dict.fromkeys(said))}".removeprefix(": ") for path, said in found.items()]
    return []


def _explained(detail: Any, document: Document, model: type[ApiModel]) -> tuple[str, str]:
    """Where it is wrong, and what would be right."""
    path, value = _place(detail["loc"], document)
    rule_path = detail.get("ctx", {}).get("path", "").strip(".")
    where = ".".join([*path, *([rule_path] if rule_path else [])])
    match detail["type"]:
        case "extra_forbidden":
            return where, mistakes.unknown(path[-1], mistakes.fields_at(path[:-1], model))
        case "missing":
            return f"{where}.{detail['loc'][-1]}".lstrip("."), "is required"
        case "rule" | "format":
            return where, detail["msg"]
        case _:
            shown = json.dumps(value)
            said = detail["msg"].replace("Input should", "must").replace("String should", "must")
            return where, f"{said}, not {shown if len(shown) <= 80 else shown[:78] + ' …'}"


def _place(loc: Sequence[int | str], document: Document) -> tuple[list[str], Any]:
    """The part of `loc` that is in the document, and what is there; the rest names a choice of the model's."""
    path: list[str] = []
    value: Any = document
    for part in loc:
        inside = part in value if isinstance(value, dict) else isinstance(part, int) and isinstance(value, list)
        if not inside:
            break
        path.append(str(part))
        value = value[part]
    return path, value
