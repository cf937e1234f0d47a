"""``verl-cov selftest``: shows on this machine, with this verl, that what verl-cov promises holds here.

verl-cov selftest [--device cpu] [--full] [-o result.json]
torchrun --nproc-per-node 8 -m verl_cov.selftest        # the same on eight ranks
python -m verl_cov.selftest                             # from a source folder, with torch, numpy and jaxtyping alone

ranks.py     the ranks, and what the checks on them came to
core.py      level core: the mathematics on this device against :mod:`.oracle`; needs torch alone
speed.py     how long it takes there; never a reason to fail
hook.py      level hook: verl's own engine (:mod:`.engine`) against :mod:`.oracle`
watch.py     what verl's engine showed the policy loss, and on which tokens the loss acted
train.py     level train (``--full``): a training that is killed and resumes
oracle.py    the same numbers by numpy: shares no code with the package
machine.py   versions and hardware, without host names and paths
result.py    the table, and the JSON that docs/compatibility.md is built from
"""

LEVELS = {
    "core": "the mathematics on this device, with torch alone",
    "hook": "verl's own engine with verl-cov's hooks",
    "train": "verl's trainer with vLLM, killed and resumed (minutes)",
}
DEFAULT_LEVELS = "core,hook"
LEVELS_HELP = f"By commas: {'; '.join(f'{level}, {what}' for level, what in LEVELS.items())}."
FULL_HELP = "Also the level train."
