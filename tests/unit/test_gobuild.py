"""Building from Go modules, with a stand-in for Go: what is kept, what is said, and that nothing half-built counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.gobuild import Build, BuildError, build_all

GO = """#!/bin/sh
echo "$@" >> "{log}"
while [ $# -gt 0 ]; do
  if [ "$1" = -o ]; then printf '#!/bin/sh\\n' > "$2"; chmod +x "$2"; fi
  shift
done
{then}
"""


@dataclasses.dataclass(frozen=True)
class Ground:
    """A go.mod, a cache of the test's own, and a Go that notes how it is called."""

    folder: Path

    @property
    def build(self) -> Build:
        return Build(name="thing", pins=self.folder / "pins", programs={"one": "example.com/one", "two": "./two"})

    @property
    def calls(self) -> list[str]:
        log = self.folder / "calls"
        return log.read_text().splitlines() if log.exists() else []

    def go(self, then: str = "") -> None:
        program = self.folder / "bin" / "go"
        program.write_text(GO.format(log=self.folder / "calls", then=then))
        program.chmod(0o755)


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ground:
    (tmp_path / "bin").mkdir()
    (tmp_path / "pins").mkdir()
    (tmp_path / "pins" / "go.mod").write_text("module x\n\nrequire example.com/one v1.2.3 // indirect\n")
    (tmp_path / "pins" / "go.sum").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return Ground(tmp_path)


def test_what_was_built_is_found_and_not_built_again(ground: Ground) -> None:
    ground.go()
    assert ground.build.found() is None
    folder = ground.build.build()
    assert {path.name for path in folder.iterdir()} == {"one", "two"}
    assert ground.build.build() == ground.build.found() == folder
    assert [call.rsplit(" ", 1)[1] for call in ground.calls] == ["example.com/one", "./two"]


def test_a_failed_build_says_why_and_leaves_nothing_that_is_found(ground: Ground) -> None:
    ground.go("echo no such package >&2; exit 1")
    with pytest.raises(BuildError, match=r"^go build .*example.com/one failed: no such package$"):
        ground.build.build()
    assert ground.build.found() is None
    assert not ground.build.folder.exists()
    ground.go()
    assert ground.build.build() == ground.build.found()


def test_a_command_says_where_all_lies_or_why_it_does_not(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    ground.go("echo no such package >&2; exit 1")
    assert build_all(ground.build) == 69
    assert capsys.readouterr().err.startswith("no thing: go build ")
    ground.go()
    assert build_all(ground.build) == 0
    assert capsys.readouterr().out.startswith(f"thing: {ground.build.found()} (")


def test_without_go_the_remedy_is_one_line(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(ground.folder / "bin"))
    with pytest.raises(BuildError, match=r"^there is no Go: install Go 1\.26 \(https://go\.dev/dl\)$"):
        ground.build.build()


@pytest.mark.parametrize("name", ["go.mod", "go.sum", "two/main.go"])
def test_another_version_or_another_program_of_ours_is_another_build(ground: Ground, name: str) -> None:
    before = ground.build.folder
    path = ground.build.pins / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("changed")
    assert ground.build.folder != before
    assert ground.build.folder.parent == before.parent


def test_the_pinned_version_is_told(ground: Ground) -> None:
    assert ground.build.version("example.com/one") == "v1.2.3"
