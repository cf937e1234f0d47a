"""The tiny model's training on demonstrations."""

from __future__ import annotations

import itertools
import math

import torch
from rich.console import Console
from rich.progress import track
from transformers import Qwen2ForCausalLM

from verl_cov.tasks.tiny_model.byte_tokenizer import PAD, SPECIAL, prompt_ids
from verl_cov.tasks.tiny_model.lessons import Demonstration, demonstrations
from verl_cov.tasks.tiny_model.model import Settings


def collate(batch: list[Demonstration]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded inputs, and the token to say after each of them or -100: both [batch, length], int64.

    The last token of the prompt is the first that has a token to say.
    """
    rows = [(prompt_ids(shown.problem), shown.answer.encode(), shown.taught) for shown in batch]
    length = max(len(prompt) + len(answer) for prompt, answer, _ in rows)
    ids = torch.full((len(rows), length), SPECIAL[PAD])
    labels = torch.full((len(rows), length), -100)
    for row, (prompt, answer, taught) in enumerate(rows):
        ids[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        labels[row, len(prompt) - 1 : len(prompt) + len(answer)] = torch.tensor(taught)
    return ids, labels


def pretrain(model: Qwen2ForCausalLM, settings: Settings) -> list[float]:
    """Train `model` in place on `demonstrations`. Returns the loss of each step, in nats per token of the answers.

    A bar on standard error shows how far it is.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    warmup = min(50, settings.steps // 10 + 1)
    stream, losses = demonstrations(settings), []
    console = Console(stderr=True)
    for step in track(range(settings.steps), "pretraining the tiny model", console=console):
        done = step / settings.steps
        rate = min((step + 1) / warmup, 0.1 + 0.45 * (1 + math.cos(math.pi * done)))
        optimizer.param_groups[0]["lr"] = settings.lr * rate
        ids, labels = collate(list(itertools.islice(stream, settings.batch)))
        # No attention mask: causal attention cannot see padding on the right, and sdpa is faster without a mask.
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        taught = labels != -100
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[taught]), labels[taught])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses
