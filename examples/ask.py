"""Ask a model something, with or without an adapter: what a finished run leaves loads with plain transformers and peft.

python -m examples.ask --model hf-name-or-folder [--adapter folder] "My question"
"""

import argparse
import logging
import os
import warnings
from pathlib import Path
from typing import Any


def main() -> None:
    """Print one answer a question."""
    parser = argparse.ArgumentParser(description="Ask a model something, greedily decoded.")
    parser.add_argument("--model", required=True, help="a folder, or a name on the hub")
    parser.add_argument("--adapter", type=Path, help="folder of a LoRA adapter, such as a run's output")
    parser.add_argument("--tokens", type=int, default=48, help="length of the answer at most")
    parser.add_argument("question", nargs="+")
    given = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    warnings.simplefilter("ignore")
    for question in given.question:
        print(answer(question, model_name=given.model, adapter=given.adapter, tokens=given.tokens))


def answer(question: str, *, model_name: str, adapter: Path | None, tokens: int) -> str:
    """The model's most likely answer, at most `tokens` tokens long."""
    import torch
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model_name)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
    if adapter is not None:
        import peft

        model = peft.PeftModel.from_pretrained(model, adapter)
    chat = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**prompt, max_new_tokens=tokens, do_sample=False)
    return str(tokenizer.decode(written[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


if __name__ == "__main__":
    main()
