"""The operator's configuration, read from the environment once and checked whole."""

import os
import re
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from finetune_operator.errors import UserError

PREFIX = "FINETUNE_OPERATOR_"
_SERVICE_LINK = re.compile(r"(SERVICE_HOST|SERVICE_PORT|PORT)(_.*)?")
"""What Kubernetes adds to a pod's environment for a Service named finetune-operator."""
DEFAULT_IMAGE = "finetune-trainer:0.1.0"


class PodAccess(StrEnum):
    """How the operator reaches a trainer's /progress."""

    AUTO = "auto"
    """Direct in a cluster, proxy outside."""
    DIRECT = "direct"
    """By the pod's address."""
    PROXY = "proxy"
    """Through the API server's pod proxy."""


class LogFormat(StrEnum):
    """How log records are written."""

    AUTO = "auto"
    """Text on a terminal, else JSON."""
    JSON = "json"
    TEXT = "text"


Seconds = Annotated[float, Field(gt=0, le=86_400)]
Port = Annotated[int, Field(ge=0, le=65535)]
_NAMESPACE = r"^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)?$"
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]


def _long_enough(seconds: int) -> int:
    if seconds and seconds < 3:
        raise PydanticCustomError("lease", "Input should be 0 for no lease, or at least 3")
    return seconds


LeaseSeconds = Annotated[int, Field(ge=0, le=600), AfterValidator(_long_enough)]


class Limits(NamedTuple):
    """What may be active at once."""

    runs_per_namespace: int | None = None
    """None for any number."""
    devices: Mapping[str, int] = MappingProxyType({})
    """Devices of all active runs together, by resource; a resource that isn't named has no limit."""


class Settings(BaseModel):
    """Each field is set by FINETUNE_OPERATOR_<FIELD>, e.g. FINETUNE_OPERATOR_TRAINER_IMAGE."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    trainer_image: str = DEFAULT_IMAGE
    """Image of runs that name none."""
    namespaces: tuple[str, ...] = ()
    """Namespaces to serve, separated by commas; empty means all."""
    pod_access: PodAccess = PodAccess.AUTO
    """How the operator reaches a trainer's /progress."""
    poll_seconds: Seconds = 1.0
    """Between two looks at a trainer that has not made its first step."""
    training_poll_seconds: Seconds = 3.0
    """Between two looks at a trainer that trains."""
    progress_write_seconds: Seconds = 10.0
    """Between two writes of a run's status that only tell of progress."""
    progress_writes_per_second: Annotated[float, Field(gt=0, le=1000)] = 20.0
    """Writes of that kind a second, over all runs."""
    max_active_runs_per_namespace: Annotated[int, Field(ge=1, le=100_000)] | None = 10
    """Runs of one namespace that may be active at once; the others wait. Empty means any number."""
    max_active_devices: Mapping[str, Annotated[int, Field(ge=0, le=1_000_000)]] = {}
    """Devices of all active runs together, e.g. nvidia.com/gpu=64,amd.com/gpu=8; others have no limit."""
    stale_seconds: Seconds = 60.0
    """Without an answer from a running trainer, its progress counts as stale after this long."""
    queued_seconds: Seconds = 5.0
    """A pod that can't be scheduled for this long makes its run Queued."""
    resync_seconds: Seconds = 30.0
    """Between two full lists of all objects."""
    kueue_priority_boost: bool = False
    """Tell Kueue by its annotation priority-boost which runs would lose much if they were preempted."""
    kueue_priority_boost_seconds: Seconds = 600.0
    """Without a checkpoint for this long a run gets the first boost, and one more each time that doubles."""
    workers: Annotated[int, Field(ge=1, le=256)] = 32
    """Runs reconciled at once."""
    lease_seconds: LeaseSeconds = 12
    """An operator that isn't heard of for so long is replaced by one that waits; 0 means that there is only one."""
    lease_name: Name = "finetune-operator"
    """Name of the Lease: one for operators that replace each other, another for one that serves other namespaces."""
    lease_namespace: Annotated[str, Field(pattern=_NAMESPACE)] = ""
    """Namespace of the Lease; empty means the operator's own, outside a cluster `default`."""
    bind_address: str = ""
    """Address of the health and metrics ports; empty means all."""
    health_port: Port = 8080
    """Port of /healthz and /readyz; 0 means none."""
    metrics_port: Port = 9401
    """Port of /metrics; 0 means any that is free."""
    metrics_authentication: bool = False
    """Answer a scrape only with a token of the cluster, whose owner may get the non-resource URL /metrics."""
    metrics_tls_folder: str = ""
    """Folder with tls.crt and tls.key to answer scrapes by HTTPS; empty means HTTP."""
    run_metrics_seconds: Seconds = 300.0
    """So long after its end a run's last values are on /metrics: longer than the pause between two scrapes."""
    log_format: LogFormat = LogFormat.AUTO
    """How log records are written."""

    @property
    def limits(self) -> Limits:
        """What may be active at once."""
        return Limits(self.max_active_runs_per_namespace, self.max_active_devices)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Read the settings. Raises UserError naming the variable."""
        found = os.environ if environment is None else environment
        mine = {k.removeprefix(PREFIX): v for k, v in found.items() if k.startswith(PREFIX)}
        values: dict[str, object] = {k.lower(): v for k, v in mine.items() if not _SERVICE_LINK.fullmatch(k)}
        if "namespaces" in values:
            values["namespaces"] = _parts(values["namespaces"])
        if "max_active_devices" in values:
            pairs = (part.partition("=") for part in _parts(values["max_active_devices"]))
            values["max_active_devices"] = {resource.strip(): number.strip() for resource, _, number in pairs}
        if values.get("max_active_runs_per_namespace") == "":
            values["max_active_runs_per_namespace"] = None
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field, *below = (str(part) for part in first["loc"])
            where = f"{'.'.join(below)}: " if below else ""
            raise UserError(f"{PREFIX}{field}".upper(), f"{where}{first['msg']}, not {first['input']!r}") from error


def _parts(value: object) -> tuple[str, ...]:
    """The parts of a list with commas."""
    return tuple(part.strip() for part in str(value).split(",") if part.strip())
