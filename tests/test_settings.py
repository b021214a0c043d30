"""Config sections become arguments; whatever does not fit is an error that names the thing and the remedy."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import ml_collections
import pytest

from vidjax.errors import InputError
from vidjax.settings import choose, construct, plain, stage_settings, write_json


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


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    write_json(path, {"a": [1, 2.5, None]})
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None]}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_json_may_be_written_by_several_at_once(tmp_path):
    path = tmp_path / "config.json"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: write_json(path, {"n": n}), range(200)))  # an error in one would be raised here
    assert json.loads(path.read_text())["n"] in range(200)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
