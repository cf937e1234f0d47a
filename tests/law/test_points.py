import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cov.law import NoPoints, Run, points
from verl_cov.law.keys import ENTROPY_KEYS, SCORES
from verl_cov.law.points import law_points
from verl_cov.law.readers.run import merge
from verl_cov.law.reading import pair

VAL = "val-core/x/acc/mean@4"


def run(records, **extra):
    """records: {step: {key: value}}."""
    made = merge(records.items())
    return Run(made.steps, made.records, **extra)


def entropy_of(policy):
    return 1 / (policy + 1)


def score_of(policy):
    return 0.1 * policy


def training(entropy="actor/entropy", score=VAL, steps=10, every=2, **more):
    """As the trainers log it: policy n is the one after n updates; step n has policy n - 1 before its update."""
    records = {}
    for step in range(steps + 1):
        records[step] = {entropy: entropy_of(step - 1), **more} if step else {}
        if step % every == 0:
            records[step][score] = score_of(step)
    return run(records)


def notes(found):
    return " ".join(found.notes)


# --- the join ---------------------------------------------------------------------------------------------------------


def test_score_and_entropy_are_of_the_same_policy():
    found = points(training(), "run")
    assert found.steps.tolist() == [0, 2, 4, 6, 8]
    assert found.entropy.tolist() == [entropy_of(step) for step in (0, 2, 4, 6, 8)]
    assert found.score.tolist() == [score_of(step) for step in (0, 2, 4, 6, 8)]
    assert (found.name, found.entropy_key, found.score_key, found.control) == ("run", "actor/entropy", VAL, None)
    assert "5 points" in notes(found)
    assert "step n + 1" in notes(found)
    assert "1 score dropped, without an entropy at the next step: step 10." in notes(found)


def test_what_is_measured_on_the_same_side_of_the_update_goes_together_at_the_same_step():
    before = run({n: {"actor/entropy": entropy_of(n), "critic/score/mean": score_of(n)} for n in range(1, 5)})
    after = run({n: {"test_entropy/all": entropy_of(n), "val/score-all": score_of(n)} for n in range(1, 5)})
    for found in (points(before, "run"), points(after, "run")):
        assert found.steps.tolist() == [1, 2, 3, 4]
        assert found.entropy.tolist() == [entropy_of(n) for n in range(1, 5)]
        assert "dropped" not in notes(found)
    assert "training score" in notes(points(before, "run"))
    assert "training score" not in notes(points(after, "run"))


def test_an_evaluations_entropy_goes_with_the_training_score_of_the_next_step():
    log = run({n: {"eval/entropy": entropy_of(n), "train/reward": score_of(n - 1)} for n in range(1, 6)})
    found = points(log, "run")
    assert found.steps.tolist() == [2, 3, 4, 5]
    assert found.entropy.tolist() == [entropy_of(policy) for policy in (1, 2, 3, 4)]
    assert found.score.tolist() == [score_of(policy) for policy in (1, 2, 3, 4)]


columns = st.dictionaries(
    st.integers(0, 30), st.tuples(*[st.sampled_from([math.nan, 0.1, 0.2, 0.3, -1.0])] * 2), max_size=20
)


@given(columns, st.sampled_from([-1, 0, 1]))
def test_pairs_are_all_that_there_are(values, shift):
    steps = np.array(sorted(values), dtype=np.int64)
    entropy, score = (np.array([values[step][side] for step in steps.tolist()]) for side in (0, 1))
    wanted = [
        (step, values[step + shift][0], values[step][1])
        for step in sorted(values)
        if not math.isnan(values[step][1]) and not math.isnan(values.get(step + shift, (math.nan,))[0])
    ]
    assert list(zip(*(column.tolist() for column in pair(steps, entropy, score, shift)), strict=True)) == wanted


def test_the_figures_use_the_same_pairs():
    log = training()
    entropy, score = law_points(log)
    found = points(log, "run")
    assert entropy.tolist() == found.entropy.tolist()
    assert score.tolist() == found.score.tolist()
    assert [column.size for column in law_points(run({1: {"actor/entropy": 1.0}}))] == [0, 0]


# --- the keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entropy", ENTROPY_KEYS)
@pytest.mark.parametrize("score", [known.pattern for known in SCORES])
def test_every_key_of_the_table_is_found_and_joined_to_the_same_policy(entropy, score):
    score = score.replace("*", "thing").replace("?", "gsm8k")
    before_its_update = ("test/env/", "val_correct/", "eval/thing/avg@", "eval/thing/reward")
    after = {
        key: key.startswith(("val", "eval", "test")) and not key.startswith(before_its_update)
        for key in (entropy, score)
    }
    records = {step: {} for step in range(12)}
    for step in range(1, 12):
        records[step][entropy] = entropy_of(step if after[entropy] else step - 1)
        records[step][score] = score_of(step if after[score] else step - 1)
    found = points(run(records), "run")
    assert (found.entropy_key, found.score_key) == (entropy, score)
    assert found.entropy.tolist() == [entropy_of(round(value * 10)) for value in found.score]
    assert len(found.steps) >= 10


def test_the_papers_entropy_comes_first_and_the_others_are_named():
    log = training(**{"actor/cov/entropy": 0.5})
    log = run({step: {**data, "actor/cov/entropy": 1 / (step + 5)} for step, data in enumerate(log.records)})
    found = points(log, "run")
    assert found.entropy_key == "actor/cov/entropy"
    assert "Other entropies: actor/entropy; choose one with --entropy-key." in found.notes
    assert points(log, "run", entropy_key="actor/entropy").entropy[0] == entropy_of(0)


def test_a_key_without_a_number_is_not_chosen():
    found = points(training(**{"actor/cov/entropy": None, "actor/entropy_loss": math.nan}), "run")
    assert found.entropy_key == "actor/entropy"


def test_of_several_data_sets_the_first_counts_unless_a_glob_averages_them():
    log = training()
    for step, data in zip(log.steps.tolist(), log.records, strict=True):
        if VAL in data:
            data["val-core/y/acc/mean@4"] = data[VAL] + 1
            data["val-core/y/acc/best@4/mean"] = 7.0
        if step == 4:
            del data[VAL]
    found = points(log, "run")
    assert found.score_key == VAL
    assert "Other scores: val-core/y/acc/mean@4; choose one, or several with *, with --score-key." in found.notes
    found = points(log, "run", score_key="val-core/*/mean@*")
    assert found.score_key == "val-core/*/mean@*"
    assert found.steps.tolist() == [0, 2, 6, 8]  # step 4 has only one of the two
    assert found.score.tolist() == [score_of(step) + 0.5 for step in (0, 2, 6, 8)]
    assert f"The score is the mean of 2 keys: {VAL}, val-core/y/acc/mean@4." in found.notes


def test_a_key_with_brackets_is_a_key_and_not_a_glob():
    log = training(score="val-core/[hard]/mean@1")
    assert points(log, "run", score_key="val-core/[hard]/mean@1").steps.size == 5


@pytest.mark.parametrize(
    ("more", "control"),
    [
        ({}, None),
        ({"selected_tokens": 0.0, "threshold": 0.0}, None),
        ({"selected_tokens": 2.0, "candidate_tokens": 9.0}, "clip_cov"),
        ({"selected_tokens": 2.0, "candidate_tokens": 9.0, "threshold": 1.5}, "kl_cov"),
    ],
)
def test_a_control_leaves_its_metrics(more, control):
    log = training(**{f"actor/cov/{key}": value for key, value in more.items()})
    assert points(log, "run").control == control


# --- what is doubtful, and what cannot be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "note"), [(-1, "no entropy over tokens is negative"), (14, "in bits"), (40, "a sum over tokens")]
)
def test_doubtful_entropies_are_noted(scale, note):
    log = run({n: {"actor/entropy": scale / n, "critic/score/mean": 0.5} for n in range(1, 6)})
    assert note in notes(points(log, "run"))


def test_what_a_key_outside_the_table_is_taken_for_is_said():
    log = training(entropy="my/H", score="holdout", every=1)
    found = points(log, "run", entropy_key="my/H", score_key="holdout")
    assert "holdout is not a known key: from its name it is taken to be of the policy before" in notes(found)
    assert "my/H is not a known key" in notes(found)
    assert found.steps.tolist()[0] == 1
    log = training(entropy="my/H", score="test-acc", every=1)
    found = points(log, "run", entropy_key="my/H", score_key="test-acc")
    assert found.entropy.tolist() == [entropy_of(step) for step in range(10)]
    assert "not a known key" not in notes(points(training(), "run"))


def test_damage_and_restarts_are_noted():
    log = training(steps=20)
    found = points(Run(log.steps, log.records, damaged=2, repeats=1), "run")
    assert "2 damaged lines left out." in found.notes
    assert "The step ran backwards 1 time (resumed?): the later values count." in found.notes


ENTROPIES = {step: {"actor/entropy": 1 / step} for step in range(1, 9)}


@pytest.mark.parametrize(
    ("log", "keys", "message"),
    [
        (run({}), {}, "not a known kind of log"),
        (run({1: {"text": "x"}}), {}, "not a known kind of log"),
        (run({1: {VAL: 0.1, "my/entropy_mean": 1.0}}), {}, "no known entropy.*--entropy-key: my/entropy_mean"),
        (run({1: {VAL: 0.1, "loss": 1.0}}), {}, r"calculate_entropy=True.*there are 2: loss, val-core/x/acc/mean@4"),
        (run(ENTROPIES), {}, "no known score.*--score-key"),
        (run({1: {"actor/entropy": 1.0, "my/acc": 0.1}}), {}, "choose one with --score-key: my/acc"),
        (training(), {"entropy_key": "entropy"}, "no entropy 'entropy' in the log; .*: actor/entropy"),
        (training(), {"score_key": "val-core/*/mean@8"}, "no score 'val-core/\\*/mean@8' in the log; .*mean@4"),
        (training(), {"score_key": "*"}, "validation and training scores"),
        (training(steps=4), {}, r"2 points of 3 scores .* and 4 entropies .*needs 3: .*trainer.test_freq"),
        (run({n: {"actor/entropy": 1 / n, "critic/score/mean": 1} for n in (1, 2)}), {}, "2 points of 2 scores"),
        (run({n: {"actor/entropy": 0.5, "critic/score/mean": n} for n in range(5)}), {}, "0.5 at every point"),
    ],
)
def test_why_there_are_no_points(log, keys, message):
    with pytest.raises(NoPoints, match=message) as error:
        points(log, "run", **keys)
    assert str(error.value).startswith("run: ")
    assert "\n" not in str(error.value)


def test_two_runs_in_one_log_are_refused():
    def records(step, seed):
        return step, {"actor/entropy": 1 / step + seed, "critic/score/mean": 0.1 + seed, "actor/lr": 1e-6}

    with pytest.raises(NoPoints, match="several runs write to this log"):
        points(merge(records(step, seed) for step in range(1, 20) for seed in (0, 1)), "run")
    again = merge(records(step, seed) for seed in (0, 1) for step in range(1, 20))
    assert points(again, "run").entropy.tolist() == [1 / step + 1 for step in range(1, 20)]


def test_at_most_ten_keys_are_listed():
    log = run({1: {f"my/entropy_{n}": 1.0 for n in range(30)} | {VAL: 0.5}})
    with pytest.raises(NoPoints) as error:
        points(log, "run")
    assert str(error.value).count("my/entropy_") == 10


# --- too few of the best score, and other joins -----------------------------------------------------------------------


def test_one_lone_validation_falls_back_to_the_training_score_and_says_so():
    log = run({n: {"actor/entropy": entropy_of(n), "critic/score/mean": score_of(n)} for n in range(1, 31)})
    log.records[29][VAL] = 0.9
    found = points(log, "run")
    assert (found.score_key, found.steps.size) == ("critic/score/mean", 30)
    assert f"{VAL} has 0 of the 3 points" in notes(found)
    for few in (10, 20):  # two points are too few as well, three are enough
        log.records[few][VAL] = 0.5
    assert points(log, "run").score_key == "critic/score/mean"
    log.records[25][VAL] = 0.6
    assert (points(log, "run").score_key, points(log, "run").steps.size) == (VAL, 3)


def test_a_score_that_was_asked_for_and_has_no_points_names_another():
    log = run({n: {"actor/entropy": entropy_of(n), "critic/score/mean": score_of(n)} for n in range(1, 31)})
    log.records[29][VAL] = 0.9
    with pytest.raises(NoPoints, match=r"0 points of 1 score .*--score-key critic/score/mean has 30"):
        points(log, "run", score_key=VAL)


def test_an_entropy_without_points_gives_way_to_one_with():
    log = training(**{"actor/entropy_loss": 0.5})
    for step, data in enumerate(log.records):
        data["actor/entropy_loss"] = 1 / (step + 2)
        if step != 3:
            data.pop("actor/entropy", None)
    assert points(log, "run").entropy_key == "actor/entropy_loss"


def test_a_missing_score_and_a_missing_entropy_are_named_together():
    with pytest.raises(NoPoints, match=r"no known score in the log; .*terminal_return; no known entropy .*my/entropy"):
        points(
            run({1: {"my/entropy": 1.0, "terminal_return": 0.1, "time/run_evals": 3.0, "invalid_actions": 1}}), "run"
        )


def test_suggestions_match_whole_words():
    log = run({1: {"entropy": 1.0, "terminal_return": 0.1, "time/run_evals": 3.0, "invalid_actions": 1, "interval": 2}})
    with pytest.raises(NoPoints, match=r"--score-key: terminal_return$"):
        points(log, "run")
    log = run({1: {"entropy": 1.0, "val_accuracy": 0.1}})
    with pytest.raises(NoPoints, match=r"--score-key: val_accuracy$"):
        points(log, "run")
    with pytest.raises(NoPoints, match=r"\(there is 1: reward\)"):
        points(run({1: {"reward": 1.0}}), "run")


@pytest.mark.parametrize("key", ["score", "reward", "accuracy", "return", "Reward", "Accuracy"])
def test_a_column_simply_called_a_score_is_one(key):
    log = run({n: {"Entropy": entropy_of(n), key: score_of(n)} for n in range(1, 5)})
    assert (points(log, "run").score_key, points(log, "run").entropy_key) == (key, "Entropy")


def zigzag(shift, count=20):
    """Entropy goes up and down; the score at step n follows the law with the entropy of step n + shift alone."""
    values = [1 / (1 + n / 10) + 0.2 * (n % 2) for n in range(count + 1)]
    return run(
        {n: {"actor/entropy": values[n], "my/test": 0.8 - 0.2 * math.exp(values[n + shift])} for n in range(count)}
    )


@pytest.mark.parametrize(("key", "guess"), [("my/test", 0), ("test_my", 1)])
@pytest.mark.parametrize("truth", [0, 1])
def test_the_join_can_be_chosen_and_a_guess_that_fits_far_worse_is_said(key, guess, truth):
    log = zigzag(truth)
    for data in log.records:
        data[key] = data.pop("my/test")
    log = run(dict(enumerate(log.records)))
    found = points(log, "run", score_key=key)
    assert f"{key} is not a known key" in notes(found)
    other = {0: "--join same.", 1: "--join next."}[truth]
    assert (f"give {other}" in notes(found)) == (guess != truth)
    for join, shift in (("same", 0), ("next", 1)):
        chosen = points(log, "run", score_key=key, join=join)
        assert chosen.entropy.tolist() == log.column("actor/entropy")[shift : 20 - shift + shift].tolist()
        assert "as --join asks" in notes(chosen)
        assert "follow the law far better" not in notes(chosen)


def test_noise_does_not_speak_for_the_other_join():
    said = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        values = np.exp(-np.arange(31) / 15) * np.exp(0.05 * random.normal(size=31))
        scores = 0.8 - 0.2 * np.exp(values[1:]) + 0.02 * random.normal(size=30)
        log = run({n: {"actor/entropy": values[n], VAL: scores[n]} for n in range(30)})
        said += "far better" in notes(points(log, "run"))
    assert said <= 4
