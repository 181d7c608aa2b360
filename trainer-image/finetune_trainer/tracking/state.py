"""How far MLflow has been told, kept in the run's folder: which MLflow run it is, and what was sent of the history.

What is about to be sent is written down first, word for word. Whoever is killed in between sends the same again, which
the server stores once.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import ConfigDict

from finetune_api.fields import ApiModel
from finetune_trainer.reporting.history import OWNER
from finetune_trainer.tracking.content import Metric

FOLDER = "tracking"
FILE = "mlflow.json"


class State(ApiModel):
    """All that has to survive."""

    model_config = ConfigDict(extra="ignore")

    run_uid: str
    tracking_uri: str
    experiment_id: str = ""
    mlflow_run_id: str = ""
    artifact_uri: str = ""
    step: int = 0
    """The newest step that is in the outbox, or was sent."""
    evaluation: int = -1
    """The step of the newest evaluation, likewise."""
    system: int = 0
    """The time of the newest readings of the system, likewise."""
    outbox: tuple[Metric, ...] = ()
    """What is being sent."""
    artifacts: tuple[str, ...] = ()
    """Files that were sent."""
    registered_model: str = ""
    """Name and version in the registry."""

    @classmethod
    def load(cls, run_path: Path, *, run_uid: str, tracking_uri: str) -> Self:
        """What an earlier attempt left, if it was this run's and to the same server."""
        try:
            found = cls.model_validate_json((run_path / FOLDER / FILE).read_bytes())
        except (OSError, ValueError):
            return cls(run_uid=run_uid, tracking_uri=tracking_uri)
        same = (found.run_uid, found.tracking_uri) == (run_uid, tracking_uri)
        return found if same else cls(run_uid=run_uid, tracking_uri=tracking_uri)

    def save(self, run_path: Path) -> None:
        """Keep it, whole. Raises OSError."""
        target = run_path / FOLDER / FILE
        target.parent.mkdir(exist_ok=True)
        temporary = target.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(self.model_dump_json(by_alias=True))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)


def append(file: Path, line: Mapping[str, object]) -> None:
    """Add a line to a file of the run's folder. Raises OSError."""
    file.parent.mkdir(exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")


def owns(run_path: Path, run_uid: str) -> bool:
    """Whether the run's folder has been made this run's own; before that nothing may be written into it."""
    try:
        return bool(json.loads((run_path / OWNER).read_text(encoding="utf-8"))["uid"] == run_uid)
    except (OSError, ValueError, KeyError, TypeError):
        return False
