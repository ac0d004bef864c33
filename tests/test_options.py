"""The table of options: what it refuses and in which words, and that every entry is complete."""

from __future__ import annotations

import subprocess
import sys

import pytest

from osdface_core.errors import ConfigError, OptionError
from osdface_core.options import (
    SETS,
    DetectOptions,
    LoadOptions,
    Option,
    PasteOptions,
    RestoreOptions,
    check,
    in_words_of,
    options_of,
    parse_faces,
    pick,
)

TABLE = [option for options in SETS for option in options_of(options).values()]


@pytest.mark.parametrize("option", TABLE, ids=lambda option: option.name)
def test_every_entry_is_complete(option: Option) -> None:
    assert option.help.endswith(".") and option.help[0].isascii()
    assert option.default == option.check(option.default)
    assert option.default is not None or option.optional
    if option.unit:
        assert {"px": "pixels"}[option.unit] in option.help


def test_a_name_means_one_option() -> None:
    names = [option.name for option in TABLE]
    assert len(set(names)) == len(names) > 20
    for host in ("cli", "comfyui", "webui"):
        assert len({option.called(host) for option in TABLE}) == len(names)


@pytest.mark.parametrize(
    ("options", "values", "message"),
    [
        (RestoreOptions, {"strength": 1.5}, "`strength` is 1.5, expected 0..1"),
        (RestoreOptions, {"strength": float("nan")}, "`strength` is nan, expected 0..1"),
        (RestoreOptions, {"strength": "1"}, "`strength` is '1', expected 0..1"),
        (RestoreOptions, {"strength": True}, "`strength` is True, expected 0..1"),
        (RestoreOptions, {"timestep": 1000}, "`timestep` is 1000, expected 0..999"),
        (RestoreOptions, {"timestep": 1.5}, "`timestep` is 1.5, expected 0..999"),
        (RestoreOptions, {"batch_size": 0}, "`batch_size` is 0, expected at least 1"),
        (
            RestoreOptions,
            {"color_fix": "sepia"},
            "`color_fix` is 'sepia', expected one of none, adain, wavelet, luma",
        ),
        (
            RestoreOptions,
            {"color_fix": None},
            "`color_fix` is None, expected one of none, adain, wavelet, luma",
        ),
        (DetectOptions, {"min_face": -1}, "`min_face` is -1, expected at least 0"),
        (
            DetectOptions,
            {"faces": "some"},
            "`faces` is 'some', expected all, largest, center or numbers such as 0,2 or 1-3",
        ),
        (PasteOptions, {"feather": 0}, "`feather` is 0, expected 0.001..1"),
        (LoadOptions, {"lora_scale": float("inf")}, "`lora_scale` is inf, expected -100..100"),
    ],
)
def test_a_wrong_value_is_named_with_its_range(options, values, message) -> None:
    with pytest.raises(OptionError) as caught:
        options(**values)
    assert str(caught.value) == message
    assert isinstance(caught.value, ConfigError) and caught.value.option == next(iter(values))


def test_check_looks_at_the_named_values_alone() -> None:
    check(RestoreOptions, strength=0.5)
    with pytest.raises(OptionError, match="`timestep`"):
        check(RestoreOptions, strength=0.5, timestep=-1)


def test_pick_takes_what_belongs_to_the_set() -> None:
    values = {"strength": 0.5, "min_face": 20, "order": "area", "unknown": 1}
    assert pick(RestoreOptions, values) == RestoreOptions(strength=0.5)
    assert pick(DetectOptions, values) == DetectOptions(min_face=20, order="size")


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("cli", "give --base, --paste-mode or --lora-scale, not `x`"),
        ("comfyui", "give base, paste_mode or lora_strength, not `x`"),
        ("webui", "give Stable Diffusion 2.1-base, Paste mode or LoRA strength, not `x`"),
    ],
)
def test_messages_use_the_words_of_their_host(host, said) -> None:
    assert in_words_of(host, "give `base`, `paste_mode` or `lora_scale`, not `x`") == said


def test_what_a_person_types() -> None:
    table = options_of(RestoreOptions) | options_of(DetectOptions)
    assert table["strength"].parse("0.25") == 0.25
    assert table["order"].parse("area") == "size"
    for name, text, expected in [
        ("strength", "much", "0..1"),
        ("strength", "nan", "0..1"),
        ("max_faces", "2.5", "at least 1"),
        ("batch_size", "0", "at least 1"),
    ]:
        with pytest.raises(OptionError) as caught:
            table[name].parse(text)
        assert caught.value.expected == expected


@pytest.mark.parametrize(
    ("text", "numbers"), [("0, 2", [0, 2]), ("1-3;2", [1, 2, 3]), ("Largest", None), (" 4 ", [4])]
)
def test_numbers_of_faces(text, numbers) -> None:
    assert parse_faces(text) == numbers


def test_the_table_costs_nothing_to_import() -> None:
    code = "import sys, osdface_core.options; print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
