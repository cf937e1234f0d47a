import math

import pytest

from verl_cov.law import NoPoints, find_runs, points, read_metrics

EXPORT = """\
"Step","free - actor/entropy","free - actor/entropy__MIN","free - actor/entropy__MAX","free - _step","kl - a - \
actor/entropy"
"1","0.5","0.4","0.6","1","0.7"
"2","","","","2","0.6"
"3","NaN","0.1","0.2","3",""
"""


def test_an_exported_chart_is_several_runs(tmp_path):
    path = tmp_path / "wandb_export.csv"
    path.write_text(EXPORT)
    runs = {name: read_metrics(paths) for name, paths in find_runs([path])}
    assert list(runs) == ["free", "kl - a"]
    assert runs["kl - a"].column("actor/entropy").tolist() == [0.7, 0.6]
    assert runs["free"].keys() == ["actor/entropy"]
    assert runs["free"].steps.tolist() == [1, 3]
    assert runs["free"].damaged == 0
    with pytest.raises(NoPoints, match=r"holds 2 runs \(free, kl - a\): choose one, as in 'wandb_export.csv::free'"):
        read_metrics(path)
    with pytest.raises(NoPoints, match="holds no run 'nobody', but free, kl - a"):
        read_metrics(f"{path}::nobody")


def test_charts_of_the_same_run_are_put_together(tmp_path):
    one, two = tmp_path / "entropy.csv", tmp_path / "score.csv"
    one.write_text("Step,a - actor/entropy,b - actor/entropy\n1,0.5,0.6\n")
    two.write_text("Step,b - val-core/x/acc/mean@1,a - val-core/x/acc/mean@1\n1,0.1,0.2\n")
    runs = {name: read_metrics(paths).records for name, paths in find_runs([one, two])}
    assert runs == {
        "a": ({"actor/entropy": 0.5, "val-core/x/acc/mean@1": 0.2},),
        "b": ({"actor/entropy": 0.6, "val-core/x/acc/mean@1": 0.1},),
    }
    # The same chart twice is two runs of one name, not one.
    (tmp_path / "seed1").mkdir()
    again = tmp_path / "seed1" / "entropy.csv"
    again.write_text("Step,a - actor/entropy\n1,0.4\n")
    assert [name for name, _ in find_runs([one, again])] == [f"{tmp_path.name}/a", "b", "seed1/a"]


@pytest.mark.parametrize("name", ["step", "Step", "_step", "global_step", "Global Step", "training/global_step"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_the_step_column_is_found_by_its_name(tmp_path, name, delimiter):
    path = tmp_path / "run.txt"
    rows = [["entropy", name, "score"], ["0.5", "1.0", "0.1"], ["0.4", "2", "nan"]]
    path.write_text("\ufeff" + "\r\n".join(delimiter.join(row) for row in rows), encoding="utf-8")
    run = read_metrics(path)
    assert run.steps.tolist() == [1, 2]
    assert run.column("entropy").tolist() == [0.5, 0.4]
    assert math.isnan(run.column("score")[1])


def test_damaged_rows_are_counted(tmp_path):
    path = tmp_path / "run.csv"
    path.write_text("step,entropy\n1,0.5\nx,0.4\n3\n-1,0.2\n\n5,0.1\n6,0.1,9\n")
    run = read_metrics(path)
    assert run.steps.tolist() == [1, 5]
    assert run.damaged == 4


def test_the_reason_of_a_damaged_row_and_a_column_given_twice_are_said(tmp_path):
    path = tmp_path / "run.csv"
    path.write_text("step,entropy,entropy,reward\n1,0.5,5,0\n2,0.4,4,0.1\n3,0.3,3,0.2\n")
    run = read_metrics(path)
    assert run.column("entropy").tolist() == [0.5, 0.4, 0.3]
    assert "run.csv has several columns 'entropy': the first counts." in points(run, "run").notes
    path.write_text(
        "step,entropy,reward\n" + "".join(f'"{n},000",{1 / n},{n}\n' for n in range(1, 9)) + "1,1,2\n2,2,3\n"
    )
    with pytest.raises(
        NoPoints, match=r"needs 3: .*\(8 damaged lines left out, as the step '1,000' is no whole number\)"
    ):
        points(read_metrics(path), "run")


def test_a_plain_column_is_not_taken_for_a_trainers(tmp_path):
    path = tmp_path / "run.csv"
    path.write_text("step,entropy,accuracy\n" + "".join(f"{n},{1 / n},{n}\n" for n in range(1, 9)))
    notes = " ".join(points(read_metrics(path), "run").notes)
    assert "TRL" not in notes
    assert "training score" not in notes
    assert "accuracy is not a known key: from its name it is taken to be of the policy before the update" in notes
