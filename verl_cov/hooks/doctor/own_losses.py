"""Has verl's issue 7829, its own clip_cov and kl_cov selecting within a micro-batch, been resolved in this verl?"""

from __future__ import annotations

from typing import Any

from verl_cov.hooks.doctor import fingerprints
from verl_cov.hooks.doctor.installed import Installed
from verl_cov.hooks.doctor.lines import NOTE, OK, Line

CORE_ALGOS = "verl/trainer/ppo/core_algos.py"
CALLERS = (
    "verl/workers/utils/losses.py::ppo_loss",
    "verl/workers/engine_workers.py::TrainingWorker.train_batch",
    "verl/workers/actor/dp_actor.py::DataParallelPPOActor.update_policy",
)


def line(found: Installed, probed: dict[str, Any]) -> Line:
    """Has verl's issue 7829 (selection within a micro-batch) been resolved in this verl? No release known here has.

    Two signs: whether the losses, and what calls them, are those of a release known here; and what they select of a
    batch whole and cut in two. The second alone would miss a fix that selects outside the loss.
    """
    check = "verl's own losses"
    assert found.release is not None
    here = found.functions
    losses = [f"{CORE_ALGOS}::compute_policy_loss_{name}" for name in ("clip_cov", "kl_cov")]
    unknown = [name for name in losses if not fingerprints.releases_with(name, here.get(name))]
    of_release = fingerprints.data()[found.release.version]["functions"]
    callers = [name for name in CALLERS if name in of_release and not fingerprints.releases_with(name, here.get(name))]
    seen = "; ".join(_seen(name, one) for name, one in probed["verls_own"].items())
    same = [name for name, one in probed["verls_own"].items() if not one["error"] and one["whole"] and not one["other"]]
    compare = (
        "loss_mode=kl_cov is verl's and verl_cov.kl_cov ours. To choose, train a step of each at two values of "
        "ppo_micro_batch_size_per_gpu: the loss that stays the same selects over the mini-batch (ours: cov_scope="
        "mini_batch, and micro_batch as verl's was)"
    )
    if same:
        return Line(
            NOTE,
            check,
            f"{' and '.join(same)} of this verl selects the same tokens of a batch whole and cut in two "
            f"({seen}): its issue 7829 may be resolved here. {compare}",
        )
    if unknown:
        return Line(
            NOTE,
            check,
            "verl's own clip_cov and kl_cov are not those of any release known here: if they select over the "
            f"mini-batch now, {compare}. Called on their own: {seen}",
        )
    known = _known_in(losses[0], here)
    if callers:
        return Line(
            NOTE,
            check,
            f"verl's own clip_cov and kl_cov are those of verl {known}, but what calls them is of no release known "
            f"here ({', '.join(callers)}). Called on their own: {seen}. If verl selects over the mini-batch now, "
            f"{compare}",
        )
    return Line(
        OK,
        check,
        f"verl's own clip_cov and kl_cov still select within a micro-batch, as in verl {known} ({seen}): its issue "
        "7829 is open here. Ours select over the mini-batch",
    )


def _known_in(name: str, here: dict[str, str]) -> str:
    known = fingerprints.releases_with(name, here.get(name))
    return known[0] if len(known) == 1 else f"{known[0]} to {known[-1]}"


def _seen(name: str, found: dict[str, Any]) -> str:
    if found["error"]:
        return f"{name}: not to be called as verl calls a policy loss ({found['error']})"
    return f"{name}: of {found['whole']} tokens of a batch {found['other'] // 2} are others once it is cut in two"
