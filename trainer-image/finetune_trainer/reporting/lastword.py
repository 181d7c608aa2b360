"""The last word: a snapshot in the file that the kubelet keeps as the container's termination message."""

import logging
import os
from pathlib import Path

from finetune_api.snapshot import Snapshot

logger = logging.getLogger(__name__)

VARIABLE = "FINETUNE_TERMINATION_LOG"
"""Names another file, and one that isn't there yet."""
KUBELETS_FILE = Path("/dev/termination-log")


def leave(word: Snapshot) -> None:
    """Write it; outside a pod there is nobody who reads it."""
    named = os.environ.get(VARIABLE)
    target = Path(named) if named else KUBELETS_FILE
    if not named and not target.exists():
        return
    try:
        target.write_text(word.last_word(), encoding="utf-8")
    except OSError as error:
        logger.warning("the last word can't be written to %s: %s", target, error)
