"""The environment of a training's container: its configuration, and credentials that the kubelet reads. Pure."""

from finetune_api.credentials import MLFLOW_KEYS, STORE_KEYS
from finetune_api.spec import FineTuneRunSpec
from finetune_api.trainer_config import CONFIG_VARIABLE, TOKEN_VARIABLE, UPLOAD_PREFIX
from finetune_api.uris import Scheme, Uri
from finetune_operator import configs, custom, gang, names
from finetune_operator.mounts import CACHE_MOUNT
from finetune_operator.names import Manifest
from finetune_operator.run import Run
from finetune_operator.settings import Settings

HUB_VARIABLE = "HF_HOME"
"""Where the hub's library keeps what it downloads."""
GRACE_SECONDS = 300
"""Between SIGTERM and SIGKILL: a step and a save must fit in."""


def of(run: Run, *, attempt: int, settings: Settings) -> list[Manifest]:
    """All that the operator sets; a Custom task's own variables with it."""
    image = run.valid_spec.trainer.image or settings.trainer_image
    if run.is_custom:
        config = configs.custom_config(run, attempt=attempt).encode()
    else:
        config = configs.trainer_config(run, attempt=attempt, image=image).encode()
    found: list[Manifest] = [
        {"name": CONFIG_VARIABLE, "value": config.replace("$", "$$")},  # the kubelet expands $(NAME), and makes $$ a $
        {"name": "TMPDIR", "value": CACHE_MOUNT},
        {"name": HUB_VARIABLE, "value": f"{CACHE_MOUNT}/huggingface"},
        {"name": "XDG_CACHE_HOME", "value": CACHE_MOUNT},
    ]
    job_name = names.job(run.metadata.name, attempt)
    found += gang.environment(run.valid_spec.resources, job_name=job_name, uid=run.metadata.uid)
    found += _credentials(run.valid_spec)
    if not run.is_custom:
        return found
    progress = f"{CACHE_MOUNT}/progress"
    return custom.environment(run.valid_spec, ours=found, progress=progress, grace_seconds=GRACE_SECONDS)


def _credentials(spec: FineTuneRunSpec) -> list[Manifest]:
    """Each variable once: what is for the model comes first."""
    found: list[Manifest] = []
    if spec.model is not None and spec.model.credentials is not None:
        secret = spec.model.credentials.secret_name
        if Uri.parse(spec.model.uri).scheme == Scheme.HUB:
            found.append(_from_secret(TOKEN_VARIABLE, secret, "token"))
        else:
            found += _store_keys(secret)
    if spec.dataset is not None and spec.dataset.credentials is not None:
        there = {entry["name"] for entry in found}
        more = _store_keys(spec.dataset.credentials.secret_name)
        found += [entry for entry in more if entry["name"] not in there]
    if spec.storage.credentials is not None:  # under names of their own: the data may lie in another store
        found += _store_keys(spec.storage.credentials.secret_name, prefix=UPLOAD_PREFIX)
    if spec.tracking.mlflow is not None and spec.tracking.mlflow.credentials is not None:
        secret = spec.tracking.mlflow.credentials.secret_name
        found += [_from_secret(key, secret, key, optional=True) for key in MLFLOW_KEYS]
    return found


def _store_keys(secret: str, prefix: str = "") -> list[Manifest]:
    return [_from_secret(prefix + key, secret, key, optional=True) for key in STORE_KEYS]


def _from_secret(variable: str, secret: str, key: str, *, optional: bool = False) -> Manifest:
    """Read by the kubelet, never by the operator."""
    reference: Manifest = {"name": secret, "key": key} | ({"optional": True} if optional else {})
    return {"name": variable, "valueFrom": {"secretKeyRef": reference}}
