"""What a training's container finds on its disk: the run's volume, a cache, and all that is read. Pure."""

from collections.abc import Iterator

from finetune_api.status import ResolvedModel
from finetune_api.trainer_config import ADAPTER_MOUNT, DATA_MOUNT, EVAL_MOUNT, MODEL_MOUNT, RUN_MOUNT
from finetune_api.uris import Scheme, Uri
from finetune_operator import custom, names
from finetune_operator.names import Manifest
from finetune_operator.run import Run

CACHE_MOUNT = "/mnt/cache"
"""Room for temporary files; the root file system is read-only."""
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - what PyTorch calls it


def claim_name(run: Run) -> str:
    """The claim that holds the run's checkpoints and output."""
    return run.valid_spec.storage.claim_name or names.claim(run.metadata.name, run.metadata.uid)


def output_uri(run: Run, path: str) -> str:
    """Where `path` of the run's folder lies, as a URI that another run can take."""
    parts = (claim_name(run), run.valid_spec.storage.sub_path, path)
    return "pvc://" + "/".join(part.strip("/") for part in parts if part)


def of(run: Run) -> list[tuple[Manifest, Manifest]]:
    """Each volume with its mount."""
    spec = run.valid_spec
    run_mount: Manifest = {"name": "run", "mountPath": RUN_MOUNT}
    if spec.storage.sub_path:
        run_mount["subPath"] = spec.storage.sub_path
    found = [
        ({"name": "run", "persistentVolumeClaim": {"claimName": claim_name(run)}}, run_mount),
        ({"name": "cache", "emptyDir": {}}, {"name": "cache", "mountPath": CACHE_MOUNT}),
    ]
    if run.is_custom:
        found.append(custom.mount())
    found += [_source(name, uri, mount) for name, uri, mount in _sources(run) if path_of(uri, mount) is not None]
    shared_memory = spec.resources.shared_memory
    if shared_memory is None and spec.resources.devices_per_node > 1:  # processes hand tensors to each other there
        shared_memory = spec.resources.memory
    if shared_memory is not None:
        memory = {"medium": "Memory", "sizeLimit": shared_memory}
        found.append(
            ({"name": "shared-memory", "emptyDir": memory}, {"name": "shared-memory", "mountPath": SHARED_MEMORY})
        )
    return found


def _sources(run: Run) -> Iterator[tuple[str, str, str]]:
    """Name, URI and mount of all that is read."""
    spec, model = run.valid_spec, model_of(run)
    if spec.dataset is not None:
        yield "data", spec.dataset.train.uri, DATA_MOUNT
        if spec.dataset.eval is not None:
            yield "eval", spec.dataset.eval.uri, EVAL_MOUNT
    if model is not None:
        yield "model", model.uri, MODEL_MOUNT
    if model is not None and model.adapter_uri is not None:
        yield "adapter", model.adapter_uri, ADAPTER_MOUNT


def _source(name: str, uri: str, path: str) -> tuple[Manifest, Manifest]:
    """A volume that is only read. A claim is mounted whole: a path that isn't there is the trainer's to report."""
    place = Uri.parse(uri)
    mount = {"name": name, "mountPath": path, "readOnly": True}
    if place.scheme == Scheme.CONFIG_MAP:
        items = [{"key": place.path, "path": place.path}]
        return {"name": name, "configMap": {"name": place.name, "items": items}}, mount
    return {"name": name, "persistentVolumeClaim": {"claimName": place.name}}, mount


def path_of(uri: str, mount: str) -> str | None:
    """Where a volume's `uri` is mounted; None for what the trainer fetches itself, or can't read either and says so."""
    try:
        place = Uri.parse(uri)
    except ValueError:
        return None
    return f"{mount}/{place.path}".rstrip("/") if place.scheme in (Scheme.CLAIM, Scheme.CONFIG_MAP) else None


def model_of(run: Run) -> ResolvedModel | None:
    """As it was resolved when the run began; a Custom task may have none."""
    asked = run.valid_spec.model
    return run.status.model or (None if asked is None else ResolvedModel(uri=asked.uri))
