"""The tiny model's tokenizer: token id b is byte b, and four special tokens follow."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from verl_cov.tasks import countdown, pointer

PAD, END, USER, ASSISTANT = "<|endoftext|>", "<|im_end|>", "<|user|>", "<|assistant|>"
# The longest answer within the rules of a task, and the end token.
MAX_RESPONSE_TOKENS = max(countdown.MAX_TERMS, pointer.MAX_ANSWER) + 1
SPECIAL = {PAD: 256, END: 257, USER: 258, ASSISTANT: 259}

# One special token opens a turn, `<|im_end|>` and a newline close it: four tokens beside the prompt's own. verl's
# builder for Qwen2 wants a token called <|im_end|>, and "\n" as one token. verl also renders one message, then two of
# the same role, and subtracts, so a turn must render the same wherever it is: no default system message.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}<|assistant|>{%- else -%}<|user|>{%- endif -%}"
    "{{- message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: one token for each byte, its id the byte's value."""
    # The folder's model type makes transformers open it as a Qwen2Tokenizer, which first brings text to NFC. That does
    # not change ASCII, which is all that the tasks use.
    # Byte-level BPE spells bytes as printable characters: these spell themselves, the others move up from U+0100.
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


def prompt_ids(problem: countdown.Problem | pointer.Problem) -> list[int]:
    """The token ids of a prompt up to where the answer begins: as `apply_chat_template` gives, without its cost."""
    return [SPECIAL[USER], *problem.text.encode(), SPECIAL[END], ord("\n"), SPECIAL[ASSISTANT]]
