"""Numbers that stand in several places agree: Hydra nodes, recipes, dataclasses, documentation, verl and the authors.

What may differ is listed here with the reason, and a reason that is no longer needed fails too.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest

from verl_cov.core.prime.prime_config import PrimeConfig
from verl_cov.hooks import versions
from verl_cov.hooks.config import CovPolicyLossConfig
from verl_cov.hooks.prime.prm_settings import mini_batch_size, prime_in
from verl_cov.recipes import catalogue, compose, sources

ROOT = Path(__file__).parents[2]
LOSS, PRIME = "actor_rollout_ref.actor.policy_loss.", "prime."
# Each node (a file of `+verl_cov=`) that has numbers, with a recipe that is built on it.
NODES = {
    "clip_cov": ("qwen2.5-7b", "grpo", "clip_cov", "math"),
    "kl_cov": ("qwen2.5-7b", "grpo", "kl_cov", "math"),
    "metrics": ("qwen2.5-7b", "grpo", "none", "math"),
    "prime": ("qwen2.5-7b", "prime", "none", "math"),
}


def plain(value: Any) -> Any:
    """1e9 is a string in YAML 1.1 and in a table, and a float in Hydra's; a list's items likewise."""
    if isinstance(value, bool) or value is None or isinstance(value, (list, dict)):
        return value
    try:
        return float(value)
    except ValueError:
        return {"true": True, "false": False, "null": None}.get(value, value)


@functools.cache
def composed(*words: str) -> dict[str, Any]:
    """What a recipe, or verl's command with `+verl_cov=...`, composes to: flat, interpolations resolved."""
    ours = not words or words[0].startswith("+")
    config = compose.compose(words if ours else catalogue.parse(words).hydra_overrides())
    if ours:
        config.actor_rollout_ref.rollout.name = "vllm"
    return {key: plain(value) for key, value in compose.flat(compose.resolved(config)).items()}


def node(name: str) -> dict[str, Any]:
    """What the file of a node says."""
    return {setting.key: plain(setting.value) for setting in sources.settings(f"verl_cov/{name}.yaml")}


# --- nodes, recipes, dataclasses --------------------------------------------------------------------------------------

OF_THE_RECIPE = {  # (node, key): why a recipe has another number than the node that it is built on
    **{(name, LOSS + "cov_dump_dir"): "where the run writes" for name in ("clip_cov", "kl_cov", "metrics")},
    **{(name, LOSS + "cov_val_entropy"): "the authors measure it" for name in ("clip_cov", "kl_cov", "metrics")},
    ("prime", "prime.mini_batch_size"): "the policy's in both, and each has its own",
    ("prime", "prime.engine"): "the scale's",
}


@pytest.mark.parametrize("name", NODES)
def test_a_recipe_has_the_numbers_of_the_node_that_it_is_built_on(name):
    alone, recipe = composed(f"+verl_cov={name}"), composed(*NODES[name])
    differ = {(name, key) for key in node(name) if alone.get(key) != recipe.get(key)}
    assert differ == {(of, key) for of, key in OF_THE_RECIPE if of == name}


def test_the_recipes_fallbacks_are_the_models_numbers():
    """`${oc.select:recipe.kl_cov_ratio,2e-3}`: the number after the comma, for a recipe without a model."""
    models = {setting.key: plain(setting.value) for setting in sources.settings("recipe/model/_base.yaml")}
    found = [
        re.fullmatch(r"\$\{oc\.select:(recipe\.\w+),(.*)\}", str(setting.value))
        for file in ("clip_cov", "kl_cov")
        for setting in sources.settings(f"recipe/entropy/{file}.yaml")
    ]
    fallbacks = {match[1]: plain(match[2]) for match in found if match}
    assert len(fallbacks) == 5
    assert fallbacks == {key: models[key] for key in fallbacks}


def test_what_two_nodes_set_they_set_alike():
    of_the_control = {LOSS + "loss_mode", LOSS + "cov_base_loss"}
    values: dict[str, set[Any]] = {}
    for name in NODES:
        for key, value in node(name).items():
            values.setdefault(key, set()).add(str(value))
    assert {key for key, several in values.items() if len(several) > 1} == of_the_control


VERLS = "verl's field, with verl's default where no file is composed"
OF_THE_DATACLASS = {  # key: why the dataclass has another default than the node
    LOSS + "loss_mode": "which control",
    LOSS + "kl_cov_ratio": VERLS,
    LOSS + "ppo_kl_coef": VERLS,
    LOSS + "cov_base_loss": "null is the control's own: the test below",
    LOSS + "cov_dump_dir": "a path of the trainer's, which a dataclass does not know",
    PRIME + "mini_batch_size": "null is the policy's: the test below",
    PRIME + "optim": "empty is the policy's optimizer; its learning rate is for the policy",
}


def test_the_dataclasses_have_the_nodes_defaults():
    differ = set()
    for name, prefix, cls in (
        ("clip_cov", LOSS, CovPolicyLossConfig),
        ("kl_cov", LOSS, CovPolicyLossConfig),
        ("prime", PRIME, PrimeConfig),
    ):
        for key, value in node(name).items():
            field, _, inner = key.removeprefix(prefix).partition(".")
            if key.startswith(prefix) and field != "_target_":
                default = getattr(cls(), field)
                if plain(default.get(inner) if inner else default) != value:
                    differ.add(prefix + field)
    assert differ == set(OF_THE_DATACLASS)


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
def test_a_base_loss_of_null_is_the_nodes(name):
    assert CovPolicyLossConfig(loss_mode=f"verl_cov.{name}").base_loss == node(name)[LOSS + "cov_base_loss"]


@pytest.mark.skipif(not versions.installed_release().v1, reason="PRIME needs verl's V1 trainer")
@pytest.mark.parametrize(
    ("overrides", "prompts"),
    [
        ((), 32),
        (("prime.mini_batch_size=null",), 32),
        (("~prime.mini_batch_size",), 32),  # the dataclass's own
        (("prime.mini_batch_size=8",), 8),
        (("prime.mini_batch_size=${data.train_batch_size}",), 1024),  # one update a rollout
    ],
)
def test_the_prm_is_updated_as_often_as_the_policy_unless_told_otherwise(overrides, prompts):
    config = compose.compose(("+verl_cov=prime", "actor_rollout_ref.actor.ppo_mini_batch_size=32", *overrides))
    assert mini_batch_size(config, prime_in(config)) == prompts


# --- documentation ----------------------------------------------------------------------------------------------------


def table(page: str, first: str) -> list[dict[str, str]]:
    """The rows of the table whose first column has this heading."""
    lines = (ROOT / page).read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in [lines[start], *lines[start + 2 :]]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
def test_the_table_of_options_has_the_nodes_numbers(name):
    said: dict[str, Any] = {}
    for row in table("docs/options.md", "field"):
        names = re.findall(r"`(\w+)`", row["field"])
        values = [plain(value.strip().strip("`")) for value in row[f"`+verl_cov={name}`"].split(",")]
        if values != [""]:
            said |= zip(names, values, strict=True)
    described = {"cov_dump_tokens", "cov_dump_dir"}  # in the row of cov_dump_every
    set_there = {key.removeprefix(LOSS): value for key, value in node(name).items() if key.startswith(LOSS)}
    assert said == {key: value for key, value in set_there.items() if key not in {"_target_", *described}}


@pytest.mark.parametrize(
    ("page", "said", "file", "key"),
    [
        ("docs/options.md", r"the paper's 32B runs: (\S+)\)", "recipe/model/qwen2.5-32b", "recipe.kl_cov_ratio"),
        ("docs/options.md", r"`cov_dump_tokens` \((\d+)\)", "verl_cov/kl_cov", LOSS + "cov_dump_tokens"),
        ("docs/options.md", r"`clip_ratio_high` to (\d+),", "verl_cov/clip_cov", "actor_rollout_ref.actor.clip_ratio"),
        ("docs/options.md", r"`clip_ratio_c` to (\w+):", "verl_cov/clip_cov", "actor_rollout_ref.actor.clip_ratio_c"),
        ("docs/selection.md", r"turns it off\s\((\w+)\)", "verl_cov/clip_cov", "actor_rollout_ref.actor.clip_ratio_c"),
        ("docs/prime.md", r"\(the paper's (\S+), clipped at", "verl_cov/prime", "prime.optim.lr"),
        ("docs/prime.md", r"clipped at (\d+)\)", "verl_cov/prime", "prime.optim.clip_grad"),
        ("docs/prime.md", r"\| `(\w+)` \(default, the paper's\)", "verl_cov/prime", "prime.update"),
        ("docs/prime.md", r"`prime.rloo: (\w+)`, or", "verl_cov/prime", "prime.rloo"),
        ("docs/prime.md", r"`reward_norm: (\w+)`, over", "verl_cov/prime", "prime.reward_norm"),
        ("docs/prime.md", r"`whiten: (\w+)`; or", "verl_cov/prime", "prime.whiten"),
        ("docs/prime.md", r"`reference: (\w+)`, or", "verl_cov/prime", "prime.reference"),
        ("docs/prime.md", r"\| (\S+) to 0.8; hard in", "verl_cov/prime", "prime.accuracy_low"),
        ("docs/prime.md", r"\| 0.2 to (\S+); hard in", "verl_cov/prime", "prime.accuracy_high"),
    ],
)
def test_prose_has_the_numbers_of_the_files(page, said, file, key):
    found = re.findall(said, (ROOT / page).read_text())
    assert [plain(value) for value in found] == [
        plain(setting.value) for setting in sources.settings(f"{file}.yaml") if setting.key == key
    ]


# --- verl's defaults and the authors' runs (the table of recipes/README.md) -------------------------------------------

CONTROLS = ("none", "clip_higher", "clip_cov", "kl_cov", "entropy_bonus", "reference_kl")
RUNS = [("grpo", control) for control in CONTROLS]
RUNS += [(algorithm, "none") for algorithm in ("rloo", "reinforce_plus_plus", "prime")]
TABLE = table("recipes/README.md", "field")


def full(field: str) -> str:
    name = field.strip("`")
    return f"actor_rollout_ref.{name}" if name.startswith(("actor.", "rollout.")) else name


def rows(run: tuple[str, str]) -> list[dict[str, str]]:
    return [row for row in TABLE if row["of"] == "all" or {*row["of"].split(", ")} & {*run}]


@pytest.mark.skipif(versions.installed_release() is not versions.NEWEST, reason="its column is of the newest release")
def test_the_table_has_verls_defaults():
    ours = {row["field"]: row["verl 0.9.1"] for row in TABLE}
    assert {field: plain(value) for field, value in ours.items()} == {
        field: composed().get(full(field), "") for field in ours
    }


@pytest.mark.parametrize("run", RUNS, ids="/".join)
def test_the_table_has_the_recipes_numbers(run):
    found = composed("qwen2.5-7b", *run, "math")
    assert {row["field"]: plain(row["recipes"]) for row in rows(run)} == {
        row["field"]: found[full(row["field"])] for row in rows(run)
    }


def test_a_recipe_that_differs_from_the_authors_says_why():
    differ = {row["field"].strip("`") for row in TABLE if plain(row["authors"]) != plain(row["recipes"])}
    assert differ == {"actor.clip_ratio_c", "data.filter_overlong_prompts", "data.truncation"}
    assert all(row["remark"] for row in TABLE if row["field"].strip("`") in differ)


# Of what the recipes change in verl's losses, optimizer and advantages, all stands in the table but this.
WITHOUT_EFFECT = re.compile(
    r"actor_rollout_ref\.actor\.(clip_ratio|strategy|.*seed|use_dynamic_bsz|ppo_max_token.*|.*entropy_(from|check).*"
    r"|rollout_n|fsdp_config\..*|policy_loss\.(_target_|loss_mode|cov_.*))"
    r"|algorithm\.filter_groups\.max_num_gen_batches"  # ends a run, changes none
)


@pytest.mark.parametrize("run", RUNS, ids="/".join)
def test_the_table_has_all_that_a_recipe_changes_of_an_update(run):
    found, verls = composed("qwen2.5-7b", *run, "math"), composed()
    changed = {
        key
        for key, value in found.items()
        if key.startswith(("actor_rollout_ref.actor.", "algorithm.")) and verls.get(key) != value
    }
    listed = {full(row["field"]) for row in rows(run)}
    assert {key for key in changed - listed if not WITHOUT_EFFECT.fullmatch(key)} == set()
