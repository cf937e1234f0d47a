"""Writes the tokens of a mini-batch with the highest covariance to a file (``cov_dump_every``).

Leans on ``responses`` of the batch (aligned with ``response_mask``), on ``prompts`` and, where these are dense and
padded, ``attention_mask``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.core import identity
from verl_cov.core.covariance import Covariances, update_kind_masks
from verl_cov.core.token_file import FILE, Token, append
from verl_cov.core.update_kinds import UPDATE_KINDS
from verl_cov.hooks.batch import RankTokens, prompt_uids

if TYPE_CHECKING:
    from tensordict import TensorDict
    from transformers import PreTrainedTokenizerBase

    from verl_cov.hooks.config import CovPolicyLossConfig

DUMP = "the dump of tokens"
BEFORE, AFTER = 32, 8  # tokens of context


def write(tokens: list[dict[str, Any]], cov: CovPolicyLossConfig, group: ProcessGroup | None) -> None:
    """Appends the ``cov_dump_tokens`` highest of all ranks to the file; every rank of ``group`` must call it.

    tokens: this rank's, from :func:`with_text`.
    """
    everyone = [tokens]
    if group is not None:
        everyone = [[] for _ in range(dist.get_world_size(group))]
        dist.all_gather_object(everyone, tokens, group=group)
    # Data-parallel groups of a model-parallel engine hold the same rows: one process writes.
    if dist.is_initialized() and dist.get_rank() != 0:
        return
    highest = sorted((token for part in everyone for token in part), key=lambda token: -token["covariance"])
    ranked = [Token(rank=rank, **token) for rank, token in enumerate(highest[: cov.cov_dump_tokens], 1)]
    append(Path(str(cov.cov_dump_dir)) / FILE, ranked)


def highest_tokens(
    tokens: RankTokens, log_prob: Tensor, covariances: Covariances, selected: Tensor | None, number: int
) -> list[dict[str, Any]]:
    """Returns this rank's ``number`` highest covariances: the fields of :class:`Token` that are no text, and the row.

    Args:
        log_prob: [slots], what the covariances were taken with.
        selected: [slots] bool, the tokens that the control acts on; None without a selection over the mini-batch.
    """
    finite = int(torch.isfinite(covariances.values).sum())
    top = covariances.values.nan_to_num(-torch.inf).topk(min(number, finite))
    at = top.indices
    rows, positions = (by_slot[at].tolist() for by_slot in identity.slots(tokens.lengths, tokens.valid.numel()))
    kinds = update_kind_masks(log_prob[at], tokens.advantage[at], *covariances.centre).long().argmax(0)
    uids = prompt_uids(tokens.data)
    return [
        dict(
            row=rows[i],
            position=positions[i],
            covariance=float(top.values[i]),
            log_prob=float(log_prob[slot]),
            advantage=float(tokens.advantage[slot]),
            kind=UPDATE_KINDS[int(kinds[i])],
            selected=selected is not None and bool(selected[slot]),
            prompt=uids[rows[i]] if uids is not None else "",
        )
        for i, slot in enumerate(at.tolist())
    ]


def with_text(
    tokens: list[dict[str, Any]], data: TensorDict, tokenizer: PreTrainedTokenizerBase | None, step: int
) -> list[dict[str, Any]]:
    """Returns the fields of :class:`Token` but its rank, from :func:`highest_tokens` of the mini-batch ``data``."""
    return [_text(data, tokenizer, token.pop("row"), token["position"]) | token | {"step": step} for token in tokens]


def _text(data: TensorDict, tokenizer: PreTrainedTokenizerBase | None, row: int, position: int) -> dict[str, Any]:
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
        response_tokens=length,
    )


def _row(field: Tensor, row: int) -> Tensor:
    if not field.is_nested:
        return field[row]
    offsets = field.offsets()
    return field.values()[int(offsets[row]) : int(offsets[row + 1])]
