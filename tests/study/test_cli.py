"""`verl-cov study` as a user types it, with a script in the place of verl's trainer."""

from __future__ import annotations

import json
import os

import pytest
from typer.testing import CliRunner

from tests.recipes.conftest import _fast_compositions, stand_in  # noqa: F401
from tests.study.conftest import CONTENT, keep
from verl_cov.cli import app
from verl_cov.law import files
from verl_cov.recipes import child, machine, plan
from verl_cov.study import protocol, results, runner, shown


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    """Not in a fork of it: pytest's process has torch, with threads. Nothing is made and nothing is looked for."""
    monkeypatch.setattr(child, "in_child", lambda function, *arguments, **options: function(*arguments, **options))
    monkeypatch.setattr(plan, "make_toy", lambda *start: None)
    monkeypatch.setattr(machine, "check", lambda config: iter(()))


@pytest.fixture
def command(make, tmp_path):
    """command(*words): `verl-cov study` in a folder with the study of tests."""
    path = make()

    def invoke(word: str, *words: str):
        (tmp_path / "data").mkdir(exist_ok=True)
        places = ["--protocols", path.parent, "--data", tmp_path / "data"]
        places += ["--runs", tmp_path / "runs"] if word in ("run", "status") else []
        return CliRunner().invoke(app, ["study", word, *map(str, [*words, *places])], env={"COLUMNS": "200"})

    return invoke


def left(tmp_path):
    return sorted(path.name.removesuffix(".csv.gz") for path in (tmp_path / "data" / "test").glob("*"))


FIRST = ["toy-grpo-none-0", "toy-grpo-kl_cov-0"]


def test_runs_are_trained_one_after_another_and_leave_a_file_each(command, stand_in, tmp_path):  # noqa: F811
    done = command("run", "test", "--at-most", "2")
    assert done.exit_code == 0, done.output
    assert left(tmp_path) == sorted(FIRST)
    study = protocol.load("test", tmp_path / "studies")
    result = results.read(tmp_path / "data", study, study.cells[0])
    assert result.run.steps.tolist() == list(range(13))
    assert 0 < result.seconds < 60
    assert "1 of 7 runs to do: toy-grpo-none-0" in done.output
    assert not (tmp_path / "runs" / "test" / FIRST[0] / "checkpoints").exists()
    assert (tmp_path / "runs" / "test" / FIRST[0] / "001.jsonl").is_file()

    said = command("status", "test", "--json")
    status = json.loads(said.stdout)
    assert (status["runs"], status["done"]) == (7, sorted(FIRST))
    assert len(status["left"]) == 5
    assert status["seconds_left"] > 0
    again = command("run", "test", "--claim", "collapse", "--at-most", "1")
    assert "1 of 2 runs to do: toy-grpo-none-1" in again.output  # those of the claim only


def test_a_run_that_failed_goes_on_and_the_others_are_trained(command, stand_in, tmp_path):  # noqa: F811
    stand_in(fail=9, who="toy-grpo-none-0")
    done = command("run", "test", "--at-most", "2")
    assert done.exit_code == 1
    assert "toy-grpo-none-0 failed" in done.output
    assert left(tmp_path) == FIRST[1:]
    status = json.loads(command("status", "test", "--json").stdout)
    assert {"run": "toy-grpo-none-0", "step": 8, "running": False} in status["left"]
    assert "8" in next(line for line in command("status", "test").stdout.splitlines() if "grpo none" in line).split()
    stand_in()
    done = command("run", "test", "--at-most", "1")
    assert done.exit_code == 0
    assert "toy-grpo-none-0 resumes after step 8" in done.output
    assert left(tmp_path) == sorted(FIRST)
    study = protocol.load("test", tmp_path / "studies")
    assert results.read(tmp_path / "data", study, study.cells[0]).run.steps.tolist() == list(range(13))


def test_two_failures_in_a_row_end_it(command, stand_in, tmp_path):  # noqa: F811
    stand_in(fail=1)
    done = command("run", "test")
    assert done.exit_code == 1
    assert "2 runs one after the other failed: stopped" in done.output
    assert "toy-grpo-none-1" not in done.output


def test_killed_between_the_training_and_its_file(command, stand_in, tmp_path, monkeypatch):  # noqa: F811
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(results, "write", killed)
        done = command("run", "test", "--at-most", "1")
        assert done.exit_code == 130
        assert "Nothing is lost" in done.output
    assert not left(tmp_path)
    done = command("run", "test", "--at-most", "1")
    assert done.exit_code == 0
    assert left(tmp_path) == FIRST[:1]
    assert not (tmp_path / "runs" / "test" / FIRST[0] / "002.jsonl").exists()  # it was not trained again


def test_killed_between_the_file_and_the_end_of_the_checkpoints(command, stand_in, tmp_path):  # noqa: F811
    assert command("run", "test", "--at-most", "1").exit_code == 0
    checkpoints = tmp_path / "runs" / "test" / FIRST[0] / "checkpoints"
    (checkpoints / "global_step_12").mkdir(parents=True)
    command("run", "test", "--at-most", "1")
    assert not checkpoints.exists()


def test_a_lost_or_damaged_file_is_made_again_without_training(command, stand_in, tmp_path):  # noqa: F811
    assert command("run", "test", "--at-most", "1").exit_code == 0
    path = tmp_path / "data" / "test" / f"{FIRST[0]}.csv.gz"
    whole = path.read_bytes()
    for damage in (path.unlink, lambda: path.write_bytes(whole[:50])):
        damage()
        done = command("run", "test", "--at-most", "1")
        assert done.exit_code == 0
        assert path.read_bytes() == whole
    assert "is damaged" in done.output
    assert not (path.parent.parent.parent / "runs" / "test" / FIRST[0] / "002.jsonl").exists()


def test_results_of_another_protocol_are_left_alone_and_the_rest_is_trained(command, make, stand_in, tmp_path):  # noqa: F811
    assert command("run", "test", "--at-most", "1").exit_code == 0
    path = tmp_path / "data" / "test" / f"{FIRST[0]}.csv.gz"
    before = path.read_bytes()
    make(version=4)
    done = command("run", "test", "--at-most", "1")
    assert done.exit_code == 0
    assert "left alone: " in done.output
    assert path.read_bytes() == before
    assert left(tmp_path) == sorted(FIRST)
    assert "is of test version 3" in command("status", "test").stderr


def test_a_run_that_another_process_trains_is_skipped(command, stand_in, tmp_path):  # noqa: F811
    folder = tmp_path / "runs" / "test" / FIRST[0]
    folder.mkdir(parents=True)
    (folder / ".lock").write_text(f"runner 1, training {os.getsid(0)}\n")
    done = command("run", "test", "--at-most", "2")
    assert "toy-grpo-none-0 is being trained by another process: skipped" in done.output
    assert left(tmp_path) == FIRST[1:]
    status = json.loads(command("status", "test", "--json").stdout)
    assert status["left"][0] == {"run": "toy-grpo-none-0", "step": 0, "running": True}


def test_the_report_is_made_of_the_files_alone(make, study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "docs" / "study.md"
    report = ["study", "report", "--protocols", str(make().parent)]
    output.parent.mkdir()
    other = output.with_name("other.md")
    other.write_text("Before\n\n<!-- study test both -->\nold\n<!-- end -->\n\nafter\n")
    for cell in study.cells[:3]:
        keep(output.parent / "study" / "data", study, cell)
    (output.parent / "study" / "data" / "test" / f"{study.cells[1].name}.csv.gz").write_bytes(b"half")
    done = CliRunner().invoke(app, report)
    assert done.exit_code == 0, done.output
    assert "left out: " in done.stderr
    text = output.read_text()
    assert "2 of 7 runs so far" in text
    assert "cannot be told yet (2 of 3 runs)" in text
    assert f"{study.cells[1].name}.csv.gz is damaged" in text
    assert "![Three curves.](study/test/fig11.png)" in text
    assert "| none | 2 | 0.800 ± 0.000 | - |\n\nNo run yet: kl_cov.\n" in text
    for cell in study.cells:
        keep(output.parent / "study" / "data", study, cell)
    assert CliRunner().invoke(app, report).exit_code == 0
    text = output.read_text()
    assert "all 7 runs" in text
    row = next(line for line in text.splitlines() if line.startswith("| kept "))
    assert "0.11 ± 0.0058 (0.0852 to 0.135) | 3 of 3 | holds | `verl-cov study run test --claim kept` |" in row
    assert "Both.\n\n| control | n | found | distance |\n" in text
    assert "| none | 3 | 0.800 ± 0.000 | - |\n| kl_cov | 3 | 0.910 ± 0.006 | - |\n" in text
    table = text[text.index("Both.\n\n| control |") :].partition("\n\n###")[0]
    assert other.read_text() == f"Before\n\n<!-- study test both -->\n\n{table}\n\n<!-- end -->\n\nafter\n"
    picture = output.parent / "study" / "test" / "fig11.png"
    same = picture.read_bytes()
    CliRunner().invoke(app, report)
    assert (output.read_text(), picture.read_bytes()) == (text, same)


def test_a_report_of_less_than_all_leaves_the_documentation_alone(command, study, make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    pages = [tmp_path / "docs" / name for name in ("study.md", "controls.md")]
    for path in pages:
        path.write_text("<!-- study test both -->\nold\n<!-- end -->\n")
    for words in (["report"], ["report", "-o", "docs/other.md"], ["report", "test", "-o", "docs/other.md"]):
        done = command(*words)  # there are no results
        assert done.exit_code == 2
        assert done.stderr.startswith("verl-cov: no results in ")
        assert len(done.stderr.splitlines()) == 1
    for cell in study.cells[:3]:
        keep(tmp_path / "data", study, cell)
    for words in (["report", "test"], ["report", "test", "-o", tmp_path / "docs" / "study.md"]):
        done = command(*words)
        assert done.exit_code == 2
        assert done.stderr == "verl-cov: docs/study.md is the page of all studies: name another with -o\n"
    assert sorted((tmp_path / "docs").iterdir()) == sorted(pages)
    for words in (["report", "test"], ["report"]):
        assert command(*words, "-o", "docs/other.md").exit_code == 0
    assert {path.read_text() for path in pages} == {"<!-- study test both -->\nold\n<!-- end -->\n"}


def test_an_interrupted_report_leaves_nothing(command, study, tmp_path, monkeypatch):
    keep(tmp_path / "data", study, study.cells[0])
    (tmp_path / "here").mkdir()

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("verl_cov.study.figures.picture", interrupted)
    assert command("report", "test", "-o", tmp_path / "here" / "page.md").exit_code != 0
    assert not list((tmp_path / "here").iterdir())


def test_the_page_says_whose_control_a_claim_is_about_and_how_its_words_are_counted(make, tmp_path):
    claims = {name: {**claim, "paper": "its own"} for name, claim in CONTENT["claims"].items()}
    digests = set()
    for more in ({}, {"papers": {"kl_cov": "arXiv 2505.22617"}, "reading": ["By rollout 15: before the five."]}):
        path = make(claims=claims, **more)
        digests.add(protocol.read(path).digest)
        keep(tmp_path, protocol.read(path), protocol.read(path).cells[0])
        words = ["--protocols", path.parent, "--data", tmp_path, "-o", tmp_path / "page.md"]
        assert CliRunner().invoke(app, ["study", "report", *map(str, words)]).exit_code == 0
        text = (tmp_path / "page.md").read_text()
        if not more:
            assert "| claim | in the paper |" in text
    assert len(digests) == 1  # what only shows results may change after the first one
    assert "| claim | whose control |" in text
    assert "| kept | arXiv 2505.22617 |" in text
    assert "| collapse | its own |" in text
    assert "\n- By rollout 15: before the five.\n" in text
    refused = make(papers={"kl_cvo": "x"})
    with pytest.raises(protocol.BadProtocol, match="did you mean kl_cov"):
        protocol.read(refused)


def test_every_figure_of_the_paper_can_be_drawn(make, tmp_path):
    kinds = {
        kind: {"kind": kind, "by": "control", "says": kind, "runs": {"control": ["none", "kl_cov"]}}
        for kind in shown.FIGURES
    }
    path = make(figures=kinds)
    study = protocol.read(path)
    for cell in study.cells[:4]:
        keep(tmp_path / "data", study, cell)
    words = ["study", "report", "-o", tmp_path / "page.md", "--protocols", path.parent, "--data", tmp_path / "data"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "page" / "test").glob("*.png"))) == len(kinds)


def test_list(command):
    done = command("list")
    assert "A study of tests." in done.stdout
    assert "0/7" in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "tset"], "there is no study 'tset': did you mean test?"),
        (["status", "nothing.yaml"], "there is no study 'nothing.yaml'"),
        (["report", "tset", "-o", "x.md"], "did you mean test?"),
        (["run", "test", "--claim", "keptt"], "did you mean kept?"),
    ],
)
def test_bad_input_is_one_line_and_code_2(command, words, says):
    done = command(*words)
    assert done.exit_code == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("word", ["list", "status", "report", "run"])
def test_a_folder_that_is_not_there_is_one_line_that_names_the_option(make, tmp_path, word, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    study = [] if word == "list" else ["test"]
    for option in ("--protocols", "--data"):
        if (word, option) == ("run", "--data"):
            continue  # it is written to
        done = CliRunner().invoke(app, ["study", word, *study, "--protocols", str(make().parent), option, "no/where"])
        assert done.exit_code == 2
        assert done.stderr == f"verl-cov: {option} no/where: there is no such folder\n"
    assert not list((tmp_path / "docs").iterdir())


def test_outside_a_checkout_it_is_said_where_was_looked(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    monkeypatch.setattr(protocol, "FOLDER", nothing)  # as in a wheel
    for words in (["list"], ["status", "test"], ["report"], ["run", "test"]):
        done = CliRunner().invoke(app, ["study", *words])
        assert done.exit_code == 2
        assert len(done.stderr.splitlines()) == 1
        assert f"there are no studies in {nothing}: give --protocols FOLDER" in done.stderr
    done = CliRunner().invoke(app, ["study", "report", "--protocols", str(make().parent)])
    assert done.stderr == f"verl-cov: there is no folder {tmp_path}/docs, of a checkout: name a page with -o\n"
    for words in (["list"], ["status", "test"], ["report", "-o", "page.md"]):
        done = CliRunner().invoke(app, ["study", *words, "--protocols", str(make().parent)])
        assert done.exit_code == (2 if "report" in words else 0), done.output
        assert f"no results in {tmp_path}/docs/study/data: `verl-cov study run " in done.stderr
        assert "--data FOLDER" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["study", "report", "test", "-o", "no/page.md"],
        ["dashboard", "grafana", "-o", "no/board.json"],
        ["selftest", "--device", "cpu", "-o", "no/x.json"],
        ["fit", "--example", "-o", "no/law.json"],
        ["report", "--example", "-o", "no/report.html"],
        ["plot", "--example", "-o", "no/law.png"],
        ["data", "prepare", "gsm8k", "--from", "sample", "-o", "no/data"],
    ],
)
def test_no_output_makes_a_folder_on_the_way(make, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    words = [*words, *(["--protocols", str(make().parent)] if words[0] == "study" else [])]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert done.stderr.startswith("verl-cov: -o no/")
    assert "that exists" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "no").exists()


def test_what_cannot_be_written_has_the_users_name_of_it(tmp_path, monkeypatch):
    (tmp_path / "page.md").mkdir()
    with pytest.raises(OSError, match=r"page\.md'$") as refused:
        files.write(tmp_path / "page.md", b"")
    assert refused.value.filename == str(tmp_path / "page.md")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write everywhere
    done = CliRunner().invoke(app, ["fit", "--example", "-o", str(tmp_path / "law.json")])
    assert done.stderr == f"verl-cov: -o {tmp_path}/law.json: its folder is read-only for you: give another\n"


def test_a_damaged_protocol_is_one_line(command, tmp_path):
    (tmp_path / "studies" / "test.yaml").write_text("version: [")
    done = command("status", "test")
    assert done.exit_code == 2
    assert "test.yaml is no YAML" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_parameters_are_counted_without_embeddings(untrained_model):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(untrained_model)
    every = sum(parameter.numel() for parameter in model.parameters())
    ends = model.model.embed_tokens.weight.numel() + model.lm_head.weight.numel()
    tied = model.config.tie_word_embeddings
    assert runner.parameters(untrained_model) == every - (ends // 2 if tied else ends)
    assert runner.parameters(untrained_model / "nothing") is None
