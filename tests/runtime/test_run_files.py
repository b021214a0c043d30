"""What a run wrote about itself is read if it is whole; damaged it is one line that names the file."""

import json

import pytest

from vidjax.errors import InputError
from vidjax.recipes.run import read_config
from vidjax.runtime.run_files import read_figures, read_metrics, read_statistics

SHAPES = ["[1", "", "3", "[]", "null", "[" * 10**5, "1" * 5000, '{"a": 1}', '{"shift": "a", "scale": 1}', "\ud800"]
SHAPES += ['{"shift": 0, "scale": 0}', '{"shift": 0, "scale": NaN}', '{"shift": 0, "scale": 1e999}', '"a"']


@pytest.mark.parametrize("text", SHAPES)
def test_damage_is_one_line(text, tmp_path):
    for name, read in (("latents.json", read_statistics), ("config.json", lambda path: read_config(path.parent))):
        (tmp_path / name).write_bytes(text.encode(errors="surrogatepass"))
        with pytest.raises(InputError, match=name) as error:
            read(tmp_path / name)
        assert len(str(error.value)) < 1000 and "\n" not in str(error.value)


def test_a_folder_in_place_of_a_file_is_one_line(tmp_path):
    for name in ("latents.json", "config.json", "metrics.jsonl", "stage/done.json"):
        (tmp_path / name).mkdir(parents=True)
    for read in (
        lambda: read_statistics(tmp_path / "latents.json"),
        lambda: read_config(tmp_path),
        lambda: read_metrics(tmp_path / "metrics.jsonl"),
        lambda: read_figures(tmp_path, "seconds"),
    ):
        with pytest.raises(InputError, match="is a folder"):
            read()


def test_what_is_whole_is_read(tmp_path):
    (tmp_path / "latents.json").write_text('{"shift": -0.5, "scale": 2}')
    assert read_statistics(tmp_path / "latents.json") == {"shift": -0.5, "scale": 2}
    assert read_statistics(tmp_path / "nothing.json") == {} and read_metrics(tmp_path / "nothing.jsonl") == []
    for stage, done in {"a": {"seconds": 3}, "b": {"seconds": [1]}, "c": [], "d": {}}.items():
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "done.json").write_text(json.dumps(done))
    assert read_figures(tmp_path, "seconds") == {"a": 3}


@pytest.mark.parametrize(
    "end", ['{"step": 3, "lo', "[1]", '{"loss": 1}', '{"step": "a"}', "\xff", '{"step": true}', "["]
)
def test_metrics_are_read_to_the_first_line_that_is_none(end, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + end.encode("latin1") + b'\n{"step": 4}\n')
    assert [entry["step"] for entry in read_metrics(path)] == [1, 2]
