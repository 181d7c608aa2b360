"""What the headers of weight files tell, and configs that ask for more."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_trainer.errors import NotFound
from finetune_trainer.learning import skeleton
from finetune_trainer.sources import modelfolder, sizes
from tests import tiny_model
from tests.trainer_builders import change_json, found_model

SHAPE = tiny_model.TINY


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model.build(), tmp_path / "model")


def header(source: Path, **entries: Any) -> None:
    text = json.dumps(entries).encode()
    (source / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))


def test_the_headers_tell_what_the_weights_hold(source: Path) -> None:
    weights = load_file(source / "model.safetensors")
    held = sizes.held(found_model(source))
    numbers = sum(weight.numel() for weight in weights.values())
    assert held == sizes.Held(tensors=len(weights), longest=SHAPE.vocabulary, numbers=numbers, size=4 * numbers)


def test_shards_are_added_up_and_files_beside_them_left_out(source: Path) -> None:
    whole = sizes.held(found_model(source))
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = {name: f"part-{n % 2}.safetensors" for n, name in enumerate(weights)}
    for file in set(names.values()):
        save_file({name: weights[name] for name in weights if names[name] == file}, source / file)
    save_file({"other": torch.zeros(10_000)}, source / "other.safetensors")
    (source / modelfolder.INDEX).write_text(json.dumps({"weight_map": names}))
    assert sizes.held(found_model(source)) == whole


def test_the_model_as_it_is_fits(source: Path) -> None:
    sizes.check(found_model(source))
    skeleton.check(found_model(source))


COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "decoder_layers", "num_experts", "n_routed_experts")
SIZES = ("hidden_size", "vocab_size", "intermediate_size", "head_dim", "n_embd", "num_attention_heads", "d_model")


@pytest.mark.parametrize("key", COUNTS + SIZES)
@pytest.mark.parametrize("part", ["", "text_config"])
def test_a_config_that_asks_for_a_million_is_refused_by_its_key(source: Path, key: str, part: str) -> None:
    change_json(source / "config.json", {part: {key: 10**6}} if part else {key: 10**6})
    with pytest.raises(NotFound, match=rf"^model pvc://models/tiny: config.json says {key} 1,000,000, but its weights"):
        sizes.check(found_model(source))


@pytest.mark.parametrize("key", ["max_position_embeddings", "rope_theta", "bos_token_id", "sliding_window"])
def test_other_numbers_may_be_large(source: Path, key: str) -> None:
    change_json(source / "config.json", {key: 10**7})
    sizes.check(found_model(source))


LARGER = {
    "a layer too wide": {"intermediate_size": 60_000},
    "hundreds of layers": {"num_hidden_layers": 900},
    "wide heads": {"head_dim": 10_000},
}


@pytest.mark.parametrize("changes", LARGER.values(), ids=LARGER)
def test_what_passes_there_and_is_larger_than_the_weights_is_refused_before_memory_is_taken(
    source: Path, changes: Mapping[str, Any]
) -> None:
    change_json(source / "config.json", changes)
    sizes.check(found_model(source))
    with pytest.raises(NotFound, match=r"doesn't fit its config.json: that describes [\d,]+ parameters"):
        skeleton.check(found_model(source))


LIES: Mapping[str, Any] = {
    "a side that isn't there": {"shape": [2**40], "data_offsets": [0, 8]},
    "a side of nothing": {"shape": [0, 2**40], "data_offsets": [0, 8]},
    "more than the file": {"shape": [2**20], "data_offsets": [0, 2**22]},
    "an end before its beginning": {"shape": [1], "data_offsets": [8, 0]},
    "a negative side": {"shape": [-(2**40), -1], "data_offsets": [0, 8]},
}


@pytest.mark.parametrize("entry", LIES.values(), ids=LIES)
def test_a_tensor_that_lies_is_not_believed(source: Path, entry: Mapping[str, Any]) -> None:
    header(source, evil={"dtype": "U8", **entry})
    with pytest.raises(NotFound, match=r"can't be loaded: model\.safetensors has not all of evil"):
        sizes.held(found_model(source))


def test_a_tensor_without_bytes_counts_for_nothing(source: Path) -> None:
    header(source, empty={"dtype": "U8", "shape": [0, 2**40], "data_offsets": [0, 0]}, __metadata__={"format": "pt"})
    assert sizes.held(found_model(source)) == sizes.Held(tensors=0, longest=0, numbers=0, size=0)


UNREADABLE = {
    "no header": b"",
    "a header of exabytes": (2**62).to_bytes(8, "little"),
    "no JSON": (2).to_bytes(8, "little") + b"{]",
    "a list": (2).to_bytes(8, "little") + b"[]",
    "nested deep": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "no offsets": (16).to_bytes(8, "little") + b'{"a": {"x": 123}',
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_without_a_header_is_named(source: Path, content: bytes) -> None:
    (source / "model.safetensors").write_bytes(content)
    with pytest.raises(NotFound, match=r"^model pvc://models/tiny can't be loaded: model\.safetensors has no header"):
        sizes.held(found_model(source))
