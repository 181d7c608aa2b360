"""What a Custom task's container runs: the user's command, under a program that speaks the run protocol for it. Pure.

The program is one file. It comes into the pod as an annotation, which a downwardAPI volume makes a file again: no image
has to be pulled to copy it, no further object has to be owned, and Pod Security `restricted` allows it.
"""

import functools
import inspect

from finetune_api import wrapper
from finetune_api.spec import FineTuneRunSpec
from finetune_api.types import GROUP
from finetune_operator.names import Manifest

ANNOTATION = f"{GROUP}/wrapper"
FOLDER = "/mnt/wrapper"
FILE = "wrapper.py"
VOLUME = "wrapper"
INTERPRETER = "python3"
PROGRESS_VARIABLE = "FINETUNE_PROGRESS_FILE"
"""Where the command writes how far it is; a user's own value counts."""
GRACE_VARIABLE = "FINETUNE_GRACE_SECONDS"


def annotations() -> dict[str, str]:
    """Of the pod: the program."""
    return {ANNOTATION: _program()}


@functools.cache
def _program() -> str:
    return inspect.getsource(wrapper)


def mount() -> tuple[Manifest, Manifest]:
    """The volume with the program, and where it is mounted."""
    item = {"path": FILE, "fieldRef": {"fieldPath": f"metadata.annotations['{ANNOTATION}']"}}
    volume = {"name": VOLUME, "downwardAPI": {"items": [item]}}
    return volume, {"name": VOLUME, "mountPath": FOLDER, "readOnly": True}


def command(spec: FineTuneRunSpec) -> dict[str, list[str]]:
    """The container's command and arguments."""
    return {"command": [INTERPRETER, f"{FOLDER}/{FILE}", "--", *spec.trainer.command], "args": [*spec.trainer.args]}


def environment(spec: FineTuneRunSpec, *, ours: list[Manifest], progress: str, grace_seconds: int) -> list[Manifest]:
    """The user's variables after ours, of which only places for files may be overridden."""
    fixed = {"FINETUNE_CONFIG", GRACE_VARIABLE} | {entry["name"] for entry in ours if "valueFrom" in entry}
    own = {name: value for name, value in spec.trainer.env.items() if name not in fixed}
    found = [entry for entry in ours if entry["name"] not in own]
    if PROGRESS_VARIABLE not in own:
        found.append({"name": PROGRESS_VARIABLE, "value": progress})
    found.append({"name": GRACE_VARIABLE, "value": str(grace_seconds)})
    return found + [{"name": name, "value": value} for name, value in own.items()]
