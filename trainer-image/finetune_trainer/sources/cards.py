"""What the head of a hub's card (README.md) says: YAML between two lines of dashes. Never trusted to be there."""

from pathlib import Path
from typing import Any

import yaml


def head(folder: Path) -> dict[str, Any]:
    """The facts; none where there is no card, or its head can't be read."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    first = text.split("\n---", 1)[0].removeprefix("---") if text.startswith("---") else ""
    try:
        found = yaml.safe_load(first)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
