"""Fingerprints of what verl-cov leans on: of the installed verl, of edited copies of it, and the data itself."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path

import pytest
import verl

import verl_cov
from verl_cov.hooks import versions
from verl_cov.hooks.doctor import features, fingerprints
from verl_cov.hooks.doctor.fingerprints import LEANS, VERLS_OWN
from verl_cov.patch import PatchError, commands, installation, sets

RELEASE = versions.installed_release()
INSTALLED = Path(verl.__file__).parent
LOSS = "verl/trainer/ppo/core_algos.py::agg_loss"
HOST = Path(verl_cov.__file__).parent / "host"

PATCHED_FILE, PATCHED = (
    ("workers/engine_workers.py", "TrainingWorker.train_batch")
    if RELEASE.engine
    else ("workers/actor/dp_actor.py", "DataParallelPPOActor.update_policy")
)


@pytest.fixture
def package(tmp_path):
    """A folder ``verl`` with the files of the installed one that matter here, unpatched."""
    folder = tmp_path / "verl"
    patch_set = sets.find(RELEASE.version)
    assert patch_set is not None
    for name in {"verl/__init__.py", "verl/version/version", *(lean.name.split("::")[0] for lean in LEANS)} | set(
        patch_set.files
    ):
        source = INSTALLED / Path(name).relative_to("verl")
        if source.exists():
            target = folder / Path(name).relative_to("verl")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    if commands.status(folder).state is installation.State.APPLIED:
        commands.revert(folder)
    return folder


def edit(package: Path, file: str, old: str, new: str) -> None:
    path = package / file
    text = path.read_text()
    assert old in text, f"{file} has no {old!r}"
    path.write_text(text.replace(old, new))


def compare(package: Path) -> fingerprints.Comparison:
    return fingerprints.compare(fingerprints.read(package), RELEASE.version)


def names(leans) -> set[str]:
    return {lean.name for lean in leans}


# --- the installed verl -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not versions.is_tested(verl.__version__), reason="this verl is a build or a fork")
def test_the_installed_release_is_exactly_what_it_says_it_is():
    compared = compare(INSTALLED)
    assert compared.exact, (names(compared.differing), names(compared.missing))
    assert compared.compared == compared.same > 5
    assert fingerprints.nearest(fingerprints.read(INSTALLED)).release == RELEASE.version


def test_the_data_are_what_the_command_writes(package, tmp_path):
    file = tmp_path / "data.json"
    written = fingerprints.write(RELEASE.version, package.parent, file)
    if versions.is_tested(verl.__version__):
        assert written == fingerprints.data()[RELEASE.version]
    assert json.loads(file.read_bytes()) == {RELEASE.version: written}
    assert set(written["patched"]) == {
        name for name in written["functions"] if name.startswith(f"verl/{PATCHED_FILE}::{PATCHED}")
    } | {"verl/workers/actor/dp_actor.py::DataParallelPPOActor.update_policy"} & set(written["functions"])


@pytest.mark.parametrize("other", [release.version for release in versions.RELEASES if release is not RELEASE][:2])
def test_the_command_refuses_another_release(package, tmp_path, other):
    with pytest.raises(PatchError, match=f"is verl {re.escape(RELEASE.version)}, not {re.escape(other)}"):
        fingerprints.write(other, package.parent, tmp_path / "data.json")


def test_the_command_refuses_a_patched_verl(package, tmp_path):
    commands.apply(package)
    with pytest.raises(PatchError, match="is patched or edited"):
        fingerprints.write(RELEASE.version, package.parent, tmp_path / "data.json")


def test_the_command_refuses_a_release_that_the_table_does_not_know(package, tmp_path):
    (package / "version" / "version").write_text("0.99.0")
    with pytest.raises(PatchError, match=r"versions\.py"):
        fingerprints.write("0.99.0", package.parent, tmp_path / "data.json")


# --- edited copies ----------------------------------------------------------------------------------------------------


def test_comments_docstrings_and_formatting_are_no_difference(package):
    edit(package, "trainer/ppo/core_algos.py", "def agg_loss(", "# a comment\n\n\ndef agg_loss(\n    ")
    edit(package, "trainer/ppo/core_algos.py", "    Args:\n", "    Args of the function:\n")
    assert compare(package).exact


def test_an_edit_is_found_and_the_features_it_touches_are_named(package):
    edit(package, "trainer/ppo/core_algos.py", 'if loss_agg_mode == "token-mean":', 'if loss_agg_mode == "mean":')
    compared = compare(package)
    assert names(compared.differing) == {LOSS}
    assert not compared.exact
    assert not compared.missing
    assert set(compared.at_risk()) == {features.LOSSES}
    assert compared.same == compared.compared - 1


def test_what_is_gone_is_missing_and_not_differing(package):
    edit(package, "trainer/ppo/core_algos.py", "def agg_loss(", "def aggregated_loss(")
    compared = compare(package)
    assert names(compared.missing) == {LOSS}
    assert not compared.differing
    assert set(compared.gone()) == {features.LOSSES}


def test_a_file_that_is_no_python_has_nothing(package):
    (package / "trainer" / "ppo" / "core_algos.py").write_text("def agg_loss(:\n")
    assert LOSS in names(compare(package).missing)


def test_a_patched_verl_is_the_release_with_the_patch(package):
    assert not compare(package).patched
    commands.apply(package)
    compared = compare(package)
    assert compared.exact
    assert f"verl/{PATCHED_FILE}::{PATCHED}" in names(compared.patched)


def test_a_patched_function_in_a_file_with_other_edits_is_still_known(package):
    commands.apply(package)
    path = package / PATCHED_FILE
    path.write_text(path.read_text() + "\n\ndef of_a_fork():\n    return 1\n")
    compared = compare(package)
    assert compared.exact
    assert compared.patched


def test_a_patched_function_with_other_edits_differs(package):
    commands.apply(package)
    edit(package, PATCHED_FILE, "MiniBatchStep(self, ", "MiniBatchStep(None, ")
    assert f"verl/{PATCHED_FILE}::{PATCHED}" in names(compare(package).differing)


def test_only_features_that_the_release_should_have_are_compared(package):
    leans = [lean for lean in LEANS if lean.name in fingerprints.data()[RELEASE.version]["functions"]]
    wanted = features.names(RELEASE)
    assert compare(package).compared == sum(bool(wanted & set(lean.features)) for lean in leans)
    assert VERLS_OWN not in wanted


def test_releases_with_a_fingerprint(package):
    name = "verl/trainer/ppo/core_algos.py::compute_policy_loss_kl_cov"
    assert RELEASE.version in fingerprints.releases_with(name, fingerprints.read(package)[name])
    assert fingerprints.releases_with(name, "0" * 64) == []
    assert fingerprints.releases_with(name, None) == []


# --- what a fingerprint is of -----------------------------------------------------------------------------------------


def of(source: str) -> str:
    return fingerprints.fingerprint([ast.parse(source)])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x  =  1  # one"),
        ("x = 'a'", 'x = "a"'),
        ("def f():\n    '''Doc.'''\n    return 1", "def f(): return 1"),
        (
            "class A:\n    '''Doc.'''\n    def f(self):\n        'Doc.'\n        return 1",
            "class A:\n  def f(self): return 1",
        ),
        ("x = f'a{b}' 'c'", "x = f'a{b}c'"),
        ("x = (1,\n 2)", "x = 1, 2"),
    ],
)
def test_the_same_in_other_words(one, other):
    assert of(one) == of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = True"),
        ("x = '1'", "x = 1"),
        ("def f(a): pass", "def f(a, b=None): pass"),
        ("def f(a): pass", "def f(*, a): pass"),
        ("def f(): pass", "async def f(): pass"),
        ("@g\ndef f(): pass", "def f(): pass"),
        ("f(a, b)", "f(b, a)"),
        ("x = f'a{b}c'", "x = f'a{b}d'"),
        ("x = f'{b!r}'", "x = f'{b}'"),
        ("x = f'{b:.2f}'", "x = f'{b:.3f}'"),
        ("def f():\n    'Doc.'\n    'no doc'", "def f():\n    'Doc.'\n    'another'"),
    ],
)
def test_another(one, other):
    assert of(one) != of(other)


def test_a_definition_under_a_condition_is_found_and_so_are_both_of_two(monkeypatch):
    lean = fingerprints.Lean("verl/x.py::A.f", "doctor", ())
    monkeypatch.setattr(fingerprints, "LEANS", (lean,))

    def found(source: str) -> str | None:
        return fingerprints.of({"verl/x.py": source.encode()}).get(lean.name)

    one = "class A:\n    def f(self): return 1\n"
    assert found(one) is not None
    assert found("try:\n" + "".join(f"    {line}\n" for line in one.splitlines()) + "finally:\n    pass") == found(one)
    both = "if x:\n    class A:\n        def f(self): return 1\nelse:\n    class A:\n        def f(self): return 2\n"
    assert found(both) not in (None, found(one))
    assert found(both) != found(both.replace("return 2", "return 3"))
    assert found("class B:\n    def f(self): return 1\n") is None
    assert found("def f(self): return 1\n") is None


# --- the table and the data -------------------------------------------------------------------------------------------


def test_every_release_has_its_data_and_each_feature_of_it_something_to_compare():
    assert list(fingerprints.data()) == [release.version for release in versions.RELEASES]
    for release in versions.RELEASES:
        known = fingerprints.data()[release.version]
        there = {feature for lean in LEANS if lean.name in known["functions"] for feature in lean.features}
        assert features.names(release) - {features.LAW} <= there, release.version
        assert known["patched"], release.version


def test_every_entry_is_of_some_release_once_and_of_features_that_exist():
    found = [lean.name for lean in LEANS]
    assert len(found) == len(set(found))
    known = {name for one in fingerprints.data().values() for name in one["functions"]}
    assert set(found) == known
    every = {feature for release in versions.RELEASES for feature in features.names(release)} | {VERLS_OWN}
    assert {feature for lean in LEANS for feature in lean.features} == every - {features.LAW}
    assert set(features.TESTS) == every - {features.LAW, VERLS_OWN}


# Their "Leans on" names nothing of verl's that is a function or class: fields of a batch; vLLM; what others name.
WITHOUT = {"token_dump", "cpu/vllm_linear", "doctor/probe"}


def test_every_seam_that_leans_on_verl_is_in_the_table_and_exists():
    seams = {seam for lean in LEANS for seam in lean.seam.split(", ")}
    assert all((HOST / f"{seam}.py").is_file() for seam in seams)
    leaning = set()
    for path in HOST.rglob("*.py"):
        if "leans on" in (ast.get_docstring(ast.parse(path.read_bytes())) or "").lower():
            leaning.add(path.relative_to(HOST).with_suffix("").as_posix())
    assert leaning - seams - {"doctor/fingerprints", "__init__"} == WITHOUT
