"""`make images-test`: builds both images and runs them as a cluster would. Not part of `make test`: it takes long.

The base is a Debian made by mmdebstrap, so no registry is needed. IMAGES_BASE names a tarball that is taken instead,
IMAGES_STORAGE a storage of buildah that has both images already, IMAGES_OPTIONS more options of `buildah build`.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from examples import demo_model
from finetune_operator import manifests
from finetune_operator.run import Run
from finetune_operator.settings import PREFIX, Settings
from tests import ports
from tests.cluster import controlplane
from tests.cluster.operatorprocess import ROOT, OperatorProcess
from tests.cluster.stage import until
from tests.images import build
from tests.images.build import Buildah
from tests.images.container import USER, Mount, image_config, started

IMAGES = ("finetune-operator", "finetune-trainer")
PACKAGES = "ca-certificates,libstdc++6,python3,python3-venv"
TRAINING_SECONDS = 1800


@pytest.fixture(scope="session")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Buildah:
    """A storage with both images."""
    if "IMAGES_STORAGE" in os.environ:
        return Buildah(Path(os.environ["IMAGES_STORAGE"]))
    folder = tmp_path_factory.mktemp("images")
    base = Path(os.environ.get("IMAGES_BASE", folder / "base.tar"))
    if not base.exists():
        subprocess.run(
            ["mmdebstrap", "--variant=essential", f"--include={PACKAGES}", "bookworm", str(base)], check=True
        )
    made = Buildah(folder / "storage")
    source = made.import_base(base)
    with build.context() as sources:
        for image in build.DOCKERFILES:
            options = shlex.split(os.environ.get("IMAGES_OPTIONS", "--isolation chroot"))
            build.build(made, image=image, base=source, context=sources, options=options)
    return made


@pytest.mark.parametrize("image", IMAGES)
def test_it_says_what_it_is_and_runs_as_nobody(buildah: Buildah, image: str) -> None:
    found = image_config(buildah, image)
    assert found["User"] == f"{USER}:{USER}"
    labels = found["Labels"]
    assert labels["org.opencontainers.image.title"] == image
    assert labels["org.opencontainers.image.version"] == version("finetune-operator")
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


@pytest.mark.parametrize("image", IMAGES)
def test_nothing_of_the_build_is_left(buildah: Buildah, image: str) -> None:
    with buildah.mounted(image) as root:
        assert not (root / "build").exists()
        assert not list((root / "opt/finetune/bin").glob("pip*"))
        owned = [path for path in (root / "opt/finetune").rglob("*") if path.lstat().st_uid == USER]
        assert owned == [], "the program can't change itself"


@pytest.mark.parametrize("image", IMAGES)
def test_the_bill_of_materials_has_every_pinned_package(buildah: Buildah, image: str, tmp_path: Path) -> None:
    bill = build.bill_of_materials(buildah, image, target=tmp_path / "bill.json")
    found = {(part["name"].lower(), part.get("version")) for part in json.loads(bill.read_text())["components"]}
    pins = (ROOT / "requirements" / f"{image.removeprefix('finetune-')}.txt").read_text()
    wanted = {tuple(line.split(" ")[0].split("==")) for line in pins.splitlines() if "==" in line}
    assert {(name.replace("-", "_"), at) for name, at in wanted} <= {(n.replace("-", "_"), at) for n, at in found}
    assert any(name == "libc6" for name, _ in found)


def test_the_operator_gets_ready(buildah: Buildah, tmp_path: Path) -> None:
    with controlplane.start(controllers=False) as cluster:
        subprocess.run(
            [cluster.binaries.kubectl, "--kubeconfig", cluster.kubeconfig, "apply", "-f", ROOT / "crds"], check=True
        )
        config = json.loads(cluster.kubeconfig.read_text())
        (server,) = config["clusters"]
        authority = Path(server["cluster"].pop("certificate-authority")).read_bytes()
        server["cluster"]["certificate-authority-data"] = base64.b64encode(authority).decode()
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(json.dumps(config))
        kubeconfig.chmod(0o644)
        health, metrics = ports.free(), ports.free()
        chosen = {"HEALTH_PORT": health, "METRICS_PORT": metrics, "BIND_ADDRESS": "127.0.0.1", "LEASE_SECONDS": 0}
        env = {f"{PREFIX}{key}": str(value) for key, value in chosen.items()} | {"KUBECONFIG": "/kubeconfig"}
        mounts = [Mount("/kubeconfig", kubeconfig, read_only=True), Mount("/tmp")]
        with started(buildah, IMAGES[0], folder=tmp_path, env=env, mounts=mounts):
            asked = OperatorProcess({}, tmp_path / "log", health, metrics)
            until(lambda: asked.says("/readyz"), lambda said: said == "ok", what="/readyz")
            assert asked.healthy()


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A folder that the container's user may write to."""
    folder = tmp_path / "run"
    folder.mkdir()
    os.chown(folder, USER, USER)
    return folder


def readable_hub(folder: Path) -> Path:
    """The demo's model as the hub's cache, for any user of this machine."""
    hub = folder / "hub"
    shutil.copytree(demo_model.hub_cache(), hub, symlinks=True)
    for path in (hub, *hub.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return hub


def test_the_trainer_trains_the_quickstart(buildah: Buildah, volume: Path, tmp_path: Path) -> None:
    data, run = yaml.safe_load_all((ROOT / "examples" / "quickstart.yaml").read_text())
    known: dict[str, Any] = {"namespace": "default", "uid": "0" * 36, "generation": 1, "resourceVersion": "1"}
    run["metadata"] |= known | {"creationTimestamp": "2026-01-01T00:00:00Z"}
    job = manifests.job(Run.parse(run), attempt=1, settings=Settings())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    env = {entry["name"]: entry["value"].replace("$$", "$") for entry in container["env"]}
    (tmp_path / "data").mkdir()
    for name, text in data["data"].items():
        (tmp_path / "data" / name).write_text(text)
    last_word = tmp_path / "last-word"
    last_word.touch()
    last_word.chmod(0o666)
    for folder in (tmp_path, tmp_path / "data"):
        folder.chmod(0o755)
    mounts = [
        Mount("/mnt/run", volume),
        Mount("/mnt/cache"),
        Mount("/mnt/data", tmp_path / "data", read_only=True),
        Mount("/hub", readable_hub(tmp_path), read_only=True),
        Mount("/dev/termination-log", last_word),
    ]
    env |= {"HF_HUB_CACHE": "/hub", "HF_HUB_OFFLINE": "1"}
    with started(buildah, IMAGES[1], folder=tmp_path, env=env, mounts=mounts, offline=True) as process:
        assert process.wait(timeout=TRAINING_SECONDS) == 0
    assert (volume / "output" / "adapter_model.safetensors").exists()
    progress = json.loads(last_word.read_text())["progress"]
    assert progress["batch"] == progress["totalBatches"]
    assert float(progress["loss"]) < 1.0, "it has learned"
