"""`python -m tests.security.scan`: bandit, semgrep with our own rules, detect-secrets; 0 if none finds anything.

semgrep pins old versions of what others here need, so the three live in a virtual environment of their own in the
cache, from a hash-pinned list. Nothing is asked of a network once it is there. It must never waive anything by itself:
a waiver stands in rules/waivers.yaml, with its reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from tests import cached

ROOT = Path(__file__).resolve().parents[2]
PINS = ROOT / "requirements" / "semgrep.txt"
RULES = Path(__file__).resolve().parent / "rules" / "rules.yaml"
WAIVERS = RULES.with_name("waivers.yaml")
GENERATED = (
    "crds/",
    "charts/finetune-operator/files/",
    "requirements/",
    "docs/api",
    "docs/images/",
    "tests/golden/",
    "LICENSE",
)
"""Made from what is scanned, or lists of hashes."""
ELSEWHERE = (
    "ArtifactoryDetector",
    "CloudantDetector",
    "DiscordBotTokenDetector",
    "IPPublicDetector",
    "IbmCloudIamDetector",
    "IbmCosHmacDetector",
    "MailchimpDetector",
    "SendGridDetector",
    "SoftlayerDetector",
    "SquareOAuthDetector",
    "StripeDetector",
    "TelegramBotTokenDetector",
    "TwilioKeyDetector",
)
"""Keys of services that nothing here has to do with."""
NAMES_OF_TESTS = ("Secret Keyword", "Basic Auth Credentials")
"""Not of tests, which call a Secret by its name: keys of a known form and random text are found there too."""
PACKAGES = ("operator", "trainer-image", "charts", "examples", "benchmarks")
QUIET = {"SEMGREP_SEND_METRICS": "off", "SEMGREP_ENABLE_VERSION_CHECK": "0", "SEMGREP_LOG_FILE": os.devnull}


def tools() -> Path:
    """The folder of the programs, installed on the first use: a minute, then nothing."""
    return cached.environment("security", PINS)


def semgrep(root: Path) -> Sequence[tuple[str, str, int]]:
    """Rule, path and line of each finding of our rules below a folder."""
    command = [str(tools() / "semgrep"), "scan", "--config", str(RULES), "--metrics=off", "--disable-version-check"]
    command += ["--quiet", "--json", "--no-git-ignore", "--jobs=1", "--strict", "--disable-nosem"]
    folders = [name for name in (*PACKAGES, "tests") if (root / name).is_dir()]
    done = subprocess.run(
        [*command, *folders], cwd=root, env=_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"semgrep ends with {done.returncode}: {done.stderr[-2000:]}{done.stdout[-2000:]}")
    found = json.loads(done.stdout)
    assert not found["errors"], found["errors"][:3]
    return sorted(
        (each["check_id"].rpartition(".")[2], each["path"], each["start"]["line"]) for each in found["results"]
    )


def check_rules() -> bool:
    """Whether our rules find nothing."""
    found = semgrep(ROOT)
    for rule, path, line in found:
        print(f"{path}:{line}: {rule}")
    return not found


def check_code() -> bool:
    """Whether bandit finds nothing of medium severity or more in what is installed or runs by hand."""
    command = ["bandit", "--quiet", "--recursive", "--severity-level", "medium", "--exit-zero", "--format", "json"]
    found = json.loads(_said([*command, *PACKAGES]))
    assert not found["errors"], found["errors"][:3]
    return _told("bandit", [(each["test_id"], each["filename"], each["line_number"]) for each in found["results"]])


def check_secrets() -> bool:
    """Whether no file holds what looks like a secret."""
    listed = _said(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]).split("\0")
    names = [name for name in listed if (ROOT / name).is_file() and not name.startswith(GENERATED)]
    names = [name for name in names if not name.endswith(".sum")]
    without = [word for name in ELSEWHERE for word in ("--disable-plugin", name)]
    results = json.loads(_said(["detect-secrets", "--cores", "1", "scan", "--no-verify", *without, *names]))["results"]
    found = [(each["type"], path, each["line_number"]) for path, entries in results.items() for each in entries]
    return _told(
        "secrets", [each for each in found if not (each[1].startswith("tests/") and each[0] in NAMES_OF_TESTS)]
    )


def _told(tool: str, found: Sequence[tuple[str, str, int]]) -> bool:
    """Print what isn't waived, and waivers that waive nothing; whether there was neither."""
    waived = {(each["what"], each["where"]) for each in yaml.safe_load(WAIVERS.read_text())[tool]}
    left = [each for each in found if each[:2] not in waived]
    idle = waived - {each[:2] for each in found}
    for what, path, line in left:
        print(f"{path}:{line}: {tool}: {what}")
    for what, path in sorted(idle):
        print(f"{WAIVERS.relative_to(ROOT)}: {tool}: {what} in {path} isn't there any more: remove the waiver")
    return not left and not idle


def _said(command: Sequence[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ends with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, **QUIET, "PATH": f"{tools()}:{os.environ['PATH']}"}


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True)


CHECKS: Sequence[Callable[[], bool]] = (check_code, check_rules, check_secrets)


def main() -> int:
    """All of them at once, so that one run tells all."""
    tools()
    with ThreadPoolExecutor() as threads:
        return int(not all(list(threads.map(lambda check: check(), CHECKS))))


if __name__ == "__main__":
    sys.exit(main())
