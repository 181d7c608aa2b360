"""`make checkov`: checkov on what the chart renders and on the Dockerfiles; 0 if nothing fails but what is waived here.

checkov is big and its dependencies clash with ours, so it has a virtual environment of its own in the cache. It takes
a minute the first time, which is why it isn't among the tests. It must never waive anything without a reason.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.chart import tools
from tests.chart.generate import CHART, ROOT

VERSION = "3.3.30"
WAIVED: Mapping[str, str] = {
    "CKV_K8S_11": "no CPU limit: throttled, the operator would renew its lease late; its request is its share",
    "CKV_K8S_15": "IfNotPresent: a tag is a release and never changes; image.pullPolicy has the choice",
    "CKV_K8S_38": "the operator is a client of the API server, and so has a token; a trainer has none",
    "CKV_K8S_43": "the registry is the user's, and so is the digest: image.digest",
    "CKV_DOCKER_2": "Kubernetes asks /healthz and /readyz itself, and ignores HEALTHCHECK",
    "CKV_DOCKER_7": "the base is an argument, and must be named by digest",
}
DOCKERFILES = ("operator/Dockerfile", "trainer-image/Dockerfile")


def program() -> Path:
    """checkov, installed on the first use."""
    folder = tools.cache() / f"checkov-{VERSION}"
    found = folder / "bin" / "checkov"
    if not found.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(folder / "bin" / "pip"), "install", "--quiet", f"checkov=={VERSION}"]
        subprocess.run(pip, check=True)
    return found


def main() -> int:
    """The first exit code that isn't 0, else 0."""
    with tempfile.TemporaryDirectory() as name:
        rendered = Path(name) / "chart.yaml"
        template = [str(tools.helm(4)), "template", "finetune-operator", str(CHART), "--namespace", "finetune-system"]
        rendered.write_text(subprocess.run(template, check=True, capture_output=True, text=True).stdout)
        return scan("kubernetes", rendered) or scan("dockerfile", *(ROOT / path for path in DOCKERFILES))


def scan(framework: str, *files: Path) -> int:
    """Checkov's own exit code."""
    command = [str(program()), "--skip-download", "--quiet", "--compact", "--framework", framework]
    command += ["--skip-check", ",".join(WAIVED), *(word for path in files for word in ("--file", str(path)))]
    return subprocess.run(command, check=False, env={**os.environ, "LOG_LEVEL": "ERROR"}).returncode


if __name__ == "__main__":
    sys.exit(main())
