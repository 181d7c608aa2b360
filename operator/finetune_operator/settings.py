"""The operator's configuration, read from the environment once and checked whole."""

import os
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
    stale_seconds: Seconds = 60.0
    """Without an answer from a running trainer, its progress counts as stale after this long."""
    queued_seconds: Seconds = 5.0
    """A pod that can't be scheduled for this long makes its run Queued."""
    resync_seconds: Seconds = 30.0
    """Between two full lists of all objects."""
    workers: Annotated[int, Field(ge=1, le=256)] = 16
    """Runs reconciled at once."""
    bind_address: str = ""
    """Address of the health and metrics ports; empty means all."""
    health_port: Port = 8080
    """Port of /healthz; 0 means none."""
    metrics_port: Port = 9401
    """Port of /metrics; 0 means any that is free."""
    log_format: LogFormat = LogFormat.AUTO
    """How log records are written."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Read the settings. Raises UserError naming the variable."""
        found = os.environ if environment is None else environment
        mine = {k.removeprefix(PREFIX): v for k, v in found.items() if k.startswith(PREFIX)}
        values: dict[str, object] = {k.lower(): v for k, v in mine.items() if not _SERVICE_LINK.fullmatch(k)}
        if "namespaces" in values:
            values["namespaces"] = tuple(part.strip() for part in str(values["namespaces"]).split(",") if part.strip())
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = PREFIX + "_".join(str(part) for part in first["loc"]).upper()
            raise UserError(name, f"{first['msg']}, not {first['input']!r}") from error
