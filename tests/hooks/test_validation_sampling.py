"""The temperature of each validation prompt: what reaches verl's agent loop, and which data are refused."""

from __future__ import annotations

import logging
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
from omegaconf import OmegaConf

from verl_cov.hooks import reporting
from verl_cov.hooks.validation import temperatures as rows_temperatures
from verl_cov.hooks.validation.temperatures import AGENT_LOOP, check_temperatures, temperatures


def test_every_worker_of_verl_knows_the_agent_loop():
    script = (
        "import verl.experimental.agent_loop.agent_loop as loop; import verl.experimental.agent_loop; "
        f"print(loop._agent_loop_registry[{AGENT_LOOP!r}])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "verl_cov.hooks.validation.agent_loop.PromptTemperatureAgentLoop" in found.stdout


@pytest.mark.parametrize(
    ("extra_info", "wanted"),
    [
        (None, {}),
        ({}, {}),
        ({"temperature": None}, {}),
        ({"temperature": 0.6}, {"temperature": 0.6}),
        ({"temperature": 0.0}, {"temperature": 0.0, "top_p": 1.0, "top_k": -1}),
        ({"temperature": 0}, {"temperature": 0.0, "top_p": 1.0, "top_k": -1}),
    ],
)
def test_a_rows_temperature_goes_before_the_configurations(extra_info, wanted):
    from verl_cov.hooks.validation.agent_loop import sampling_params_for

    params = {"temperature": 0.9, "top_p": 0.7, "top_k": 20, "logprobs": True}
    before = dict(params)
    assert sampling_params_for(params, extra_info) == {**params, **wanted}
    assert params == before  # the responses of a prompt share it


# --- the data ---------------------------------------------------------------------------------------------------------


def dataset(folder, name, extra_info, **columns):
    """verl's own dataset of rows with these ``extra_info``."""
    from transformers import AutoTokenizer
    from verl.utils.dataset.rl_dataset import RLHFDataset

    rows = [
        {"data_source": "x", "prompt": [{"role": "user", "content": "?"}], "extra_info": extra, **columns}
        for extra in extra_info
    ]
    path = folder / f"{name}.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    config = OmegaConf.create({"filter_overlong_prompts": False, "cache_dir": str(folder / "cache")})
    return RLHFDataset(str(path), AutoTokenizer.from_pretrained(folder / "model"), config, max_samples=-1)


@pytest.fixture
def folder(tmp_path, untrained_model):
    (tmp_path / "model").symlink_to(untrained_model)
    return tmp_path


def test_temperatures_are_read_from_verls_dataset(folder):
    rows = [{"index": at, "temperature": value} for at, value in enumerate([0.6, None, 0.0])]
    assert temperatures(dataset(folder, "some", rows)) == [0.6, 0.0]
    assert temperatures(dataset(folder, "none", [{"index": 0, "temperature": None}])) == []
    assert temperatures(dataset(folder, "field", [{"index": 0}])) == []
    chosen = dataset(folder, "chosen", rows)
    chosen.dataframe = chosen.dataframe.select([1, 2])  # as data.val_max_samples does
    assert temperatures(chosen) == [0.0]


def test_training_rows_may_not_have_one_and_validation_rows_only_a_possible_one(folder):
    train = dataset(folder, "train", [{"index": 0, "temperature": None}, {"index": 1, "temperature": None}])
    sampled = dataset(folder, "sampled", [{"index": 0, "temperature": 0.6}, {"index": 1, "temperature": 0.0}])
    check_temperatures(AGENT_LOOP, train, sampled)
    with pytest.raises(ValueError, match=r"2 training rows have an extra_info.temperature .*the first: 0.6.*set it to"):
        check_temperatures(AGENT_LOOP, sampled, sampled)
    for value in (-0.5, float("inf"), float("nan")):
        bad = dataset(folder, f"bad{value}", [{"index": 0, "temperature": value}])
        with pytest.raises(ValueError, match=r"extra_info.temperature=.* in data.val_files must be 0"):
            check_temperatures(AGENT_LOOP, train, bad)


def test_temperatures_that_nothing_acts_on_are_said(folder, caplog):
    sampled = dataset(folder, "sampled", [{"index": 0, "temperature": 0.6}])
    named = dataset(folder, "named", [{"index": 0, "temperature": 0.6}], agent_name="tool_agent")
    plain = dataset(folder, "plain", [{"index": 0}])
    with caplog.at_level(logging.WARNING):
        # Training rows of other people's data may hold anything.
        check_temperatures("single_turn_agent", sampled, plain)
    assert not caplog.records
    for loop, validation in (("single_turn_agent", sampled), (AGENT_LOOP, named)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            check_temperatures(loop, plain, validation)
        assert "1 validation rows have an extra_info.temperature, and nothing acts on it" in caplog.text


def test_a_look_that_fails_ends_no_run(folder, caplog, monkeypatch):
    monkeypatch.setattr(reporting, "_warned", set())
    monkeypatch.setattr(rows_temperatures, "_column", lambda dataset: 1 / 0)
    rows = dataset(folder, "validation", [{"temperature": 0.0}])
    check_temperatures("single_turn_agent", rows, rows)
    assert "the look for temperatures in the validation rows failed" in caplog.text
    with pytest.raises(ZeroDivisionError):  # where the loop acts on them, it must know
        check_temperatures(AGENT_LOOP, rows, rows)


def test_a_temperature_that_is_no_number_is_other_peoples_business_unless_our_loop_runs(folder, caplog):
    plain = dataset(folder, "plain", [{"index": 0}])
    weather = dataset(folder, "weather", [{"index": 0, "temperature": "25 C"}, {"index": 1, "temperature": None}])
    unset = dataset(folder, "unset", [{"index": 0, "temperature": None}])
    assert temperatures(weather) == []
    with caplog.at_level(logging.WARNING):
        check_temperatures("single_turn_agent", weather, weather)
        check_temperatures(AGENT_LOOP, plain, unset)
    assert not caplog.records
    for files, pair in (("data.train_files", (weather, plain)), ("data.val_files", (plain, weather))):
        with pytest.raises(ValueError, match=rf"temperature in {files} is of type string .*'25 C'.*as double") as error:
            check_temperatures(AGENT_LOOP, *pair)
        assert "\n" not in str(error.value)
    flags = dataset(folder, "flags", [{"index": 0, "temperature": True}])
    assert temperatures(flags) == []
    assert temperatures(dataset(folder, "whole", [{"index": 0, "temperature": 1}])) == [1.0]


@pytest.mark.parametrize("loop", ["single_turn_agent", AGENT_LOOP])
def test_a_dataset_class_of_the_users_own_cannot_be_checked(folder, caplog, loop):
    from torch.utils.data import Dataset

    class Own(Dataset):
        def __len__(self):
            return 1

    class Odd(Own):
        dataframe = ({"extra_info": {"temperature": 0.6}},)

    plain = dataset(folder, "plain", [{"index": 0}])
    with caplog.at_level(logging.WARNING):
        check_temperatures(loop, Own(), Odd())
        check_temperatures(loop, plain, Own())
    said = [record.getMessage() for record in caplog.records]
    wanted = ["data.train_files", "data.val_files", "data.val_files"] if loop == AGENT_LOOP else []
    assert [name for line in said for name in ("data.train_files", "data.val_files") if name in line] == wanted
    assert all("cannot be checked" in line for line in said)


def load(folder, version, train, validation, *overrides):
    """Has a trainer of verl load these files."""
    from transformers import AutoTokenizer

    from tests.hooks.test_validation_metrics import trainer

    made = trainer(
        version,
        f"actor_rollout_ref.rollout.agent.default_agent_loop={AGENT_LOOP}",
        f"data.train_files={folder / train}.parquet",
        f"data.val_files={folder / validation}.parquet",
        f"+data.cache_dir={folder / 'cache'}",
        f"actor_rollout_ref.model.path={folder / 'model'}",
        *overrides,
    )
    made.tokenizer, made.processor = AutoTokenizer.from_pretrained(folder / "model"), None
    made.trainer_mode, made.parameter_sync_step = "sync", 1
    made._init_dataloader() if version == "V1" else made._create_dataloader(None, None, None, None)


@pytest.mark.parametrize("version", ["V1", "legacy"])
def test_both_trainers_check_their_data(folder, version):
    dataset(folder, "rows", [{"index": at, "temperature": 0.6} for at in range(16)])
    with pytest.raises(ValueError, match=r"16 training rows have an extra_info.temperature"):
        load(folder, version, "rows", "rows")


@pytest.mark.parametrize("version", ["V1", "legacy"])
def test_greedy_responses_need_rows_that_leave_the_agent_loop_to_the_configuration(folder, version):
    dataset(folder, "plain", [{"index": at} for at in range(16)])
    dataset(folder, "named", [{"index": at} for at in range(16)], agent_name="tool_agent")
    greedy = "actor_rollout_ref.actor.policy_loss.cov_val_greedy=True"
    load(folder, version, "named", "plain", greedy)
    load(folder, version, "plain", "named")
    with pytest.raises(ValueError, match=r"cov_val_greedy=True .* leave out the column agent_name, or set .*=False"):
        load(folder, version, "plain", "named", greedy)
