"""Level core: what :mod:`verl_cov.core` computes on this device and over these ranks is what numpy says.

Needs torch, numpy and jaxtyping; no verl.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.core import identity, losses, selection
from verl_cov.core.covariance import Covariances
from verl_cov.core.metric_table import LADDER
from verl_cov.selftest import oracle
from verl_cov.selftest.ranks import NotPossible, Rank

SIZES = {"cpu": (10**5, 10**6), "cuda": (10**5, 10**6, 10**7, 10**8)}
ORACLE_UP_TO = 10**7  # above, numpy's copies fill a machine: there the CPU's tokens are what is compared with
SEED, STEP = 7, 5
CONTROLS = {
    "KL-Cov": selection.Control(2e-3, None, SEED, STEP),
    "Clip-Cov": selection.Control(2e-4, (0.5, 5.0), SEED, STEP),
}
CASES = ("float32", "bfloat16", "ties", "not finite", "a rank without tokens", "no token")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Tokens:
    """Response slots, row by row: ``lengths`` of each row, ``ids`` what stands in each slot."""

    log_prob: Tensor
    advantage: Tensor
    valid: Tensor
    ids: Tensor
    lengths: Tensor

    def part(self, rows: slice, device: torch.device) -> Tokens:
        """Some of the rows, on a device."""
        ends = [0, *self.lengths.cumsum(0).tolist()]
        at = slice(ends[rows.start], ends[rows.stop])
        log_prob, advantage, valid, ids = (
            each[at].to(device) for each in (self.log_prob, self.advantage, self.valid, self.ids)
        )
        return Tokens(log_prob, advantage, valid, ids, self.lengths[rows].to(device))


def run(here: Rank) -> None:
    """All checks of this level."""
    small, *larger = SIZES[here.device.type]
    for case in CASES:
        here.check("core", f"selection, {case}, {small:,} tokens", selects, here, case, small)
    for size in larger:
        here.check("core", f"selection, {size:,} tokens", selects, here, "float32", size)
    here.check("core", "ladder of the largest covariances", ladder, here, small)
    for dtype in TOLERANCE:
        name = str(dtype).removeprefix("torch.")
        here.check("core", f"losses and gradients, {name}", loss_values, here, dtype)
    here.check("core", "NCCL and gloo select the same", same_by_gloo, here, small)
    here.check("core", "selection and loss do not wait for the device", never_waits, here, small)


def batch(case: str, size: int) -> Tokens:
    """The same on every rank: made on the CPU, by a seed."""
    random = torch.Generator().manual_seed(size + CASES.index(case))
    rows = max(8, size // 512)
    cuts = torch.randint(0, size + 1, (rows - 1,), generator=random).sort().values
    lengths = torch.diff(cuts, prepend=torch.tensor([0]), append=torch.tensor([size]))
    log_prob = -3 * torch.rand(size, generator=random)
    advantage = torch.repeat_interleave(torch.randn(rows, generator=random), lengths)
    valid = torch.rand(size, generator=random) > 0.1
    ids = torch.randint(0, 150_000, (size,), generator=random)
    if case == "bfloat16":
        log_prob, advantage = log_prob.bfloat16(), advantage.bfloat16()
    elif case == "ties":
        log_prob, advantage = log_prob.round(decimals=1), advantage.round()
    elif case == "not finite":
        for bad in (torch.nan, torch.inf, -torch.inf, 2.0**31):
            for values in (log_prob, advantage):
                values[torch.randint(0, size, (size // 100,), generator=random)] = bad
    elif case == "no token":
        valid = torch.zeros_like(valid)
    return Tokens(log_prob, advantage, valid, ids, lengths)


def rows_of(case: str, rows: int, rank: int, ranks: int) -> slice:
    """A rank's rows."""
    busy = max(1, ranks - 1) if case == "a rank without tokens" else ranks
    return slice(rows * min(rank, busy) // busy, rows * min(rank + 1, busy) // busy)


def selected(tokens: Tokens, control: selection.Control, group: ProcessGroup | None) -> selection.Selected:
    """This rank's part of the selection, by the identity that the hooks take. Every rank must call it."""
    return _selected(tokens, identities(tokens, group), control, group)


def _selected(
    tokens: Tokens, ids: Tensor, control: selection.Control, group: ProcessGroup | None
) -> selection.Selected:
    return selection.select_tokens(
        tokens.log_prob, tokens.advantage, tokens.valid, lambda at: ids[at], control, group=group
    )


def identities(tokens: Tokens, group: ProcessGroup | None) -> Tensor:
    rows, positions = identity.slots(tokens.lengths, tokens.valid.numel())
    used = torch.zeros_like(tokens.lengths).index_add_(0, rows, tokens.valid.long())
    values = identity.row_values(tokens.lengths, tokens.valid, tokens.log_prob, tokens.advantage)
    row_ids = identity.row_identity(tokens.ids, tokens.lengths, used, used > 0, values, group)
    return identity.token_identity(row_ids[rows], positions)


def selects(here: Rank, case: str, size: int) -> str | None:
    """Compares this rank's tokens with the oracle's and with those of one CPU process."""
    if case == "a rank without tokens" and here.ranks == 1:
        raise NotPossible("one rank; start it with torchrun --nproc-per-node 2 -m verl_cov.selftest")
    whole = batch(case, size)
    rows = rows_of(case, len(whole.lengths), here.rank, here.ranks)
    mine, cpu = whole.part(rows, here.device), torch.device("cpu")
    first = int(whole.lengths[: rows.start].sum())
    at = slice(first, first + mine.valid.numel())
    # All collectives come before the first answer: a rank that returned early would leave the others waiting.
    everything = {name: selected(mine, control, here.group) for name, control in CONTROLS.items()}
    for name, control in CONTROLS.items():
        found, wanted = everything[name], {}
        if size <= ORACLE_UP_TO:
            wanted["the numpy oracle"] = torch.from_numpy(oracle_mask(whole, control))
        wanted["one CPU process"] = selected(whole.part(slice(0, len(whole.lengths)), cpu), control, None).mask
        for who, mask in wanted.items():
            if cause := differs(f"{name} with {control.ratio:g}", found.mask.cpu(), mask[at], who):
                return cause
            if found.totals.selected != int(mask.sum()):
                return f"{name}: {found.totals.selected} tokens are counted as selected, {int(mask.sum())} by {who}"
    return None


def oracle_mask(tokens: Tokens, control: selection.Control) -> np.ndarray:
    """What numpy selects of the whole mini-batch."""
    log_prob, advantage = tokens.log_prob.float().numpy(), tokens.advantage.float().numpy()
    valid, ids, lengths = tokens.valid.numpy(), tokens.ids.numpy(), tokens.lengths.numpy()
    cov = oracle.covariances(log_prob, advantage, valid)
    count = oracle.quota(control.ratio, int((~np.isnan(cov)).sum()))
    with np.errstate(invalid="ignore"):
        ticket = oracle.tickets(ids, lengths, log_prob, advantage, valid, lengths, control.seed, control.step)
        if control.band is None:
            return oracle.largest(cov, count, ticket)
        return oracle.drawn((cov > control.band[0]) & (cov < control.band[1]), count, ticket)


def differs(name: str, found: Tensor, wanted: Tensor, who: str) -> str | None:
    more, less = int((found & ~wanted).sum()), int((wanted & ~found).sum())
    if not more and not less:
        return None
    return f"{name} selects other tokens than {who}: {more:,} too many and {less:,} missing on this rank"


def ladder(here: Rank, size: int) -> str | None:
    whole = batch("float32", size)
    mine = whole.part(rows_of("float32", len(whole.lengths), here.rank, here.ranks), here.device)
    cov = Covariances.compute(mine.log_prob, mine.advantage, mine.valid, here.group).values
    values, means = (f(cov, LADDER, here.group).tolist() for f in (selection.largest_values, selection.largest_means))
    wanted = oracle.covariances(whole.log_prob.numpy(), whole.advantage.numpy(), whole.valid.numpy())
    wanted = np.sort(wanted[~np.isnan(wanted)])[::-1]
    for share, value, mean in zip(LADDER, values, means, strict=True):
        count = oracle.quota(share, len(wanted))
        if value != wanted[count - 1] or not np.isclose(mean, wanted[:count].mean(dtype=np.float64), rtol=1e-9):
            by_numpy = wanted[:count].mean(dtype=np.float64)
            return f"top {share:g}: cut {value!r}, mean {mean!r}; by numpy {wanted[count - 1]!r}, {by_numpy!r}"
    return None


# --- losses -----------------------------------------------------------------------------------------------------------

COEFFICIENT = 0.7


def loss_inputs(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """The arguments of a policy loss, and a mask of selected tokens."""
    random = torch.Generator().manual_seed(0)
    old = -3 * torch.rand(shape, generator=random)
    new = old + 0.05 * torch.randn(shape, generator=random)
    advantages = torch.randn(shape[0], 1, generator=random).expand(shape)
    mask = torch.rand(shape, generator=random) > 0.1
    chosen = (torch.rand(shape, generator=random) < 0.05) & mask
    inputs = {"old_log_prob": old, "log_prob": new, "advantages": advantages}
    inputs = {name: each.to(dtype).to(device) for name, each in inputs.items()}
    inputs["response_mask"] = mask.to(device)
    inputs["log_prob"].requires_grad_()
    return inputs, chosen.to(device)


def our_losses(inputs: dict[str, Tensor], chosen: Tensor) -> dict[str, Callable[[], Tensor]]:
    """KL-Cov and Clip-Cov on the surrogate without a clip, and the surrogate alone."""
    mask, count = inputs["response_mask"], inputs["response_mask"].sum()

    def aggregate(matrix: Tensor) -> Tensor:
        return torch.where(mask, matrix, 0.0).sum() / count

    base: losses.PolicyLoss = functools.partial(losses.ratio_loss, aggregate=aggregate)
    kl: Any = functools.partial(losses.kl_cov, base, chosen, aggregate, coefficient=COEFFICIENT, estimator="abs")
    return {
        "KL-Cov": lambda: kl(**inputs)[0],
        "Clip-Cov": lambda: losses.clip_cov(base, chosen, **inputs)[0],
        "surrogate": lambda: base(**inputs)[0],
    }


def loss_values(here: Rank, dtype: torch.dtype) -> str | None:
    """Compares loss and gradient with their formulas in numpy, float64, on the numbers as ``dtype`` has them."""
    inputs, chosen = loss_inputs((64, 512), dtype, here.device)
    old, new, a = (inputs[name].detach().cpu().double().numpy() for name in ("old_log_prob", "log_prob", "advantages"))
    on, marked, x = inputs["response_mask"].cpu().numpy(), chosen.cpu().numpy(), new - old
    plain = np.where(on, -a * np.exp(x), 0.0)
    wanted = {
        "KL-Cov": (plain + np.where(marked, COEFFICIENT * np.abs(x), 0), plain + marked * COEFFICIENT * np.sign(x)),
        "Clip-Cov": (plain, np.where(marked, 0.0, plain)),
        "surrogate": (plain, plain),
    }
    for name, call in our_losses(inputs, chosen).items():
        loss = call()
        (gradient,) = torch.autograd.grad(loss, inputs["log_prob"])
        value, slope = wanted[name][0].sum() / on.sum(), wanted[name][1] / on.sum()
        off = np.linalg.norm(gradient.cpu().double().numpy() - slope) / np.linalg.norm(slope)
        value_off = abs(float(loss.detach()) - value) / (np.abs(wanted[name][0]).sum() / on.sum())
        if not max(off, value_off) < TOLERANCE[dtype]:
            return (
                f"{name}: the loss is off by {value_off:.1e}, its gradient by {off:.1e}; {TOLERANCE[dtype]:.0e} allowed"
            )
    return None


# --- what only an accelerator shows -----------------------------------------------------------------------------------


def same_by_gloo(here: Rank, size: int) -> str | None:
    if not here.on_cuda:
        raise NotPossible("no CUDA device, so no NCCL; gloo's tokens are compared with one process's above")
    if here.ranks == 1:
        raise NotPossible("one rank; start it with torchrun --nproc-per-node N -m verl_cov.selftest")
    whole = batch("ties", size)
    rows = rows_of("ties", len(whole.lengths), here.rank, here.ranks)
    masks = {}
    for name, control in CONTROLS.items():
        found = selected(whole.part(rows, here.device), control, here.group).mask.cpu()
        masks[name] = found, selected(whole.part(rows, torch.device("cpu")), control, here.gloo).mask
    causes = (differs(f"{name} by NCCL", *both, "by gloo") for name, both in masks.items())
    return next(filter(None, causes), None)


@contextmanager
def waiting_raises(device: torch.device) -> Iterator[None]:
    """Within this block, what waits for the device raises RuntimeError. On a CPU nothing waits."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def never_waits(here: Rank, size: int) -> str | None:
    whole = batch("float32", size)
    mine = whole.part(rows_of("float32", len(whole.lengths), here.rank, here.ranks), here.device)
    ids = identities(mine, here.group)  # may wait, once a step: it reads how many rows the largest rank has
    inputs, chosen = loss_inputs((64, 512), torch.float32, here.device)
    with waiting_raises(here.device):
        for control in CONTROLS.values():
            _selected(mine, ids, control, here.group)
        for call in our_losses(inputs, chosen).values():
            call().backward()
    if not here.on_cuda:
        raise NotPossible("no CUDA device: on a CPU nothing waits for a device (the same code ran)")
    return None
