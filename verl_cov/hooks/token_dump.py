"""Writes the tokens of a mini-batch with the highest covariance to a file (``cov_dump_every``).

Leans on ``responses`` of the batch (aligned with ``response_mask``), on ``prompts`` and, where these are dense and
padded, ``attention_mask``.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.core import identity
from verl_cov.core.covariance import KINDS, kind_masks
from verl_cov.core.token_file import FILE, Token, append

if TYPE_CHECKING:
    from verl_cov.hooks.mini_batch import MiniBatch

logger = logging.getLogger(__name__)

BEFORE, AFTER = 32, 8  # tokens of context


def write(tokenizer: Any, cov: Any, found: MiniBatch, step: int, group: ProcessGroup | None) -> None:
    """Append the ``cov_dump_tokens`` highest of all ranks to the file; every rank of ``group`` must call it."""
    mine = _highest(tokenizer, found, cov.cov_dump_tokens, step)
    everyone = [mine]
    if group is not None:
        everyone = [[] for _ in range(dist.get_world_size(group))]
        dist.all_gather_object(everyone, mine, group=group)
    # Data-parallel groups of a model-parallel engine hold the same rows: one process writes.
    if dist.is_initialized() and dist.get_rank() != 0:
        return
    tokens = sorted((token for part in everyone for token in part), key=lambda token: -token["covariance"])
    ranked = [Token(rank=rank, **token) for rank, token in enumerate(tokens[: cov.cov_dump_tokens], 1)]
    try:
        append(Path(cov.cov_dump_dir) / FILE, ranked)
    except OSError as error:  # a full disk is no reason to end a training
        logger.warning("verl-cov: the token dump of step %s was not written: %s", step, error)


def _highest(tokenizer: Any, found: MiniBatch, number: int, step: int) -> list[dict[str, Any]]:
    """This rank's highest tokens as fields of :class:`Token`, without the rank."""
    tokens, covariances = found.tokens, found.covariances
    assert covariances is not None  # the configuration refuses a dump without metrics
    finite = int(torch.isfinite(covariances.values).sum())
    top = covariances.values.nan_to_num(-torch.inf).topk(min(number, finite))
    at = top.indices
    rows, positions = (of_slot[at].tolist() for of_slot in identity.slots(tokens.lengths, tokens.valid.numel()))
    log_prob, advantage = found.log_prob[at], tokens.advantage[at]
    kinds = kind_masks(log_prob, advantage, *covariances.centre).long().argmax(0)
    selected = torch.zeros_like(tokens.valid) if found.chosen is None else found.chosen.mask
    uids = tokens.uids()
    return [
        _text(tokens.data, tokenizer, rows[i], positions[i])
        | dict(
            step=step,
            covariance=float(top.values[i]),
            log_prob=float(log_prob[i]),
            advantage=float(advantage[i]),
            kind=KINDS[int(kinds[i])],
            selected=bool(selected[at[i]]),
            prompt=uids[rows[i]] if uids is not None else "",
        )
        for i in range(at.numel())
    ]


def _text(data: Any, tokenizer: Any, row: int, position: int) -> dict[str, Any]:
    response = _row(data["responses"], row)
    length = int(_row(data["response_mask"], row).nonzero().max()) + 1
    prompt = _row(data["prompts"], row) if "prompts" in data else response[:0]
    if prompt.numel() and not data["prompts"].is_nested:
        prompt = prompt[data["attention_mask"][row][: prompt.numel()].bool()]
    before = torch.cat([prompt, response[:position]])[-BEFORE:]

    def text(ids: Tensor) -> str:
        return tokenizer.decode(ids.tolist()) if tokenizer is not None else ""

    return dict(
        token=text(response[position : position + 1]),
        token_id=int(response[position]),
        before=text(before),
        after=text(response[position + 1 : length][:AFTER]),
        position=position,
        response_tokens=length,
    )


def _row(field: Tensor, row: int) -> Tensor:
    if not field.is_nested:
        return field[row]
    offsets = field.offsets()
    return field.values()[int(offsets[row]) : int(offsets[row + 1])]
