"""The server as its clients see it: videos, limits, errors, and who may see what."""

import io
import json
import re
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import openai
import pytest
from PIL import Image

from vidjax.data.video_reading import read_frames
from vidjax.data.video_writing import write_mp4
from vidjax.generation import watermark
from vidjax.serving import reading
from vidjax.serving.requests import parse, settle, together
from vidjax.serving.worker import Worker, make_card

ASK = dict(prompt="a fox", seed=5)


def post(client, fields=ASK, **more):
    return client.post("/v1/videos", json=fields, **more)


def code(response):
    assert set(response.json()) == {"error"} and set(response.json()["error"]) == {"code", "message"}
    return response.status_code, response.json()["error"]["code"]


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def upload(client, content, **fields):
    return client.post("/v1/videos", data={**ASK, **fields}, files={"input_reference": ("x", content)})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_official_client(serving, client, generator, tmp_path):
    videos = openai.OpenAI(base_url=f"{serving.url}/v1", api_key=client().token, max_retries=0)
    assert [model.id for model in videos.models.list()] == ["fox"]
    first = videos.videos.create(prompt="a fox", seconds="0.5", size="16x16", extra_body={"seed": 5})
    assert first.status == "queued" and first.object == "video" and first.model == "fox"
    assert serving.worker.run_next()
    done = videos.videos.retrieve(first.id)
    assert done.status == "completed" and done.progress == 100
    assert (done.expires_at or 0) > (done.completed_at or 0) >= done.created_at
    content = videos.videos.download_content(first.id).read()

    # What the same model makes without a server, of the same seed.
    seen = dict(progress=lambda done: None, look=lambda done, latents: None)  # what is compiled already
    write_mp4(tmp_path / "own.mp4", watermark.embed(generator(["a fox"], seed=5, **seen)[0]), 4.0)
    assert content == (tmp_path / "own.mp4").read_bytes()
    assert videos.videos.download_content(first.id, variant="thumbnail").read()[8:12] == b"WEBP"
    assert videos.videos.download_content(first.id, variant="spritesheet").read()[:2] == b"\xff\xd8"

    again = videos.videos.remix(first.id, prompt="a cat")
    assert again.remixed_from_video_id == first.id and serving.worker.run_next()
    assert videos.videos.retrieve(again.id).status == "completed"
    assert videos.videos.download_content(again.id).read() != content
    assert [video.id for video in videos.videos.list(limit=1)] == [again.id, first.id]  # it asks for the next page
    assert videos.videos.delete(first.id).deleted
    with pytest.raises(openai.NotFoundError, match="no such video"):
        videos.videos.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="size"):
        videos.videos.create(prompt="a fox", size="16")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_manuals_client(serving, client, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    code = code.replace("http://127.0.0.1:8000", serving.url).replace('"KEY"', repr(client().token))
    monkeypatch.chdir(tmp_path)
    stop = threading.Event()
    worker = threading.Thread(target=lambda: [serving.worker.run_next() for _ in range(600) if not stop.wait(0.05)])
    worker.start()
    try:
        exec(code, {})
    finally:
        stop.set()
        worker.join()
    assert read_frames(tmp_path / "waves.mp4").shape[0] == 2


def test_two_users_do_not_see_each_other(serving, client):
    one, other = client(), client()
    id = post(one).json()["id"]
    assert serving.worker.run_next()
    for method, path in (("GET", ""), ("GET", "/content"), ("GET", "/events"), ("DELETE", ""), ("POST", "/cancel")):
        assert code(other.request(method, f"/v1/videos/{id}{path}")) == (404, "not_found")
    assert code(other.post(f"/v1/videos/{id}/remix", json={"prompt": "a cat"})) == (404, "not_found")
    assert code(other.get(f"/v1/videos?after={id}")) == (404, "not_found")
    assert other.get("/v1/videos").json()["data"] == []
    assert [video["id"] for video in one.get("/v1/videos").json()["data"]] == [id]
    assert one.get(f"/v1/videos/{id}/content").status_code == 200


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer vj-wrong", "Basic vj-x"])
def test_nobody_without_a_key(serving, client, header):
    one = client()
    one.headers.pop("authorization")
    headers = {"authorization": header} if header else {}
    for path in ("/v1/videos", "/v1/models", "/metrics", "/v1/videos/x/events"):
        assert code(one.get(path, headers=headers)) == (401, "invalid_api_key")
    assert one.get("/health").status_code == 200
    one.headers["authorization"] = f"Bearer {one.token}"
    stored = serving.jobs.database.file
    assert not any(one.token.encode() in file.read_bytes() for file in stored.parent.glob(f"{stored.name}*"))


def test_a_full_queue_and_a_full_allowance(serving, client):
    one, slow = client(), client("2/min")
    ids = [post(one).json()["id"] for _ in range(3)]
    assert [one.get(f"/v1/videos/{id}").json()["queue_position"] for id in ids] == [0, 1, 2]
    full = post(slow)
    assert code(full) == (429, "queue_full") and int(full.headers["retry-after"]) >= 1
    for id in ids:
        one.delete(f"/v1/videos/{id}")
    assert [post(slow).status_code for _ in range(2)] == [200, 200]
    spent = post(slow)
    assert code(spent) == (429, "rate_limit_exceeded") and 1 <= int(spent.headers["retry-after"]) <= 61
    name = serving.keys.find(slow.token).name
    serving.keys.remove(name)
    slow.headers["authorization"] = f"Bearer {serving.keys.add(name, '2/min')}"
    assert post(slow).status_code == 200  # of whoever has the name next
    assert post(one).status_code == 200


def test_the_audit_log_says_who_asked_for_what(serving, client):
    one = client()
    id, user = post(one).json()["id"], serving.keys.find(one.token).name
    lines = (serving.jobs.database.file.parent / "audit.log").read_text().splitlines()
    (order,) = [entry for entry in map(json.loads, lines) if entry.get("job") == id]
    assert (order["user"], order["model"]) == (user, "fox") and not any(one.token in line for line in lines)


def test_a_repeated_request_is_one_video(client):
    one, other = client(), client()
    key = {"idempotency-key": "k"}
    first = post(one, headers=key).json()["id"]
    assert post(one, headers=key).json()["id"] == first
    assert code(post(one, {**ASK, "seed": 6}, headers=key)) == (409, "idempotency_mismatch")
    assert post(other, headers=key).json()["id"] != first


def test_a_cancelled_video_stops_between_two_steps(serving, client, monkeypatch):
    monkeypatch.setattr("vidjax.serving.worker.PREVIEW_SECONDS", 0.0)
    one = client()
    assert post(one).status_code == 200 and serving.worker.run_next()  # from which previews have their colours
    id = post(one, {**ASK, "steps": 200}).json()["id"]
    worker = threading.Thread(target=serving.worker.run_next)
    worker.start()
    said = []
    with one.stream("GET", f"/v1/videos/{id}/events") as events:
        for line in events.iter_lines():
            said.append(line)
            if "event: preview" in said and '"status": "in_progress"' in line and '"step": 0,' not in line:
                assert one.post(f"/v1/videos/{id}/cancel").json()["status"] == "cancelled"
    worker.join()
    assert "event: preview" in said and "event: progress" in said
    video = one.get(f"/v1/videos/{id}").json()
    assert video["status"] == "cancelled" and video["error"]["code"] == "cancelled" and 0 < video["step"] < 200
    assert code(one.get(f"/v1/videos/{id}/content")) == (409, "not_completed")
    assert post(one).status_code == 200 and serving.worker.run_next()  # it goes on with the next one
    assert one.get("/v1/videos?limit=1").json()["data"][0]["status"] == "completed"


def test_a_video_of_a_model_that_went_fails_and_the_worker_goes_on(serving, client):
    one = client()
    id = post(one).json()["id"]
    assert Worker(serving.jobs, {}, "bare").run_next()
    assert "no longer served" in one.get(f"/v1/videos/{id}").json()["error"]["message"]


def test_a_removed_video_leaves_nothing(serving, client):
    one = client()
    id = post(one, {**ASK, "steps": 200}).json()["id"]
    worker = threading.Thread(target=serving.worker.run_next)
    worker.start()
    while one.get(f"/v1/videos/{id}").json()["step"] < 2:
        time.sleep(0.01)
    assert one.delete(f"/v1/videos/{id}").json() == {"id": id, "object": "video.deleted", "deleted": True}
    worker.join()
    assert not serving.jobs.folder(id).exists()


def test_a_picture_becomes_the_first_frame(serving, client, generator, tmp_path):
    one = client()
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[..., 0], picture[:16, :, 1] = 200, 90
    id = upload(one, png(picture)).json()["id"]
    assert serving.worker.run_next()
    assert one.get(f"/v1/videos/{id}").json()["error"] is None
    found = read_frames(one.get(f"/v1/videos/{id}/content").content)
    scaled = np.asarray(Image.fromarray(picture).resize((16, 16), Image.Resampling.BICUBIC))
    expected = generator.decode(generator.encode(scaled[None, None]))[0, 0]
    write_mp4(tmp_path / "own.mp4", watermark.embed(np.stack([expected, found[1]])), 4.0)
    first, second = np.abs(found.astype(float) - read_frames(tmp_path / "own.mp4")[:1]).mean((1, 2, 3))
    assert first < 4 < second


BAD = {
    "nothing": b"",
    "text": b"http://169.254.169.254/latest",
    "playlist": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "cut": png(np.zeros((64, 64, 3), np.uint8))[:60],
    "bomb": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\x02\0\0\0" + b"\0" * 64,
    "a line of pixels": png(np.zeros((1, 60000, 3), np.uint8)),
    "mp4": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + b"\xff" * 64,
}


@pytest.mark.parametrize("name", BAD)
def test_hostile_uploads(serving, client, name):
    status, said = code(upload(client(), BAD[name]))
    assert status == 400 and said == ("invalid_request" if name == "nothing" else "invalid_input_reference")
    assert not serving.jobs.counts().get("queued")


@pytest.mark.parametrize("how", ["killed", "MEMORY", "WALL_SECONDS"])
def test_a_decoder_that_dies_is_a_wrong_upload(serving, client, monkeypatch, how):
    one, picture, start = client(), png(np.zeros((64, 64, 3), np.uint8)), subprocess.Popen

    def start_killed(*flags, **more):
        process = start(*flags, **more)
        process.kill()
        return process

    with monkeypatch.context() as patch:
        patch.setattr(*(subprocess, "Popen", start_killed) if how == "killed" else (reading, how, 0))
        assert code(upload(one, picture)) == (400, "invalid_input_reference")
        assert not serving.jobs.counts().get("queued")
    assert upload(one, picture).status_code == 200


def test_a_decoder_keeps_limits_that_are_lower_than_its_own(monkeypatch):
    limits = "resource.setrlimit(resource.RLIMIT_CPU, (7, 7))", "assert resource.getrlimit(resource.RLIMIT_CPU)[0] == 7"
    monkeypatch.setattr(reading, "CODE", f"import resource; {limits[0]}; {reading.CODE}; {limits[1]}")
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    np.testing.assert_array_equal(reading.decode(png(picture)), [picture])


def test_a_decoder_imports_nothing_from_the_current_folder(monkeypatch, tmp_path):
    (tmp_path / "numpy.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    assert reading.decode(png(np.zeros((4, 4, 3), np.uint8))).shape == (1, 4, 4, 3)


def test_hostile_requests(serving, client, tmp_path):
    one = client()
    assert code(upload(one, b"\0" * (2**20 + 1))) == (413, "too_large")
    assert (
        code(one.post("/v1/videos", content=iter([b"x" * 2**20] * 4), headers={"content-type": "application/json"}))[0]
        == 413
    )
    bad = [
        {"input_reference": {"image_url": "http://localhost/x.png"}},
        {"input_reference": "/etc/passwd"},
        {"model": "../../etc"},
        {"frames": 5},
        {"size": "17x16"},
        {"size": "64x64"},
        {"size": "0x16"},
        {"steps": 201},
        {"seed": -1},
        {"seconds": 1e9},
        {"guidance": 1e999},
        {"sampler": "rm -rf"},
        {"label": 3},
        {"prompt": "x" * 5000},
        {"promt": "a fox"},
        {"prompt": ["a"]},
    ]
    for fields in bad:
        body = '{"guidance": 1e999}' if "guidance" in fields else None
        sent = dict(content=body, headers={"content-type": "application/json"}) if body else dict(json=fields)
        assert code(one.post("/v1/videos", **sent))[0] in (400, 404), fields
    for body in (b"", b"[1]", b"{", b"\xff", b"[" * 10**5):
        assert code(one.post("/v1/videos", content=body, headers={"content-type": "application/json"}))[0] == 400
    assert code(one.post("/v1/videos", data={"a": "b", "c": "d"}))[0] == 400
    assert code(one.post("/v1/videos", files=[("input_reference", b"x"), ("other", b"y")]))[0] == 400
    assert code(one.post("/v1/videos", content=b"x", headers={"content-type": "text/plain"}))[0] == 415
    assert code(post(one, headers={"origin": "https://elsewhere.example"})) == (403, "cross_origin")
    assert "frame-ancestors 'self'" in one.get("/health").headers["content-security-policy"]
    assert "access-control-allow-origin" not in one.get("/v1/models", headers={"origin": serving.url}).headers
    for path in ("/v1/videos/..%2f..%2fjobs.sqlite", "/v1/videos/x/content?variant=../input.npy", "/none"):
        assert code(one.get(path))[0] in (400, 404)
    assert not serving.jobs.counts().get("queued")


def test_a_job_in_hand_begins_again_and_is_the_same(serving, client, generator):
    one = client()
    ids = [post(one).json()["id"] for _ in range(2)]
    assert serving.worker.run_next()
    whole = one.get(f"/v1/videos/{ids[0]}/content").content
    dead = Worker(serving.jobs, {}, "dead")
    assert [job.id for job in serving.jobs.claim(dead.name)] == [ids[1]]
    serving.jobs.recover("other")
    assert one.get(f"/v1/videos/{ids[1]}").json()["status"] == "in_progress"
    serving.jobs.recover("dead")
    assert serving.worker.run_next()
    assert not serving.jobs.complete("dead", ids[1])  # it comes too late
    assert one.get(f"/v1/videos/{ids[1]}/content").content == whole

    worst = post(one).json()["id"]
    for _ in range(4):
        assert serving.jobs.claim("dead")
        serving.jobs.recover()  # the server was started again
    assert one.get(f"/v1/videos/{worst}").json()["status"] == "queued"
    for _ in range(3):
        assert serving.jobs.claim("dead")
        serving.jobs.recover("dead")
    assert one.get(f"/v1/videos/{worst}").json()["error"]["code"] == "worker_died"


def test_a_video_does_not_depend_on_its_batch(serving, client, generator):
    one = client()
    pair = Worker(serving.jobs, {"fox": generator}, "pair", batch=2)
    ids = [post(one, fields).json()["id"] for fields in (ASK, dict(prompt="a cat", seed=6), ASK)]
    assert pair.run_next() and pair.run_next() and not pair.run_next()  # two at once, then one alone
    first, other, alone = (one.get(f"/v1/videos/{id}/content").content for id in ids)
    assert first == alone != other


def test_what_is_over_expires(serving, client):
    one = client()
    ids = [post(one).json()["id"] for _ in range(2)]
    assert serving.worker.run_next()
    serving.jobs.expire()
    assert one.get(f"/v1/videos/{ids[0]}/content").status_code == 200
    with serving.jobs.database.write() as connection:
        connection.execute("update jobs set expires = ? where id = ?", (time.time() - 1, ids[0]))
    serving.jobs.expire()
    assert code(one.get(f"/v1/videos/{ids[0]}/content")) == (404, "not_found")
    assert not serving.jobs.folder(ids[0]).exists() and one.get(f"/v1/videos/{ids[1]}").json()["status"] == "queued"


def test_a_sampler_that_draws_noise_for_a_batch_makes_one_video_at_a_time(serving, generator, monkeypatch):
    monkeypatch.setattr(generator, "defaults", replace(generator.defaults, eta=0.5))
    cards = {"fox": make_card("fox", generator)}
    found = [together(settle(parse({**ASK, **more}), cards, serving.jobs.limits)) for more in ({}, {"sampler": "ddpm"})]
    assert found == ["", ""]
