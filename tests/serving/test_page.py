"""The page: who may open it, and what its buttons do. Wants the extra `page`."""

import asyncio
import io
import threading

import numpy as np
import pytest
from PIL import Image

gr = pytest.importorskip("gradio")

from gradio.components.image_editor import EditorData  # noqa: E402
from gradio.data_classes import FileData, ListFiles  # noqa: E402

from vidjax.serving.guard import Guard  # noqa: E402
from vidjax.serving.orders import Orders  # noqa: E402
from vidjax.serving.page import Page  # noqa: E402
from vidjax.serving.page_edit import find_mask  # noqa: E402
from vidjax.serving.uploads import MAX_PICTURES, read_mask  # noqa: E402
from vidjax.serving.worker import make_card  # noqa: E402

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture(scope="module")
def page(serving, generator):
    orders = Orders(serving.jobs, {"fox": make_card("fox", generator)})
    return Page(serving.jobs, orders, Guard(serving.keys, require_keys=True))


def make(page, user, **fields):
    """Everything that the page shows while it makes a video."""
    form = dict(prompt="a fox", model="fox", label="", frames=2, size="16x16", steps=3, guidance=2.0, negative="")
    form = {**form, "seed": "5", "strength": 0.7, "content": None, **fields}

    async def run():
        return [shown async for shown in page.make(**form, request=gr.Request(username=user))]

    return asyncio.run(run())


def test_a_video_of_the_page_is_its_users_alone(serving, page):
    names = ["ann", "bob"]
    for name in names:
        serving.keys.add(name)
    ann, bob = (gr.Request(username=name) for name in names)
    worker = threading.Thread(target=lambda: [serving.worker.run_next() for _ in range(200) if not stop.wait(0.05)])
    stop = threading.Event()
    worker.start()
    shown = make(page, "ann", prompt='a "fox" <script>')
    stop.set()
    worker.join()
    id, line, player, done = shown[-1]
    assert line == "completed, seed 5" and done == id
    assert "data:video/mp4;base64," in player and "<script" not in player and 'a "fox' not in player

    assert [choice[1] for choice in page.list_videos(ann)["choices"]] == [id]
    assert page.list_videos(bob)["choices"] == []
    assert page.show(id, ann)[1]["seed"] == 5 and page.again(id, ann)[1] == 'a "fox" <script>'
    for function in (page.show, page.again, page.remove):
        with pytest.raises(gr.Error, match="no such video"):
            function(id, bob)
    assert "no such video" in page.stop(id, bob)
    assert page.remove(id, ann)["choices"] == []
    with pytest.raises(gr.Error, match="more than the 4"):
        make(page, "ann", frames=6)
    serving.keys.remove("ann")
    with pytest.raises(gr.Error, match="log in again"):
        page.list_videos(ann)


def fields_of(page, kind):
    return [field for field in page.build().blocks.values() if isinstance(field, kind)]


def test_files_of_the_page_are_bounded_before_they_are_read(serving, generator, tmp_path):
    orders = Orders(serving.jobs, {"fox": make_card("fox", generator, "images")})
    found = fields_of(Page(serving.jobs, orders, Guard(serving.keys, require_keys=True)), gr.File)
    assert len(found) == 3  # of Make, Edit and Tune
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"x")
    large.write_bytes(b"x" * (serving.jobs.limits.upload + 1))
    cases = ((small, 1), (small, MAX_PICTURES + 1), (large, 1))
    one, many, much = (ListFiles([FileData(path=str(file))] * count) for file, count in cases)
    for field in found:
        assert field.preprocess(one) in (b"x", [b"x"])
        for refused in (many, much):
            with pytest.raises(gr.Error, match="are the most"):
                field.preprocess(refused)


def test_a_drawing_is_bounded_and_read_as_a_picture_of_strangers(serving, generator, tmp_path):
    orders = Orders(serving.jobs, {"fox": make_card("fox", generator)})
    (editor,) = fields_of(Page(serving.jobs, orders, Guard(serving.keys, require_keys=True)), gr.ImageEditor)
    assert not editor.accept_blobs  # which would make room for any number of layers, and keep them
    painted, file = np.zeros((6, 8, 4), np.uint8), tmp_path / "layer.png"
    painted[1:3, 2:5] = 255
    Image.fromarray(painted).save(file)
    sent = lambda count: editor.preprocess(EditorData(layers=[FileData(path=str(file))] * count))
    np.testing.assert_array_equal(read_mask(find_mask(sent(1), "", (6, 8)), (6, 8)), painted[..., 3] > 0)
    with pytest.raises(gr.Error, match="are the most"):
        sent(100)
    file.write_bytes(EPS)
    with pytest.raises(gr.Error, match="can't be read"):  # Pillow would start Ghostscript
        find_mask(sent(1), "", (6, 8))


def test_no_size_is_opened_that_is_not_made(serving, page):
    serving.keys.add("eve")
    file = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(file, "PNG")
    eve = gr.Request(username="eve")
    assert asyncio.run(page.edit_tab.open(file.getvalue(), "fox", "16 x 16", eve))["layers"] == []
    with pytest.raises(gr.Error, match="more than the 1024 pixels"):
        asyncio.run(page.edit_tab.open(file.getvalue(), "fox", "512x512", eve))


def test_the_page_wants_a_name_and_its_key(serving, client):
    one = client()
    name, token = serving.keys.find(one.token).name, one.token
    one.headers.pop("authorization")
    serving.keys.add("other")
    assert one.get("/page/config").status_code == 401
    assert one.post("/page/gradio_api/queue/join", json={}).status_code == 401
    for wrong in ((name, "vj-wrong"), ("other", token), ("", "")):
        assert one.post("/page/login", data=dict(zip(("username", "password"), wrong))).status_code in (400, 422)
    assert one.get("/page/config").status_code == 401
    assert one.post("/page/login", data=dict(username=name, password=token)).status_code == 200
    assert one.get("/page/config").status_code == 200
    assert one.get("/v1/videos").status_code == 401  # the page's cookie opens the page alone
    serving.keys.remove(name)
    assert one.get("/page/config").status_code == 401
    token = serving.keys.add(name)
    assert one.get("/page/config").status_code == 401  # another key is another session
    assert one.post("/page/login", data=dict(username=name, password=token)).status_code == 200
    assert one.get("/page/config").status_code == 200
    one.headers["authorization"] = f"Bearer {token}"


def test_what_a_user_uploads_to_the_page_is_bounded(serving, client):
    def log_in():
        one = client()
        login = dict(username=serving.keys.find(one.token).name, password=one.token)
        assert one.post("/page/login", data=login).status_code == 200
        return one

    send = lambda one, **more: one.post("/page/gradio_api/upload", **more).status_code
    one, other, small = log_in(), log_in(), dict(files={"files": ("x", b"x")})
    found = [send(one, **small) for _ in range(20)]
    assert found[0] == 200 and found[-1] == 429 and found == sorted(found)
    assert send(other, **small) == 200
    type_ = {"content-type": "multipart/form-data; boundary=x"}
    assert send(other, content=iter([b"--x"]), headers=type_) == 411
    both = type_ | {"content-length": "3", "transfer-encoding": "chunked"}
    assert send(other, content=iter([b"--x"]), headers=both) == 411
    assert other.post("/page/gradio_api/process_recording", files={"video": b"x"}).status_code == 404
    assert other.get("/page/gradio_api/deep_link?session_hash=x").status_code == 404
