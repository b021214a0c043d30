"""Config sections become arguments; whatever does not fit is an error that names the thing and the remedy."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ml_collections
import pytest

from vidjax.errors import InputError, check_range
from vidjax.models.conditioning import TextEmbedder
from vidjax.settings import checked, choose, construct, plain, stage_settings


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = 1


@dataclasses.dataclass(frozen=True)
class Outer:
    steps: int
    channels: tuple[int, ...] = (1, 2)
    inner: Inner | None = None


def make(*, learning_rate: float, schedule: str = "constant", steps: int = 0):
    return learning_rate, schedule, steps


def test_a_section_is_the_call_with_its_keys():
    section = {"steps": 3, "channels": [4, 5], "inner": {"width": 6}}
    assert construct(Outer, section, "model") == Outer(3, (4, 5), Inner(6))
    assert construct(make, {"learning_rate": 0.5}, "optimizer", steps=7) == (0.5, "constant", 7)
    assert construct(make, None, "optimizer", learning_rate=0.5) == (0.5, "constant", 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: construct(make, {"learning_rat": 1.0}, "optimizer"),
            r"config\.optimizer\.learning_rat .*'learning_rate'",
        ),
        (
            lambda: construct(make, {"zzz": 1}, "optimizer"),
            r"config\.optimizer\.zzz .*known are learning_rate, schedule",
        ),
        (
            lambda: construct(make, {"steps": 1}, "optimizer", steps=2),
            r"config\.optimizer\.steps follows from other settings",
        ),
        (lambda: construct(make, {}, "optimizer"), r"config\.optimizer lacks learning_rate"),
        (lambda: construct(Outer, {}, "train"), r"config\.train lacks steps"),
        (lambda: construct(Outer, {"steps": 1, "inner": {"widht": 2}}, "m"), r"config\.m\.inner\.widht .*'width'"),
        (lambda: choose("cosin", {"cosine": 1, "linear": 2}, "schedule"), r"schedule 'cosin' .*'cosine'"),
        (lambda: stage_settings({"stages": {"diffusion": {}}}, "difusion"), r"stage 'difusion' .*'diffusion'"),
    ],
)
def test_what_does_not_fit_is_named_with_its_remedy(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@dataclasses.dataclass(frozen=True)
class Typed:
    whole: int = 1
    number: float = 1.0
    yes: bool = False
    name: Literal["a", "b"] = "a"
    pair: tuple[int, int] | None = None
    many: int | Sequence[int] = 1
    weights: Mapping[str, float] | None = None
    anything: Any = None


RIGHT = [dict(whole=-3), dict(number=3), dict(yes=True), dict(name="b"), dict(pair=[1, 2]), dict(pair=None)]
RIGHT += [dict(many=[]), dict(many=(1, 2, 3)), dict(weights=dict(a=1, b=0.5)), dict(anything=["x"])]
WRONG = [dict(whole=1.0), dict(whole=True), dict(whole="1"), dict(whole=None), dict(number="1"), dict(number=True)]
WRONG += [
    dict(number=math.nan),
    dict(number=-math.inf),
    dict(anything=math.inf),
    dict(yes=1),
    dict(name="c"),
    dict(name=[]),
]
WRONG += [
    dict(pair=(1,)),
    dict(pair=(1, 2, 3)),
    dict(pair=(1, "2")),
    dict(pair={"a": 1}),
    dict(many="12"),
    dict(many=(1.5,)),
]
WRONG += [dict(weights={"a": "b"}), dict(weights={"a": math.nan}), dict(weights=(1,))]


@pytest.mark.parametrize("section", RIGHT)
def test_values_of_the_annotated_type_pass(section):
    construct(Typed, section, "model")


@pytest.mark.parametrize("section", WRONG, ids=str)
def test_values_of_another_type_are_refused(section):
    (name,) = section
    with pytest.raises(InputError, match=rf"config\.model\.{name}=.* is not "):
        construct(Typed, section, "model")


def test_functions_and_classes_are_checked_as_dataclasses_are():
    with pytest.raises(InputError, match=r"config\.optimizer\.steps='a' is not int"):
        construct(make, {"learning_rate": 1.0, "steps": "a"}, "optimizer")
    with pytest.raises(InputError, match=r"config\.text\.dim='a' is not int"):
        construct(TextEmbedder, {"dim": "a"}, "text", rngs=None)


def test_numbers_out_of_range_are_refused():
    check_range("a.", 1, b=1, c=None, d=(1, 2.5), e="x")
    for value in (0, -1, 2**31, (3, 0), [1, -2], math.nan):
        with pytest.raises(InputError, match=r"a\.b=.*must be at least 1"):
            check_range("a.", 1, b=value)
    with pytest.raises(InputError, match="at least 1 and at most 5"):
        check_range("a.", 1, 5, b=6)


@pytest.mark.parametrize(
    "config, says",
    [
        ({"data": {}}, "the config has no stages"),
        ({"stages": 3}, "the config has no stages"),
        ({"stages": {"a": 1}}, r"config\.stages\.a=1 is no section"),
        ({"stages": {"a": {"conditioning": 1}}}, r"config\.stages\.a\.conditioning=1 is no section"),
        ({"stages": {"a": {}}, "model": ""}, r"config\.model='' is no section"),
    ],
)
def test_a_value_in_the_place_of_a_section_is_refused(config, says):
    with pytest.raises(InputError, match=says):
        checked(config)
    assert checked({"stages": {"a": {"data": {}}}, "seed": 1}) == {"stages": {"a": {"data": {}}}, "seed": 1}


def test_a_section_that_is_missing_is_named():
    with pytest.raises(InputError, match=r"config\.trian is missing; did you mean 'train'"):
        stage_settings({"train": {}, "stages": {"a": {}}}, "a")["trian"]


def test_a_stage_sees_its_own_entries_over_the_common_ones():
    config = {
        "seed": 1,
        "train": {"steps": 10, "dtype": "float32"},
        "stages": {"a": {"train": {"steps": 5}}, "b": {"seed": 2}},
    }
    assert stage_settings(config, "a") == {"seed": 1, "train": {"steps": 5, "dtype": "float32"}}
    assert stage_settings(config, "b") == {"seed": 2, "train": {"steps": 10, "dtype": "float32"}}


def test_plain_leaves_nothing_of_the_config_library():
    config = ml_collections.ConfigDict({"a": {"b": [1, {"c": 2}]}})
    assert plain(config) == {"a": {"b": (1, {"c": 2})}}
