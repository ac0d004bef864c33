"""Recipes: strict TOML, overrides, round trip, refusal to continue with another recipe."""

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from osdface_core.errors import ConfigError
from osdface_trainer.layout import memory_format
from osdface_trainer.recipe import settings
from osdface_trainer.recipe.config import RECIPES, Recipe, RunConfig, check_resumable, load_recipe
from osdface_trainer.recipe.vre import VRETraining


def recipe_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[run]\nsede = 1", "run.sede; did you mean seed"),
        ("[rnu]\nseed = 1", "unknown key rnu; did you mean run"),
        ('[run]\nseed = "1"', "run.seed"),
        ("[run]\nseed = 1.5", "run.seed"),
        ("[run]\nseed = true", "run.seed"),
        ("[run]\ntf32 = 1", "run.tf32: got 1, expected true or false"),
        ('[run]\nprecision = "fp8"', "run.precision: got 'fp8', expected one of fp32, bf16"),
        ("[vre]\nbetas = [0.5]", "vre.betas: got 1 values, expected 2"),
        ("[vre.hq]\nstep = 1", "vre.hq.step; did you mean steps"),
        ("[vre]\nhq = 3", "vre.hq: got 3, expected a table"),
        ("[vre]\nbatch_size = 3\naccumulate = 2", "batch_size 3 does not divide by accumulate 2"),
        ("[restorer.lora]\nrnk = 4", "restorer.lora.rnk; did you mean rank"),
        ("[[degrade.stages]]\nblur = [0.1, 2]\njpg = [1, 2]", r"degrade.stages\[0\].jpg; did you mean jpeg"),
        ('[degrade]\nprofile = "foggy"', "foggy"),
        ('[degrade]\nprofile = "mild"\n[degrade.mix]\nsevere = 1', "one of profile, mix and stages"),
        ("[run\n", "cannot be read"),
    ],
)
def test_a_mistake_is_an_error_that_names_the_key(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_recipe(recipe_file(tmp_path, text))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml does not exist"):
        load_recipe(tmp_path / "nowhere.toml")


def test_absent_keys_keep_their_defaults_also_in_nested_tables(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(tmp_path, "[vre.model]\nbase_channels = 32\n[vre.lq]\nsteps = 5"))
    assert recipe.vre.model.base_channels == 32
    assert recipe.vre.model.input_range == (-1.0, 1.0)  # the trainer's default, not the released model's
    assert (recipe.vre.lq.steps, recipe.vre.lq.disc_start) == (5, 0.0)
    assert recipe.vre.hq == VRETraining().hq


@pytest.mark.parametrize(
    ("assignment", "read", "value"),
    [
        ("run.seed=7", lambda r: r.run.seed, 7),
        ("vre.lr=1", lambda r: r.vre.lr, 1.0),
        ("data.train=some/folder", lambda r: r.data.train, "some/folder"),
        ('data.train="quoted = text"', lambda r: r.data.train, "quoted = text"),
        ("vre.betas=[0.1, 0.2]", lambda r: r.vre.betas, (0.1, 0.2)),
        ("run.compile=true", lambda r: r.run.compile, True),
        ("degrade.mix={mild = 1, severe = 2.5}", lambda r: r.degrade.mix, {"mild": 1.0, "severe": 2.5}),
    ],
)
def test_set_overrides_the_file(tmp_path: Path, assignment: str, read, value) -> None:
    recipe = load_recipe(recipe_file(tmp_path, "[run]\nseed = 1"), [assignment])
    assert read(recipe) == value


@pytest.mark.parametrize("assignment", ["run.seed", "=1", "run..seed=1", "run.seed.deeper=1"])
def test_malformed_set_is_refused(tmp_path: Path, assignment: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_recipe(recipe_file(tmp_path, "[run]\nseed = 1"), [assignment])


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_recipes_load_by_name_and_survive_a_round_trip(path: Path) -> None:
    recipe = load_recipe(path.stem)
    again = settings.build(Recipe, settings.parse_toml(settings.to_toml(recipe)), "")
    assert again == recipe


@dataclasses.dataclass(frozen=True)
class Inner:
    name: str = "a"
    pair: tuple[float, float] = (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Outer:
    text: str = ""
    number: float = 0.0
    count: int = 0
    flag: bool = False
    maybe: Inner | None = None
    many: tuple[Inner, ...] = ()
    table: dict[str, float] = dataclasses.field(default_factory=dict)


finite = st.floats(allow_nan=False, allow_infinity=False)
inner = st.builds(Inner, name=st.text(), pair=st.tuples(finite, finite))


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    st.builds(
        Outer,
        text=st.text(st.characters(exclude_categories=("Cs",))),
        number=finite,
        count=st.integers(-(2**63), 2**63 - 1),
        flag=st.booleans(),
        maybe=st.none() | inner,
        many=st.lists(inner, min_size=1).map(tuple),
        table=st.dictionaries(st.text(max_size=5), finite, max_size=3),
    )
)
def test_any_dataclass_survives_toml(value: Outer) -> None:
    assert settings.build(Outer, settings.parse_toml(settings.to_toml(value)), "") == value


def test_a_run_refuses_another_recipe_and_names_the_keys() -> None:
    saved = Recipe()
    changed = dataclasses.replace(
        saved,
        run=dataclasses.replace(saved.run, seed=5, max_minutes=3.0, dir="elsewhere"),
        vre=dataclasses.replace(saved.vre, lr=1.0),
    )
    with pytest.raises(ConfigError, match=r"run\.seed, vre\.lr\. Restore them"):
        check_resumable(saved, changed, "vre", Path("runs/x"))


def test_keys_that_change_no_weight_may_differ_and_so_may_the_other_stage() -> None:
    saved = Recipe()
    moved = dataclasses.replace(
        saved,
        run=dataclasses.replace(saved.run, dir="elsewhere", max_minutes=8.0, keep=9, log_every=1),
        restorer=dataclasses.replace(saved.restorer, lr=1.0),
    )
    check_resumable(saved, moved, "vre", Path("runs/x"))
    with pytest.raises(ConfigError, match=r"restorer\.lr"):
        check_resumable(saved, moved, "restorer", Path("runs/x"))


@pytest.mark.parametrize(
    ("asked", "device", "capability", "nhwc"),
    [
        (None, "cuda", "AVX2", True),
        (None, "cpu", "AVX512", True),
        (None, "cpu", "AVX2", False),
        (True, "cpu", "AVX2", True),
        (False, "cuda", "AVX512", False),
    ],
)
def test_unset_memory_layout_is_the_faster_one(
    monkeypatch: pytest.MonkeyPatch, asked: bool | None, device: str, capability: str, nhwc: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    layout = memory_format(RunConfig(channels_last=asked), torch.device(device))
    assert layout is (torch.channels_last if nhwc else torch.contiguous_format)
