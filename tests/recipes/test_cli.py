"""`verl-cov recipes` as a user types it, and the scripts of recipes/."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from verl_cov.cli import app
from verl_cov.recipes import catalogue, launch

ROOT = Path(__file__).parents[2]
TOY = ["tiny", "grpo", "kl_cov", "toy"]


def run(*words: str):
    return CliRunner().invoke(app, ["recipes", *map(str, words)], env={"COLUMNS": "200"})


def test_list_has_every_name():
    text = run("list").stdout
    for group in (*catalogue.GROUPS, "experiment"):
        for name in catalogue.options(group):
            assert name in text


def test_show_has_values_and_sources():
    text = run("show", "sec4-32b/kl_cov").stdout
    row = next(
        line for line in text.splitlines() if line.strip().startswith("filter_groups") or "max_response_length" in line
    )
    assert "512" in row
    assert "8192" in row
    assert "Sec. 4.3" in row
    assert "kl_cov_ratio" not in text  # verl's default is the paper's for 32B
    assert "kl_cov_ratio" in run("show", "sec4-32b/kl_cov", "--all").stdout
    assert "recipe.batch" not in text


def test_dry_run_prints_the_command_and_writes_nothing(tmp_path):
    done = run(
        "run", *TOY, "--dry-run", "--runs", tmp_path / "my runs", "--toy", "/toy", "trainer.total_training_steps=2"
    )
    assert done.exit_code == 0
    words = shlex.split(done.stdout)
    assert "VERL_PLATFORM=cpu" in words
    assert f"{launch.LOG}='{tmp_path}/my runs/tiny-grpo-kl_cov-toy/001.jsonl'" in words
    assert words[words.index("python") :][:3] == ["python", "-m", "verl.trainer.main_ppo"]
    assert "recipe.toy=/toy" in words
    assert words[-1] == "trainer.total_training_steps=2"
    assert f"trainer.default_local_dir='{tmp_path}/my runs/tiny-grpo-kl_cov-toy/checkpoints'" in words
    assert not list(tmp_path.iterdir())


def test_dry_run_on_gpus_leaves_the_platform_alone():
    words = shlex.split(run("run", "sec4-7b/kl_cov", "--dry-run", "--data", "/data").stdout)
    assert not [word for word in words if word.startswith(("VERL_PLATFORM", "RAY_ADDRESS"))]
    assert "recipe.data=/data" in words


def test_commands_of_an_experiment():
    assert run("commands", "fig12-kl_cov").stdout.split() == [
        f"fig12-kl_cov/beta-{beta}" for beta in ("0", "0.05", "0.1", "0.5", "1")
    ]
    assert run("commands", "fig8-on_policy").stdout.split() == ["fig8-on_policy"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["show", "sec4-7"], "did you mean sec4-7b"),
        (["run", "--dry-run", "sec4-7b", "data.train_bach_size=1"], "did you mean data.train_batch_size"),
        (["commands", "fig12"], "did you mean"),
    ],
)
def test_bad_input_is_one_line_and_code_2(words, says):
    done = run(*words)
    assert done.exit_code == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_run_refuses_what_is_missing(tmp_path):
    done = run("run", "qwen2.5-7b", "grpo", "none", "math", "--data", tmp_path, "--runs", tmp_path)
    assert done.exit_code == 1
    assert "missing" in done.stdout
    assert "Not started" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_run_of_other_settings_is_not_gone_on_with(tmp_path):
    folder = tmp_path / "tiny-grpo-kl_cov-toy"
    folder.mkdir()
    once = launch.launch(catalogue.parse([*TOY, "trainer.save_freq=1"]), tmp_path, tmp_path, tmp_path)
    (folder / launch.COMMANDS).write_text(json.dumps(once.settings()) + "\n" + '["-m", "verl.tr')
    where = ("--data", tmp_path, "--toy", tmp_path, "--runs", tmp_path)
    done = run("run", *TOY, *where)
    assert done.exit_code == 2
    assert "was started with other settings (trainer.save_freq=1)" in done.stderr
    assert launch.started_before(once) is None
    # Finished or not: other settings are no reason to do nothing.
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("25")
    assert run("run", *TOY, *where).exit_code == 2
    assert "is finished: 25 steps" in run("run", *TOY, "trainer.save_freq=1", *where).stdout.replace("\n", " ")


def test_a_finished_run_is_left_alone(tmp_path):
    checkpoints = tmp_path / "tiny-grpo-kl_cov-toy" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("5")
    done = run("run", *TOY, "trainer.total_training_steps=5", "--runs", tmp_path)
    assert done.exit_code == 0
    assert "is finished: 5 steps" in done.stdout.replace("\n", " ")


def test_two_launches_do_not_share_a_folder(tmp_path, monkeypatch):
    """The lock outlives exec, as the training's."""
    once = launch.launch(catalogue.parse(TOY), tmp_path, tmp_path, tmp_path)
    sleeper = launch.Launch([sys.executable, "-c", "print('up', flush=True); input()"], {}, once.folder)
    code = "import sys, pickle; from verl_cov.recipes import launch; launch.start(pickle.load(sys.stdin.buffer))"
    # The pickle and the sleeper's line come through one pipe.
    with subprocess.Popen([sys.executable, "-u", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(pickle.dumps(sleeper))
        process.stdin.flush()
        assert process.stdout.readline() == b"up\n"
        with pytest.raises(ValueError, match="is being trained in by another process"):
            launch.start(sleeper)
        process.stdin.close()
    monkeypatch.setattr(os, "execvpe", lambda *command: None)
    launch.start(sleeper)


def test_each_launch_has_a_log_of_its_own(tmp_path):
    assert launch.next_segment(tmp_path).name == "001.jsonl"
    (tmp_path / "001.jsonl").touch()
    assert launch.next_segment(tmp_path).name == "002.jsonl"


def script(name: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(ROOT / "recipes" / name), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, **environment},
    )


def test_run_sh():
    done = script("run.sh", *TOY, "--dry-run", "trainer.save_freq=7")
    assert done.returncode == 0
    assert "+recipe/entropy=kl_cov" in done.stdout
    assert "trainer.save_freq=7" in done.stdout


def test_sweep_sh_goes_through_runs_and_seeds():
    done = script("sweep.sh", "ablation-clip_range", "--dry-run", SEEDS="0 1")
    assert done.returncode == 0
    names = [line.removeprefix("== ") for line in done.stdout.splitlines() if line.startswith("== ")]
    assert names == [
        f"ablation-clip_range-{run}-seed{seed}" for seed in (0, 1) for run in ("clip_0.2", "clip_1", "no_clip")
    ]
    commands = [line for line in done.stdout.splitlines() if "main_ppo" in line]
    assert len(set(commands)) == 6
    assert all(f"/runs/{name}/001.jsonl" in line for name, line in zip(names, commands, strict=True))


def test_sweep_sh_says_what_is_unknown():
    done = script("sweep.sh", "fig99")
    assert done.returncode == 2
    assert "there is no experiment 'fig99'" in done.stderr


def test_ray_sh_without_a_word_says_how():
    done = script("ray.sh")
    assert done.returncode == 2
    assert "recipes/ray.sh submit" in done.stdout
