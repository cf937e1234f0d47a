"""What stands between verl before 0.9 and a CPU, for tests: that verl has no CPU platform, and verl-cov gives it none.

Nothing of the actor's training is replaced: memory statistics, the name of a process group's backend, and for the
engines their registration for the device "cpu".
"""

from __future__ import annotations


def prepare() -> None:
    """To be called before verl's workers are imported. Does nothing with verl 0.9 and later."""
    import torch

    from verl_cov.hooks import versions

    release = versions.installed_release()
    if release.v1:
        return
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(torch.cpu, name, lambda *_: 0)
    torch.cpu.mem_get_info = lambda *_: (0, 0)
    torch.cpu.empty_cache = lambda: None
    torch.cpu.manual_seed = torch.cpu.manual_seed_all = torch.manual_seed
    torch.cpu.ipc_collect = lambda: None
    torch.cpu.reset_peak_memory_stats = lambda *_: None
    if release.engine:
        from verl_cov.hooks.cpu import engines, process_group, reference

        for piece in (process_group, engines, reference):
            piece.install()
        import verl.utils.device

        verl.utils.device.get_nccl_backend = lambda: "gloo"
