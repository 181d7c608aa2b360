"""The contracts of import-linter in pyproject.toml, shown to bite: each is broken once in a copy, and says so."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

VIOLATIONS = {
    "packages": ("trainer-image/finetune_trainer/loop.py", "import finetune_operator"),
    "operator": ("operator/finetune_operator/names.py", "import finetune_operator.reconcile"),
    "trainer": ("trainer-image/finetune_trainer/distributed.py", "import finetune_trainer.loop"),
    "trainer-saves": ("trainer-image/finetune_trainer/saves/durable.py", "import finetune_trainer.saves.output"),
    "trainer-learning": (
        "trainer-image/finetune_trainer/learning/adapter.py",
        "import finetune_trainer.learning.model",
    ),
    "trainer-data": ("trainer-image/finetune_trainer/data/messages.py", "import finetune_trainer.data.prepare"),
    "trainer-sources": ("trainer-image/finetune_trainer/sources/formats.py", "import finetune_trainer.sources.hub"),
    "trainer-reporting": (
        "trainer-image/finetune_trainer/reporting/journal.py",
        "import finetune_trainer.reporting.server",
    ),
    "trainer-tracking": (
        "trainer-image/finetune_trainer/tracking/server.py",
        "import finetune_trainer.tracking.tracker",
    ),
    "api-is-pydantic": ("operator/finetune_api/uris.py", "import aiohttp"),
    "kopf-at-the-edge": ("operator/finetune_operator/reconcile.py", "import kopf"),
    "kubernetes-at-the-edge": ("operator/finetune_operator/status.py", "import kubernetes.aio.client"),
    "prometheus-in-metrics": ("operator/finetune_operator/workqueue.py", "import prometheus_client"),
    "no-torch-in-the-operator": ("operator/finetune_operator/progress.py", "import torch"),
}


def contracts() -> dict[str, str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    return {contract["id"]: contract["name"] for contract in settings["contracts"]}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("operator", "trainer-image"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint(folder: Path) -> str:
    """What lint-imports says of a checkout, whose packages are found before the installed ones."""
    paths = os.pathsep.join([str(folder / "operator"), str(folder / "trainer-image")])
    return subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    ).stdout


def plant(folder: Path, *, path: str, line: str) -> None:
    with (folder / path).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")


def test_every_contract_has_a_violation_here() -> None:
    assert set(VIOLATIONS) == set(contracts())


def test_every_contract_is_kept_and_is_broken_by_its_violation(copy: Path) -> None:
    names = contracts()
    before = lint(copy)
    assert [name for name in names.values() if f"{name} KEPT" not in before] == [], before
    for path, line in VIOLATIONS.values():
        plant(copy, path=path, line=line)
    after = lint(copy)
    assert [name for name in names.values() if f"{name} BROKEN" not in after] == [], after


@pytest.mark.parametrize("package", ["operator/finetune_operator", "trainer-image/finetune_trainer"])
def test_a_module_without_a_layer_is_refused(copy: Path, package: str) -> None:
    module = copy / package / "helpers.py"
    module.touch()
    try:
        assert f"{Path(package).name}.helpers" in lint(copy)
    finally:
        module.unlink()
