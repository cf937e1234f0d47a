"""What a fresh process finds after ``import verl``, for ``verl-cov doctor``: run as a program, in a child and in Ray.

Nothing of verl-cov is imported here that verl did not import: what is looked for must not be put there. Prints one
line, ``PROBE`` and JSON. Leans on what the hooks and the CPU host lean on, and on how verl calls a policy loss.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

PREFIX = "PROBE"


def look(options: dict[str, Any]) -> dict[str, Any]:
    """What there is in this process.

    options: ``plugins`` (of the release: how verl is told of the plugin), ``engine`` and ``legacy`` (of the release:
    which hooks it should have), ``thorough`` (the hooks and verl's own losses, too).
    """
    import verl

    found: dict[str, Any] = {"verl": verl.__version__, "error": None, "late": None}
    if options["plugins"] == "external_lib":
        from verl.utils.import_utils import import_external_libs

        try:  # as verl's worker does with actor_rollout_ref.model.external_lib=verl_cov.plugin
            import_external_libs("verl_cov.plugin")
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {error}"
    found["loaded"] = "verl_cov.plugin" in sys.modules
    if not found["loaded"] and found["error"] is None:
        if options["plugins"] == "VERL_USE_EXTERNAL_MODULES":
            found["late"] = by_configuration()
        try:
            importlib.import_module("verl_cov.plugin")
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {error}"
    plugin: Any = sys.modules.get("verl_cov.plugin")
    if plugin is not None:
        found["error"] = plugin.status.error
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    found["losses"] = [name for name in POLICY_LOSS_REGISTRY if name.startswith("verl_cov.")]
    found["device"], found["available"] = accelerator()
    if options["thorough"]:
        found["hooks"] = hooks(options)
        found["verls_own"] = {name: verls_own(name) for name in ("clip_cov", "kl_cov")}
    return found


def by_configuration() -> dict[str, Any]:
    """Does building ``+verl_cov=kl_cov``, as verl's workers do, load the plugin? Are the start-up checks in time?"""
    found: dict[str, Any] = {"loaded": False, "checks": False, "error": None}
    try:
        from hydra import compose, initialize_config_module
        from verl.trainer import main_ppo
        from verl.utils.config import omega_conf_to_dataclass

        with initialize_config_module("verl.trainer.config", version_base=None):
            config = compose("ppo_trainer", overrides=["+verl_cov=kl_cov"])
        omega_conf_to_dataclass(config.actor_rollout_ref.actor.policy_loss)
        # The name by which the TaskRunner calls it: our check is a wrapper round it, or it comes too late.
        check = getattr(main_ppo, "validate_config", None)
        found["checks"] = getattr(check, "__globals__", {}).get("__name__") == "verl_cov.hooks.checks.preflight"
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"
    found["loaded"] = "verl_cov.plugin" in sys.modules
    return found


def accelerator() -> tuple[str, bool]:
    """Name of the device that verl would train on, and whether there is one."""
    try:
        from verl.plugin.platform import get_platform
    except ImportError:  # before 0.9
        from verl.utils.device import get_device_name

        name = str(get_device_name())
        return name, name != "cpu"
    try:
        platform = get_platform()
        return platform.device_name, bool(platform.is_available())
    except ValueError as error:
        return str(error).splitlines()[0], False


def hooks(options: dict[str, Any]) -> dict[str, str]:
    """Where verl-cov's hooks should be: "wrapped", "patched" or "missing", else why that is not to be seen."""

    def state(module: str, owner: str, method: str) -> str:
        try:
            there = importlib.import_module(module)
            wrapped = getattr(getattr(there, owner), method).__globals__["__name__"].startswith("verl_cov.")
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        if method != "train_mini_batch" and hasattr(there, "MiniBatchStep"):
            return "patched"
        return "wrapped" if wrapped else "missing"

    found = {}
    if options["engine"]:
        for method in ("train_batch", "train_mini_batch"):
            found[method] = state("verl.workers.engine_workers", "TrainingWorker", method)
    if options["legacy"]:
        found["update_policy"] = state("verl.workers.actor.dp_actor", "DataParallelPPOActor", "update_policy")
    return found


def verls_own(name: str) -> dict[str, Any]:
    """Which tokens verl's own ``clip_cov`` or ``kl_cov`` selects of a batch, and of the same cut in two micro-batches.

    Called as verl calls a policy loss. Four responses of eight tokens, the covariance high in the first two: a
    selection within micro-batches has to take others than one over all four.
    """
    import torch
    from omegaconf import OmegaConf
    from verl.trainer.ppo.core_algos import get_policy_loss_fn

    try:
        loss = get_policy_loss_fn(name)
        generator = torch.Generator().manual_seed(0)
        spread = torch.tensor([[2.0], [2.0], [0.2], [0.2]])
        log_prob = -1.5 + spread * torch.randn(4, 8, generator=generator)
        old_log_prob = log_prob - 0.01 * torch.rand(4, 8, generator=generator) - 0.001
        advantages = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]).expand(4, 8)

        def gradient(rows: slice, coefficient: float) -> Any:
            here = log_prob[rows].clone().requires_grad_()
            numbers = {
                "clip_ratio": 1.0,
                "clip_ratio_low": 1.0,
                "clip_ratio_high": 1.0,
                "clip_ratio_c": 3.0,
                "global_batch_info": {},
                "policy_loss": {
                    "loss_mode": name,
                    "clip_cov_ratio": 1.0,  # all of the band: no draw
                    "clip_cov_lb": 0.1,
                    "clip_cov_ub": 10.0,
                    "kl_cov_ratio": 0.25,
                    "ppo_kl_coef": coefficient,
                },
            }
            result = loss(
                old_log_prob=old_log_prob[rows],
                log_prob=here,
                advantages=advantages[rows].clone(),
                response_mask=torch.ones_like(here.detach()),
                loss_agg_mode="token-mean",
                config=OmegaConf.create(numbers),
            )
            (result[0] if isinstance(result, tuple) else result).backward()
            return here.grad

        def selected(rows: slice) -> Any:
            if name == "clip_cov":
                return gradient(rows, 1.0) == 0
            return gradient(rows, 1.0) != gradient(rows, 0.0)

        whole = selected(slice(0, 4))
        cut = torch.cat([selected(slice(0, 2)), selected(slice(2, 4))])
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {
        "error": None,
        "whole": int(whole.sum()),
        "cut": int(cut.sum()),
        "other": int((whole != cut).sum()),
    }


def main() -> None:
    options = json.loads(sys.argv[1])
    if options.pop("ray"):
        import ray

        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        found = ray.get(ray.remote(look).remote(options))
    else:
        found = look(options)
    print(PREFIX + json.dumps(found))


if __name__ == "__main__":
    main()
