"""The mini-batch that every layout of the self-test cuts up, and the tiny model that is trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

ROWS = 16
# Columns of a dense batch's prompts, and of its responses. verl 0.7.1's engines, without remove_padding, let a sequence
# attend to as many tokens as the responses have columns: as many as the longest sequence has, or it is not the model.
PROMPT, RESPONSE = 16, 24


def mini_batch(seed: int = 0) -> list[dict[str, Any]]:
    """Sixteen sequences of prompts and responses of several lengths, with old log-probs, advantages and masks."""
    random = np.random.default_rng(seed)
    rows = []
    for index in range(ROWS):
        prompt, response = random.integers(3, 9), random.integers(2, 14)
        mask = np.ones(response, dtype=np.int64)
        if response > 6 and index % 3 == 0:
            mask[3:5] = 0  # a tool's answer inside the response
        rows.append(
            dict(
                index=index,
                prompt=random.integers(0, 200, prompt),
                response=random.integers(0, 200, response),
                mask=mask,
                old_log_prob=-random.exponential(1.5, response).astype(np.float32) - 4.0,
                advantage=np.full(response, random.normal(), dtype=np.float32),
                entropy=random.exponential(1.0, response).astype(np.float32),
                score=float(random.integers(0, 2)),
                uid=f"prompt {index // 4}",
            )
        )
    # Two sequences alike in everything: their tokens tie, and the cut between them must not move the gradient.
    rows[5] = {**rows[4], "index": 5}
    return rows


def to_tensordict(rows: list[dict[str, Any]], dense: bool) -> Any:
    """The batch as the V1 trainer (jagged) or the legacy trainer (dense, padded) hands it to update_actor."""
    import torch
    from verl.utils import tensordict_utils as tu

    def jagged(values: list[np.ndarray]) -> Any:
        return torch.nested.as_nested_tensor([torch.from_numpy(np.asarray(v)) for v in values], layout=torch.jagged)

    def padded(values: list[np.ndarray], width: int = RESPONSE) -> Any:
        return torch.stack([torch.from_numpy(np.pad(v, (0, width - len(v)))) for v in values])

    whole = [np.concatenate([row["prompt"], row["response"]]) for row in rows]
    fields = {"input_ids": jagged(whole), "position_ids": jagged([np.arange(len(ids)) for ids in whole])}
    response = dict(response_mask="mask", old_log_probs="old_log_prob", advantages="advantage", loss_mask="mask")
    if "entropy" in rows[0]:
        response["entropy"] = "entropy"
        for row in rows:
            row["token_scores"] = np.zeros_like(row["entropy"])
            row["token_scores"][-1] = row["score"]
        response["token_level_scores" if dense else "rm_scores"] = "token_scores"
    lay_out = padded if dense else jagged
    fields |= {name: lay_out([row[key] for row in rows]) for name, key in response.items()}
    if dense:
        fields["prompts"] = torch.stack(
            [torch.from_numpy(np.pad(r["prompt"], (PROMPT - len(r["prompt"]), 0))) for r in rows]
        )
        fields["responses"] = padded([row["response"] for row in rows])
        fields["attention_mask"] = torch.stack(
            [
                torch.from_numpy(
                    np.concatenate(
                        [
                            np.pad(np.ones(len(r["prompt"]), int), (PROMPT - len(r["prompt"]), 0)),
                            np.pad(np.ones(len(r["response"]), int), (0, RESPONSE - len(r["response"]))),
                        ]
                    )
                )
                for r in rows
            ]
        )
    else:
        fields["prompts"] = jagged([row["prompt"] for row in rows])
        fields["responses"] = jagged([row["response"] for row in rows])
    extra = {"max_response_len": RESPONSE} if dense else {}
    fields |= {key: jagged([row[key] for row in rows]) for key in ("teacher_ids", "teacher_logprobs") if key in rows[0]}
    for name in ("uid", "session_id"):
        if name in rows[0]:
            fields[name] = [row[name] for row in rows]
    return tu.get_tensordict(fields, non_tensor_dict=extra)


def save_untrained_model(
    folder: Path,
    positions: int = 128,
    layers: int = 2,
    seed: int = 0,
    more_tokens: tuple[str, ...] = (),
    hidden: int = 64,
    inner: int = 128,
) -> Path:
    """Writes a Qwen2 with random weights, of 0.1 M parameters unless said otherwise, and the byte tokenizer."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from verl_cov.tasks import tiny_model

    tokenizer = tiny_model.tokenizer()
    tokenizer.add_tokens(list(more_tokens))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=264,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=max(2, hidden // 128),
        num_key_value_heads=max(2, hidden // 128),
        max_position_embeddings=positions,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder
