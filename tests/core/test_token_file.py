"""The token dump: written, read back, damaged, shown."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from verl_cov import cli, tokens
from verl_cov.core import token_file
from verl_cov.core.token_file import Token

TOKEN = Token(
    step=4,
    rank=1,
    covariance=2.5,
    log_prob=-3.25,
    advantage=-1.5,
    kind="confirmation",
    selected=True,
    token=" 7",
    token_id=55,
    before="3 5:10\n[b]5+",
    after="<end>",
    position=2,
    response_tokens=4,
    prompt="some-uid",
)


def some(step, count=3):
    return [
        replace(TOKEN, step=step, rank=rank, covariance=9.0 / rank, selected=rank == 1) for rank in range(1, count + 1)
    ]


def test_what_is_written_is_read_and_nothing_is_overwritten(tmp_path):
    path = tmp_path / "new folder" / token_file.FILE
    token_file.append(path, some(4))
    token_file.append(path, some(8))
    assert token_file.read(path) == token_file.Dump((*some(4), *some(8)), 0)


def test_damaged_lines_are_counted_and_a_torn_one_spoils_no_other(tmp_path):
    path = tmp_path / token_file.FILE
    token_file.append(path, some(4))
    with path.open("ab") as file:
        file.write(b'{"step": 5}\n\xff\xfe not json\n[1]\n{"step": 6, "ra')  # killed in mid-line
    with path.open("a") as file:
        for damage in (dict(step="5"), dict(token=None), dict(covariance="high"), dict(rank=1.5), dict(selected=1)):
            file.write("\n" + json.dumps(asdict(TOKEN) | damage))
        file.write("\n" + json.dumps(asdict(TOKEN) | {"log_prob": float("nan")}))
    token_file.append(path, some(8))
    assert token_file.read(path) == token_file.Dump((*some(4), *some(8)), 10)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_step_written_again_by_a_resumed_run_counts_once(tmp_path, count):
    path = tmp_path / token_file.FILE
    token_file.append(path, some(4))
    again = [replace(token, token="new") for token in some(4, count)]
    token_file.append(path, again)
    assert token_file.read(path).tokens == tuple(again)


def shown(dump, **options):
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(tokens.view(dump, **options))
    return console.export_text()


def test_the_view_marks_the_token_in_its_text():
    text = shown(token_file.Dump((*some(4), *some(8)), 0), top=2)
    assert "Step 8" in text
    assert "2 of 3 dumped" in text
    assert "3 5:10\\n[b]5+« 7»<end>" in text  # marked without colour too; brackets are text, not markup
    assert "confirmation" in text
    assert "Of 3 tokens 1 acted on, 3 with a negative advantage" in text
    assert "Step 4" in shown(token_file.Dump((*some(4), *some(8)), 0), step=4)


def test_text_of_a_model_cannot_steer_the_terminal(tmp_path):
    path = tmp_path / token_file.FILE
    nasty = replace(TOKEN, token="\x1b[2J\a", before="a\u202eb\r", after="\ud800\x9b31m")
    token_file.append(path, [nasty])
    text = shown(token_file.read(path))
    assert not set(text) & set("\x1b\a\u202e\r\x9b")
    assert "\\x1b[2J\\x07" in text


def test_the_command(tmp_path):
    path = tmp_path / token_file.FILE
    token_file.append(path, some(4))
    with path.open("a") as file:
        file.write("torn")
    run = CliRunner().invoke(cli.app, ["tokens", str(tmp_path)])
    assert run.exit_code == 0
    assert "Step 4" in run.output
    assert "Damaged lines left out: 1" in run.output
    assert (
        "step 5 was not dumped; the file has 4"
        in CliRunner().invoke(cli.app, ["tokens", str(path), "--step", "5"]).output
    )
    for path, says in ((tmp_path / "none.jsonl", "no such file or folder"), (tmp_path / "empty", "cov_dump_every=10")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        missing = CliRunner().invoke(cli.app, ["tokens", str(path)])
        assert missing.exit_code == 2
        assert says in missing.stderr
        assert len(missing.stderr.splitlines()) == 1


def test_a_run_is_given_by_its_folder_or_by_the_one_it_is_in(tmp_path):
    for name, step in (("kl_cov", 4), ("clip_cov", 8)):
        token_file.append(tmp_path / "demo" / name / "checkpoints" / "cov" / token_file.FILE, some(step))
    for folder, there, not_there in (
        ("demo/kl_cov", "Step 4", "Step 8"),
        ("demo/clip_cov/checkpoints", "Step 8", "Step 4"),
        ("demo", "demo/kl_cov/checkpoints/cov", "none"),
        ("", "Step 8", "none"),
    ):
        run = CliRunner().invoke(cli.app, ["tokens", str(tmp_path / folder)])
        assert run.exit_code == 0
        assert there in run.stdout
        assert not_there not in run.stdout
    log = tmp_path / "demo" / "kl_cov" / "001.jsonl"
    log.write_text('{"step": 1, "data": {}}\n')
    assert "give a run's folder" in CliRunner().invoke(cli.app, ["tokens", str(log)]).stderr


def test_an_empty_file_is_said_to_be_empty(tmp_path):
    path = tmp_path / token_file.FILE
    path.touch()
    with pytest.raises(ValueError, match="no token"):
        tokens.view(token_file.read(path))
