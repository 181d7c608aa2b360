"""Folders that appear whole or not at all."""

from pathlib import Path

import pytest

from finetune_trainer.saves import durable


def test_a_folder_replaces_the_one_that_was_there(tmp_path: Path) -> None:
    target = tmp_path / "output"
    for content in ("old", "new"):
        with durable.new_folder(target) as folder:
            (folder / "file").write_text(content)
    assert (target / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "output"
    with durable.new_folder(target) as folder:
        (folder / "file").write_text("old")
    with pytest.raises(OSError, match="full"):
        _fail_to_fill(target)
    assert (target / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_leftovers_of_a_kill_are_removed_and_an_old_folder_is_put_back(tmp_path: Path) -> None:
    for name in (".tmp-ep1-ba2", ".old-ep1-ba4", ".old-ep1-ba6", "ep1-ba6"):
        (tmp_path / name).mkdir()
    (tmp_path / ".tmp-latest").symlink_to("ep1-ba6")
    durable.clear_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ep1-ba4", "ep1-ba6"]


def test_a_link_is_replaced(tmp_path: Path) -> None:
    for target in ("a", "b"):
        durable.replace_link(tmp_path / "latest", target)
    assert (tmp_path / "latest").readlink() == Path("b")
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    with durable.new_folder(tmp_path / "output") as folder:
        (folder / "file").touch(mode=0o600)
    assert (tmp_path / "output" / "file").stat().st_mode & 0o777 == 0o644


def _fail_to_fill(target: Path) -> None:
    with durable.new_folder(target) as folder:
        (folder / "file").write_text("new")
        raise OSError("full")
