"""The model's tokenizer, without transformers where it can be: loads in milliseconds, so that data is checked first."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from finetune_trainer.errors import NotFound
from finetune_trainer.sources.modelfolder import ModelFolder, neighbours, read_json, read_text

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
"""What belongs to a tokenizer; copied beside the trained weights."""

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TextEncoder:
    """Turns text into tokens, and knows which tokens end an answer."""

    tokenizer: tokenizers.Tokenizer
    chat_template: str | None
    special: Mapping[str, str]
    """Special tokens by name, e.g. bos_token: what a chat template refers to."""
    end: int | None
    """The token put after an answer that has no end."""
    stops: frozenset[int]
    """All tokens at which generation stops."""


def load(folder: ModelFolder) -> TextEncoder:
    """The tokenizer of a model. Raises NotFound if there is none."""
    path, uri = folder.path, folder.source.uri
    settings = read_json(path / "tokenizer_config.json", uri) if (path / "tokenizer_config.json").is_file() else {}
    tokenizer = _tokenizer(folder)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = _special_tokens(path, settings, uri)
    end = tokenizer.token_to_id(special["eos_token"]) if "eos_token" in special else None
    stops = {stop for stop in (end, *_stops(folder)) if stop is not None}
    end = end if end is not None else min(stops, default=None)
    return TextEncoder(tokenizer, _chat_template(path, settings, uri), special, end, frozenset(stops))


def _tokenizer(folder: ModelFolder) -> tokenizers.Tokenizer:
    path, uri = folder.path, folder.source.uri
    if (path / "tokenizer.json").is_file():
        try:
            return tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception as error:  # what the Rust library raises has no class of its own
            raise NotFound(f"model {uri}: tokenizer.json can't be read: {error}") from error
    if not any((path / name).is_file() for name in FILES):
        raise NotFound(f"model {uri} has no tokenizer: no tokenizer.json; {neighbours(path)}")
    import transformers

    try:
        slow = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=folder.source.trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise NotFound(f"model {uri}: its tokenizer can't be loaded: {error}") from error
    backend = getattr(slow, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise NotFound(f"model {uri}: its tokenizer has no fast form; save one as tokenizer.json")
    return backend


def _special_tokens(path: Path, settings: Mapping[str, Any], uri: str) -> dict[str, str]:
    extra = path / "special_tokens_map.json"
    known = (read_json(extra, uri) if extra.is_file() else {}) | {k: v for k, v in settings.items() if v is not None}
    found = ((name, known.get(name)) for name in _SPECIAL)
    texts = ((name, value.get("content") if isinstance(value, dict) else value) for name, value in found)
    return {name: text for name, text in texts if isinstance(text, str)}


def _chat_template(path: Path, settings: Mapping[str, Any], uri: str) -> str | None:
    if (path / "chat_template.jinja").is_file():
        return read_text(path / "chat_template.jinja", uri)
    found = settings.get("chat_template")
    if found is None and (path / "chat_template.json").is_file():
        found = read_json(path / "chat_template.json", uri).get("chat_template")
    if isinstance(found, list):  # several, by name
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    return found if isinstance(found, str) else None


def _stops(folder: ModelFolder) -> list[int]:
    generation = folder.path / "generation_config.json"
    described = [folder.config, read_json(generation, folder.source.uri) if generation.is_file() else {}]
    named = [entry.get("eos_token_id") for entry in described]
    each = [stop for stops in named for stop in (stops if isinstance(stops, list) else [stops])]
    return [stop for stop in each if isinstance(stop, int)]
