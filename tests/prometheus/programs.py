"""Prometheus and promtool, for tests: PROMETHEUS names the first, else PATH and the cache are searched."""

import os
import shutil
from pathlib import Path

import pytest

CACHED = Path("finetune-operator", "prometheus", "usr", "bin", "prometheus")


def prometheus() -> Path:
    """The binary; promtool lies beside it. Skips the test without one, but fails it in CI."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / CACHED
    found = os.environ.get("PROMETHEUS") or shutil.which("prometheus") or (str(cache) if cache.exists() else None)
    if found:
        return Path(found)
    reason = "no Prometheus: install it, or name its binary in PROMETHEUS"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def promtool() -> Path:
    """Promtool's binary."""
    return prometheus().with_name("promtool")
