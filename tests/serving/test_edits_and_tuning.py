"""Edits of clips and models that users tune: what they change, what they leave alone, and who may use them."""

import io
import os
import signal
import subprocess
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vidjax.data.video_writing import write_mp4
from vidjax.generation.editing import edits
from vidjax.serving import tuner as tuning
from vidjax.serving.files import PREVIEW, TYPES
from vidjax.serving.tuner import Tuner
from vidjax.serving.uploads import read_upload
from vidjax.serving.worker import find_tuning, make_card


def code(response):
    return response.status_code, response.json()["error"]["code"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Two frames with a square that moves."""
    video = np.full((2, 16, 16, 3), 90, np.uint8)
    video[0, 2:9, 2:9], video[1, 2:9, 5:12] = (220, 120, 30), (220, 120, 30)
    file = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_mp4(file, video, 4.0)
    return file.read_bytes()


def picture(white):
    file = io.BytesIO()
    Image.fromarray((white * 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def edit(client, clip, mask=None, **fields):
    files = {"input_reference": ("c", clip)} | ({} if mask is None else {"mask": ("m", picture(mask))})
    return client.post("/v1/videos/edits", data=dict(prompt="a cat", seed=3) | fields, files=files)


@pytest.fixture
def made(serving, generator, monkeypatch):
    """The latents of the videos that the worker makes."""
    found, decode = [], generator.decode
    see = lambda latents, *more: found.append(np.asarray(latents)[0]) or decode(latents, *more)
    monkeypatch.setattr(generator, "decode", see)
    return found


@pytest.mark.parametrize("strength", [None, 0.5])
def test_an_edit_changes_what_is_white_and_nothing_else(serving, client, generator, clip, made, strength):
    one, white = client(), np.zeros((16, 16), bool)
    white[:8, :8] = True
    given = {} if strength is None else {"strength": strength}
    id = edit(one, clip, white, edit_frames="1:2", **given).json()["id"]
    assert serving.worker.run_next()
    video = one.get(f"/v1/videos/{id}").json()
    assert video["status"] == "completed" and video["step"] == video["steps"], video
    assert video["input_reference"] == "edit" and video["steps"] == (2 * 3 if strength is None else 2)
    assert one.get(f"/v1/videos/{id}/content").content[4:8] == b"ftyp"
    before = generator.encode(read_upload(clip, 2, (16, 16))[None])[0]
    inside = np.zeros((2, 8, 8), bool)
    inside[1, :4, :4] = True
    np.testing.assert_array_equal(made[0][~inside], before[~inside])
    assert np.abs(made[0][inside] - before[inside]).max() > 0.1


def test_without_a_mask_it_is_the_edit_of_the_library(serving, client, generator, clip, made, tmp_path):
    """Two routes: the clip's inversion under the new prompt."""
    frames = read_upload(clip, 2, (16, 16))
    expected = edits(generator, [frames], ["a cat"], "", tmp_path)[0]
    id = edit(client(), clip).json()["id"]
    assert serving.worker.run_next() and serving.jobs.counts()["completed"], id
    np.testing.assert_array_equal(generator.decode(made[-1][None])[0], expected)


def test_what_is_no_edit_is_refused(client, clip):
    one, white = client(), np.ones((16, 16), bool)
    assert code(edit(one, picture(white))) == (400, "invalid_request")
    assert code(edit(one, clip, ~white)) == (400, "invalid_mask")
    assert code(edit(one, clip, edit_frames="1:3")) == (400, "invalid_request")
    assert code(edit(one, clip, edit_frames="../x")) == (400, "invalid_request")
    files = {"input_reference": ("c", clip), "mask": ("m", b"<svg/>")}
    assert code(one.post("/v1/videos/edits", data={"prompt": "x"}, files=files)) == (400, "invalid_mask")
    assert code(one.post("/v1/videos/edits", json={"prompt": "x", "mask": "/etc/passwd"})) == (400, "invalid_request")
    assert code(one.post("/v1/videos/edits", json={"prompt": "x"})) == (400, "invalid_request")
    assert code(one.post("/v1/videos", json={"edit_frames": "0:1"})) == (400, "invalid_request")
    assert one.get("/v1/videos").json()["data"] == []


@pytest.fixture(scope="module")
def tuner(serving, folder, generator):
    return Tuner(serving.jobs, {"fox": str(folder)}, {"fox": make_card("fox", generator, find_tuning(str(folder)))})


def tune(client, content, **fields):
    return client.post("/v1/tunes", data=dict(prompt="a fox") | fields, files={"input_reference": ("x", content)})


def test_a_tuned_model_is_its_users_alone(serving, client, tuner, clip, monkeypatch):
    one, other = client(), client()
    asked = tune(one, clip, frames=2, steps=3)
    id = asked.json()["id"]
    assert asked.json()["object"] == "tune" and code(tune(one, clip)) == (429, "tunes_already")
    assert not serving.worker.run_next() and tuner.run_next()
    done = one.get(f"/v1/videos/{id}").json()
    assert (done["status"], done["step"], done["error"]) == ("completed", 3, None)
    assert [step for step, _ in tuning.read_curve(serving.jobs.folder(id))] == [1, 2, 3]
    assert one.get(f"/v1/videos/{id}/content?variant=preview").content[8:12] == b"WEBP"
    assert code(one.get(f"/v1/videos/{id}/content")) == (404, "not_found")
    assert one.get("/v1/videos").json()["data"] == []
    assert [model["id"] for model in one.get("/v1/models").json()["data"]] == ["fox", id]
    assert [model["id"] for model in other.get("/v1/models").json()["data"]] == ["fox"]

    ask = dict(prompt="a fox", seed=5)
    assert code(other.post("/v1/videos", json={**ask, "model": id})) == (404, "model_not_found")
    videos = [one.post("/v1/videos", json=fields).json()["id"] for fields in (ask, {**ask, "model": id})]
    assert serving.worker.run_next() and serving.worker.run_next()
    contents = [one.get(f"/v1/videos/{video}/content").content for video in videos]
    assert contents[0][4:8] == contents[1][4:8] == b"ftyp" and contents[0] != contents[1]

    last = one.post("/v1/videos", json={**ask, "model": id}).json()["id"]
    monkeypatch.setattr(serving.jobs, "limits", replace(serving.jobs.limits, tuned=1))
    assert code(tune(one, clip, frames=2)) == (409, "too_many_tunes")
    assert other.delete(f"/v1/tunes/{tune(other, clip, frames=2).json()['id']}").status_code == 200
    assert code(other.delete(f"/v1/tunes/{id}")) == (404, "not_found")
    assert one.delete(f"/v1/tunes/{id}").json() == {"id": id, "object": "tune.deleted", "deleted": True}
    assert not serving.jobs.folder(id).exists()
    assert one.delete(f"/v1/tunes/{tune(one, clip, frames=2).json()['id']}").status_code == 200
    assert serving.worker.run_next()
    assert "no longer served" in one.get(f"/v1/videos/{last}").json()["error"]["message"]


def test_a_tuning_that_is_cancelled_ends_its_process(serving, client, tuner, monkeypatch):
    """On pictures, that are another recipe's."""
    one, started, start = client(), [], subprocess.Popen
    see = lambda *flags, **more: started.append(start(*flags, **more)) or started[-1]
    id = tune(one, picture(np.eye(16))).json()["id"]
    monkeypatch.setattr(tuning.subprocess, "Popen", see)
    thread = threading.Thread(target=tuner.run_next)
    thread.start()
    while not started:
        time.sleep(0.02)
    assert os.getsid(started[0].pid) == started[0].pid  # Control-C of the server's terminal does not reach it
    assert one.post(f"/v1/videos/{id}/cancel").json()["status"] == "cancelled"
    thread.join()
    assert started[0].returncode == -signal.SIGKILL
    assert [file.name for file in serving.jobs.folder(id).iterdir() if file.name not in TYPES] == []
    assert [model["id"] for model in one.get("/v1/models").json()["data"]] == ["fox"]


def test_what_a_video_begins_from_goes_when_it_has_ended(serving, client, clip, monkeypatch):
    one, white = client(), np.eye(16) > 0
    made, cancelled = (edit(one, clip, white, strength=0.5).json()["id"] for _ in range(2))
    asked = tune(one, clip, frames=2).json()["id"]
    assert one.post(f"/v1/videos/{cancelled}/cancel").status_code == 200 and serving.worker.run_next()
    monkeypatch.setattr(serving.jobs, "limits", type(serving.jobs.limits)(upload=2**20))
    serving.jobs.recover("nobody")  # nobody tunes what waits any more
    assert one.get(f"/v1/videos/{asked}").json()["error"]["code"] == "not_allowed"
    left = [sorted(file.name for file in serving.jobs.folder(id).iterdir()) for id in (made, cancelled, asked)]
    assert set(left[0]) - {PREVIEW} == set(TYPES) - {PREVIEW} and left[1:] == [[], []]


def test_what_cannot_be_tuned_is_refused(serving, client, clip, monkeypatch):
    one = client()
    assert code(tune(one, clip, steps=5)) == (400, "invalid_request")
    assert code(tune(one, clip, frames=3)) == (400, "invalid_input_reference")  # it has two
    assert code(tune(one, clip, prompt="")) == (400, "invalid_request")
    assert code(one.post("/v1/tunes", json={"prompt": "x"})) == (400, "invalid_request")
    assert code(tune(one, b"<svg/>", frames=2)) == (400, "invalid_input_reference")
    assert code(tune(one, clip, model="../etc")) == (404, "model_not_found")
    monkeypatch.setattr(serving.jobs, "limits", type(serving.jobs.limits)(upload=2**20))
    assert code(tune(one, clip, frames=2)) == (403, "not_allowed")


def test_a_tuning_that_cannot_start_fails_and_the_tuner_goes_on(serving, client, tuner, clip):
    one = client()
    id = tune(one, clip, prompt="a \0 fox", frames=2).json()["id"]  # no program takes such an argument
    assert tuner.run_next() and not tuner.run_next()
    assert one.get(f"/v1/videos/{id}").json()["error"]["code"] == "internal_error"
