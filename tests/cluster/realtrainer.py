"""The real trainer as an image of the test node, with a hub's cache in which a tiny model lies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests import tiny_model
from tests.cluster.podspec import Image

VENV_FIRST = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}
"""For a container whose command is this Python's."""
IMAGE = "real-trainer"
MODEL = "hf://example/tiny"


def image(folder: Path, **environment: str) -> Image:
    """`folder` gets the hub's cache."""
    repository = folder / "hub" / "models--example--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("one")
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / "one").symlink_to(tiny_model.build())
    offline = {"HF_HUB_CACHE": str(repository.parent), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return Image((sys.executable, "-m", "finetune_trainer"), {**VENV_FIRST, **offline, **environment})
