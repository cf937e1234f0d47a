"""A Qwen2 of 0.2 million parameters, trained from scratch on noisy answers to a toy task: a start for entropy studies.

    python -m verl_cov.tasks.tiny_model DIR

writes a normal Hugging Face folder (config, safetensors, tokenizer, chat template) in about a minute on one core, and
downloads nothing. The model first learns the task and a habit that is right for two prompts in three; then, in the
last part of its training, it is taught slips. So it knows more than it shows and spreads its probability widely:
rewards have something to sharpen and entropy to consume. The habit is the trap: it pays on average, so a policy that
spends its entropy on it keeps it where it is wrong as well, and its reward stops there.

    byte_tokenizer.py    one token for each byte, and four special ones
    model.py             the settings, and the untrained model
    starts.py            the starts that recipes name, by task, size and seed
    lessons.py           the demonstrations
    pretraining.py       the training on them
    measuring.py         accuracy and entropy on the validation prompts
    folder.py            all of it in one folder, built once for its settings
"""

from verl_cov.tasks.tiny_model.byte_tokenizer import tokenizer
from verl_cov.tasks.tiny_model.folder import REPORT, build, fingerprint
from verl_cov.tasks.tiny_model.model import Settings

__all__ = ["REPORT", "Settings", "build", "fingerprint", "tokenizer"]
