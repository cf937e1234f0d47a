"""The controller: what each rule does, that it stays within its ends, forgets nothing, and tells what it cannot do."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cov.core.target import controller
from verl_cov.core.target.controller import TargetState, resumed, update
from verl_cov.core.target.path import Path, read_schedule
from verl_cov.core.target.settings import RULES, Knob, TargetSettings

KNOB = Knob("ppo_kl_coef", 10.0, 0.1, 1000.0, 5.0)
ENTROPIES = st.lists(st.floats(0, 12) | st.none(), min_size=2, max_size=40)
GOALS = st.sampled_from(
    [
        dict(target_entropy=0.5),
        dict(fraction=0.5),
        dict(hold=3),
        dict(path=[[0, 1.0], [10, 0.3]], shape="cosine"),
    ]
)


def begin(settings: TargetSettings, knob: Knob = KNOB, state: TargetState | None = None) -> TargetState:
    return resumed(settings, knob, state or TargetState())[0]


def steps(settings: TargetSettings, entropies, state: TargetState | None = None, noise: float | None = None):
    state = begin(settings, state=state)
    found = []
    for entropy in entropies:
        found.append(update(settings, KNOB, state, entropy, noise))
        state = found[-1].state
    return found


@given(ENTROPIES, GOALS, st.sampled_from(RULES))
def test_the_knob_stays_within_its_ends_whatever_is_measured(entropies, goal, rule):
    for step in steps(TargetSettings(rule=rule, **goal), entropies):
        assert KNOB.low <= step.knob <= KNOB.high
        assert all(math.isfinite(value) for value in step.metrics().values())


@given(ENTROPIES, GOALS, st.sampled_from(RULES), st.data())
def test_a_run_that_is_stopped_anywhere_goes_on_with_the_same_knobs_bit_for_bit(entropies, goal, rule, data):
    settings = TargetSettings(rule=rule, **goal)
    at = data.draw(st.integers(1, len(entropies) - 1))
    whole = steps(settings, entropies)
    saved = json.loads(json.dumps(whole[at - 1].state.state_dict()))
    rest = steps(settings, entropies[at:], TargetState.from_state_dict(saved))
    assert [step.knob for step in rest] == [step.knob for step in whole[at:]]
    assert rest[-1].state == whole[-1].state


@given(ENTROPIES, st.sampled_from(RULES), st.floats(0.01, 5), st.floats(0.01, 5))
def test_the_lower_the_entropy_the_higher_the_knob(entropies, rule, one, other):
    settings = TargetSettings(target_entropy=0.5, rule=rule)
    state = steps(settings, entropies)[-1].state
    low, high = (update(settings, KNOB, state, entropy).knob for entropy in sorted((one, other)))
    assert low >= high


def test_pi_is_the_formula_between_the_ends():
    entropies = [0.55, 0.5, 0.47, 0.52, 0.43, 0.49, 0.5]
    settings = TargetSettings(target_entropy=0.5, gain=4.0, integral=0.3, approach=0)
    errors = np.log(0.5 / np.array(entropies))
    wanted = KNOB.start * np.exp(4.0 * errors + 0.3 * np.cumsum(errors))
    assert [step.knob for step in steps(settings, entropies)] == pytest.approx(wanted.tolist(), rel=1e-8)


def test_pi_comes_to_a_far_target_by_and_by():
    """On the way the knob stays where it starts, above and below it the knob is moved, and afterwards, or
    where the target is another one, the way is too."""
    settings = TargetSettings(target_entropy=0.5, approach=4, integral=0.0)
    line = [0.5 * (1.2 / 0.5) ** ((1 - each / 4) ** 2) for each in range(5)]
    assert [step.knob for step in steps(settings, [*line, 0.5, 0.5])] == [KNOB.start] * 7
    above, below = (steps(settings, [1.2, line[1] * part])[-1].knob for part in (1.1, 0.9))
    assert (above, below) == pytest.approx([KNOB.start * part**-6 for part in (1.1, 0.9)])
    state = begin(TargetSettings(target_entropy=0.3, approach=4), state=steps(settings, line)[-1].state)
    later = steps(
        TargetSettings(target_entropy=0.3, approach=4, integral=0.0), [0.5, 0.3 * (0.5 / 0.3) ** 0.5625], state
    )
    assert [step.knob for step in later] == [KNOB.start] * 2
    # What is logged is how far the target is, not the way.
    assert later[0].metrics()["target_error"] == pytest.approx(0.2)


def test_while_it_approaches_the_integral_comes_down_at_a_quarter_of_its_speed():
    settings = TargetSettings(target_entropy=0.5, approach=2, gain=0.0, integral=1.0)
    high = [step.knob for step in steps(settings, [0.6, 0.6, 0.6, 0.6])]
    line = 0.25 * math.log(1.2)
    down = [0.0, (math.log(1.2) - line) / 4, math.log(1.2), math.log(1.2)]
    assert high == pytest.approx((KNOB.start * np.exp(-np.cumsum(down))).tolist())


def test_pi_in_logarithms_does_not_care_for_the_scale_of_the_knob():
    settings = TargetSettings(target_entropy=0.5)
    small = Knob("entropy_coeff", 1e-3, 1e-5, 0.1, 1.0)
    state, found = begin(settings, small), []
    for step in steps(settings, [0.6, 0.45, 0.3, 0.5]):
        one = update(settings, small, state, step.measured)
        state = one.state
        found.append(one.knob / step.knob)
    assert found == pytest.approx([1e-4] * 4, rel=1e-6)


def test_nothing_winds_up_at_an_end():
    for entropies, beyond in (([0.1] * 30, 0.55), ([2.0] * 30, 0.45)):
        settings = TargetSettings(target_entropy=0.5, approach=0)
        *_, last, turned = steps(settings, [*entropies, beyond])
        assert last.clamped
        assert last.knob in (KNOB.low, KNOB.high)
        assert not turned.clamped
        # At once where it would be had the end never been reached.
        assert turned.knob == pytest.approx(KNOB.start * (0.5 / beyond) ** 9, rel=1e-6)


def test_double_half_and_delta_by_hand():
    found = steps(TargetSettings(target_entropy=0.5, rule="double_half"), [0.4, 0.4, 0.6, 0.5, 0.1])
    assert [step.knob for step in found] == [20, 40, 20, 20, 40]
    found = steps(TargetSettings(target_entropy=0.5, rule="delta"), [0.4, 0.4, 0.6, 0.4, 0.5])
    # Up by 5, and while the entropy is not below the target the gate is closed: the knob is at its lowest.
    assert [step.knob for step in found] == [15, 20, KNOB.low, 20, KNOB.low]
    assert steps(TargetSettings(target_entropy=0.5, rule="double_half"), [0.1] * 9)[-1].knob == KNOB.high


def test_hold_fraction_and_a_rollout_without_an_entropy():
    found = steps(TargetSettings(hold=3), [1.0, 0.9, 0.8, None, 0.7])
    assert [step.target for step in found] == [None, None, 0.8, None, 0.8]
    assert [step.knob for step in found[:4]] == [10, 10, 10, 10]
    assert found[4].knob > 10
    assert [step.target for step in steps(TargetSettings(fraction=0.5), [1.0, 0.9])] == [0.5, 0.5]
    assert steps(TargetSettings(fraction=0.5), [0.0, 0.1])[1].knob == KNOB.low
    assert found[3].metrics() == {"knob": 10, "knob_clamped": 0, "target_held": 1}


def test_how_often_the_target_was_held():
    found = steps(TargetSettings(target_entropy=0.5), [0.6, 0.549, 0.451, 0.44])
    assert [step.metrics()["target_held"] for step in found] == pytest.approx([0, 1 / 2, 2 / 3, 1 / 2])
    found = steps(TargetSettings(target_entropy=0.5), [0.9] * 60 + [0.5] * 25)
    assert found[-1].metrics()["target_held"] == 0.5
    assert found[-1].metrics()["target_error"] == 0
    assert found[0].metrics()["target_error"] == pytest.approx(0.4)


def test_a_target_that_cannot_be_held_is_told_once():
    found = steps(TargetSettings(target_entropy=0.5, approach=0), [0.1] * 60)
    told = [at for at, step in enumerate(found) if step.warnings]
    assert told == [controller.CLAMPED_ROLLOUTS - 1]
    (text,) = found[told[0]].warnings
    assert "ppo_kl_coef has been at target.max=1000 for 20 rollouts" in text
    assert "is below the target" in text
    high = [text for step in steps(TargetSettings(target_entropy=0.5), [2.0] * 60) for text in step.warnings]
    assert len(high) == 1
    assert "target.min=0.1" in high[0]
    assert not any(step.warnings for step in steps(TargetSettings(target_entropy=0.5), [0.52] * 60))


def test_an_oscillation_is_told_once_and_halves_the_gains():
    swinging = [0.8, 0.3] * 10
    found = steps(TargetSettings(target_entropy=0.5), swinging)
    told = [text for step in found for text in step.warnings if "swings round the target" in text]
    assert len(told) == 1
    assert found[-1].state.scale < 0.5
    # Within what the measurement's noise explains, nothing swings.
    quiet = steps(TargetSettings(target_entropy=0.5), swinging, noise=0.25)
    assert quiet[-1].state.scale == 1
    slow = steps(TargetSettings(target_entropy=0.5), ([0.8] * 15 + [0.3] * 15) * 3)
    assert slow[-1].state.scale == 1


def test_a_target_may_change_on_resumption_and_the_knob_goes_on():
    settings = TargetSettings(target_entropy=0.5)
    state = steps(settings, [0.5, 0.4, 0.45])[-1].state
    assert resumed(settings, KNOB, state) == (state, None)
    other = TargetSettings(target_entropy=0.3)
    changed, note = resumed(other, KNOB, state)
    assert note == "the target was entropy 0.5 and is now entropy 0.3"
    assert (changed.level, changed.knob) == (state.level, state.knob)
    assert resumed(other, KNOB, changed)[1] is None
    anew, note = resumed(settings, KNOB._replace(name="kl_cov_ratio"), state)
    assert "ppo_kl_coef by pi is now kl_cov_ratio by pi" in (note or "")
    assert (anew.level, anew.knob) == (None, None)


@pytest.mark.parametrize("damage", [{}, [], None, {"rollouts": 1}, {**TargetState().state_dict(), "more": 1}])
def test_what_is_no_state_is_refused(damage):
    with pytest.raises(ValueError, match="not the state of a target"):
        TargetState.from_state_dict(damage)


@pytest.mark.parametrize("gain", [1.0, 8.0, 30.0])
def test_it_holds_a_policy_whose_entropy_would_fall(gain):
    """Entropy falls by 8 % a rollout, and the knob lifts it in proportion; with three times the gain it swings, and
    finds to less."""
    settings = TargetSettings(target_entropy=0.4, gain=gain)
    state, entropy, found = begin(settings), 1.1, []
    for _ in range(150):
        step = update(settings, KNOB, state, entropy)
        state = step.state
        entropy *= math.exp(min(0.08 * step.knob / 25, 0.3) - 0.08)
        found.append(entropy)
    assert np.abs(np.array(found[-50:]) / 0.4 - 1).mean() < 0.05


# --- paths ------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 30), st.floats(0.01, 10)), min_size=1, max_size=5, unique_by=lambda p: p[0]),
    st.sampled_from(["linear", "cosine", "steps"]),
)
def test_a_path_goes_through_its_points_and_never_beyond_them(points, shape):
    points = [(0, 1.0), *sorted(points)]
    path = Path.read("target.path", [list(point) for point in points], shape)
    for rollout, value in points:
        assert path.at(rollout) == pytest.approx(value)
    values = [value for _, value in points]
    for rollout in range(40):
        assert min(values) - 1e-9 <= path.at(rollout) <= max(values) + 1e-9
    assert path.at(1000) == values[-1]


def test_the_shapes_between_two_points():
    values = {
        shape: [Path(((0, 1.0), (4, 0.0)), shape).at(at) for at in range(5)] for shape in ("linear", "cosine", "steps")
    }
    assert values["linear"] == [1, 0.75, 0.5, 0.25, 0]
    assert values["cosine"] == pytest.approx([1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4, 0])
    assert values["steps"] == [1, 1, 1, 1, 0]
    assert read_schedule("f", dict(start=1, end=0, over=4)).at(3) == 0.25
