"""S9, S12: a model or dataset made to harm is refused by name, and nothing outside its folder is read for it.

What is unpickled or run is in tests/unit/trainer/test_canary.py; here is what could lead a library there, or elsewhere.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune_api.data import DataFormat
from finetune_api.snapshot import ExitCode
from finetune_trainer.data import bounded, chat, tokenizer
from finetune_trainer.data.messages import Problem
from finetune_trainer.errors import NotFound
from finetune_trainer.sources import buckets, formats, modelfolder
from tests import tiny_model, trainer_process
from tests.security import payloads
from tests.trainer_builders import change_json, configuration, found_model
from tests.unit.trainer.test_canary import Canary, _listen

SECRET = "canary-of-the-environment"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model of one's own."""
    return shutil.copytree(tiny_model.build(), tmp_path / "model")


INDICES: Mapping[str, Any] = {
    "no map": {},
    "a list": {"weight_map": [1]},
    "an empty map": {"weight_map": {}},
    "numbers": {"weight_map": {"a": 1}},
    "nothing": {"weight_map": {"a": None}},
    "a pickle": {"weight_map": {"a": "pytorch_model.bin"}},
    "a pickle beside a good one": {"weight_map": {"a": "model.safetensors", "b": "x.pt"}},
    "another folder": {"weight_map": {"a": "../other/model.safetensors"}},
    "the root": {"weight_map": {"a": "/etc/model.safetensors"}},
    "a folder below": {"weight_map": {"a": "sub/model.safetensors"}},
    "a NUL": {"weight_map": {"a": "model\x00/../x.safetensors/"}},
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_an_index_names_weight_files_beside_it_and_nothing_else(source: Path, index: Any) -> None:
    (source / modelfolder.INDEX).write_text(json.dumps(index))
    with pytest.raises(NotFound, match=r"weight_map|a weight file lies beside it"):
        modelfolder.fetch_weights(found_model(source))


def test_no_path_in_an_index_leads_out(source: Path) -> None:
    folder = found_model(source)
    for path in payloads.paths():
        (source / modelfolder.INDEX).write_text(json.dumps({"weight_map": {"a": f"{path}/model.safetensors"}}))
        with pytest.raises(NotFound):
            modelfolder.fetch_weights(folder)


@pytest.mark.parametrize("name", ["adapter_model.bin", "x.safetensors.index.json", "x.safetensors"])
def test_a_config_cannot_choose_other_weights(source: Path, name: str) -> None:
    change_json(source / "config.json", {"transformers_weights": name})
    with pytest.raises(NotFound, match="transformers_weights, which is not followed"):
        found_model(source)


LINKS = ("/proc/self/environ", "/proc/self/../1/environ", "/sys/kernel/notes", "/dev/zero")


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json", "README.md", "model.safetensors"])
@pytest.mark.parametrize("target", LINKS)
def test_a_models_link_to_the_process_is_not_followed(source: Path, name: str, target: str) -> None:
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(target)
    with pytest.raises(NotFound, match="a link that leads out of its volume"):
        found_model(source)


@pytest.mark.parametrize("target", LINKS[:1])
def test_a_datasets_link_to_the_process_is_not_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.txt").symlink_to(target)
    for path in (tmp_path / "data", tmp_path / "data" / "train.txt"):
        with pytest.raises(NotFound, match="a link that leads out of its volume"):
            formats.find(path, DataFormat.AUTO, uri="pvc://data/train.txt")


def test_what_is_mounted_stays_in_its_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("model", "run"):
        (tmp_path / name / "tiny").mkdir(parents=True)
        (tmp_path / name / "tiny" / "config.json").write_text("{}")
    inside, outside = tmp_path / "model" / "a.json", tmp_path / "model" / "b.json"
    inside.symlink_to(tmp_path / "model" / "tiny" / "config.json")
    outside.symlink_to(tmp_path / "run" / "tiny" / "config.json")
    start = tmp_path / "model" / "tiny"
    assert modelfolder._mount_of(Path("/mnt/model/a/b")) == Path("/mnt/model")
    monkeypatch.setattr(modelfolder, "_mount_of", lambda _: tmp_path / "model")
    modelfolder.refuse_strays((inside,), start, what="model x")
    with pytest.raises(NotFound, match=r"b\.json is a link that leads out"):
        modelfolder.refuse_strays((outside,), start, what="model x")


def test_a_hub_cache_with_links_of_its_own_is_followed(tmp_path: Path, source: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (source / "config.json").rename(tmp_path / "blobs" / "one")
    (source / "config.json").symlink_to("../blobs/one")
    assert found_model(source).vocabulary_size


def test_the_name_of_a_buckets_object_stays_below_its_folder(tmp_path: Path) -> None:
    names = [*payloads.paths(), "a/../b", ".hidden/x", "a//b"]
    taken = [name for name in names if buckets._is_plain(name)]
    assert len(taken) < len(names) / 2
    for name in taken:
        place = Path(os.path.normpath(tmp_path / name))
        assert place.is_relative_to(tmp_path), name
        assert place != tmp_path, name


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json", modelfolder.INDEX])
def test_a_description_of_gigabytes_is_not_read(source: Path, name: str) -> None:
    with (source / name).open("ab") as file:
        file.truncate(modelfolder.LARGEST + 1)
    with pytest.raises(NotFound, match=rf"{name} has more than 64 MiB"):
        whole(source)


def test_a_template_of_gigabytes_is_not_read(source: Path) -> None:
    with (source / "chat_template.jinja").open("wb") as file:
        file.truncate(modelfolder.LARGEST + 1)
    with pytest.raises(NotFound, match=r"chat_template\.jinja has more than 64 MiB"):
        whole(source)


def test_a_description_that_is_nested_for_ever_is_refused(source: Path) -> None:
    (source / "config.json").write_text("[" * 200_000)
    with pytest.raises(NotFound, match=r"config\.json can't be read"):
        whole(source)


def whole(source: Path) -> None:
    """All that is read of a model before torch is there."""
    folder = found_model(source)
    tokenizer.load(folder)
    modelfolder.fetch_weights(folder)


TEMPLATES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ messages.append(1) }}",
    "{{ raise_exception.__globals__ }}",
    "{% for m in messages.__reduce__() %}{% endfor %}",
    "{{ lipsum.__globals__['os'].environ }}",
    "{{ (messages|attr('__class__')) }}{{ ''|attr('__class__')|attr('__mro__') }}",
    "{% include '/proc/self/environ' %}",
    "{% import '/etc/passwd' as x %}",
    "{{ 'x'.__class__.__init__.__globals__ }}",
    "{% for n in range(10 ** 9) %}{% endfor %}",
    "{{ 1 / 0 }}{{ 2.0 ** 5000 }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ messages[99].content.x.y }}",
)


def test_a_chat_template_reaches_nothing_but_the_messages() -> None:
    refused = 0
    for text in TEMPLATES:
        try:
            said = chat.ChatTemplate(text, {}).render([{"role": "user", "content": "x"}])
        except Problem as problem:
            said = str(problem)
            refused += 1
        assert "HOME" not in said, text
        assert "<class" not in said, text
        assert len(said) < 500, text
    assert refused > len(TEMPLATES) / 2


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
BUSY: Mapping[str, str] = {
    "loops": LOOP,
    "macros that call themselves twice": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"
    ),
    "squares of squares": (
        "{% set n = namespace(x=10) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x > 1 }}"
    ),
    "a text of 10 GB": "{{ 'a' * 10**10 }}",
    "a text made wide": "{{ 'x'|center(10**11) }}",
    "a number written wide": "{{ '{:99999999999}'.format(1) }}{{ '%99999999999d' % 1 }}",
    "a list of 10 thousand million": "{{ ([1] * 10**10)|length }}",
    "a list that is sorted": "{{ (range(99999)|list * 5000)|sort|length }}",
    "a text doubled sixty times": (
        "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
    ),
    "replaced by more": "{{ ('a' * 10**7)|replace('a', 'a' * 1000)|length }}",
    "a search for what is nearly there": "{{ ('a' * 10**8).count('a' * 50000 + 'b') }}",
    "words counted": "{{ ('a ' * 10**8)|wordcount }}",
    "100 million characters": "{% for n in range(1000) %}{{ 'a' * 10**5 }}{% endfor %}",
}


@pytest.mark.parametrize("text", BUSY.values(), ids=BUSY)
def test_a_chat_template_that_takes_too_much_is_ended(text: str) -> None:
    template = chat.ChatTemplate(text, {}, bounded.Allowance(0.3))
    with pytest.raises(bounded.Exceeded):
        template.render([{"role": "user", "content": "x"}])


def shortened() -> None:
    """In the trainer's process: ten seconds are a long time for a test."""
    bounded.SECONDS = 0.5


def of_a_tokenizer(folder: Path) -> None:
    """A regular expression that takes twice as long for each further letter."""
    made = json.loads((folder / "tokenizer.json").read_text())
    endless = {"type": "Split", "pattern": {"Regex": "([ -~]+)+[0-9]{50}"}, "behavior": "Isolated", "invert": False}
    made["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [endless, made["pre_tokenizer"]]}
    (folder / "tokenizer.json").write_text(json.dumps(made))


def of_a_template(text: str) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "tokenizer_config.json", {"chat_template": text})


TOO_MUCH: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "a template that loops": (of_a_template(LOOP), "the model's chat template was ended after"),
    "a template of 10 GB": (of_a_template(BUSY["a text of 10 GB"]), "the model's chat template was ended where"),
    "a template that repeats itself": (of_a_template("{{ 'a' * 10**6 }}"), "chat template writes 1,000,000 characters"),
    "a tokenizer that never ends": (of_a_tokenizer, "the model's tokenizer can't take it"),
}


@pytest.mark.parametrize(("spoil", "told"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_the_trainer_ends_by_itself_with_the_record_and_what_took_too_much(
    tmp_path: Path, source: Path, spoil: Callable[[Path], None], told: str
) -> None:
    spoil(source)
    attempt = trainer_process.run(configuration(tmp_path, {"model": {"path": str(source)}}), before=shortened)
    assert attempt.process.exitcode == ExitCode.BAD_DATA, attempt.log.read_text()[-2000:]
    error = attempt.last_word().error
    assert error is not None
    assert error.message.startswith("train.jsonl line 1")
    assert told in error.message


def pickled(folder: Path, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights | {"x": Canary(folder.parent / "song")}, folder / name)
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
    (folder / modelfolder.INDEX).write_text(json.dumps(index))


def header(text: bytes, length: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + text)

    return spoil


HUGE = json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}).encode()
WHOLE: Mapping[str, Callable[[Path], None]] = {
    "an index of pickles": lambda folder: pickled(folder, "weights.bin"),
    "a header of exabytes": header(b"{}", 2**62),
    "a tensor of exabytes": header(HUGE, len(HUGE)),
    "a size that is no number": lambda folder: change_json(folder / "config.json", {"hidden_size": "x"}),
    "a million layers": lambda folder: change_json(folder / "config.json", {"num_hidden_layers": 10**6}),
    "a vocabulary of a trillion": lambda folder: change_json(folder / "config.json", {"vocab_size": 10**12}),
    "layers wider than the weights": lambda folder: change_json(folder / "config.json", {"intermediate_size": 60_000}),
    "code from a hub for attention": lambda folder: change_json(
        folder / "config.json", {"_attn_implementation": "evil/kernel", "attn_implementation": "evil/kernel"}
    ),
}


@pytest.mark.parametrize("spoil", WHOLE.values(), ids=WHOLE)
def test_the_trainer_ends_with_the_models_name_and_neither_unpickles_nor_tries_again(
    tmp_path: Path, source: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(source)
    config = configuration(tmp_path, {"model": {"path": str(source)}, "training": {"maxDuration": "1ba"}})
    listen = functools.partial(_listen, tmp_path / "heard")
    attempt = trainer_process.run(config, before=listen, environment={"HF_TOKEN": SECRET})
    assert attempt.process.exitcode == ExitCode.NOT_FOUND, attempt.log.read_text()[-2000:]
    error = attempt.last_word().error
    assert error is not None
    assert error.message.startswith("model pvc://models/tiny")
    assert not (tmp_path / "song").exists()
    assert (tmp_path / "heard").read_text() == ""
    assert SECRET not in attempt.log.read_text()
