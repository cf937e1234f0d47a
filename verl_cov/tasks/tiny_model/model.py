"""The tiny model's settings, and the model before its training."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType

import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from verl_cov.tasks import countdown, pointer
from verl_cov.tasks.tiny_model.byte_tokenizer import END, MAX_RESPONSE_TOKENS, PAD, SPECIAL


@dataclass(frozen=True)
class Settings:
    """What to build. The demo's curves were measured with the defaults.

    task: what it learns, countdown or pointer chasing.

    hidden, layers, heads, inner: sizes of the Qwen2. vLLM's CPU attention wants hidden/heads to be a multiple of 32.
    steps, batch: optimizer steps, and demonstrations in each. lr: AdamW's peak learning rate (warm-up, then cosine to a
        tenth).
    slips: in the last part of the training, the probability that a token of a demonstration is taught as a random one
        (a digit of the prompt, a node, or the end). Raises the model's entropy and lowers its accuracy, not what it
        knows.
    slips_from: where the last part begins, as a share of the steps. Slips from the start would slow the learning down.
    habit: share of the demonstrations that follow the habit (`lessons`): countdown's, right or wrong, where the others
        are drawn evenly from all right answers; pointer's, in the last part, where the others write out the hops. The
        higher, the deeper the trap, and the lower the entropy that a policy can fall to.
    seed: of the weights and of the demonstrations. The same kind of machine gives the same bits.
    """

    task: countdown.Settings | pointer.Settings = field(default_factory=countdown.Settings)
    hidden: int = 64
    layers: int = 3
    heads: int = 2
    inner: int = 192
    steps: int = 2400
    batch: int = 64
    lr: float = 3e-3
    slips: float = 0.32
    slips_from: float = 0.8
    habit: float = 0.75
    seed: int = 0

    def __post_init__(self):
        if self.hidden % self.heads or (self.hidden // self.heads) % 32:
            raise ValueError(f"hidden/heads must be a multiple of 32 for vLLM on CPU, got {self.hidden}/{self.heads}")
        for name in ("slips", "slips_from", "habit"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if min(self.steps, self.batch, self.layers) < 1:
            raise ValueError(f"steps, batch and layers must be positive, got {self.steps}, {self.batch}, {self.layers}")

    @property
    def rules(self) -> ModuleType:
        """The task's module: `generate`, `verify`, `FORMAT`."""
        return countdown if isinstance(self.task, countdown.Settings) else pointer


DEFAULT = Settings()


def new_model(settings: Settings) -> Qwen2ForCausalLM:
    """A model with random weights, in float32. Leaves torch's global random state as it was."""
    config = Qwen2Config(
        vocab_size=256 + len(SPECIAL),  # no spare rows: they could be sampled, and the tokenizer does not know them
        hidden_size=settings.hidden,
        intermediate_size=settings.inner,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=256,
        # Not tied: a trainer sends weights to the rollout engine by name, and a tied one goes twice or not at all.
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=SPECIAL[END],
        pad_token_id=SPECIAL[PAD],
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = Qwen2ForCausalLM(config).float()
    # vLLM takes its default sampling from this file: without it, it may truncate or sharpen the policy.
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=SPECIAL[END],
        pad_token_id=SPECIAL[PAD],
        max_new_tokens=MAX_RESPONSE_TOKENS,
    )
    return model
