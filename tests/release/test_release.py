"""S19: a release is the commit's and nothing else's, equal byte for byte, and what isn't what was signed is refused."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests import ports
from tests.chart import tools
from tests.release import build, oci, signing
from tests.release.oci import TinyImage

ROOT = Path(__file__).resolve().parents[2]
TAKEN = ("operator", "trainer-image", "charts", "crds", "requirements", "tests")
COMMITTED = "2026-01-02T03:04:05+00:00"


def git(folder: Path, *arguments: str) -> str:
    who = {f"GIT_{role}_{what}": "release" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    when = {"GIT_AUTHOR_DATE": COMMITTED, "GIT_COMMITTER_DATE": COMMITTED, "GIT_CONFIG_GLOBAL": os.devnull}
    found = subprocess.run(
        ["git", *arguments], cwd=folder, env={**os.environ, **who, **when}, check=True, capture_output=True, text=True
    )
    return found.stdout.strip()


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with what is released, as it is in this checkout."""
    folder = tmp_path_factory.mktemp("source")
    left_out = shutil.ignore_patterns("__pycache__")
    for name in TAKEN:
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    for path in (ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", ".gitignore")):
        shutil.copy(path, folder)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "All of it")
    return folder


@pytest.fixture
def clone(source: Path, tmp_path: Path) -> Path:
    git(tmp_path, "clone", "--quiet", str(source), "clone")
    return tmp_path / "clone"


@pytest.fixture(scope="session")
def cosign() -> signing.Cosign:
    found = signing.cosign(build=False)
    if found is None:
        pytest.skip("there is no cosign: make cosign")
    return found


@pytest.fixture
def keys(cosign: signing.Cosign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with keys that are thrown away: own.key, own.pub, other.key, other.pub."""
    monkeypatch.setenv("COSIGN_PASSWORD", "of this test")
    folder = tmp_path / "keys"
    folder.mkdir()
    for name in ("own", "other"):
        command = [str(cosign.program), "generate-key-pair", "--output-key-prefix", name]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real registry on this machine."""
    folder = signing.REGISTRY.found()
    if folder is None:
        pytest.skip("there is no registry: make cosign")
    home, port = tmp_path_factory.mktemp("registry"), ports.free()
    settings = {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(home / "data")}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "of this test"},
    }
    (home / "settings.yaml").write_text(yaml.safe_dump(settings))
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [str(folder / "registry"), "serve", str(home / "settings.yaml")], stdout=log, stderr=log
        )
    try:
        end = time.monotonic() + 30
        while not _answers(f"http://127.0.0.1:{port}/v2/"):
            assert process.poll() is None, (home / "log").read_text()
            assert time.monotonic() < end, (home / "log").read_text()
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def image_of(clone: Path, revision: str) -> TinyImage:
    """As if `make images` had made one there."""
    folder = clone / "dist" / "images"
    folder.mkdir(parents=True)
    image = TinyImage({build.REVISION: revision})
    image.save(folder / "finetune-operator.tar")
    (folder / "finetune-operator.cdx.json").write_text('{"bomFormat": "CycloneDX"}')
    return image


def test_two_releases_of_one_commit_are_equal(source: Path, tmp_path: Path) -> None:
    released = []
    for name, umask in (("one", 0o022), ("two", 0o077)):
        before = os.umask(umask)
        try:
            git(tmp_path, "clone", "--quiet", str(source), name)
            (tmp_path / name / "charts" / "finetune-operator" / "values.yaml").touch()
            (tmp_path / name / "charts" / "finetune-operator" / "__pycache__").mkdir()
            sums = build.release(tmp_path / name, tmp_path / f"{name}.out")
        finally:
            os.umask(before)
        released.append({path.name: path.read_bytes() for path in sums.parent.iterdir()})
        time.sleep(1.1)  # a time in seconds would differ
    assert released[0] == released[1]
    assert sorted(released[0]) == [
        "SHA256SUMS",
        "finetune-operator-0.1.0.tgz",
        "finetune-operator-crds.yaml",
        "finetune_operator-0.1.0-py3-none-any.whl",
        "provenance.json",
    ]


def test_it_holds_what_is_installed(clone: Path, tmp_path: Path) -> None:
    image = image_of(clone, git(clone, "rev-parse", "HEAD"))
    out = build.release(clone, tmp_path / "out").parent
    with zipfile.ZipFile(next(out.glob("*.whl"))) as wheel:
        assert "finetune_operator/reconcile.py" in wheel.namelist()
    helm = str(tools.helm(4))
    rendered = subprocess.run(
        [helm, "template", "x", str(next(out.glob("*.tgz")))], check=True, capture_output=True, text=True
    ).stdout
    kinds = [one["kind"] for one in yaml.load_all(rendered, Loader=yaml.CSafeLoader) if one]
    crds = list(yaml.load_all((out / build.CRDS).read_text(), Loader=yaml.CSafeLoader))
    assert kinds.count("CustomResourceDefinition") == len(crds) == len(list((ROOT / "crds").glob("*.yaml")))
    assert (out / build.IMAGES).read_text() == f"{oci.digest(image.manifest)} finetune-operator\n"
    statement = json.loads((out / build.PROVENANCE).read_text())
    told = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    assert told == {path.name: build.sha256(path) for path in out.iterdir() if path.name in told}
    assert told.keys() == {path.name for path in out.iterdir()} - {build.SUMS, build.PROVENANCE}
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", build.SUMS], cwd=out, check=True)
    listed = {line.split()[1] for line in (out / build.SUMS).read_text().splitlines()}
    assert listed == {path.name for path in out.iterdir()} - {build.SUMS}


def test_the_command_makes_and_signs_it(cosign: signing.Cosign, keys: Path, clone: Path) -> None:
    key = ("--key", str(keys / "own.key"))
    signed = command(clone, *key)
    assert signed.stdout.splitlines()[-1].endswith(f"dist/release/{build.SUMS}{signing.SIGNATURE}"), signed.stderr
    sums = clone / "dist" / "release" / build.SUMS
    assert signed.stdout.startswith(sums.read_text())
    cosign.verify(sums, key=keys / "own.pub")
    assert command(clone).stdout == f"{sums.read_text()}not signed: KEY=... names a key\n"
    assert not sums.with_name(sums.name + signing.SIGNATURE).exists()
    (clone / "README.md").unlink()
    refused = command(clone, *key)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "no release: 1 files aren't committed, such as README.md: commit or remove them\n"


def command(clone: Path, *options: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "tests.release.build", *options]
    return subprocess.run(program, cwd=clone, capture_output=True, text=True, check=False)


def test_what_is_not_committed_is_not_released(clone: Path, tmp_path: Path) -> None:
    (clone / "operator" / "new.py").touch()
    with pytest.raises(build.ReleaseError, match=r"1 files aren't committed, such as operator/new\.py"):
        build.release(clone, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_of_another_commit_are_not_released(clone: Path, tmp_path: Path) -> None:
    image_of(clone, "0" * 40)
    with pytest.raises(build.ReleaseError, match="finetune-operator in dist/images: made from another commit"):
        build.release(clone, tmp_path / "out")


def test_a_signature_holds_for_the_file_and_the_key_alone(cosign: signing.Cosign, keys: Path, tmp_path: Path) -> None:
    sums = tmp_path / build.SUMS
    sums.write_text("0" * 64 + "  a\n")
    signature = cosign.sign(sums, key=str(keys / "own.key"))
    cosign.verify(sums, key=keys / "own.pub")
    with pytest.raises(signing.SigningError, match="invalid signature"):
        cosign.verify(sums, key=keys / "other.pub")
    content = bytearray(sums.read_bytes())
    content[7] ^= 1
    sums.write_bytes(content)
    with pytest.raises(signing.SigningError, match="invalid signature"):
        cosign.verify(sums, key=keys / "own.pub")
    content[7] ^= 1
    sums.write_bytes(content)
    cosign.verify(sums, key=keys / "own.pub")
    changed = json.loads(signature.read_text())
    signed = bytearray(base64.b64decode(changed["messageSignature"]["signature"]))
    signed[-1] ^= 1
    changed["messageSignature"]["signature"] = base64.b64encode(signed).decode()
    signature.write_text(json.dumps(changed))
    with pytest.raises(signing.SigningError, match="invalid signature"):
        cosign.verify(sums, key=keys / "own.pub")


def test_openssl_alone_can_check_it(cosign: signing.Cosign, keys: Path, tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl")
    sums = tmp_path / build.SUMS
    sums.write_text("0" * 64 + "  a\n")
    cosign.sign(sums, key=str(keys / "own.key"))
    shutil.copy(keys / "own.pub", tmp_path / "finetune-operator.pub")
    script = (ROOT / "docs" / "install.md").read_text().partition("<!-- openssl -->\n\n")[2].partition("\n\n")[0]
    assert "openssl dgst" in script
    assert _shell(script, tmp_path) == "Verified OK"
    sums.write_text("1" * 64 + "  a\n")
    assert "Verified OK" not in _shell(script, tmp_path)


def _shell(script: str, folder: Path) -> str:
    return subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True, text=True, check=False).stdout.strip()


def test_a_key_that_is_none_signs_nothing(cosign: signing.Cosign, tmp_path: Path) -> None:
    (tmp_path / build.SUMS).write_text("")
    with pytest.raises(signing.SigningError, match="cosign sign-blob"):
        cosign.sign(tmp_path / build.SUMS, key=str(tmp_path / "no.key"))


def test_a_pushed_image_is_signed_by_its_digest(
    cosign: signing.Cosign, keys: Path, registry: str, clone: Path, tmp_path: Path
) -> None:
    image = image_of(clone, git(clone, "rev-parse", "HEAD"))
    image.push(registry, "finetune-operator", "0.1.0")
    sums = build.release(clone, tmp_path / "out")
    digest = (sums.parent / build.IMAGES).read_text().split()[0]
    signed = list(build.sign(sums, key=str(keys / "own.key"), registry=registry))
    assert signed == [f"{sums}{signing.SIGNATURE}", f"{registry}/finetune-operator@{digest}"]
    cosign.verify_image(f"{registry}/finetune-operator:0.1.0", key=keys / "own.pub")
    with pytest.raises(signing.SigningError):
        cosign.verify_image(f"{registry}/finetune-operator:0.1.0", key=keys / "other.pub")
    TinyImage({"another": "image"}).push(registry, "finetune-operator", "0.1.0")  # the tag is moved
    with pytest.raises(signing.SigningError):
        cosign.verify_image(f"{registry}/finetune-operator:0.1.0", key=keys / "own.pub")
    cosign.verify_image(f"{registry}/finetune-operator@{digest}", key=keys / "own.pub")


def test_an_image_that_is_not_there_is_not_signed(
    cosign: signing.Cosign, keys: Path, registry: str, clone: Path, tmp_path: Path
) -> None:
    image_of(clone, git(clone, "rev-parse", "HEAD"))
    sums = build.release(clone, tmp_path / "out")
    with pytest.raises(signing.SigningError, match="cosign sign"):
        list(build.sign(sums, key=str(keys / "own.key"), registry=f"{registry}/elsewhere"))
