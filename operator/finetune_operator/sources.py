"""What `spec.model.uri` stands for: run:// resolved to where that run's output or checkpoint lies. Pure.

Resolved once, before the first attempt, and recorded in the status: what becomes of the other run later doesn't matter.
"""

from collections.abc import Callable

from finetune_api.data import Task
from finetune_api.fields import cut
from finetune_api.method import MethodType
from finetune_api.status import ResolvedModel
from finetune_api.uris import Scheme, Uri
from finetune_operator import mounts
from finetune_operator.errors import UserError
from finetune_operator.run import Run

FIELD = "spec.model.uri"


def resolve(run: Run, find: Callable[[str], Run | None]) -> ResolvedModel | UserError | None:
    """The model to start from, or why it can't be had. `find` gives another run of the namespace by its name."""
    if run.spec is None:
        return None
    if run.status.model is not None or run.spec.model is None:
        return run.status.model
    place = Uri.parse(run.spec.model.uri)
    if place.scheme != Scheme.RUN:
        return ResolvedModel(uri=run.spec.model.uri)
    try:
        found = _of(find(place.name), place, namespace=run.metadata.namespace)
        if found.adapter_uri is not None and run.spec.method.type == MethodType.FULL:
            raise UserError("spec.method.type", f"Full can't go on with the adapter of run {place.name}: use LoRA")
        return found
    except UserError as error:
        return error


def other_run(run: Run) -> str | None:
    """Name of the run that must be known to resolve this one's model."""
    if run.spec is None or run.spec.model is None or run.status.model is not None:
        return None
    place = Uri.parse(run.spec.model.uri)
    return place.name if place.scheme == Scheme.RUN else None


def _of(other: Run | None, place: Uri, *, namespace: str) -> ResolvedModel:
    if other is None or other.spec is None:
        where = f"there is no run {place.name} in namespace {namespace}, and a run starts only from one of its own"
        raise UserError(FIELD, f"{where} namespace: create it first, or name a model")
    if not other.status.is_finished:
        said = f"run {place.name} hasn't finished (phase {other.status.phase or 'Pending'})"
        raise UserError(FIELD, f"{said}: create this run again when it has")
    location = _checkpoint(other, place) if place.path else _output(other, place)
    if other.spec.method.type == MethodType.FULL or other.spec.task == Task.CUSTOM:
        return ResolvedModel(uri=location)
    asked = other.spec.model.uri if other.spec.model else ""
    base = other.status.model.uri if other.status.model else asked
    return ResolvedModel(uri=base, adapter_uri=location)


def _output(other: Run, place: Uri) -> str:
    if other.status.output is not None:
        return other.status.output.uri
    names = [checkpoint.name for checkpoint in other.status.checkpoints]
    instead = f"start from a checkpoint, run://{place.name}/{names[-1]}" if names else "start from another model"
    raise UserError(FIELD, f"run {place.name} has no output, its phase is {other.status.phase}: {instead}")


def _checkpoint(other: Run, place: Uri) -> str:
    found = next((saved for saved in other.status.checkpoints if saved.name == place.path), None)
    if found is None:
        names = ", ".join(saved.name for saved in other.status.checkpoints) or "none"
        raise UserError(FIELD, cut(f"run {place.name} has no checkpoint {place.path}; it has: {names}", 500))
    uri = mounts.output_uri(other, found.path)
    if len(uri) > 512:
        raise UserError(
            FIELD, f"the path of checkpoint {place.path} of run {place.name} is too long: {len(uri)} characters"
        )
    return uri
