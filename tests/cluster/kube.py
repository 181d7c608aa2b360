"""The Kubernetes binaries of the tests and the demo: found, or built once from the versions that go.mod pins.

`binaries()` gives their paths; `python -m tests.cluster.kube` (`make kube`) builds them and shows how far it is.
KUBEBUILDER_ASSETS comes first, for people who have binaries; else Go builds unmodified Kubernetes and etcd into a cache
folder named after go.mod and go.sum. Standard library alone, so that it runs before there is a virtual environment.
It must never write into the checkout, leave a half-built folder that looks whole, or mix binaries of two versions.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fcntl
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.gobuild import Build

HERE = Path(__file__).resolve().parent
REMEDY = "install Go 1.26 (https://go.dev/dl), or name a folder of Kubernetes binaries in KUBEBUILDER_ASSETS"

PACKAGES: Mapping[str, str] = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
}

BUILD = Build(name="kube", pins=HERE, programs=PACKAGES)
"""What go.mod says; the building itself is done here, for it takes long and shows how far it is."""

# Go 1.27 encodes JSON otherwise, and the API server's OpenAPI then has an invalid property: build with 1.26.
GO_RELEASE = "go1.26"
GO_TOOLCHAIN = "go1.26.8"

Progress = Callable[[str], None]


class KubeUnavailable(Exception):
    """There is no Kubernetes to be had here; the message is one line that says why and what would help."""


@dataclasses.dataclass(frozen=True)
class Binaries:
    """Where each binary lies."""

    etcd: Path
    kube_apiserver: Path
    kube_controller_manager: Path
    kube_scheduler: Path
    kubectl: Path


def binaries(*, progress: Progress | None = None) -> Binaries:
    """The binaries to use, built if need be; raises KubeUnavailable."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets:
        return _from_assets(Path(assets))
    folder = cache_folder()
    if not _whole(folder):
        _build_once(folder, progress=progress or (lambda line: None))
    return _in(folder)


def cache_folder() -> Path:
    """Where the binaries of this go.mod and go.sum belong."""
    return BUILD.folder


def version() -> str:
    """The Kubernetes release that go.mod pins, such as v1.36.3."""
    return BUILD.version("k8s.io/kubernetes")


def _from_assets(folder: Path) -> Binaries:
    missing = [name for name in PACKAGES if not os.access(folder / name, os.X_OK)]
    kubectl = shutil.which("kubectl")
    if missing == ["kubectl"] and kubectl:
        return dataclasses.replace(_in(folder), kubectl=Path(kubectl))
    if missing:
        raise KubeUnavailable(
            f"KUBEBUILDER_ASSETS={folder} has no {', '.join(missing)}: add them, or unset it to build with Go"
        )
    return _in(folder)


def _in(folder: Path) -> Binaries:
    return Binaries(**{name.replace("-", "_"): folder / name for name in PACKAGES})


def _whole(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in PACKAGES)


def _build_once(folder: Path, *, progress: Progress) -> None:
    """Build into a folder beside the wanted one and rename it; whoever comes second waits for the first."""
    environment = _go_environment()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_suffix(".lock"), progress=progress):
        if _whole(folder):
            return
        with tempfile.TemporaryDirectory(
            prefix=f"{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True
        ) as building:
            started = time.monotonic()
            for number, name in enumerate(PACKAGES, start=1):
                label = f"{name} ({number} of {len(PACKAGES)})"
                _build(
                    name, into=Path(building), environment=environment, label=label, started=started, progress=progress
                )
            shutil.rmtree(folder, ignore_errors=True)
            Path(building).chmod(0o755)
            Path(building).rename(folder)


@contextlib.contextmanager
def _lock(path: Path, *, progress: Progress) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process is building Kubernetes; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _go_environment() -> dict[str, str]:
    """The user's environment with what the build needs fixed; raises KubeUnavailable without a fitting Go."""
    if not shutil.which("go"):
        raise KubeUnavailable(f"there is neither Go nor a folder of Kubernetes binaries: {REMEDY}")
    fixed = {"CGO_ENABLED": "0", "GOWORK": "off"}
    wanted = {**os.environ, **fixed}
    found = _go_version(wanted)
    if found.startswith(GO_RELEASE):
        return wanted
    wanted["GOTOOLCHAIN"] = GO_TOOLCHAIN
    if not _go_version(wanted).startswith(GO_RELEASE):
        raise KubeUnavailable(
            f"Kubernetes is built with {GO_RELEASE}, and {found} couldn't fetch {GO_TOOLCHAIN}: {REMEDY}"
        )
    return wanted


def _go_version(environment: Mapping[str, str]) -> str:
    """What Go would compile this module, such as go1.26.8; else its complaint."""
    result = subprocess.run(
        ["go", "env", "GOVERSION"], cwd=HERE, env=environment, capture_output=True, text=True, check=False
    )
    return (result.stdout if result.returncode == 0 else result.stderr).strip()


def _build(
    name: str, *, into: Path, environment: Mapping[str, str], label: str, started: float, progress: Progress
) -> None:
    """One `go build`; with -v it names each package as it compiles it, and that is the progress shown."""
    command = ["go", "build", "-v", "-trimpath", "-ldflags", _ldflags(), "-o", str(into / name), PACKAGES[name]]
    said: collections.deque[str] = collections.deque(maxlen=20)
    compiled = 0
    with subprocess.Popen(command, cwd=HERE, env=environment, stderr=subprocess.PIPE, text=True) as build:
        try:
            for line in _lines_and_ticks(build):
                compiled += bool(line) and not line.startswith("go: ")
                said.extend([line] if line else [])
                progress(f"{label}, {_clock(started)}, {compiled} packages compiled")
        except BaseException:
            build.terminate()
            raise
    if build.returncode != 0:
        raise KubeUnavailable(f"go build of {name} failed: {' | '.join(said)}")


def _lines_and_ticks(build: subprocess.Popen[str]) -> Iterator[str]:
    """Each line as it comes, and an empty one in every second without, for linking is silent."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        assert build.stderr
        for line in build.stderr:
            lines.put(line.strip())
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=1)
        except queue.Empty:
            line = ""
        if line is None:
            return
        yield line


def _ldflags() -> str:
    release = version()
    major, minor, _ = release.removeprefix("v").split(".")
    named = {"gitVersion": release, "gitMajor": major, "gitMinor": minor}
    modules = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(["-s", "-w", *(f"-X {module}.{key}={value}" for module in modules for key, value in named.items())])


def _clock(started: float) -> str:
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    return f"{minutes}:{seconds:02}"


class ProgressLine:
    """One line that rewrites itself on a terminal; elsewhere a line every quarter of a minute."""

    def __init__(self) -> None:
        self.due = 0.0

    def __call__(self, text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K{text[:100]}")
        elif time.monotonic() >= self.due:
            self.due = time.monotonic() + 15
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def main() -> int:
    """Build what isn't there yet; 0 when it is there at the end, 69 (EX_UNAVAILABLE) when it can't be had."""
    try:
        found = binaries(progress=ProgressLine())
    except KubeUnavailable as error:
        print(f"no Kubernetes: {error}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    except KeyboardInterrupt:
        return 130
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    print(f"Kubernetes {version()}: {found.kube_apiserver.parent}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
