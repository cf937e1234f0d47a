"""How well the tiny model answers, and how much entropy it has left."""

from __future__ import annotations

import torch
from transformers import Qwen2ForCausalLM

from verl_cov.tasks.tiny_model.byte_tokenizer import END, MAX_RESPONSE_TOKENS, PAD, SPECIAL, prompt_ids
from verl_cov.tasks.tiny_model.lessons import Problem
from verl_cov.tasks.tiny_model.model import Settings


@torch.no_grad()
def sample(
    model: Qwen2ForCausalLM, problems: list[Problem], generator: torch.Generator | None = None
) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """One answer to each problem: at temperature 1 from `generator`, or greedy if that is None.

    Returns the answers; the entropy of the distribution that each token was drawn from, in nats, [problems,
    MAX_RESPONSE_TOKENS]; and a bool mask of the same shape, true up to the end token, which it includes.
    """
    model.eval()
    prompts = [prompt_ids(problem) for problem in problems]
    width = max(map(len, prompts))
    ids = torch.tensor([[SPECIAL[PAD]] * (width - len(p)) + p for p in prompts])
    attention = (torch.arange(width) >= torch.tensor([[width - len(p)] for p in prompts])).long()
    alive = torch.ones(len(problems), dtype=torch.bool)
    tokens, entropies, masks, cache, inputs = [], [], [], None, ids
    for _ in range(MAX_RESPONSE_TOKENS):
        position = attention.cumsum(1).sub(1).clamp(min=0)[:, -inputs.shape[1] :]
        output = model(
            input_ids=inputs, attention_mask=attention, position_ids=position, past_key_values=cache, use_cache=True
        )
        cache, logp = output.past_key_values, output.logits[:, -1].float().log_softmax(-1)
        token = logp.argmax(-1) if generator is None else torch.multinomial(logp.exp(), 1, generator=generator)[:, 0]
        tokens.append(token)
        entropies.append(-(logp.exp() * logp).sum(-1))
        masks.append(alive)
        alive = alive & (token != SPECIAL[END])
        inputs = token[:, None]
        attention = torch.cat([attention, torch.ones(len(problems), 1, dtype=torch.long)], 1)
    mask, drawn = torch.stack(masks, 1), torch.stack(tokens, 1)
    texts = [
        bytes(t for t in row[kept].tolist() if t < 256).decode(errors="replace")
        for row, kept in zip(drawn, mask, strict=True)
    ]
    return texts, torch.stack(entropies, 1), mask


def measure(model: Qwen2ForCausalLM, settings: Settings, *, seed: int = 0) -> dict[str, float]:
    """The model's results on the validation prompts.

    accuracy: of four answers to each prompt, sampled at temperature 1, 0 to 1. greedy_accuracy: of a greedy answer.
    entropy: mean over the response tokens, in nats. response_tokens: mean length, the end token included.
    """
    problems = settings.rules.generate(settings.task, "validation")
    greedy, _, _ = sample(model, problems)
    drawn, entropy, mask = sample(model, problems * 4, generator=torch.Generator().manual_seed(seed))
    return {
        "accuracy": _accuracy(drawn, problems * 4, settings),
        "greedy_accuracy": _accuracy(greedy, problems, settings),
        "entropy": entropy[mask].mean().item(),
        "response_tokens": mask.sum(1).float().mean().item(),
    }


def _accuracy(texts: list[str], problems: list[Problem], settings: Settings) -> float:
    verify = settings.rules.verify
    return sum(verify(text, problem) for text, problem in zip(texts, problems, strict=True)) / len(problems)
