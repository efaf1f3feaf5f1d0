"""Recipes: strict reading, overrides, sections and fingerprints; every refusal says what was got, what is allowed and what to do."""

from pathlib import Path

import pytest

from sr3_core import config
from sr3_core.errors import BadInput

PAIR = str(Path(__file__).resolve().parents[1] / "recipes" / "pair.yaml")


def refused(*words: str, recipe: str = "demo", overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(BadInput) as caught:
        config.load(recipe, overrides)
    line = str(caught.value)
    assert "\n" not in line and "allowed:" in line and "do:" in line
    for word in words:
        assert word in line
    return line


def written(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", config.recipe_names())
def test_every_recipe_loads_and_survives_its_own_json(name: str) -> None:
    recipe = config.load(name)
    assert recipe.name == name
    assert config.parse(config.Recipe, recipe.canonical_json()) == recipe
    assert (config.RECIPES / f"{name}.yaml").read_text().startswith("#"), "a recipe's header says command, time and score"


def test_unknown_recipe_names_the_nearest() -> None:
    refused("'demmo'", "demo (nearest)", recipe="demmo")


def test_unknown_key_names_the_nearest() -> None:
    refused("stages.0.training.imagse", "images (nearest)", overrides=("stages.sr256.training.imagse=4",))


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("data.fit=stretch", "data.fit='stretch'"),
        ("data.levels=many", "data.levels='many'"),
        ("stages.0.training.images=17", "multiple of global_batch"),
        ("stages.7.high=64", "'7'"),
        ("stages.nobody.high=64", "sr256"),
        ("evaluation=null", "evaluation=None"),
        ("export.model=Big Name", "export.model"),
        ("novalue", "KEY=VALUE"),
        ("data.source.deeper=1", "single value"),
        ("data.levels=[256, 64]", "ascending"),
        ("scaling.workers=3", "scaling.workers 3"),
        ("stages.sr1024.low=64", "next"),
        ("evaluation.gate=[{metric: psnr}]", "'than'"),
        ("data.split={val: 0.6, test: 0.6}", "more than all photos together"),
        ("data.split.minimum.val=-1", "must not be negative"),
    ],
)
def test_wrong_values_are_one_clear_line(override: str, word: str) -> None:
    refused(word, overrides=(override,))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("name: a\nname: b\n", "given twice: name"),
        ("name: [unclosed\n", "YAML"),
        ("- a\n- b\n", "list"),
        ("extends: nobody\n", "unknown recipe 'nobody'"),
        ("name: x\n", "no value for data"),
        ("{[1]: 2}\n", "YAML"),
    ],
)
def test_broken_recipe_files(tmp_path: Path, text: str, word: str) -> None:
    refused(word, recipe=written(tmp_path, text))


def test_a_recipe_that_extends_itself(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    refused("extends itself", recipe=written(tmp_path, f"extends: {path}\n"))


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    refused("cannot be read", recipe=str(tmp_path / "recipe.yaml"))


def test_extends_looks_beside_the_recipe_first(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: demo\nexport: {model: mine}\n")
    assert config.load(written(tmp_path, "extends: base.yaml\n")).export.model == "mine"


def test_a_section_by_itself_refuses_credentials_too() -> None:
    with pytest.raises(BadInput, match="credential"):
        config.parse(config.Plugin, '{"name": "x", "options": {"password": "CANARY"}}')


def test_extends_holds_only_what_differs(tmp_path: Path) -> None:
    recipe = config.load(written(tmp_path, "extends: demo\nname: mine\ndata: {source: folder, options: {uri: /photos}}\n"))
    assert recipe.data.source == "folder" and recipe.data.levels == config.load("demo").data.levels
    assert recipe.stages == config.load("demo").stages


def test_a_list_of_named_items_picks_and_changes_them_by_name(tmp_path: Path) -> None:
    demo = config.load("demo")
    first = ("data.levels=[64, 256]", "data.required_levels={}", "stages=[{name: sr256}]")
    assert config.load("demo", first).stages == demo.stages[:1]
    text = "extends: demo\nstages:\n  - {name: sr256, training: {seed: 7}}\n  - {name: sr1024}\n"
    changed = config.load(written(tmp_path, text))
    assert changed.stages[0].training.seed == 7 and changed.stages[0].model == demo.stages[0].model and changed.stages[1] == demo.stages[1]


def test_overrides_reach_items_by_name_and_by_index() -> None:
    by_name = config.load("demo", ["stages.sr1024.training.seed=9", "data.options.uri=/a b/%c#d"])
    by_index = config.load("demo", ["stages.1.training.seed=9", "data.options={uri: '/a b/%c#d'}"])
    assert by_name == by_index and by_name.stages[1].training.seed == 9


def test_a_change_of_one_stage_leaves_another_that_is_its_alias() -> None:
    """The pair's second stage is written as ``model: *model`` and takes over what its first trains with."""
    changes = ("model.options.channels=16", "training.augment.zoom=1.5", "training.optimizer.learning_rate=0.5")
    plain, changed = (config.load(PAIR, [f"stages.x16.{change}" for change in given]) for given in ((), changes))
    assert changed.stages[1] == plain.stages[1]
    first = changed.stages[0]
    assert (first.model.options["channels"], first.training.augment.zoom, first.training.optimizer.learning_rate) == (16, 1.5, 0.5)


@pytest.mark.parametrize("text", ["my photos #1", "%2F%x", "a: b", "- x", "@home", "12 # 13", "2024", "2024-05-01", "2024-99-99"])
def test_text_that_yaml_would_cut_or_refuse_stands_for_itself(text: str) -> None:
    assert config.load("demo", [f"data.options.uri={text}"]).data.options["uri"] == text


@pytest.mark.parametrize(
    "override",
    [
        "data.options.api_token=CANARY",
        "data.options.password=CANARY",
        "data.options.uri=https://user:CANARY@host/x",
        "data.options.uri=https://host/x?X-Goog-Signature=CANARY",
        "name.password=CANARY",
        "stages.9.password=CANARY",
        "data.options.password={CANARY",
    ],
)
def test_credentials_are_refused_and_not_echoed(override: str) -> None:
    assert "CANARY" not in refused("credential", overrides=(override,))


def test_sections_refuse_change_and_unknown_keys() -> None:
    section = config.Codec()
    with pytest.raises(ValueError):
        section.quality = 3  # type: ignore[misc]
    with pytest.raises(BadInput, match="unknown key qualty"):
        config.parse(config.Codec, {"qualty": 3})
    with pytest.raises(BadInput, match="not JSON"):
        config.parse(config.Codec, "{")


def test_a_section_too_long_for_a_parameter_is_refused() -> None:
    with pytest.raises(BadInput, match="at most 65536"):
        config.Plugin(name="x", options={"text": "y" * 70_000}).canonical_json()


def test_fingerprints_depend_on_the_section_alone() -> None:
    first = config.load("demo")
    other = config.load("demo", ["stages.sr256.training.seed=5", "scaling.workers=1"])
    assert first.data.canonical_json() == other.data.canonical_json()
    assert first.stages[1].canonical_json() == other.stages[1].canonical_json()
    assert config.fingerprint(first.stages[0].canonical_json()) != config.fingerprint(other.stages[0].canonical_json())
    assert config.fingerprint("ab", "c") != config.fingerprint("a", "bc")
