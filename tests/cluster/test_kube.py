"""Finding and building the binaries: what is said when they can't be had. Every other test here rests on the build."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster import kube


def executable(path: Path) -> None:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


def test_assets_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in kube.PACKAGES:
        executable(tmp_path / name)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert kube.binaries().kube_apiserver == tmp_path / "kube-apiserver"


def test_what_the_assets_lack_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable(tmp_path / "etcd")
    executable(tmp_path / "kube-apiserver")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    with pytest.raises(kube.KubeUnavailable, match="has no kube-controller-manager, kube-scheduler, kubectl: add"):
        kube.binaries()


def test_the_kubectl_on_the_path_will_do_for_assets_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets, path = tmp_path / "assets", tmp_path / "path"
    assets.mkdir()
    path.mkdir()
    for name in kube.PACKAGES:
        executable((path if name == "kubectl" else assets) / name)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    monkeypatch.setenv("PATH", str(path))
    assert kube.binaries().kubectl == path / "kubectl"


def without_assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return programs


def test_without_go_the_remedy_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = without_assets(tmp_path, monkeypatch)
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(
        kube.KubeUnavailable, match=r"^there is neither Go nor .*: install Go 1\.26 .*KUBEBUILDER_ASSETS$"
    ):
        kube.binaries()


def test_a_go_that_is_too_new_is_asked_for_the_right_toolchain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = without_assets(tmp_path, monkeypatch)
    (programs / "go").write_text('#!/bin/sh\necho "${GOTOOLCHAIN:-go1.27.1}" | sed s/go1.26.8/unreachable/\n')
    (programs / "go").chmod(0o755)
    monkeypatch.delenv("GOTOOLCHAIN", raising=False)
    with pytest.raises(kube.KubeUnavailable, match=r"built with go1\.26, and go1\.27\.1 couldn't fetch go1\.26\.8"):
        kube.binaries()


def test_a_failed_build_says_what_go_said_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = without_assets(tmp_path, monkeypatch)
    (programs / "go").write_text(
        '#!/bin/sh\n[ "$1" = env ] && echo go1.26.8 && exit\necho "no space left on device" >&2\nexit 1\n'
    )
    (programs / "go").chmod(0o755)
    with pytest.raises(kube.KubeUnavailable, match="go build of etcd failed: no space left on device"):
        kube.binaries()
    assert [path.suffix for path in kube.cache_folder().parent.iterdir()] == [".lock"]


def test_the_version_is_the_one_that_go_mod_pins() -> None:
    assert kube.version() in (kube.HERE / "go.mod").read_text()
    assert kube.version().startswith("v1.")
