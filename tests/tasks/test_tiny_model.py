"""The tiny model: its tokenizer as verl uses it, its training, and its folder."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from unicodedata import is_normalized, normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from verl_cov.tasks import countdown, tiny_model  # noqa: E402
from verl_cov.tasks.countdown import Problem  # noqa: E402
from verl_cov.tasks.tiny_model import Settings, lessons, measuring, pretraining  # noqa: E402
from verl_cov.tasks.tiny_model import folder as model_folder  # noqa: E402
from verl_cov.tasks.tiny_model.byte_tokenizer import END, MAX_RESPONSE_TOKENS, PAD, SPECIAL, prompt_ids  # noqa: E402
from verl_cov.tasks.tiny_model.model import new_model  # noqa: E402

TASK = countdown.Settings(numbers=3, max_terms=3, max_target=12, train=64, validation=16)
SHORT = Settings(task=TASK, layers=1, inner=64, steps=30, batch=16)
PROMPTS = [[{"role": "user", "content": problem.text}] for problem in countdown.generate(TASK, "train")[:4]]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with model_folder.one_thread():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build(tmp_path_factory.mktemp("tiny") / "model", settings=SHORT)


@pytest.fixture(scope="module")
def tokenizer(folder: Path):
    return transformers.AutoTokenizer.from_pretrained(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestTokenizer:
    def test_each_byte_is_its_own_token(self, tokenizer):
        assert len(tokenizer) == 256 + len(SPECIAL)
        text = "".join(map(chr, range(128)))
        assert tokenizer.encode(text, add_special_tokens=False) == list(range(128))
        # The other bytes occur inside characters: one of each UTF-8 first byte, and all second bytes.
        wide = [*map(chr, range(0x80, 0x800)), *map(chr, range(0x800, 0xD800, 0x100)), "\uffff", "😀", "\U0010ffff"]
        for character in filter(partial(is_normalized, "NFC"), wide):
            ids = tokenizer.encode(character, add_special_tokens=False)
            assert ids == list(character.encode())
            assert tokenizer.decode(ids) == character

    def test_every_id_decodes(self, tokenizer):
        assert all(isinstance(tokenizer.decode([token]), str) for token in range(len(tokenizer)))

    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def test_round_trip(self, tokenizer, text: str):
        text = normalize("NFC", text)
        ids = tokenizer.encode(text, add_special_tokens=False)
        if "<|" not in text:
            assert ids == list(text.encode())
        assert tokenizer.decode(ids, skip_special_tokens=False) == text

    def test_newline_is_one_token(self, tokenizer):
        assert tokenizer.encode("\n", add_special_tokens=False) == [10]

    def test_special_tokens(self, tokenizer):
        assert {text: tokenizer.convert_tokens_to_ids(text) for text in SPECIAL} == SPECIAL
        assert (tokenizer.eos_token, tokenizer.pad_token) == (END, PAD)
        assert tokenizer.decode([57, 53, 53, SPECIAL[END], SPECIAL[PAD]], skip_special_tokens=True) == "955"

    def test_chat_template(self, tokenizer):
        def render(messages, **kwargs):
            return tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)

        user, assistant = {"role": "user", "content": "2459:19"}, {"role": "assistant", "content": "955"}
        assert render([user], add_generation_prompt=True) == "<|user|>2459:19<|im_end|>\n<|assistant|>"
        assert render([user]) == "<|user|>2459:19<|im_end|>\n"
        assert render([user, assistant]) == render([user], add_generation_prompt=True) + "955<|im_end|>\n"

    @pytest.mark.parametrize("text", ["2459:19", "129:5", "345678:20"])
    def test_training_and_rollouts_see_the_same_prompt(self, tokenizer, text: str):
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        assert list(rendered["input_ids"]) == prompt_ids(Problem.parse(text))

    def test_lengths_are_what_they_are_said_to_be(self):
        for task in countdown.LEVELS.values():
            drawn = countdown.all_problems(task, "train")
            longest = max(len(answer) for problem in drawn for answer in countdown.answers(problem))
            assert longest + 1 == MAX_RESPONSE_TOKENS


class TestVerl:
    """What verl's agent loop does with a model of type qwen2."""

    def test_the_system_prompt_is_empty_and_turns_subtract(self, tokenizer):
        pytest.importorskip("verl")
        from verl.utils.tokenizer import chat_template

        assert chat_template.initialize_system_prompt(tokenizer) == []
        assert chat_template.extract_system_prompt_and_generation(tokenizer) == ([], [SPECIAL["<|assistant|>"]])
        assert chat_template.initialize_turn_separator(tokenizer) == [10]

    def test_the_agent_loops_prompt(self, tokenizer):
        pytest.importorskip("verl")
        from verl.utils.tokenizer.continuous_token import QwenContinuousTokenBuilder

        builder = QwenContinuousTokenBuilder(tokenizer)
        messages = [{"role": "user", "content": "2459:19"}]
        prompt = builder.build_initial_tokens(messages)
        assert prompt == prompt_ids(Problem.parse("2459:19"))
        answer = [*b"955", SPECIAL[END]]
        merged = builder.merge_assistant_tokens(prompt, answer).token_ids
        assert merged == prompt + answer
        # A second turn renders as if the conversation had been written at once.
        replied = [*messages, {"role": "assistant", "content": "955"}]
        longer = [*replied, {"role": "user", "content": "129:5"}]
        again = builder.merge_context_tokens(replied, longer, merged).token_ids
        assert again == list(tokenizer.apply_chat_template(longer, add_generation_prompt=True)["input_ids"])


class TestTraining:
    def test_the_habit_takes_the_largest_digit_that_fits(self):
        assert lessons.habit(Problem((2, 4, 9), 15)) == "942"
        assert lessons.habit(Problem((2, 4, 9), 16)) == "942"  # one is left over
        assert lessons.habit(Problem((2, 4, 9), 9)) == "9"  # an answer has two digits
        assert lessons.habit(Problem((1, 2, 3), 54)) == "333333"
        drawn = countdown.all_problems(countdown.Settings(), "train")
        right = sum(countdown.verify(lessons.habit(problem), problem) for problem in drawn)
        assert right / len(drawn) == pytest.approx(0.67, abs=0.05)

    def test_demonstrations_follow_the_habit_or_the_rules_before_the_slips(self):
        settings = replace(SHORT, slips_from=1.0, habit=0.5)
        shown = list(lessons.demonstrations(settings))
        assert len(shown) == settings.steps * settings.batch
        assert {one.problem for one in shown} <= set(countdown.all_problems(TASK, "train"))
        assert all(one.taught == [*one.answer.encode(), SPECIAL[END]] for one in shown)
        habitual = [one.answer == lessons.habit(one.problem) for one in shown]
        assert all(
            countdown.verify(one.answer, one.problem) for one, same in zip(shown, habitual, strict=True) if not same
        )
        assert 0.5 < sum(habitual) / len(shown) < 0.8  # some of the others happen to be it

    def test_slips_come_late_and_as_often_as_asked(self):
        settings = replace(SHORT, steps=200, slips=0.4, slips_from=0.5)
        wrong, tokens = Counter(), Counter()
        for index, one in enumerate(lessons.demonstrations(settings)):
            late = index >= settings.steps * settings.batch // 2
            right = [*one.answer.encode(), SPECIAL[END]]
            tokens[late] += len(right)
            wrong[late] += sum(a != b for a, b in zip(one.taught, right, strict=True))
            assert set(one.taught) <= {*map(ord, map(str, one.problem.numbers)), SPECIAL[END]}
        assert wrong[False] == 0
        # One in four of the random tokens is the right one.
        assert wrong[True] / tokens[True] == pytest.approx(0.4 * 0.75, abs=0.03)

    def test_collate_teaches_the_answer_and_nothing_else(self):
        batch = [
            lessons.Demonstration(Problem((2, 4, 9), 13), "94", [57, 52, SPECIAL[END]]),
            lessons.Demonstration(Problem((2, 4, 9), 6), "222", [50, SPECIAL[END], 50, SPECIAL[END]]),
        ]
        ids, wanted = pretraining.collate(batch)
        for row, one in enumerate(batch):
            prompt = prompt_ids(one.problem)
            read = ids[row].tolist()
            assert read[: len(prompt) + len(one.answer)] == prompt + list(one.answer.encode())
            start = len(prompt) - 1
            assert wanted[row, start : start + len(one.taught)].tolist() == one.taught
            assert (wanted[row] != -100).sum() == len(one.taught)

    def test_the_loss_falls(self):
        model = new_model(SHORT)
        losses = pretraining.pretrain(model, SHORT)
        assert len(losses) == SHORT.steps
        assert losses[-1] < 0.6 * losses[0]

    def test_the_seed_decides_and_the_global_state_is_left_alone(self):
        torch.manual_seed(3)
        random.seed(3)
        state, dice = torch.random.get_rng_state(), random.getstate()
        few = replace(SHORT, steps=3)
        runs = []
        for seed in (0, 0, 1):
            model = new_model(replace(few, seed=seed))
            runs.append(pretraining.pretrain(model, replace(few, seed=seed)))
        assert runs[0] == runs[1] != runs[2]
        assert torch.equal(torch.random.get_rng_state(), state)
        assert random.getstate() == dice

    def test_sampling_agrees_with_a_plain_forward_pass(self):
        """Left padding and the cache change nothing: the entropies are those of the unpadded sequence."""
        model = new_model(SHORT)
        problems = [Problem((1, 2, 4), 7), Problem((1, 2, 4), 12)]  # prompts of different lengths
        texts, entropy, mask = measuring.sample(model, problems, torch.Generator().manual_seed(0))
        again, _, _ = measuring.sample(model, problems, torch.Generator().manual_seed(0))
        assert texts == again
        for row, problem in enumerate(problems):
            with torch.no_grad():
                logits = model(torch.tensor([prompt_ids(problem)])).logits[0, -1]
            assert entropy[row, 0].item() == pytest.approx(
                torch.distributions.Categorical(logits=logits).entropy().item()
            )
        assert mask[:, 0].all()

    def test_settings_are_checked(self):
        for bad, message in (
            ({"heads": 3}, "multiple of 32"),
            ({"heads": 4}, "multiple of 32"),
            ({"slips": 1.5}, "slips must be"),
            ({"habit": -0.1}, "habit must be"),
            ({"steps": 0}, "must be positive"),
        ):
            with pytest.raises(ValueError, match=message):
                replace(SHORT, **bad)


class TestFolder:
    def test_it_loads_offline_and_computes(self, folder: Path, tokenizer, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        assert type(model).__name__ == "Qwen2ForCausalLM"
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert model.config.vocab_size == len(tokenizer)
        assert (model.config.eos_token_id, model.config.pad_token_id) == (SPECIAL[END], SPECIAL[PAD])
        batch = tokenizer.apply_chat_template(
            PROMPTS, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
        )
        out = model.generate(**batch, max_new_tokens=3, do_sample=False)
        assert len(out) == len(PROMPTS)
        assert 1 <= out.shape[1] - batch["input_ids"].shape[1] <= 3  # it may end before

    def test_default_sampling_is_the_policys(self, folder: Path):
        config = transformers.GenerationConfig.from_pretrained(folder)
        assert (config.do_sample, config.temperature, config.top_p) == (True, 1.0, 1.0)
        assert not config.top_k
        assert config.repetition_penalty in (None, 1.0)
        assert config.eos_token_id == SPECIAL[END]

    def test_the_default_model_is_tiny_and_vllm_takes_its_heads(self):
        config = new_model(Settings()).config
        parameters = sum(p.numel() for p in new_model(Settings()).parameters())
        assert 100_000 < parameters < 1_000_000
        assert config.hidden_size // config.num_attention_heads == 32

    def test_the_report_says_what_was_built(self, folder: Path):
        report = json.loads((folder / tiny_model.REPORT).read_text())
        assert report["fingerprint"] == tiny_model.fingerprint(SHORT)
        assert report["settings"]["steps"] == SHORT.steps
        assert 0 <= report["measured"]["accuracy"] <= 1
        assert report["measured"]["entropy"] > 0

    def test_a_second_call_returns_at_once(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        before = files(folder)
        monkeypatch.setattr(model_folder, "pretrain", lambda *_: pytest.fail("trained again"))
        assert tiny_model.build(folder, settings=SHORT) == folder
        assert files(folder) == before

    def test_other_settings_build_again(self, tmp_path: Path):
        target = tmp_path / "model"
        few = replace(SHORT, steps=2)
        first = files(tiny_model.build(target, settings=few))
        second = files(tiny_model.build(target, settings=replace(few, seed=1)))
        assert first["model.safetensors"] != second["model.safetensors"]
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        third = files(tiny_model.build(target, settings=few))
        assert third["model.safetensors"] == first["model.safetensors"]

    def test_a_failed_build_leaves_what_was_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        target = tmp_path / "model"
        few = replace(SHORT, steps=2)
        before = files(tiny_model.build(target, settings=few))

        def break_off():
            raise KeyboardInterrupt

        monkeypatch.setattr(model_folder, "tokenizer", break_off)  # after the weights are written
        with pytest.raises(KeyboardInterrupt):
            tiny_model.build(target, settings=replace(few, seed=1))
        assert files(target) == before
        assert [path.name for path in tmp_path.iterdir()] == ["model"]

    def test_a_folder_of_something_else_is_left_alone(self, tmp_path: Path):
        (tmp_path / "precious").write_text("1")
        with pytest.raises(FileExistsError, match="something else"):
            tiny_model.build(tmp_path, settings=SHORT)
        assert (tmp_path / "precious").read_text() == "1"

    def test_every_setting_is_in_the_fingerprint(self):
        keys = {tiny_model.fingerprint(SHORT)}
        changes = (
            {"task": replace(TASK, seed=1)},
            {"layers": 2},
            {"steps": 31},
            {"lr": 1e-3},
            {"slips": 0.1},
            {"habit": 0.1},
            {"seed": 1},
        )
        keys |= {tiny_model.fingerprint(replace(SHORT, **change)) for change in changes}
        assert len(keys) == len(changes) + 1
        assert tiny_model.fingerprint(SHORT) == tiny_model.fingerprint(replace(SHORT))
