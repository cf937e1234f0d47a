"""Protocols: what they mean, what of them is refused, and those that are in this repository."""

from __future__ import annotations

import contextlib
import io

import pytest

from tests.study.conftest import CONTENT
from verl_cov.recipes import catalogue, compose
from verl_cov.study import figures, protocol, shown
from verl_cov.study.protocol import BadProtocol


def test_the_runs_are_a_product_in_the_order_of_the_blocks(study):
    names = [cell.name for cell in study.cells]
    assert names == [
        *("toy-grpo-none-0", "toy-grpo-kl_cov-0", "toy-grpo-none-1", "toy-grpo-kl_cov-1"),
        *("toy-grpo-none-2", "toy-grpo-kl_cov-2", "toy-rloo-none-0"),  # grpo-none-0 only once
    ]
    cell = study.cells[1]
    assert cell.words == (
        *("tiny/grpo/kl_cov/toy", "recipe.seed=0", "trainer.total_training_steps=12", "recipe.ppo_kl_coef=2"),
    )
    assert cell.steps == 12
    assert cell.selection.folder.parts == ("toy-grpo-kl_cov-0",)
    assert cell.selection.choices["entropy"] == "kl_cov"


def test_a_claim_is_of_its_runs_and_of_their_partners(study):
    assert [cell.name for cell in study.cells_of(study.claim("kept"))] == [
        *("toy-grpo-kl_cov-0", "toy-grpo-kl_cov-1", "toy-grpo-kl_cov-2"),
        *("toy-grpo-none-0", "toy-grpo-none-1", "toy-grpo-none-2"),
    ]
    assert len(study.cells_of(study.claim("collapse"))) == 3


def test_comments_and_figures_do_not_change_the_digest_and_any_other_value_does(make):
    path = make()
    digest = protocol.read(path).digest
    path.write_text("# a remark\n" + path.read_text())
    assert protocol.read(path).digest == digest
    assert protocol.read(make(figures={}, tables={}, report=False)).digest == digest
    others = {protocol.read(make(**change)).digest for change in ({"version": 4}, {"about": "x"}, {"tried": []})}
    assert len(others | {digest}) == 4


def changed(claim: str, **fields):
    return {"claims": {**CONTENT["claims"], claim: {**CONTENT["claims"][claim], **fields}}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": "one"}, "version must be a whole number, not 'one'"),
        ({"version": True}, "version must be a whole number, not True"),
        ({"tried": "once"}, "tried must be a list, not 'once'"),
        ({"figures": None}, "figures must be a mapping, not None"),
        ({"papers": ["x"]}, "papers must be a mapping, not ['x']"),
        ({"claims": {"kept": "x"}}, "claims: kept must be a mapping, not 'x'"),
        ({"runs": ["x"]}, "runs: a block must be a mapping"),
        ({"claim": {}}, "there is no field 'claim': did you mean claims?"),
        ({"replicate": "seed"}, "there is no factor (replicate) 'seed'"),
        ({"runs": [{"control": ["kl_covv"]}]}, "did you mean kl_cov?"),
        ({"runs": [{"controls": ["none"]}]}, "did you mean control?"),
        ({"usual": {"control": "nothing"}}, "there is no level of control (usual) 'nothing'"),
        ({"recipe": "tiny/{algorithm}/{control}/{tasks}"}, "the field tasks is missing"),
        ({"recipe": "tiny/{algorithm}/{control}/tou"}, "there is no task 'tou'"),
        (changed("kept", statistic="pass@65"), "did you mean pass@64"),
        (changed("kept", holds="0"), "must be like '> 0' or '< 0.05'"),
        (changed("kept", holds="> some"), "some"),
        (changed("collapse", runs={"algorithm": "rloo", "control": "kl_cov"}), "not among `runs`"),
        ({"figures": {"f": {"kind": "curve", "by": "control", "says": "", "runs": {}}}}, "did you mean curves"),
        ({"figures": {"f": {"kind": "law", "by": "lr", "says": "", "runs": {}}}}, "there is no factor (figure f) 'lr'"),
        ({"tables": {"t": {"by": "control", "says": "", "runs": {}, "statistics": {"pas@64": ""}}}}, "pass@64"),
        (
            {"tables": {"t": {"by": "lr", "says": "", "runs": {}, "statistics": {}}}},
            "there is no factor (table t) 'lr'",
        ),
    ],
)
def test_a_bad_protocol_is_one_line_that_names_the_file(make, change, says):
    path = make(**change)
    with pytest.raises(BadProtocol) as raised:
        protocol.read(path)
    assert says in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["a: [", "[1]", "", "version: 1"])
def test_what_is_no_protocol_is_one_line(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(BadProtocol, match=str(path)) as raised:
        protocol.read(path)
    assert "\n" not in str(raised.value)


def test_the_kinds_of_figures_are_those_that_can_be_drawn():
    assert set(shown.FIGURES) == set(figures.KINDS)


@pytest.mark.parametrize("name", protocol.names())
def test_every_kind_of_run_of_a_study_is_accepted_by_verl(name, verl_yaml_parsed_once, untrained_model):
    """One run of each level of each factor."""
    from verl_cov.hooks.checks.recipe import check

    study, seen = protocol.load(name), set()
    for cell in study.cells:
        new = {pair for pair in cell.levels.items() if pair[0] not in ("start", "lr")} - seen
        if not new:
            continue
        seen |= new
        config = compose.resolved(compose.compose(cell.selection.hydra_overrides()))
        assert config.trainer.total_training_steps == cell.steps
        with contextlib.redirect_stdout(io.StringIO()):
            check(config, untrained_model)
    assert catalogue.TOYS


def test_the_paper_study_is_what_was_asked_for():
    """Starts that nobody picked, a bracket of learning rates, the same for every control."""
    study = protocol.load("paper")
    main = [cell for cell in study.cells if cell.levels["batch"] == "small" and cell.levels["size"] == "small"]
    for task in ("countdown", "pointer"):
        of_task = [cell for cell in main if cell.levels["task"] == task and cell.levels["algorithm"] == "grpo"]
        rates = {cell.levels["lr"] for cell in of_task if cell.levels["control"] == "none"}
        assert len(rates) >= 4
        usual = study.usual["lr"]
        assert min(map(float, rates)) < float(usual) < max(map(float, rates))
        for control in ("none", "kl_cov", "clip_cov", "clip_higher", "entropy_bonus", "reference_kl"):
            starts = {
                cell.levels["start"]
                for cell in of_task
                if cell.levels["control"] == control and cell.levels["lr"] == usual
            }
            assert len(starts) >= 6, (task, control)
    sizes = {(cell.levels["size"], cell.levels["start"]) for cell in study.cells if cell.levels["control"] == "none"}
    assert {size for size, _ in sizes} == {"mini", "small", "medium", "large"}
    assert all(len({start for of, start in sizes if of == size}) >= 3 for size, _ in sizes)
    assert len(study.tried) >= 3
