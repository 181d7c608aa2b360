"""Started by torchrun itself, on one node and on two, the trainer trains what it trains by its own launcher."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import ports
from tests.trainer_builders import configuration

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node")
SHORT = {"training": {"maxDuration": "4ba"}}


@pytest.fixture(scope="module")
def by_our_launcher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _trained(tmp_path_factory.mktemp("ours"), [[sys.executable]], PET_NPROC_PER_NODE="2")


def test_on_one_node(tmp_path: Path, by_our_launcher: str) -> None:
    assert _trained(tmp_path, [[*TORCHRUN, "2", "--standalone"]]) == by_our_launcher


def test_on_two_nodes(tmp_path: Path, by_our_launcher: str) -> None:
    meeting = ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(ports.free()))
    assert _trained(tmp_path, [[*TORCHRUN, "1", *meeting, "--node-rank", rank] for rank in "01"]) == by_our_launcher


def _trained(folder: Path, starts: Sequence[Sequence[str]], **environment: str) -> str:
    """The digest of the weights in the end."""
    config = configuration(folder, SHORT)
    file = folder / "run.json"
    file.write_text(json.dumps(config))
    ours = {"OMP_NUM_THREADS": "1", "FINETUNE_BIND_ADDRESS": "127.0.0.1", "FINETUNE_PORT": "0"}
    given = {**os.environ, **ours, **environment}
    command = ("-m", "finetune_trainer", "--config", str(file))
    processes = [
        subprocess.Popen([*start, *command], env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for start in starts
    ]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(starts), "\n".join(said)[-3000:]
    (weights,) = (Path(config["runPath"]) / "output").glob("*.safetensors")
    return hashlib.sha256(weights.read_bytes()).hexdigest()
