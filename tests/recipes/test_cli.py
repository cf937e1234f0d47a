"""`verl-cov recipes` as a user types it."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from verl_cov.cli import app
from verl_cov.law.readers import find_runs, read_metrics
from verl_cov.recipes import catalogue, child, compose, launch, plan

ROOT = Path(__file__).parents[2]
TOY = ["tiny", "grpo", "kl_cov", "toy"]


def run(*words: str):
    return CliRunner().invoke(app, ["recipes", *map(str, words)], env={"COLUMNS": "200"})


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    """Not in a fork of it: pytest's process has torch, with threads."""
    monkeypatch.setattr(child, "in_child", lambda function, *arguments, **options: function(*arguments, **options))


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
    assert f"+{launch.METRICS_KEY}='{tmp_path}/my runs/tiny-grpo-kl_cov-toy/001.jsonl'" in words
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
        (["run", "--dry-run", "sec4-7b/kl_cov", "data.train_bach_size=1"], "did you mean data.train_batch_size"),
        (["run", "sec4-7b"], "sec4-7b has 4 runs: give one of sec4-7b/none, sec4-7b/clip_higher"),
        (
            ["run", "sec4-7b", "recipe/entropy=kl_cov"],
            "or train all of them: verl-cov recipes run $(verl-cov recipes commands sec4-7b)",
        ),
        (["run", "demo/kl_cov", "fig12-kl_cov", "--dry-run"], "fig12-kl_cov has 5 runs"),
        (["check", "tiny"], "such as `tiny grpo kl_cov toy`"),
        (["commands", "fig12"], "did you mean"),
    ],
)
def test_bad_input_is_one_line_and_code_2(words, says):
    done = run(*words)
    assert done.exit_code == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


LOSS = "actor_rollout_ref.actor.policy_loss."


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (f"{LOSS}kl_cov_ratio=0.2", "for 0.2 % write 0.002"),
        ("recipe.kl_cov_ratio=0.2%", "for 0.2 % write 0.002"),
        (f"{LOSS}clip_cov_lb=30", "must be below clip_cov_ub"),
        (f"{LOSS}kl_cov_ratio=1e-6", "is less than one token"),
        ("data.train_batch_size=33", "is no multiple of"),
    ],
)
def test_a_dry_run_refuses_what_a_start_would_and_a_start_makes_nothing_before(override, says, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "make_toy", lambda *start: pytest.fail("made"))
    done = run("run", *TOY, "--dry-run", "--runs", tmp_path, override)
    assert (done.exit_code, done.stdout) == (2, "")
    assert says in done.stderr
    done = run("run", *TOY, "--runs", tmp_path, override)
    assert done.exit_code in (1, 2)
    assert says in done.output
    assert "missing" not in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_dry_run_is_of_the_launch_that_would_come_and_knows_other_settings(demo, tmp_path):
    assert demo("--dry-run").stdout.count("\n") == 2
    assert demo(fail=3, who="kl_cov").exit_code == 3
    done = demo("--dry-run", "--seed", "1", recipes=("demo/kl_cov",))
    assert done.exit_code == 2
    assert "was started with other settings" in done.stderr
    assert demo().exit_code == 0
    assert "/demo-2/vanilla/001.jsonl" in demo("--dry-run").stdout
    done = demo("--dry-run", "--skip-finished")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "demo/kl_cov is finished: 4 steps" in done.stderr


def test_json_of_list_show_and_check(tmp_path):
    listed = json.loads(run("list", "--json").stdout)
    assert [option["name"] for option in listed["entropy"]] == list(catalogue.options("entropy"))
    (demo,) = (each for each in listed["experiment"] if each["name"] == "demo")
    assert demo["runs"] == ["vanilla", "clip_cov", "kl_cov", "target"]
    shown = json.loads(run("show", "sec4-7b/kl_cov", "--json").stdout)
    assert (shown["model"], shown["entropy"]) == ("qwen2.5-7b", "kl_cov")
    changes = {change["key"]: change for change in shown["changes"]}
    assert changes["data.max_response_length"]["value"] == 8192
    assert changes["data.max_response_length"]["source"].startswith("Sec. 4.3")
    assert changes["data.max_response_length"]["place"].startswith("recipe/")
    checked = run("check", *TOY, "--json", "--toy", tmp_path / "toy", "--runs", tmp_path)
    answer = json.loads(checked.stdout)
    assert (checked.exit_code, answer["ok"], answer["name"]) == (0, True, "tiny-grpo-kl_cov-toy")
    assert {"what": "package", "missing": False, "text": "vllm"} in answer["findings"]


def test_what_run_makes_is_not_missing_and_the_next_command_can_be_typed(tmp_path):
    done = run("check", *TOY, "--toy", tmp_path / "toy", "--runs", tmp_path)
    assert done.exit_code == 0, done.stdout
    assert f"ok      model: {tmp_path}/toy/model, which `verl-cov recipes run` makes" in done.stdout
    assert done.stdout.splitlines()[-1] == "Next: `verl-cov recipes run tiny grpo kl_cov toy`"
    lines = run("check", "sec4-7b", "--data", tmp_path, "--runs", tmp_path, "trainer.project_name='a b'").stdout
    *_, which, last = lines.splitlines()
    assert which == "This is sec4-7b/none, the first run of sec4-7b: name another in its place"
    command = last.partition("`")[2].rstrip("`")
    assert shlex.split(command)[2:] == ["check", "sec4-7b/none", "trainer.project_name='a b'"]


def test_run_refuses_what_is_missing(tmp_path):
    done = run("run", "qwen2.5-7b", "grpo", "none", "math", "--data", tmp_path, "--runs", tmp_path)
    assert done.exit_code == 1
    assert "missing model: Qwen/Qwen2.5-7B is not on this machine" in done.stdout
    assert "Not started" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["toy"], "model"),
        (["pointer"], "pointer-small-0"),
        (["pointer", "recipe.start=pointer-mini-3"], "pointer-mini-3"),
    ],
)
def test_a_run_makes_the_start_that_it_names(stand_in, tmp_path, monkeypatch, words, start):
    made = []
    monkeypatch.setattr(plan, "make_toy", lambda *arguments: made.append(arguments))
    monkeypatch.setattr(plan.machine, "check", lambda config: [])
    done = run("run", "tiny", "grpo", "none", *words, "--steps", 2, "--runs", tmp_path, "--toy", tmp_path)
    assert done.exit_code == 0, done.output
    assert made == [(tmp_path, start)]
    launched = json.loads(next(tmp_path.rglob("launches.jsonl")).read_text().splitlines()[0])["overrides"]
    config = compose.resolved(compose.compose([word for word in launched if not word.startswith("hydra.")]))
    assert config.actor_rollout_ref.model.path == f"{tmp_path}/{start}"


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("recipe.start=model", "recipe.start=model has learned countdown, and the task is pointer"),
        ("recipe.start=pointer-tiny-0", "there is no size of recipe.start 'tiny'"),
        ("recipe.start=0", "recipe.start=0 is no start: give TASK-SIZE-SEED"),
    ],
)
def test_a_start_that_cannot_be_is_one_line(tmp_path, word, says):
    for command in (["run"], ["run", "--dry-run"], ["check"]):
        done = run(*command, "tiny", "grpo", "none", "pointer", word, "--runs", tmp_path, "--toy", tmp_path)
        assert done.exit_code == 2
        assert says in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["demo/vanilla", "demo/kl_cov"], [("countdown", "countdown"), ("tiny_model", "model")]),
        (["demo-lm/vanilla", "demo-lm/kl_cov"], [("arithmetic", "arithmetic"), ("smollm2", "smollm2-135m")]),
        (["qwen2.5-0.5b/grpo/none/arithmetic"], [("arithmetic", "arithmetic")]),
        (["qwen2.5-0.5b/grpo/none/gsm8k"], []),
    ],
)
def test_what_recipes_need_is_made_once(words, expected, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(plan, "_make", lambda module, folder, *options: made.append((module, folder)))
    monkeypatch.setattr(plan.machine, "check", lambda config: [])
    plan.prepare(catalogue.parse_all(words), tmp_path, tmp_path / "toy", tmp_path / "runs")
    assert made == [(module, tmp_path / "toy" / part) for module, part in expected]


@pytest.fixture
def demo(stand_in, tmp_path, monkeypatch):
    """demo(*words, **do): `recipes run` of two recipes in tmp_path, with a stand-in for the trainer that does so."""
    monkeypatch.setattr(plan, "make_toy", lambda *start: None)
    monkeypatch.setattr(plan.machine, "check", lambda config: [])

    def call(*words, recipes=("demo/vanilla", "demo/kl_cov"), **do):
        stand_in(**do)
        return run("run", *recipes, "--steps", "4", "--runs", tmp_path, "--toy", tmp_path, *words)

    return call


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_several_recipes_one_after_the_other_and_the_next_set_beside_them(demo, tmp_path):
    done = demo()
    assert done.exit_code == 0, done.output
    assert {name: read_metrics(paths).steps.tolist() for name, paths in find_runs([tmp_path / "demo"])} == {
        name: [0, 1, 2, 3, 4] for name in ("vanilla", "kl_cov")
    }
    assert "kl_cov 4/4  entropy 0.464  score 0.582  val 0.380" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(f"Next: `verl-cov report {tmp_path}/demo` (one page), ")
    assert "run 1 of 2: vanilla\n" in done.stdout
    assert [line.split()[:3] for line in done.stdout.splitlines()[-3:-1]] == [
        ["vanilla", "4", "0.917"],
        ["kl_cov", "4", "0.917"],
    ]
    before = content(tmp_path / "demo")
    done = demo("--skip-finished")
    assert done.exit_code == 0
    assert "demo/kl_cov is finished: 4 steps" in done.stdout
    assert not (tmp_path / "demo-2").exists()
    done = demo("--seed", "1")  # finished: other settings do not matter
    assert done.exit_code == 0
    assert "demo-2/vanilla starts in" in done.stdout
    assert "recipe.seed=1" in (tmp_path / "demo-2" / "vanilla" / launch.RECORD).read_text()
    assert "recipe.name=demo-vanilla-2" in (tmp_path / "demo-2" / "vanilla" / launch.RECORD).read_text()
    assert content(tmp_path / "demo") == before


def test_a_failure_ends_the_set_with_the_trainers_exit_code_and_the_next_call_resumes_it(demo, tmp_path):
    done = demo(fail=3, who="vanilla")
    assert done.exit_code == 3
    assert "vanilla: failed, " in done.stdout
    assert "demo/vanilla failed (exit code 3) after step 2." in done.stdout
    assert not (tmp_path / "demo" / "kl_cov").exists()
    done = demo()
    assert done.exit_code == 0
    assert "demo/vanilla resumes after step 2\ndemo/kl_cov starts in" in done.stdout
    assert (tmp_path / "demo" / "vanilla" / "002.jsonl").is_file()
    assert not (tmp_path / "demo-2").exists()


def test_a_stopped_set_is_not_gone_on_with_in_other_settings(demo, tmp_path):
    assert demo(fail=3, who="kl_cov").exit_code == 3
    before = content(tmp_path)
    for recipes in (("demo/vanilla", "demo/kl_cov"), ("demo/kl_cov",)):
        done = demo("--seed", "1", recipes=recipes)
        assert done.exit_code == 2
        assert "was started with other settings (without recipe.seed=1), and verl would go on" in done.stderr
    assert content(tmp_path) == before
    assert demo("--seed", "1", "--changed").exit_code == 0
    assert not (tmp_path / "demo-2").exists()


def test_a_run_without_checkpoints_is_finished_all_the_same(demo, tmp_path):
    assert demo(recipes=("demo/vanilla",)).exit_code == 0
    shutil.rmtree(tmp_path / "demo" / "vanilla" / "checkpoints")
    assert "demo/vanilla is finished" in demo("--skip-finished", recipes=("demo/vanilla",)).stdout
    assert "demo-2/vanilla starts" in demo(recipes=("demo/vanilla",)).stdout


def test_a_checkpoint_folder_of_the_users_own_is_not_trained_over(demo, tmp_path):
    own = f"trainer.default_local_dir={tmp_path}/mine"
    assert demo(own, recipes=("demo/vanilla",)).exit_code == 0
    done = demo(own, recipes=("demo/vanilla",))
    assert done.exit_code == 2
    assert "trainer.default_local_dir holds a finished run" in done.stderr


def test_the_report_is_missed_before_the_trainings(demo, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert isinstance(demo("--report").exception, ModuleNotFoundError)  # `main` tells the fix in one line
    assert not list(tmp_path.iterdir())


def test_a_failing_preparation_is_one_line(tmp_path, capfd):
    (tmp_path / "countdown").write_text("in the way")
    with pytest.raises(ValueError, match=f"could not make {tmp_path}/countdown"):
        plan.make_toy(tmp_path)
    assert capfd.readouterr().err == f"verl-cov: {tmp_path}/countdown: file exists\n"
    with pytest.raises(NotADirectoryError):  # no process is started for it
        plan.make_toy(tmp_path / "countdown" / "cache")


def test_ctrl_c_while_something_is_made_is_one_line(tmp_path, monkeypatch, capfd):
    (tmp_path / "interrupted.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)" + plan._WITHOUT_TRACEBACK
    done = subprocess.run([sys.executable, "-c", code, "interrupted"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode != 0
    assert capfd.readouterr() == ("", "")

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "prepare", interrupted)
    done = run("run", *TOY, "--runs", tmp_path, "--toy", tmp_path)
    assert (done.exit_code, done.output) == (130, "Stopped. Nothing is lost: the same command resumes.\n")


def test_each_launch_has_a_log_of_its_own(tmp_path):
    assert launch.next_metrics_file(tmp_path).name == "001.jsonl"
    (tmp_path / "001.jsonl").touch()
    assert launch.next_metrics_file(tmp_path).name == "002.jsonl"
