"""What lies in the volumes of runs, as somebody sees who looks at any moment: whole checkpoints, or damaged ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune_trainer.saves import durable
from tests.cluster.api import Api
from tests.faults.recorder import History
from tests.faults.saver import FOLDER


async def folders(api: Api, history: History) -> Sequence[Path]:
    """The folders behind the claims that there are."""
    found = []
    for claim in history.there("claim"):
        volume = claim["spec"].get("volumeName")
        body = await api.get(f"/api/v1/persistentvolumes/{volume}") if volume else None
        if body is not None:
            found.append(Path(body["spec"]["hostPath"]["path"]))
    return found


def damaged(folder: Path) -> Iterator[str]:
    """Each checkpoint that has its name and isn't whole, or is listed and isn't there."""
    for checkpoint in sorted(folder.glob(f"{FOLDER}/ep*-ba*")):
        try:
            durable.verify(checkpoint)
        except durable.Damaged as error:
            yield f"{checkpoint.name}: {error}"
