"""Makes small random Llama models with a real tokenizer and chat template, in seconds, for tests and benchmarks.

The text is the standard library's docstrings, so nothing is downloaded. Made once, kept outside the checkout.
"""

import ast
import hashlib
import json
import os
import random
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The size of a model."""

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 128
    vocabulary: int = 512
    positions: int = 512
    biases: bool = False
    """Whether its linear layers have bias vectors."""
    tied: bool = True
    """Whether the output layer's weights are the embeddings."""


TINY = Shape()
SMALL = Shape(hidden=256, layers=4, heads=8, kv_heads=8, intermediate=704, vocabulary=2048, positions=2048)
"""3.7 million parameters."""


def build(shape: Shape = TINY, *, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """The folder of the model, made if it isn't there yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-operator"
    key = hashlib.sha256(Path(__file__).read_bytes() + repr((shape, chat_template)).encode()).hexdigest()[:12]
    target = cache / f"tiny-model-{key}"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=cache, prefix=".tiny-model-"))
        _write_tokenizer(made, shape, chat_template)
        _write_weights(made, shape)
        try:
            made.rename(target)
        except OSError:  # another process was first
            shutil.rmtree(made)
    return target


def build_without(text: str, target: Path) -> Path:
    """A copy that doesn't know a text's first token: the loss of records with it is no number."""
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer

    shutil.copytree(build(Shape(tied=False)), target)
    tokens = Tokenizer.from_file(str(target / "tokenizer.json")).encode(text).ids
    tensors = load_file(target / "model.safetensors")
    tensors["model.embed_tokens.weight"][tokens[0]] = float("nan")
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def questions(count: int, *, seed: int = 0, longest: int = 1200) -> list[tuple[str, str]]:
    """Questions about the standard library, each with its docstring as answer."""
    pairs = [(f"What does {name} do?", text) for name, text in _docstrings() if len(text) <= longest]
    random.Random(seed).shuffle(pairs)
    return pairs[:count]


def write_questions(target: Path, count: int, *, seed: int = 0, longest: int = 1200) -> Path:
    """`questions` as prompt and response in JSONL."""
    rows = (json.dumps({"prompt": p, "response": r}) for p, r in questions(count, seed=seed, longest=longest))
    target.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return target


@cache
def _docstrings() -> tuple[tuple[str, str], ...]:
    return tuple(_read_docstrings())


def _read_docstrings() -> Iterator[tuple[str, str]]:
    for source in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(source.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
                yield f"{source.stem}.{node.name}", text


def _write_tokenizer(target: Path, shape: Shape, chat_template: str | None) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocabulary, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((f"{name}\n{text}" for name, text in _docstrings()), trainer)
    tokenizer.save(str(target / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    if chat_template is not None:
        config["chat_template"] = chat_template
    (target / "tokenizer_config.json").write_text(json.dumps(config))


def configuration(shape: Shape) -> Any:
    """A LlamaConfig of this shape."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=shape.positions,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=shape.tied,
        attention_bias=shape.biases,
        mlp_bias=shape.biases,
    )


def _write_weights(target: Path, shape: Shape) -> None:
    import torch
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = LlamaForCausalLM(configuration(shape))
        if shape.biases:  # they begin as zeros
            for name, weight in network.named_parameters():
                if name.endswith("bias"):
                    torch.nn.init.normal_(weight, std=0.02)
        network.save_pretrained(target)
