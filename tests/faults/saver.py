"""The stub trainer with checkpoints that are really there: folders made by the trainer's own `durable`, in slow motion.

It waits at the gate `save-N` in the middle of each save, where a scenario may kill it. With `--torn` it writes into the
place itself instead, which is the defect that `checkpoints-are-whole` is to see.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_trainer.saves import durable
from tests.cluster import stub_trainer
from tests.cluster.podspec import Image

IMAGE, TORN = "saver", "saver-torn"
ROOT = Path(__file__).resolve().parents[2]
FOLDER = "checkpoints"


def images() -> dict[str, Image]:
    """Both kinds, for a node."""
    command = (sys.executable, "-m", "tests.faults.saver")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {IMAGE: Image(command, {"PYTHONPATH": path}), TORN: Image((*command, "--torn"), {"PYTHONPATH": path})}


@contextlib.contextmanager
def torn(target: Path) -> Iterator[Path]:
    """Not atomic: what is half done is seen, and stays if the process is killed."""
    target.mkdir(parents=True, exist_ok=True)
    yield target


class Saver(stub_trainer.Trainer):
    """Saves as the real trainer does."""

    def __init__(self, config: dict[str, Any], script: stub_trainer.Script) -> None:
        super().__init__(config, script)
        self.run_path = Path(config["runPath"])
        self.new_folder = torn if "--torn" in sys.argv else durable.new_folder
        (self.run_path / FOLDER).mkdir(exist_ok=True)
        durable.clear_leftovers(self.run_path / FOLDER)

    def save(self, step: int) -> None:
        with self.new_folder(self.run_path / FOLDER / f"ep1-ba{step}") as folder:
            (folder / "weights.bin").write_bytes(b"w" * 1000)
            self.pass_gate(f"save-{step}")
            (folder / "state.json").write_text(json.dumps({"step": step, "attempt": self.attempt}))
            durable.write_manifest(folder, {"step": step})
        super().save(step)


if __name__ == "__main__":
    stub_trainer.Trainer = Saver  # type: ignore[misc]
    stub_trainer.main()
