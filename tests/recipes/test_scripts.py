"""The scripts of recipes/ as a user types them. Stubs of verl-cov and ray say what they are called with."""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "recipes"
SCRIPTS = ("run.sh", "sweep.sh", "ray.sh")
# `recipes commands` lists two runs with names that a shell could take apart; the second run fails.
VERL_COV = """#!/bin/sh
if [ "$2" = commands ]; then
  [ "$4" = e ] || { echo "verl-cov: there is no experiment '$4'" >&2; exit 2; }
  echo "e/a *"; echo e/b; exit
fi
case " $* " in *" --dry-run "*) case " $* " in *" bad=1 "*) echo "verl-cov: bad" >&2; exit 2 ;; *) exit ;; esac ;; esac
printf '<%s>' "$@"; echo
[ "$3" != e/b ]
"""


def script(name: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(FOLDER / name), *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=600,
    )


@pytest.fixture(autouse=True)
def stubs(tmp_path, monkeypatch):
    for name, text in (("verl-cov", VERL_COV), ("ray", "#!/bin/sh\nprintf '<%s>' \"$@\"; echo\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("words", [["-h"], ["--help"], ["e", "--help"], ["submit", "e", "-h"]], ids=" ".join)
def test_help_is_help_and_runs_nothing(name, words):
    done = script(name, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"recipes/{name} " in done.stdout
    assert "<" not in done.stdout
    assert "set -" not in done.stdout


OTHERS = ("recipes/slurm.sh", "docs/upstream/entropy/run.sh", "docs/upstream/prime/run.sh", "benchmarks/gpu.sh")


@pytest.mark.parametrize("word", ["-h", "--help"])
@pytest.mark.parametrize("name", OTHERS)
def test_every_script_has_help(name, word, tmp_path):
    done = script(f"../{name}", word, OUT=str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (0, "")
    assert name.removeprefix("docs/upstream/") in done.stdout
    assert not (tmp_path / "out").exists()


def test_verl_recipes_script_tells_its_usage_for_another_model():
    done = script("../docs/upstream/entropy/run.sh", "8b", "kl_cov")
    assert (done.returncode, done.stdout) == (2, "")
    assert "entropy/run.sh 7b kl_cov" in done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_word_at_all_is_help_with_code_2(name):
    done = script(name)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout == script(name, "-h").stdout


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("sweep.sh", ["fig99"], "there is no experiment 'fig99'"),
        ("sweep.sh", ["--data"], "the experiment comes first"),
        ("sweep.sh", ["a=1", "e"], "the experiment comes first"),
        ("sweep.sh", ["e", "bad=1"], "verl-cov: bad"),
        ("ray.sh", ["start"], "there is no command 'start': give head, worker, submit or stop"),
        ("ray.sh", ["head", "extra", "words"], "head takes no more words"),
        ("ray.sh", ["stop", "extra"], "stop takes no more words"),
        ("ray.sh", ["worker"], "worker takes the head's address"),
        ("ray.sh", ["submit"], "submit takes a recipe"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_run(name, words, says):
    done = script(name, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert ": line " not in done.stderr


@pytest.mark.parametrize("seeds", [" ", "0 a", "1,2"])
def test_seeds_that_are_no_numbers_are_one_line(seeds):
    done = script("sweep.sh", "e", SEEDS=seeds)
    assert (done.returncode, done.stdout) == (2, "")
    assert f'SEEDS="{seeds}" must be whole numbers' in done.stderr


@pytest.mark.parametrize(("name", "tool"), [("run.sh", "verl-cov"), ("sweep.sh", "verl-cov"), ("ray.sh", "ray")])
def test_a_tool_is_the_checkouts_own_if_there_is_no_other_and_named_if_there_is_none(name, tool, stubs, monkeypatch):
    """In a copy, beside which there may be no .venv."""
    shutil.copytree(FOLDER, stubs / "recipes")
    monkeypatch.setattr(sys.modules[__name__], "FOLDER", stubs / "recipes")
    words = ["stop"] if tool == "ray" else ["e"]
    done = script(name, *words, PATH="/usr/bin:/bin")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"there is no {tool} on the PATH" in done.stderr
    (stubs / ".venv" / "bin").mkdir(parents=True)
    (stubs / tool).rename(stubs / ".venv" / "bin" / tool)
    assert "<" in script(name, *words, PATH="/usr/bin:/bin").stdout


def test_words_arrive_as_they_were_typed():
    done = script("run.sh", "tiny", "grpo", "kl_cov", "toy", "--dry-run-not", "a=1 2", "b=$x *", "c='d \"e'")
    assert done.stdout == "<recipes><run><tiny><grpo><kl_cov><toy><--dry-run-not><a=1 2><b=$x *><c='d \"e'>\n"


def test_a_sweep_goes_through_runs_and_seeds_and_past_a_failure():
    done = script("sweep.sh", "e", "x=1 2", "y=*", SEEDS="0 1")
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if line.startswith("<recipes>")] == [
        f"<recipes><run><e/{name}><--skip-finished><recipe.seed={seed}><recipe.name=e-{name}-seed{seed}><x=1 2><y=*>"
        for seed in (0, 1)
        for name in ("a *", "b")
    ]
    assert done.stdout.count(" failed\n") == 2


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [(["submit", "e"], "no Ray cluster answers at 127.0.0.1:"), (["worker", "127.0.0.1"], "no Ray head answers at")],
)
def test_without_a_cluster_ray_is_not_even_asked(words, says):
    port = str(free_port())
    done = script("ray.sh", *words, DASHBOARD=port, PORT=port)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert "recipes/ray.sh head" in done.stderr
    assert len(done.stderr.splitlines()) == 1


class Dashboard(http.server.BaseHTTPRequestHandler):
    """What answers at a port; `says` is its code and its text."""

    says = (200, b'{"ray_version": "2.50.0"}')

    def do_GET(self):
        code, text = self.says if self.path == "/api/version" else (404, b"")
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *words):
        pass


@pytest.fixture
def answering(monkeypatch):
    """answering(code, text): the port of a server that answers so."""
    servers = []

    def start(*says) -> str:
        monkeypatch.setattr(Dashboard, "says", says)
        servers.append(http.server.HTTPServer(("127.0.0.1", 0), Dashboard))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return str(servers[-1].server_port)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_what_answers_and_is_not_ray_is_one_line(answering, stubs):
    (stubs / "ray").write_text('#!/bin/sh\nprintf "<%s>" "$@"; echo Traceback >&2; [ "$1" != health-check ]\n')
    port = answering(200, b"hello")
    for words, says in (
        (["worker", "127.0.0.1"], f"what answers at 127.0.0.1:{port} is no Ray head"),
        (["submit", "e/b"], f"what answers at 127.0.0.1:{port} is no Ray cluster"),
    ):
        done = script("ray.sh", *words, DASHBOARD=port, PORT=port)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert says in done.stderr


def test_a_worker_joins_the_head_that_answers(answering):
    port = answering(200, b"")  # that it is Ray's, says the stub of `ray health-check`
    done = script("ray.sh", "worker", "127.0.0.1", PORT=port)
    assert (done.returncode, done.stdout) == (0, f"<start><--address><127.0.0.1:{port}>\n")


@pytest.mark.parametrize(
    "says", [(200, b'{"ray_version": "2.50.0"}'), (401, b"Unauthorized: Missing authentication token")]
)
def test_a_recipe_is_submitted_to_the_cluster_that_answers(answering, says):
    port = answering(*says)
    done = script("ray.sh", "submit", "e/b", "a=1 2", DASHBOARD=port, PORT=port)
    assert done.returncode == 0, done.stderr
    assert f"<--address><http://127.0.0.1:{port}>" in done.stdout
    assert done.stdout.endswith("<e/b><a=1 2>\n")
    taken = script("ray.sh", "head", DASHBOARD=port, PORT=port)
    assert (taken.returncode, taken.stdout) == (2, "")
    assert f"port {port} is taken" in taken.stderr
