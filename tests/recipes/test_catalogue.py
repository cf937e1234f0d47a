"""Names of recipes: what there is, what a command line means, what is near to a misspelt name."""

from __future__ import annotations

import pytest

from verl_cov.recipes import catalogue
from verl_cov.recipes.catalogue import GROUPS, UnknownRecipe, parse


def test_the_eleven_models_of_the_paper_and_the_two_that_are_made_here():
    assert len(catalogue.options("model")) == 11 + 2
    assert set(catalogue.MADE) <= set(catalogue.options("model"))
    assert set(catalogue.TOYS) <= set(catalogue.options("task"))
    assert {"grpo", "rloo", "reinforce_plus_plus", "on_policy", "prime"} == set(catalogue.options("algorithm"))
    controls = {"none", "clip_higher", "entropy_bonus", "reference_kl", "clip_cov", "kl_cov", "clip_1", "no_clip"}
    assert controls == set(catalogue.options("entropy"))
    assert {"cpu", "gpu1", "node8", "nodes4x8"} == set(catalogue.options("scale"))


@pytest.mark.parametrize("group", [*GROUPS, "experiment"])
def test_each_file_says_what_it_is(group):
    for name, about in catalogue.options(group).items():
        assert len(about) > 10, name


def test_four_names_are_a_recipe():
    recipe = parse(["qwen2.5-7b", "grpo", "kl_cov", "math", "trainer.nnodes=2"])
    assert recipe.name == "qwen2.5-7b-grpo-kl_cov-math"
    assert recipe.hydra_overrides() == [
        "+recipe/model=qwen2.5-7b",
        "+recipe/algorithm=grpo",
        "+recipe/entropy=kl_cov",
        "+recipe/task=math",
        "+recipe/scale=node8",
        "trainer.nnodes=2",
    ]
    assert parse(["qwen2.5-32b", "grpo", "none", "math"]).choices["scale"] == "nodes4x8"
    assert parse(["tiny", "grpo", "none", "toy"]).choices["scale"] == "cpu"
    assert parse(["smollm2-135m", "grpo", "none", "arithmetic"]).choices["scale"] == "cpu"
    assert parse(["tiny", "grpo", "none", "toy"], scale="gpu1").choices["scale"] == "gpu1"


def test_groups_given_after_the_names_are_swapped():
    recipe = parse(["qwen2.5-7b", "grpo", "kl_cov", "math", "recipe/entropy=clip_cov", "+recipe/scale=gpu1", "a=1"])
    assert recipe.name == "qwen2.5-7b-grpo-clip_cov-math"
    assert recipe.choices["scale"] == "gpu1"
    assert recipe.overrides == ("a=1",)
    with pytest.raises(UnknownRecipe, match="no scale 'nope'"):
        parse(["qwen2.5-7b", "grpo", "kl_cov", "math", "recipe/scale=nope"])


@pytest.mark.parametrize("name", ["../x", "a/b", ".", "x=y", ""])
def test_a_name_is_one_folder(name):
    with pytest.raises(ValueError, match="names the run's folder"):
        assert parse(["sec4-7b", f"recipe.name={name}"]).name


def test_an_experiment_and_its_runs():
    recipe = parse(["sec4-7b/kl_cov", "trainer.nnodes=2"])
    assert recipe.name == "sec4-7b-kl_cov"
    assert recipe.choices["entropy"] == "kl_cov"
    assert recipe.hydra_overrides() == ["+experiment=sec4-7b", "recipe/entropy=kl_cov", "trainer.nnodes=2"]
    assert parse(["fig8-on_policy"]).name == "fig8-on_policy"
    assert parse(["sec2-math/qwen2.5-32b"]).overrides == (
        "recipe/model=qwen2.5-32b",
        "recipe/scale=nodes4x8",
        "recipe.lr=5e-7",
    )


def test_several_recipes_share_the_overrides():
    recipes = catalogue.parse_all(["tiny/grpo/none/toy", "demo/kl_cov", "fig8-on_policy", "a=1"], scale="gpu1")
    assert [str(recipe.folder) for recipe in recipes] == [
        "tiny-grpo-none-toy",
        "demo/kl_cov-gpu1",
        "fig8-on_policy-gpu1",
    ]
    assert [recipe.name for recipe in recipes] == ["tiny-grpo-none-toy", "demo-kl_cov-gpu1", "fig8-on_policy-gpu1"]
    assert {(recipe.overrides[-1], recipe.choices["scale"]) for recipe in recipes} == {("a=1", "gpu1")}
    assert parse(["tiny/grpo/none/toy"]) == parse(["tiny", "grpo", "none", "toy"])


def test_every_run_of_every_experiment_has_a_name_of_its_own():
    names = [
        catalogue.experiment(name).selection(run).name
        for name in catalogue.options("experiment")
        for run in catalogue.experiment(name).runs or [None]
    ]
    assert len(set(names)) == len(names) > 50


def test_a_swapped_group_is_part_of_the_name_and_stands_once():
    recipe = parse(["sec4-7b/none", "recipe/entropy=kl_cov", "recipe/entropy=clip_cov"], scale="gpu1")
    assert recipe.name == "sec4-7b-none-clip_cov-gpu1"
    assert [word for word in recipe.overrides if word.startswith("recipe/entropy")] == ["recipe/entropy=clip_cov"]
    assert parse(["sec4-7b", "recipe.name=mine"]).name == parse(["sec4-7b", "++recipe.name='mine'"]).name == "mine"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sec4_7b"], "no experiment 'sec4_7b': did you mean sec4-7b"),
        (["sec4-7b/klcov"], "no run of sec4-7b 'klcov': did you mean kl_cov"),
        (["fig8-on_policy/x"], "no run of fig8-on_policy 'x'"),
        (["qwen2.5-7b", "gpro", "kl_cov", "math"], "no algorithm 'gpro': did you mean grpo"),
        (["qwen-7b", "grpo", "kl_cov", "math"], "no model 'qwen-7b': did you mean qwen2.5-7b"),
        (["qwen2.5-7b", "grpo", "kl_cov", "maths"], "no task 'maths': did you mean math"),
        (["qwen2.5-7b", "grpo", "zzz", "math"], "no entropy 'zzz': there are clip_1"),
        (["qwen2.5-7b"], "begins with a model: give MODEL ALGORITHM ENTROPY TASK"),
        (["qwen2.5-7b", "grpo"], "not qwen2.5-7b grpo"),
        (["trainer.nnodes=2"], "give a recipe: EXPERIMENT[/RUN] or"),
        (["sec4-7b", "sec4-32b"], "give one recipe, not 2"),
        (["sec4-7b/none", "sec4-7b"], "two of the recipes would share the folder sec4-7b/none"),
        (["sec4-7b", "sec4-32b", "recipe.name=x"], "two of the recipes would share the folder x"),
        (["sec4-7b", "recipe/modell=tiny"], "no group 'modell': did you mean model"),
        (["sec4-7b", "recipe/model=tinny"], "no model 'tinny': did you mean tiny"),
    ],
)
def test_what_is_not_there(words, says):
    with pytest.raises(UnknownRecipe, match=r".") as raised:
        parse(words)
    assert says in str(raised.value)


def test_an_unknown_scale():
    with pytest.raises(UnknownRecipe, match="no scale 'node4': did you mean node8"):
        parse(["sec4-7b"], scale="node4")
