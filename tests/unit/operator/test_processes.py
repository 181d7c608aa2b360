"""Pods' containers as processes: what a kubelet promises of a container, and that nothing of it is left on the host."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_operator import processes
from finetune_operator.processes import Command, Mount, PodProcess, ProcessError

ENV = {"PATH": os.environ["PATH"]}
CommandOf = Callable[..., Command]


@pytest.fixture
def shell(tmp_path: Path) -> CommandOf:
    """A command that runs a shell script, with its log under tmp_path."""

    def command(script: str, **fields: object) -> Command:
        arguments: dict[str, object] = {"argv": ("sh", "-c", script), "log": tmp_path / "log", "env": ENV, **fields}
        return Command(**arguments)  # type: ignore[arg-type]  # the fields under test vary

    return command


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the runner keeps its temporary files in this test."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def names(folder: Path | str) -> list[str]:
    """What is in a folder."""
    return sorted(path.name for path in Path(folder).iterdir())


async def until(holds: Callable[[], bool], *, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def run(command: Command) -> processes.Exit:
    process = await PodProcess.start(command)
    return await process.wait()


async def test_exit_code_last_word_and_both_streams_arrive(shell: CommandOf, tmp_path: Path) -> None:
    end = await run(shell("echo out; echo err >&2; printf 'the last word' > /dev/termination-log; exit 65"))
    assert (end.code, end.signal, end.termination_message) == (65, None, "the last word")
    assert end.started <= end.finished
    assert (tmp_path / "log").read_text() == "out\nerr\n"


async def test_the_last_word_is_cut_at_4096_bytes(shell: CommandOf) -> None:
    end = await run(shell("head -c 5000 /dev/zero | tr '\\0' x > /dev/termination-log"))
    assert end.termination_message == "x" * 4096


async def test_the_last_word_may_lie_elsewhere(shell: CommandOf) -> None:
    end = await run(shell("echo there > /mnt/words/last", termination_log="/mnt/words/last"))
    assert end.termination_message == "there\n"
    assert "words" not in names("/mnt")


async def test_the_environment_is_what_was_given_and_the_bind_address(shell: CommandOf, tmp_path: Path) -> None:
    await run(shell("env | cut -d= -f1 | sort | tr '\\n' ' '; echo $FINETUNE_BIND_ADDRESS", pod_ip="127.9.9.9"))
    names, address = (tmp_path / "log").read_text().rsplit(maxsplit=1)
    assert set(names.split()) - {"PWD", "SHLVL", "_"} == {"PATH", "FINETUNE_BIND_ADDRESS"}
    assert address == "127.9.9.9"


async def test_volumes_are_seen_by_the_process_alone(shell: CommandOf, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "given").write_text("given")
    before = names("/mnt")
    end = await run(
        shell("cat /mnt/run/given && echo made > /mnt/run/made", mounts=(Mount(target="/mnt/run", source=volume),))
    )
    assert end.code == 0
    assert (volume / "made").read_text() == "made\n"
    assert names("/mnt") == before


async def test_what_the_host_has_beside_a_volume_stays_visible(shell: CommandOf, tmp_path: Path) -> None:
    host = tmp_path / "place"
    (host / "folder").mkdir(parents=True)
    (host / "folder" / "file").write_text("deep")
    (host / "link").symlink_to("folder/file")
    mount = Mount(target=str(host / "volume"), source=Path("/usr"))
    await run(
        shell(
            f"cd {host}; ls; cat link; echo changed > folder/file; test -d volume/bin && echo mounted", mounts=(mount,)
        )
    )
    assert (tmp_path / "log").read_text() == "folder\nlink\nvolume\ndeepmounted\n"
    assert (host / "folder" / "file").read_text() == "changed\n"
    assert not (host / "volume").exists()


async def test_a_volume_below_a_folder_of_the_host_makes_nothing_there(shell: CommandOf, tmp_path: Path) -> None:
    """The upper volume stages tmp_path/place; the lower one has to be staged too, not made in the host's own folder."""
    host, volume = tmp_path / "place", tmp_path / "volume"
    (host / "folder").mkdir(parents=True)
    volume.mkdir()
    (volume / "seen").touch()
    mounts = tuple(Mount(target=str(host / name), source=volume) for name in ("a", "folder/b"))
    end = await run(shell(f"ls {host}/a/seen {host}/folder/b/seen", mounts=mounts))
    assert end.code == 0
    assert names(host) == ["folder"]
    assert names(host / "folder") == []


@pytest.mark.parametrize("attempt", ["touch /mnt/data/new", "echo x > /mnt/data/file"])
async def test_a_read_only_volume_is(shell: CommandOf, tmp_path: Path, attempt: str) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "file").write_text("kept")
    mount = Mount(target="/mnt/data", source=volume, read_only=True)
    end = await run(shell(f"cat /mnt/data/file && {attempt}", mounts=(mount,)))
    assert end.code != 0
    assert {path.name: path.read_text() for path in volume.iterdir()} == {"file": "kept"}


async def test_memory_at_dev_shm_is_private_and_bounded(shell: CommandOf, tmp_path: Path) -> None:
    script = "ls -A /dev/shm | wc -l; head -c 2000000 /dev/zero > /dev/shm/big; wc -c < /dev/shm/big"
    await run(shell(script, mounts=(Mount(target="/dev/shm", tmpfs_bytes=1 << 20),)))
    lines = (tmp_path / "log").read_text().splitlines()
    assert (lines[0], lines[-1]) == ("0", str(1 << 20))
    assert "big" not in names("/dev/shm")


async def test_a_hosts_file_of_its_own(shell: CommandOf, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.3.2.1 peer-0.peers\n")
    await run(shell("getent hosts peer-0.peers", hosts=hosts))
    assert (tmp_path / "log").read_text().split() == ["127.3.2.1", "peer-0.peers"]


async def test_sigterm_reaches_the_command_and_its_answer_counts(shell: CommandOf, tmp_path: Path) -> None:
    answer = "trap 'echo saved > /dev/termination-log; exit 75' TERM"
    process = await PodProcess.start(shell(f"{answer}; echo up; while :; do sleep 0.05; done"))
    await until(lambda: (tmp_path / "log").read_text() == "up\n")
    end = await process.terminate(grace_seconds=10)
    assert (end.code, end.termination_message) == (75, "saved\n")


async def test_after_the_grace_period_comes_sigkill(shell: CommandOf, tmp_path: Path) -> None:
    process = await PodProcess.start(shell("trap '' TERM; echo up; while :; do sleep 0.05; done"))
    await until(lambda: (tmp_path / "log").read_text() == "up\n")
    begun = time.monotonic()
    end = await process.terminate(grace_seconds=0.4)
    assert (end.code, end.signal) == (137, signal.SIGKILL)
    assert time.monotonic() - begun >= 0.4


async def test_a_signal_is_128_and_its_number(shell: CommandOf) -> None:
    end = await run(shell("kill -SEGV $$"))
    assert (end.code, end.signal) == (128 + signal.SIGSEGV, signal.SIGSEGV)


async def test_several_may_wait_for_the_end(shell: CommandOf) -> None:
    process = await PodProcess.start(shell("sleep 0.2; exit 3"))
    assert [end.code for end in await asyncio.gather(process.wait(), process.wait(), process.kill())] == [137] * 3
    assert (await process.terminate()).code == 137


@pytest.mark.parametrize("then", ["exit 0", "sleep 600"])
async def test_what_the_command_left_behind_ends_with_it(shell: CommandOf, tmp_path: Path, then: str) -> None:
    """Even a daemon in a session of its own whose parent has gone."""
    noted = tmp_path / "pid"
    daemon = f"(setsid sh -c 'echo $$ > {noted}.new; mv {noted}.new {noted}; sleep 600' &)"
    process = await PodProcess.start(shell(f"{daemon}; until [ -e {noted} ]; do sleep 0.02; done; {then}"))
    await until(noted.exists)
    pid = int(noted.read_text())
    if then.startswith("sleep"):
        assert alive(pid)
        await process.kill()
    await process.wait()
    assert not alive(pid)


async def test_nothing_is_left_in_the_temporary_folder(shell: CommandOf, scratch: Path) -> None:
    process = await PodProcess.start(shell("sleep 600"))
    assert names(scratch)
    await process.kill()
    assert not names(scratch)


FAILURES: dict[str, tuple[dict[str, Any], str]] = {
    "a command that isn't there": ({"argv": ("no-such-program",)}, "can't run 'no-such-program': No such file"),
    "a folder in place of a command": ({"argv": ("/usr",)}, "can't run '/usr': Permission denied"),
    "a working folder that isn't there": ({"working_dir": "/no/such/folder"}, "/no/such/folder: No such file"),
    "a volume that isn't there": (
        {"mounts": (Mount(target="/mnt/x", source=Path("/no/such")),)},
        "mount /mnt/x: No such file",
    ),
    "a place below no folder": ({"mounts": (Mount(target="/no-such/x", source=Path("/usr")),)}, "such as /mnt"),
}


@pytest.mark.parametrize("case", FAILURES)
async def test_what_cant_start_says_why_and_leaves_nothing(shell: CommandOf, scratch: Path, case: str) -> None:
    fields, expected = FAILURES[case]
    with pytest.raises(ProcessError, match=expected):
        await PodProcess.start(shell("true", **fields))
    await until(lambda: not names(scratch))


RUNNER = """
import asyncio, sys
from pathlib import Path
from typing import Any
from finetune_operator.processes import Command, PodProcess
async def main():
    process = await PodProcess.start(Command(argv=("sleep", "600"), env={"PATH": sys.argv[2]}, log=Path(sys.argv[1])))
    print(process.pid, flush=True)
    await process.wait()
asyncio.run(main())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
async def test_a_command_dies_with_its_runner(tmp_path: Path, how: signal.Signals) -> None:
    runner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RUNNER, str(tmp_path / "log"), os.environ["PATH"]),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert runner.stdout
    pid = int(await runner.stdout.readline())
    assert alive(pid)
    runner.send_signal(how)
    await runner.wait()
    await until(lambda: not alive(pid))
    await until(lambda: names(tmp_path) == ["log"])


async def test_a_launcher_that_is_killed_takes_the_command_with_it(shell: CommandOf, scratch: Path) -> None:
    process = await PodProcess.start(shell("sleep 600"))
    os.kill(parent_of(process.pid), signal.SIGKILL)
    assert (await process.wait()).code == 137
    await until(lambda: not alive(process.pid))
    assert not names(scratch)
