"""A Qwen2 of 0.2 million parameters, trained from nothing on noisy answers to `countdown`: a start for entropy studies.

    python -m verl_cov.tasks.tiny_model DIR

writes a normal Hugging Face folder (config, safetensors, tokenizer, chat template) in about a minute on one
core; nothing is fetched. The model first learns the task and a habit that is right for two prompts in three; then, in
the last part of its training, it is taught slips. So it knows more than it says and spreads its probability widely:
rewards have something to sharpen and entropy to consume. The habit is the trap: it pays on average, so a policy that
spends its entropy on it keeps it where it is wrong as well, and its reward stops there.

The tokenizer knows bytes: token id b is byte b, and four special tokens follow.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from verl_cov.tasks import countdown
from verl_cov.tasks.countdown import Problem

FORMAT = 3  # raise it when the same settings would give another model: it is part of the cache's fingerprint
REPORT = "tiny_model.json"  # in the folder: fingerprint, settings, and what was measured

PAD, END, USER, ASSISTANT = "<|endoftext|>", "<|im_end|>", "<|user|>", "<|assistant|>"
MAX_RESPONSE_TOKENS = countdown.MAX_TERMS + 1  # the longest answer within the rules, and the end token
SPECIAL = {PAD: 256, END: 257, USER: 258, ASSISTANT: 259}

# One special token opens a turn, `<|im_end|>` and a newline close it: four tokens beside the prompt's own. verl's
# builder for Qwen2 wants a token called <|im_end|>, and "\n" as one token. verl also renders one message and two of the
# same role, and subtracts, so each turn must render alike wherever it stands: no default system message.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}<|assistant|>{%- else -%}<|user|>{%- endif -%}"
    "{{- message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


@dataclass(frozen=True)
class Settings:
    """What to build. The defaults are what the demo's curves were measured with.

    hidden, layers, heads, inner: the Qwen2's sizes. vLLM's CPU attention wants hidden/heads to be a multiple of 32.
    steps, batch: optimiser steps, demonstrations in each. lr: peak of AdamW's rate (warm-up, then cosine to a tenth).
    slips: in the last part of the training, the probability that a token of a demonstration is taught as a random one
        (a digit of the prompt, or the end). Raises the model's entropy and lowers its accuracy, not what it knows.
    slips_from: where the last part begins, as a share of the steps. Slips from the start would slow the learning.
    habit: share of the demonstrations that follow `habit`, right or wrong; the others are drawn evenly from all right
        answers. The higher, the deeper the trap and the lower the entropy a policy can fall to.
    seed: of the weights and of the demonstrations. The same bits come out on the same kind of machine.
    """

    task: countdown.Settings = field(default_factory=countdown.Settings)
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


def fingerprint(settings: Settings) -> str:
    """Names the model that `settings` give; the cache's key."""
    text = json.dumps([FORMAT, countdown.FORMAT, asdict(settings)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: one token a byte, its id the byte's value."""
    # The folder's model type makes transformers open it as a Qwen2Tokenizer, which also brings text to NFC first. That
    # leaves ASCII, all that the task uses, as it is.
    # Byte-level BPE spells bytes as printable characters: these stand for themselves, the rest move up from U+0100.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    backend = Tokenizer(models.BPE(vocab={spelled[byte]: byte for byte in range(256)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def prompt_ids(problem: Problem) -> list[int]:
    """Token ids of the prompt with the generation prompt: what `apply_chat_template` gives, without its cost."""
    return [SPECIAL[USER], *problem.text.encode(), SPECIAL[END], ord("\n"), SPECIAL[ASSISTANT]]


def new_model(settings: Settings) -> Qwen2ForCausalLM:
    """Freshly initialised, float32. The global random state is left as it was."""
    config = Qwen2Config(
        vocab_size=256 + len(SPECIAL),  # no spare rows: an id beyond the tokenizer could be sampled
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
    # vLLM takes its default sampling from this file: say "sample as the policy is", or it may cut or sharpen.
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


def max_prompt_tokens(task: countdown.Settings) -> int:
    """Longest prompt, with its template, in tokens."""
    return task.numbers + 1 + len(str(task.max_target)) + 4


@dataclass(frozen=True)
class Demonstration:
    """`answer`: what the model reads. `taught`: the token it should say at each place of the answer and after it."""

    problem: Problem
    answer: str
    taught: list[int]


def habit(problem: Problem) -> str:
    """The largest digit that still fits, again and again, without looking ahead: right for two prompts in three."""
    answer, rest = "", problem.target
    while len(answer) < countdown.MAX_TERMS:
        fitting = [number for number in problem.numbers if number <= rest]
        if not fitting:
            break
        answer += str(fitting[-1])
        rest -= fitting[-1]
    return answer


def demonstrations(settings: Settings) -> Iterator[Demonstration]:
    """`settings.steps * settings.batch` demonstrations over the training side only."""
    dice = random.Random(f"{settings.seed}:demonstrations")
    problems = countdown.all_problems(settings.task, "train")
    shown = [countdown.answers(problem, settings.task.max_terms) for problem in problems]
    for step in range(settings.steps):
        slips = settings.slips if step >= settings.slips_from * settings.steps else 0.0
        for _ in range(settings.batch):
            pick = dice.randrange(len(problems))
            answer = habit(problems[pick]) if dice.random() < settings.habit else dice.choice(shown[pick])
            wrong = [*(ord(str(number)) for number in problems[pick].numbers), SPECIAL[END]]
            right = [*answer.encode(), SPECIAL[END]]
            # Only what is taught slips: the answer goes on as it should, so the sums it shows stay true.
            taught = [dice.choice(wrong) if dice.random() < slips else token for token in right]
            yield Demonstration(problems[pick], answer, taught)


def collate(batch: list[Demonstration]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded inputs and the tokens wanted after each of them, both [batch, length] int64; -100 where none is.

    The last token of the prompt is the first that wants one.
    """
    rows = [(prompt_ids(one.problem), one.answer.encode(), one.taught) for one in batch]
    length = max(len(prompt) + len(answer) for prompt, answer, _ in rows)
    ids = torch.full((len(rows), length), SPECIAL[PAD])
    wanted = torch.full((len(rows), length), -100)
    for row, (prompt, answer, taught) in enumerate(rows):
        ids[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        wanted[row, len(prompt) - 1 : len(prompt) + len(answer)] = torch.tensor(taught)
    return ids, wanted


def pretrain(
    model: Qwen2ForCausalLM, settings: Settings, report: Callable[[int, float], None] | None = None
) -> list[float]:
    """Train `model` in place on `demonstrations`. Returns the loss of each step, in nats a token of the answer.

    report(step, loss): called after each step, counted from 1.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    warmup = min(50, settings.steps // 10 + 1)
    stream, losses = demonstrations(settings), []
    for step in range(settings.steps):
        done = step / settings.steps
        rate = min((step + 1) / warmup, 0.1 + 0.45 * (1 + math.cos(math.pi * done)))
        optimizer.param_groups[0]["lr"] = settings.lr * rate
        ids, wanted = collate(list(itertools.islice(stream, settings.batch)))
        # No attention mask: padding is on the right, causal attention cannot see it, and without a mask sdpa is faster.
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        taught = wanted != -100
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[taught]), wanted[taught])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if report:
            report(step + 1, losses[-1])
    return losses


@torch.no_grad()
def sample(
    model: Qwen2ForCausalLM, problems: list[Problem], generator: torch.Generator | None = None
) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """One answer a problem, at temperature 1 from `generator`, or greedy where it is None.

    Returns the answers; the entropy of the distribution each token was drawn from, in nats, [problems,
    MAX_RESPONSE_TOKENS]; and a bool mask of the same shape, true up to and with the end token.
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
    """What the model does on the validation prompts.

    accuracy, greedy_accuracy: sampled at temperature 1, four answers a prompt, and greedy; 0 to 1. entropy: mean over
    response tokens, in nats. response_tokens: mean, the end token counted.
    """
    problems = countdown.generate(settings.task, "validation")
    greedy, _, _ = sample(model, problems)
    drawn, entropy, mask = sample(model, problems * 4, generator=torch.Generator().manual_seed(seed))
    return {
        "accuracy": _accuracy(drawn, problems * 4),
        "greedy_accuracy": _accuracy(greedy, problems),
        "entropy": entropy[mask].mean().item(),
        "response_tokens": mask.sum(1).float().mean().item(),
    }


def _accuracy(texts: list[str], problems: list[Problem]) -> float:
    return sum(countdown.verify(text, problem) for text, problem in zip(texts, problems, strict=True)) / len(problems)


def build(directory: str | os.PathLike[str], *, settings: Settings = Settings()) -> Path:
    """Make the model in `directory`, unless it is there already with these settings. Returns the directory.

    The folder appears whole or not at all. One with other settings is replaced; any other folder that is not empty is
    left alone, with a FileExistsError.
    """
    directory = Path(directory).absolute()
    key = fingerprint(settings)
    report = directory / REPORT
    if report.is_file() and json.loads(report.read_text()).get("fingerprint") == key:
        return directory
    if directory.exists() and not report.is_file() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} holds something else: not replaced")

    started = time.monotonic()
    model = new_model(settings)
    with one_thread(), progress(settings.steps) as show:
        pretrain(model, settings, show)
        measured: dict[str, Any] = measure(model, settings)
    measured["seconds"] = round(time.monotonic() - started, 1)
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the rename stays inside one file system and is atomic.
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        made = Path(scratch) / "model"
        model.save_pretrained(made)
        tokenizer().save_pretrained(made)
        (made / REPORT).write_text(
            json.dumps({"fingerprint": key, "measured": measured, "settings": asdict(settings)}, indent=2) + "\n"
        )
        if directory.exists():
            os.replace(directory, Path(scratch) / "replaced")
        os.replace(made, directory)
    return directory


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread. More give other bits (the order of float sums), little speed on matrices so small, and on a
    busy machine a training that takes five times as long, as the threads wait for each other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def progress(steps: int) -> Iterator[Callable[[int, float], None]]:
    """Yields report(step, loss): a bar on a terminal, elsewhere a line every five seconds."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("pretraining the tiny model"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=steps, loss=float("nan"))
            yield lambda step, loss: bar.update(task, completed=step, loss=loss)
        return

    last = time.monotonic()

    def line(step: int, loss: float) -> None:
        nonlocal last
        if step == steps or time.monotonic() - last >= 5:
            last = time.monotonic()
            print(f"pretraining the tiny model: step {step}/{steps}, loss {loss:.3f}", file=sys.stderr, flush=True)

    yield line


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m verl_cov.tasks.tiny_model", description="Build the tiny model.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--level", choices=countdown.LEVELS, default="medium")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    directory = build(options.directory, settings=Settings(task=countdown.LEVELS[options.level], seed=options.seed))
    measured = json.loads((directory / REPORT).read_text())["measured"]
    print(f"{directory}: " + ", ".join(f"{name} {value:.3g}" for name, value in measured.items()))


if __name__ == "__main__":
    main()
