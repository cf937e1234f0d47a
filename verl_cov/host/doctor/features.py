"""What of verl-cov a verl release has a place for, and what to do where it has none. Imports no verl."""

from __future__ import annotations

from dataclasses import dataclass

from verl_cov.host.versions import NEWEST, Release

LOSSES = "losses"
HOOK = "mini-batch hook, engines"
LEGACY_HOOK = "mini-batch hook, legacy actor"
ROLLOUT = "rollout metrics"
CHECKS = "start-up checks"
FILTER = "filter limit, dead workers"
VALIDATION = "validation metrics"
PRIME = "PRIME"
RECIPES = "recipes"
CPU = "CPU host"
LAW = "law"

# What a maintainer or a cautious user runs from a checkout of verl-cov, in the environment with the verl in question.
TESTS = {
    LOSSES: "tests/host/test_invariance.py",
    HOOK: "tests/host/test_invariance.py",
    LEGACY_HOOK: "tests/host/test_patched.py",
    ROLLOUT: "tests/host/test_metrics.py",
    CHECKS: "tests/host/test_preflight.py",
    FILTER: "tests/host/test_group_filter.py tests/host/test_fail_fast.py",
    VALIDATION: "tests/host/test_validation_*.py",
    PRIME: "tests/host/test_prime_*.py tests/host/test_accuracy_band.py",
    RECIPES: "tests/recipes",
    CPU: "tests/host/test_cpu.py",
}

# The fix for whatever an older verl lacks.
NEWER = f"pip install verl=={NEWEST.version}"

YES, PATCH, NO = "works", "needs the patch", "not there"


@dataclass(frozen=True)
class Feature:
    """state: YES, PATCH or NO, before anything is known of the installation; why, and what to do if it is not YES."""

    name: str
    state: str
    why: str = ""
    fix: str = ""


def of(release: Release) -> list[Feature]:
    """What works with a release, in the order in which it is shown."""
    v1 = f"needs verl's V1 trainer, which {release.version} has not"
    found = [Feature(LOSSES, YES)]
    if release.engine:
        found.append(Feature(HOOK, YES, "a wrapper round TrainingWorker.train_batch; the patch is another way"))
    if release.legacy:
        engines = ", or verl's engines: trainer.use_legacy_worker_impl=disable" if release.engine else ""
        why = "update_policy is one method with no place for a wrapper: unpatched, cov_scope=micro_batch and no metrics"
        found.append(Feature(LEGACY_HOOK, PATCH, why, f"verl-cov patch apply, on every node{engines}"))
    if release.engine:
        legacy = "with verl's engines only (trainer.use_legacy_worker_impl=disable)" if release.legacy else ""
        found.append(Feature(ROLLOUT, YES, legacy))
    else:
        found.append(Feature(ROLLOUT, NO, "the legacy actor shows no rollout batch", NEWER))
    if release.driver_checks:
        found.append(Feature(CHECKS, YES, "in the driver"))
    else:
        found.append(Feature(CHECKS, YES, "where main_ppo has its own: in the TaskRunner, a Ray actor"))
    for name in (FILTER, VALIDATION, PRIME, RECIPES):
        found.append(Feature(name, YES) if release.v1 else Feature(name, NO, v1, NEWER))
    cpu = f"needs verl's platform plugins, which {release.version} has not"
    found.append(Feature(CPU, YES) if release.v1 else Feature(CPU, NO, cpu, NEWER))
    found.append(Feature(LAW, YES, "needs no verl"))
    return found


def names(release: Release) -> set[str]:
    """Those that the release should have, patched or not."""
    return {feature.name for feature in of(release) if feature.state != NO}
