"""What is missing on a machine is said before anything starts, with the fix."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from verl_cov.recipes import catalogue, compose, machine
from verl_cov.recipes.memory import GB, estimate, of_config
from verl_cov.tasks import countdown
from verl_cov.tasks.data.prepare import prepare
from verl_cov.tasks.data.sets import SETS


@pytest.fixture
def toy(tmp_path, untrained_model):
    shutil.copytree(untrained_model, tmp_path / "toy" / "model")
    countdown.write_parquet(tmp_path / "toy" / "countdown")
    return tmp_path / "toy"


def findings(*words: str, scale: str | None = None):
    config = compose.resolved(compose.compose(catalogue.parse(words, scale).hydra_overrides()))
    return list(machine.check(config))


def missing(*words: str, scale: str | None = None) -> dict[str, str]:
    return {finding.what: finding.text for finding in findings(*words, scale=scale) if finding.missing}


def test_nothing_is_missing_for_the_toy(toy, tmp_path):
    found = findings("tiny", "grpo", "kl_cov", "toy", f"recipe.toy={toy}", f"trainer.default_local_dir={tmp_path}/c")
    assert [finding.text for finding in found if finding.missing] == []
    assert {"config", "model", "data", "package", "memory", "disk"} == {finding.what for finding in found} - {"note"}


def test_a_machine_without_anything(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = missing("llama3.1-8b", "grpo", "kl_cov", "gsm8k", "recipe.data=/nowhere")
    assert "meta-llama/Llama-3.1-8B is not on this machine and gated: accept its licence" in found["model"]
    assert "hf download meta-llama/Llama-3.1-8B" in found["model"]
    assert "gsm8k, math500, aime24, amc, olympiadbench, omni_math are not in /nowhere" in found["data"]
    assert (
        "`verl-cov data prepare gsm8k math500 aime24 amc olympiadbench -o /nowhere`; get omni_math_rule"
        in found["data"]
    )
    assert "`verl-cov data prepare omni_math --from FILE -o /nowhere`" in found["data"]
    mine = missing("qwen2.5-7b", "grpo", "none", "gsm8k", "data.train_files=/x/mine.parquet", "data.val_files=null")
    assert "mine is not in /x: mine is no set of `verl-cov data list`: give data.train_files" in mine["data"]
    assert found["GPUs"].startswith("0 of 8")
    assert "gated" not in missing("qwen2.5-7b", "grpo", "none", "gsm8k")["model"]
    assert "need a Ray cluster" in missing("qwen2.5-32b", "grpo", "none", "math")["GPUs"]


def test_the_language_model_needs_its_packages_and_memory(tmp_path, monkeypatch):
    words = ("demo-lm/vanilla", f"recipe.toy={tmp_path}")
    monkeypatch.setattr(machine.smollm2, "missing", lambda: "gguf is not installed: pip install gguf")
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=6 * GB))
    found = missing(*words)
    assert found["model"].endswith("makes, in a minute or two: gguf is not installed: pip install gguf")
    # 4 GB for the processes; fp32 weights, gradients, Adam's moments and vLLM's weights: 20 bytes a parameter.
    assert found["memory"].startswith("6 GB of host memory are free, for verl, Ray and vLLM 7 GB are needed")
    monkeypatch.setattr(machine.smollm2, "missing", lambda: None)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=7 * GB))
    assert missing(*words) == {}


def test_models(toy, tmp_path):
    words = ("tiny", "grpo", "kl_cov", "toy", f"recipe.toy={toy}")
    gone = missing(*words, f"actor_rollout_ref.model.path={tmp_path}/gone")
    assert f"{tmp_path}/gone is not there" in gone["model"]
    (toy / "model" / "model.safetensors").unlink()
    assert "has no weights" in missing(*words)["model"]
    config = json.loads((toy / "model" / "config.json").read_text())
    (toy / "model" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 16}))
    assert "max_model_len=32 is over the model's 16 positions" in missing(*words)["context"]


def test_data(toy):
    words = ("tiny", "grpo", "kl_cov", "toy", f"recipe.toy={toy}")
    train = toy / "countdown" / "train.parquet"
    train.write_bytes(b"no parquet")
    assert f"{train} is not a parquet file" in missing(*words)["data"]
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"question": ["1+1"]}), train)
    assert f"{train}: the field prompt is missing (found: question)" in missing(*words)["data"]


def test_data_that_our_verifier_scores_is_held_to_its_schema(tmp_path, toy):
    import pyarrow
    import pyarrow.parquet

    for name in ("gsm8k", "math500", "aime24", "amc", "olympiadbench", "omni_math"):
        table = {
            "prompt": [[{"role": "user", "content": "?"}]],
            "data_source": ["x"],
            "reward_model": [{"style": "rule"}],
        }
        pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / f"{name}.parquet")
    texts = [
        f.text for f in findings("qwen2.5-7b", "grpo", "none", "gsm8k", f"recipe.data={tmp_path}") if f.what == "data"
    ]
    assert len(texts) == 6
    assert all("the column 'ability' is missing" in text for text in texts)


def test_fewer_rows_than_a_rollout_and_a_sample(tmp_path):
    for name in ("kodcode", "eurus2_rl_code_test", "kodcode_test"):
        prepare(SETS[name], "sample", tmp_path)
    found = findings("qwen2.5-7b", "grpo", "none", "kodcode", f"recipe.data={tmp_path}")
    texts = [finding.text for finding in found if finding.what == "data"]
    assert "kodcode.parquet: 2 rows of the sample, to try things out" in texts[0]
    assert "2 training rows are fewer than data.train_batch_size=256" in texts[-1]
    # Code is judged here: the sandbox is tried.
    assert [finding.missing for finding in found if finding.what == "sandbox"] == [False]


def test_disk(toy):
    huge = missing("tiny", "grpo", "kl_cov", "toy", f"recipe.toy={toy}", "recipe.parameters=1e15")
    assert "lower trainer.max_actor_ckpt_to_keep" in huge["disk"]


def test_memory_by_hand():
    # 7.6e9 parameters x 16 bytes / 8 GPUs; bfloat16 weights over two GPUs.
    need = estimate(7.6e9, gpus=8, nodes=1, tensor=2, vllm_share=0.6, offload=False)
    assert need.state == pytest.approx(15.2e9)
    assert need.weights == pytest.approx(7.6e9)
    assert (need.host, need.problem) == (0, None)
    reference = estimate(7.6e9, gpus=8, nodes=1, tensor=2, vllm_share=0.6, offload=False, reference=True)
    assert reference.host == pytest.approx(30.4e9)
    prime = estimate(7.6e9, gpus=8, nodes=1, tensor=2, vllm_share=0.6, offload=False, prm=True)
    assert prime.prm == prime.state == need.state  # beside the policy's, while vLLM sleeps
    assert prime.host == pytest.approx(20 * 7.6e9)
    assert prime.problem is None
    assert (
        "take 49 of 80" in estimate(12.2e9, gpus=8, nodes=1, tensor=2, vllm_share=0.5, offload=False, prm=True).problem
    )
    alone = estimate(7.6e9, gpus=1, nodes=1, tensor=1, vllm_share=0.6, offload=False)
    assert "take 122 of 80 GB a GPU" in alone.problem
    offloaded = estimate(7.6e9, gpus=1, nodes=1, tensor=1, vllm_share=0.6, offload=True)
    assert (offloaded.state, offloaded.problem) == (0, None)
    assert offloaded.host == pytest.approx(121.6e9)
    assert (
        "vLLM's weights take 65 GB" in estimate(32.5e9, gpus=1, nodes=1, tensor=1, vllm_share=0.6, offload=True).problem
    )
    assert "too much" in estimate(2e9, gpus=1, nodes=1, tensor=1, vllm_share=0.7, offload=False).problem


LARGE = ("qwen2.5-32b", "mistral-small-24b")


def _on_scales():
    """Each model on its own scale, the two largest on one GPU as well, and nightly every model on every scale."""
    for model in catalogue.options("model"):
        for scale in ("gpu1", "node8", "nodes4x8"):
            own = scale == catalogue.natural_scale(model) or (scale == "gpu1" and model in ("tiny", *LARGE))
            yield pytest.param(model, scale, marks=[] if own else pytest.mark.nightly)


@pytest.mark.parametrize(("model", "scale"), _on_scales())
def test_models_fit_their_scales(model, scale):
    """By the estimate, all but the two largest on one GPU; tensor parallelism divides a node."""
    config = compose.resolved(
        compose.compose(catalogue.parse([model, "grpo", "none", "math"], scale).hydra_overrides())
    )
    large = scale == "gpu1" and model in LARGE
    assert (of_config(config).problem is not None) is large
    assert config.trainer.n_gpus_per_node % config.actor_rollout_ref.rollout.tensor_model_parallel_size == 0


def test_a_smaller_gpu_is_taken_into_account():
    config = compose.resolved(
        compose.compose(catalogue.parse(["qwen2.5-7b", "grpo", "none", "math"]).hydra_overrides())
    )
    assert of_config(config, 24 * GB).problem
    assert OmegaConf.select(config, "recipe.parameters") == 7.61e9
