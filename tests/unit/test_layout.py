"""Where files lie: what the tree may hold, what the wheel carries, and why `operator/` is never a package.

Everything here reads the checkout or a copy of it; nothing may be written into it.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("operator/finetune_api", "operator/finetune_operator", "trainer-image/finetune_trainer")
LARGEST_FILE = 1_000_000
USE_THE_STANDARD_LIBRARY = "import collections, dataclasses, operator; operator.itemgetter"
PIN = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>\S+) \\")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?")
ADDRESS_OF_A_REGISTRY = re.compile(r'"resolved": *"https?:|registry *= *"https?:|(?:index.url|find.links)[ =]*\S+[:/]')


def tree() -> list[Path]:
    """Every file of the checkout that git tracks or would."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    files = [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]
    assert ROOT / "pyproject.toml" in files
    return files


def python_in(folder: Path) -> subprocess.CompletedProcess[str]:
    # -S: without the site module, which may have imported the real `operator` already.
    return subprocess.run(
        [sys.executable, "-S", "-c", USE_THE_STANDARD_LIBRARY],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "operator", tmp_path / "operator", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


class TestOperatorIsAModuleOfTheStandardLibrary:
    @pytest.mark.parametrize("folder", ["operator", "trainer-image"])
    def test_a_folder_of_packages_holds_no_module_itself(self, folder: str) -> None:
        assert [path.name for path in (ROOT / folder).glob("*.py*")] == []

    def test_python_started_at_the_root_finds_the_standard_one(self) -> None:
        result = python_in(ROOT)
        assert result.returncode == 0, result.stderr

    def test_it_would_not_if_the_folder_became_a_package(self, copy: Path) -> None:
        assert python_in(copy).returncode == 0
        (copy / "operator" / "__init__.py").touch()
        result = python_in(copy)
        assert result.returncode != 0
        assert "'operator'" in result.stderr


class TestTheTree:
    def test_no_file_is_larger_than_a_megabyte(self) -> None:
        assert {str(path.relative_to(ROOT)) for path in tree() if path.stat().st_size > LARGEST_FILE} == set()

    def test_no_file_names_the_address_of_a_package_registry(self) -> None:
        named = {
            str(path.relative_to(ROOT))
            for path in tree()
            if path != Path(__file__)  # which has to spell out what it looks for
            if ADDRESS_OF_A_REGISTRY.search(path.read_text(encoding="utf-8", errors="replace"))
        }
        assert named == set()

    @pytest.mark.parametrize("text", ['"resolved": "http://x/y.tgz"', "index_url = https://x", "--find-links=/opt"])
    def test_such_an_address_would_be_seen(self, text: str) -> None:
        assert ADDRESS_OF_A_REGISTRY.search(text)

    def test_the_api_imports_pydantic_and_the_standard_library_alone(self) -> None:
        allowed = sys.stdlib_module_names | {"finetune_api", "pydantic", "pydantic_core", "typing_extensions"}
        foreign = {
            (path.stem, name)
            for path in (ROOT / "operator" / "finetune_api").glob("*.py")
            for name in imported(path) - allowed
        }
        assert foreign <= {("crd", "yaml")}  # the generator writes YAML, and runs nowhere but in a checkout


def imported(path: Path) -> set[str]:
    """The top-level names that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_the_wheel_carries_the_packages_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    packages = {Path(package).name for package in PACKAGES}
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == packages
    assert {f"{package}/py.typed" for package in packages} <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def pins(name: str) -> dict[str, str]:
    """Name to version of a requirements file, each of whose lines is an exact pin, a hash or a comment."""
    found = {}
    for line in (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if pin := PIN.fullmatch(line):
            found[pin["name"]] = pin["version"]
        else:
            assert HASH.fullmatch(line) or line.startswith("#"), f"{name}.txt: {line!r}"
    assert found
    return found


class TestThePins:
    @pytest.mark.parametrize("name", ["dev", "operator", "trainer", "demo", "uv"])
    def test_each_is_one_version_with_hashes(self, name: str) -> None:
        assert pins(name)

    @pytest.mark.parametrize("name", ["operator", "trainer"])
    def test_the_images_get_what_the_tests_ran_with(self, name: str) -> None:
        assert pins(name).items() <= pins("dev").items()

    @pytest.mark.parametrize(
        ("extra", "name"), [("operator", "operator"), ("trainer", "trainer"), ("client", "dev"), ("dev", "dev")]
    )
    def test_they_are_what_pyproject_asks_for(self, extra: str, name: str) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        wanted = [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"][extra]]
        found = pins(name)
        missing = [
            str(requirement)
            for requirement in wanted
            if requirement.name != project["name"]
            and not requirement.specifier.contains(found.get(requirement.name, "0"))
        ]
        assert missing == []
