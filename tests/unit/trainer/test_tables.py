"""Parquet files and Delta tables."""

import builtins
import json
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pytest
from pyarrow import parquet

from finetune_api.data import Columns, DataFormat, Task
from finetune_trainer.data import readers
from finetune_trainer.data.messages import Problem
from finetune_trainer.errors import ConfigInvalid, DataInvalid, NotFound
from finetune_trainer.sources import formats

ROWS: list[dict[str, Any]] = [{"prompt": f"question {n}", "response": f"answer {n}", "id": n} for n in range(2500)]
CHAT = [{"role": "user", "content": "a", "tool_calls": None}, {"role": "assistant", "content": "b", "tool_calls": None}]


def test_a_parquet_file_is_read_row_by_row_without_what_nobody_asked_for(tmp_path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=300)
    found = _read(tmp_path / "a.parquet")
    assert [raw.value for raw in found] == [row | {"id": None} for row in ROWS]
    assert [str(found[n].place) for n in (0, 2499)] == ["a.parquet row 1", "a.parquet row 2500"]


def test_messages_may_be_lists_of_structs_or_json(tmp_path: Path) -> None:
    for name, value in (("structs", CHAT), ("json", str(CHAT).replace("'", '"').replace("None", "null"))):
        parquet.write_table(pa.Table.from_pylist([{"messages": value}]), tmp_path / f"{name}.parquet")
        [raw] = _read(tmp_path / f"{name}.parquet", Task.CHAT_COMPLETION)
        assert raw.value == {"messages": CHAT}


def test_a_parquet_file_with_other_columns_is_one_problem(tmp_path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist([{"prompt": "a", "respnse": "b"}] * 10), tmp_path / "a.parquet")
    assert _problems(tmp_path / "a.parquet") == [
        "a.parquet row 1: unknown key 'respnse'; expected 'prompt' and 'response'"
    ]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet" * 100], ids=["empty", "cut off", "something else"])
def test_a_file_that_isnt_parquet_is_described(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    [problem] = _problems(tmp_path / "a.parquet")
    assert problem.startswith("a.parquet row 1: the file can't be read as Parquet: ")


def test_a_damaged_parquet_file_is_described(tmp_path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", compression="zstd", row_group_size=1000)
    damaged = bytearray((tmp_path / "a.parquet").read_bytes())
    damaged[len(damaged) // 2 :][:64] = b""
    damaged[200:264] = bytes(64)
    (tmp_path / "a.parquet").write_bytes(damaged)
    [problem] = _problems(tmp_path / "a.parquet")
    assert "the file can't be read as Parquet" in problem


def test_the_newest_version_of_a_delta_table_is_read_in_the_order_of_its_files(tmp_path: Path) -> None:
    deltalake.write_deltalake(tmp_path / "t", pa.Table.from_pylist(ROWS[:10]))
    deltalake.write_deltalake(tmp_path / "t", pa.Table.from_pylist(ROWS[10:20]), mode="append")
    deltalake.DeltaTable(tmp_path / "t").delete("id = 3")
    first, second = _read(tmp_path / "t"), _read(tmp_path / "t")
    assert first == second
    assert sorted(raw.value["prompt"] for raw in first) == sorted(row["prompt"] for row in ROWS[:20] if row["id"] != 3)
    assert str(first[0].place) == "t row 1"


def test_a_partitioned_delta_table_keeps_its_columns(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n % 2}", "response": str(n)} for n in range(6)]
    deltalake.write_deltalake(tmp_path / "t", pa.Table.from_pylist(rows), partition_by=["prompt"])
    found = [raw.value for raw in _read(tmp_path / "t")]
    assert sorted(found, key=lambda row: str(row["response"])) == rows


@pytest.mark.parametrize(
    "name",
    [
        "../secret.parquet",
        "%2e%2e/secret.parquet",
        "{}/secret.parquet",
        "file://{}/secret.parquet",
        "a/../../secret.parquet",
    ],
)
def test_a_delta_table_reads_no_file_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    parquet.write_table(pa.Table.from_pylist(ROWS[:1]), tmp_path / "secret.parquet")
    _delta_of(tmp_path / "t", name.format(tmp_path), size=(tmp_path / "secret.parquet").stat().st_size)
    with pytest.raises(NotFound, match=r"table t: its log names .*, which isn't in its folder"):
        _read(tmp_path / "t")


def _delta_of(table: Path, name: str, *, size: int) -> None:
    """A table whose log has this name for its only file."""
    deltalake.write_deltalake(table, pa.Table.from_pylist(ROWS[:1]))
    log = next((table / "_delta_log").glob("*.json"))
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    for action in actions:
        if "add" in action:
            action["add"] = {key: value for key, value in action["add"].items() if key != "stats"}
            action["add"] |= {"path": name, "size": size}
    log.write_text("".join(json.dumps(action) + "\n" for action in actions))


def test_a_delta_table_that_is_broken_is_described(tmp_path: Path) -> None:
    deltalake.write_deltalake(tmp_path / "t", pa.Table.from_pylist(ROWS[:10]))
    next((tmp_path / "t" / "_delta_log").glob("*.json")).write_text("{")
    with pytest.raises(DataInvalid, match="t can't be read as a Delta table: "):
        _read(tmp_path / "t")


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deltalake.write_deltalake(tmp_path / "t", pa.Table.from_pylist(ROWS[:10]))
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("deltalake"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigInvalid, match=r"needs the package deltalake.* finetune-operator\[trainer,delta\]"):
        _read(tmp_path / "t")


def _read(path: Path, task: Task = Task.INSTRUCTION_FINE_TUNE) -> list[Any]:
    return list(readers.read(formats.find(path, DataFormat.AUTO, uri="pvc://x/y"), task=task, columns=Columns()))


def _problems(path: Path) -> list[str]:
    return [f"{raw.place}: {raw.value}" for raw in _read(path) if isinstance(raw.value, Problem)]
