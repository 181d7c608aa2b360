"""Which files are read, and how."""

import os
from pathlib import Path

import pytest

from finetune_api.data import DataFormat
from finetune_trainer.errors import ConfigInvalid, NoPermission, NotFound
from finetune_trainer.sources import formats

URI = "pvc://datasets/x"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train.jsonl", DataFormat.JSONL),
        ("train.ndjson", DataFormat.JSONL),
        ("train.json", DataFormat.JSON),
        ("train.csv", DataFormat.CSV),
        ("train.tsv.gz", DataFormat.CSV),
        ("TRAIN.PARQUET", DataFormat.PARQUET),
        ("book.txt.zst", DataFormat.TEXT),
        ("train", DataFormat.JSONL),
        ("train.gz", DataFormat.JSONL),
    ],
)
def test_the_ending_tells_the_format(tmp_path: Path, name: str, expected: DataFormat) -> None:
    (tmp_path / name).touch()
    assert formats.find(tmp_path / name, DataFormat.AUTO, uri=URI).format == expected


FOLDERS = {
    "files of one format, by name, below too": (
        ["b.jsonl", "sub/a.jsonl", "a.jsonl"],
        ["a.jsonl", "b.jsonl", "sub/a.jsonl"],
    ),
    "notes beside the data": (["a.csv", "notes.txt", "LICENSE"], ["a.csv"]),
    "texts alone": (["a.txt", "b.txt"], ["a.txt", "b.txt"]),
    "hidden files and folders": (
        ["a.jsonl", ".b.jsonl", "_c.jsonl", "..data/d.jsonl", "_temporary/e.jsonl"],
        ["a.jsonl"],
    ),
    "shards": (["index.json", "shard.00000.mds"], ["x"]),
    "a Delta table": (["_delta_log/00000000000000000000.json", "part-0.parquet"], ["x"]),
}


@pytest.mark.parametrize(("names", "told"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_is_searched(tmp_path: Path, names: list[str], told: list[str]) -> None:
    found = formats.find(_make(tmp_path / "x", *names), DataFormat.AUTO, uri=URI)
    assert found.names == told


REFUSED = {
    "nothing to read": (["notes.md"], DataFormat.AUTO, NotFound, "no *.jsonl, *.ndjson, *.json, *.csv"),
    "nothing of the format": (["a.jsonl"], DataFormat.CSV, NotFound, "no *.csv or *.tsv in"),
    "no index of shards": (["a.jsonl"], DataFormat.MDS, NotFound, "no index.json in"),
    "no log of a table": (["a.parquet"], DataFormat.DELTA, NotFound, "no _delta_log in"),
    "pickles alone": (
        ["a.pkl"],
        DataFormat.AUTO,
        NotFound,
        "(a.pkl can run code when it is opened, and is never read)",
    ),
    "two formats": (
        ["a.jsonl", "b.parquet"],
        DataFormat.AUTO,
        ConfigInvalid,
        "holds several formats: JSONL (a.jsonl), Parquet (b.parquet); choose with dataset.format, or name a file",
    ),
}


@pytest.mark.parametrize(("names", "asked", "error", "said"), REFUSED.values(), ids=REFUSED)
def test_a_folder_without_data_is_described(
    tmp_path: Path, names: list[str], asked: DataFormat, error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as caught:
        formats.find(_make(tmp_path / "x", *names), asked, uri=URI)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["data.pkl", "data.pickle", "data.pt", "data.pth", "pytorch_model.bin", "x.joblib", "x.npy", "x.npz", "x.py"],
)
@pytest.mark.parametrize("asked", [DataFormat.AUTO, DataFormat.JSONL])
def test_what_can_run_code_is_refused_by_its_name(tmp_path: Path, name: str, asked: DataFormat) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ConfigInvalid) as caught:
        formats.find(tmp_path / name, asked, uri=URI)
    assert f"{name} is of a kind that can run code when it is opened, and is never read" in str(caught.value)


def test_an_ending_that_tells_nothing_needs_the_format(tmp_path: Path) -> None:
    (tmp_path / "train.arrow").touch()
    with pytest.raises(ConfigInvalid, match=r"the ending of train\.arrow tells no format; set dataset.format"):
        formats.find(tmp_path / "train.arrow", DataFormat.AUTO, uri=URI)
    assert formats.find(tmp_path / "train.arrow", DataFormat.JSONL, uri=URI).format == DataFormat.JSONL


def test_a_format_that_is_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").touch()
    with pytest.raises(ConfigInvalid, match=r"format Delta is a folder, and a\.parquet is a file"):
        formats.find(tmp_path / "a.parquet", DataFormat.DELTA, uri=URI)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch(mode=0)
    with pytest.raises(NoPermission, match="let the pod's user read it"):
        formats.find(tmp_path / "a.jsonl", DataFormat.AUTO, uri=URI)


def _make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder
