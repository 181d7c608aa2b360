"""Shards of the MosaicML streaming format: those in tests/golden were written by mosaicml-streaming itself."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.data import Columns, DataFormat, Task
from finetune_trainer.data import readers
from finetune_trainer.data.messages import Problem
from finetune_trainer.errors import ConfigInvalid, DataInvalid
from finetune_trainer.sources import formats

GOLDEN = Path(__file__).parents[2] / "golden" / "mds.json"


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """The folders plain/ and gz/: files that are no text are kept as base64."""
    for name, content in json.loads(GOLDEN.read_text()).items():
        path = tmp_path / "golden" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(content))
    return tmp_path / "golden"


@pytest.mark.parametrize("name", ["plain", "gz"])
def test_shards_are_read_in_their_order(golden: Path, name: str) -> None:
    found = _read(golden / name)
    assert [raw.value for raw in found] == [
        {"prompt": f"What is {n}?", "response": f"The number {n}.", "id": None, "meta": None} for n in range(7)
    ]
    assert [str(raw.place) for raw in found][:3] == [
        "shard.00000.mds row 1",
        "shard.00000.mds row 2",
        "shard.00001.mds row 1",
    ]


def test_a_column_that_is_asked_for_is_decoded(golden: Path) -> None:
    columns = Columns(prompt="meta", response="id")
    found = _read(golden / "plain", columns)
    assert found[3].value == {"prompt": None, "response": 3, "id": 3, "meta": {"n": [3]}} | {
        "prompt": None,
        "response": None,
    }


def _index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        found = json.loads((folder / "index.json").read_text())
        change(found["shards"][0])
        (folder / "index.json").write_text(json.dumps(found))

    return damage


def _cut(folder: Path) -> None:
    path = folder / "shard.00000.mds"
    path.write_bytes(path.read_bytes()[:-10])


def _flip(folder: Path) -> None:
    path = folder / "shard.00000.mds"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def _without_hash(shard: dict[str, Any]) -> None:
    shard["raw_data"]["hashes"] = {}
    shard["column_sizes"] = [8, None, None, 3]


DAMAGED = {
    "a pickle": (
        _index(lambda shard: shard.update(column_encodings=["pkl", "json", "str", "str"])),
        "column 'id' is a pickle, which can run code and is never read: write it as str or json",
    ),
    "an encoding that isn't text": (
        _index(lambda shard: shard.update(column_encodings=["int", "json", "jpeg", "str"])),
        "column 'prompt' is stored as jpeg; expected str, json, int, bytes",
    ),
    "other columns": (
        _index(lambda shard: shard.update(column_names=["id", "meta", "prompt", "respnse"])),
        "unknown key 'respnse'; expected 'prompt' and 'response'",
    ),
    "a path out of the folder": (
        _index(lambda shard: shard["raw_data"].update(basename="../../etc/passwd")),
        "index.json names a shard outside of its folder: '../../etc/passwd'",
    ),
    "a shard cut off": (_cut, "the shard isn't the one that index.json describes (size or sha256 differ)"),
    "a byte changed": (_flip, "the shard isn't the one that index.json describes (size or sha256 differ)"),
    "a shard missing": (
        lambda folder: (folder / "shard.00000.mds").unlink(),
        "the shard can't be read: No such file or directory",
    ),
    "sizes that don't add up": (_index(_without_hash), "the record can't be decoded: "),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_shard_is_described_and_the_others_are_read(
    golden: Path, damage: Callable[[Path], object], said: str
) -> None:
    folder = golden / "plain"
    damage(folder)
    found = _read(folder)
    problems = [str(raw.value) for raw in found if isinstance(raw.value, Problem)]
    assert problems
    assert all(problem.startswith(said) for problem in problems)
    assert sum(not isinstance(raw.value, Problem) for raw in found) == 5


def test_another_format_of_shards_is_refused(golden: Path) -> None:
    folder = golden / "plain"
    _index(lambda shard: shard.update(format="csv"))(folder)
    with pytest.raises(ConfigInvalid, match="shards of format csv version 2 can't be read; expected mds version 2"):
        _read(folder)


@pytest.mark.parametrize("text", ["", "[]", '{"shards": [1]}', '{"shards": [{}]}'])
def test_an_index_that_is_none_is_described(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(DataInvalid, match=r"index\.json is no index of MDS shards"):
        _read(tmp_path)


def _read(folder: Path, columns: Columns | None = None) -> list[readers.Raw]:
    files = formats.find(folder, DataFormat.MDS, uri="pvc://x/y")
    return list(readers.read(files, task=Task.INSTRUCTION_FINE_TUNE, columns=columns or Columns()))
