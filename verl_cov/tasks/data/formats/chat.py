"""verl's own format, in which Eurus-2-RL-Data and DAPO-Math-17k are published."""

from __future__ import annotations

from collections.abc import Mapping

from verl_cov.tasks.data.formats.code import inputs_outputs
from verl_cov.tasks.data.formats.items import (
    Elsewhere,
    Format,
    Item,
    Row,
    Unusable,
    as_mapping,
    parse_json,
    required_text,
    row_id,
    strip_instruction,
)
from verl_cov.tasks.data.formats.mathematics import final_answer, number_or_text


def chat(ability: str) -> Format:
    """Rows of one ability: `prompt` is a list of messages (a system prompt is dropped), beside `reward_model`."""

    def read(row: Row) -> Item:
        row_ability = str(row.get("ability") or ability).lower()
        if row_ability != ability:
            raise Elsewhere(f"ability {row_ability}")
        question = strip_instruction(_user(row["prompt"]))
        reward, info = as_mapping(row["reward_model"]), as_mapping(row.get("extra_info"))
        truth = reward.get("ground_truth")
        if ability == "code":
            tests, task = inputs_outputs(truth)
            return Item(question, tests, task, id=row_id(info.get("index")))
        return Item(question, final_answer(number_or_text(truth)), id=row_id(info.get("index")))

    return Format(("prompt", "reward_model"), read, ("ability", "extra_info"))


def _user(prompt: object) -> str:
    if isinstance(prompt, str):
        if not prompt.lstrip().startswith("[{"):
            return required_text(prompt, "question")
        prompt = parse_json(prompt)
    messages = prompt if isinstance(prompt, list) else []
    contents = [said["content"] for said in messages if isinstance(said, Mapping) and said.get("role") == "user"]
    if len(contents) != 1:
        raise Unusable("not one message by the user")
    return required_text(contents[0], "question")
