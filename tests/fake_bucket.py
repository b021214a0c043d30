"""Buckets in memory, over HTTP on this machine: as much of Cloud Storage's JSON API as its clients ask of it."""

import base64
import itertools
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

import google_crc32c

TIME = "2026-01-01T00:00:00.000000Z"


class Buckets(ThreadingHTTPServer):
    """`objects[bucket][name]` is (generation, bytes); `written` are the names of all, in order. What starts with a name
    in `refused` may only be read."""

    daemon_threads = True

    def __init__(self, *names: str):
        super().__init__(("127.0.0.1", 0), Request)
        self.objects: dict[str, dict[str, tuple[int, bytes]]] = {name: {} for name in names}
        self.uploads, self.numbers = {}, itertools.count(1)
        self.refused: tuple[str, ...] = ()
        self.written: list[str] = []
        self.lock, self.asked = threading.Lock(), 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def put(self, bucket: str, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            self.objects[bucket][name] = (next(self.numbers), data)
            self.written.append(name)

    def remove(self, bucket: str, name: str) -> None:
        del self.objects[bucket][name]

    def files(self, bucket: str, folder: str) -> dict[str, bytes]:
        """What lies in a folder, by path in it; an object itself is at ""."""
        with self.lock:
            there = {
                name.removeprefix(folder): data
                for name, (_, data) in self.objects[bucket].items()
                if name == folder or name.startswith(f"{folder}/")
            }
        return {name.removeprefix("/"): data for name, data in there.items()}

    def handle_error(self, request, client_address) -> None:
        """Clients hang up on what they no longer want to know."""

    def env(self) -> dict[str, str]:
        """Of a program that is to take these buckets for Google's."""
        url = f"http://127.0.0.1:{self.server_port}"
        return {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "FSSPEC_GCS_TOKEN": "anon",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google itself of what kind a bucket is
            "NO_GCE_CHECK": "true",
        }


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Buckets

    def log_message(self, format, *args):
        pass

    def answer(self, status: int, body: object = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(data))}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def error(self, status: int, message: str) -> None:
        self.answer(status, {"error": {"code": status, "message": message}})

    def about(self, bucket: str, name: str) -> dict[str, str]:
        generation, data = self.server.objects[bucket][name]
        crc = base64.b64encode(google_crc32c.Checksum(data).digest()).decode()
        link = f"http://{self.headers['Host']}/download/storage/v1/b/{bucket}/o/{name}?alt=media"
        times = {"timeCreated": TIME, "updated": TIME, "mediaLink": link}
        return {"bucket": bucket, "name": name, "size": str(len(data)), "generation": str(generation)} | {
            "metageneration": "1", "crc32c": crc, "etag": str(generation), **times
        }  # fmt: skip

    def put(self, bucket: str, name: str, data: bytes, asked: dict[str, str]) -> None:
        there = self.server.objects[bucket].get(name, (0,))[0]
        if name.startswith(self.server.refused or ("\0",)):
            return self.error(403, "does not have storage.objects.create access")
        if int(asked.get("ifGenerationMatch", there)) != there:
            return self.error(412, "conditionNotMet")
        self.server.put(bucket, {name: data})
        self.answer(200, self.about(bucket, name))

    def list(self, bucket: str, asked: dict[str, str]) -> None:
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter")
        items, folders = [], set()
        for name in sorted(self.server.objects[bucket]):
            if name.startswith(prefix) and asked.get("startOffset", "") <= name < asked.get("endOffset", "\U0010ffff"):
                head, found, _ = name[len(prefix) :].partition(delimiter or "\0")
                if found:
                    folders.add(prefix + head + found)
                else:
                    items.append(self.about(bucket, name))
        self.answer(200, {"items": items[: int(asked.get("maxResults", 10**6))], "prefixes": sorted(folders)})

    def read(self, bucket: str, name: str, asked: dict[str, str]) -> None:
        if asked.get("alt") != "media":
            return self.answer(200, self.about(bucket, name))
        generation, data = self.server.objects[bucket][name]
        if asked.get("ifGenerationNotMatch") == str(generation):
            return self.answer(304)
        status, headers = 200, {"x_goog_generation": str(generation), "Content_Type": "application/octet-stream"}
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(found[1]), min(int(found[2] or len(data)), len(data) - 1)
            if start >= len(data):
                return self.error(416, "requested range not satisfiable")
            headers["Content_Range"] = f"bytes {start}-{end}/{len(data)}"
            status, data = 206, data[start : end + 1]
        self.answer(status, data, **headers)

    def upload(self, bucket: str, asked: dict[str, str], data: bytes) -> None:
        kind = asked.get("uploadType")
        if number := asked.get("upload_id"):
            name, pieces = self.server.uploads[number]
            pieces.append(data)
            size = sum(map(len, pieces))
            if self.headers["Content-Range"].endswith("/*"):
                return self.answer(308, Range=f"bytes=0-{size - 1}")
            self.put(bucket, name, b"".join(pieces), asked)
        elif kind == "resumable":
            name, number = asked.get("name") or json.loads(data)["name"], str(next(self.server.numbers))
            self.server.uploads[number] = (name, [])
            self.answer(200, Location=f"http://{self.headers['Host']}{self.path}&upload_id={number}")
        elif kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            end = b"\r\n" if b"\r\n\r\n" in data.split(boundary)[1] else b"\n"
            about, content = (part.partition(2 * end)[2] for part in data.split(b"--" + boundary)[1:3])
            self.put(bucket, json.loads(about)["name"], content.removesuffix(end), asked)
        else:
            self.put(bucket, asked["name"], data, asked)

    def handle_one(self) -> None:
        url, data = urlsplit(self.path), self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = dict(parse_qsl(url.query))
        found = re.fullmatch(r"(?:/upload|/download)?/storage/v1/b/([^/]+)(/o)?(?:/([^/]+))?(?:/(\w+)/(.+))?", url.path)
        bucket, name, verb, target = (unquote(part or "") for part in found.group(1, 3, 4, 5))
        with self.server.lock:
            self.server.asked += 1
            if bucket not in self.server.objects:
                return self.error(404, "The specified bucket does not exist.")
            if url.path.startswith("/upload"):
                return self.upload(bucket, asked, data)
            if not name:
                return self.list(bucket, asked) if found[2] else self.answer(200, {"name": bucket})
            if name not in self.server.objects[bucket]:
                return self.error(404, f"No such object: {bucket}/{name}")
            if verb in ("moveTo", "rewriteTo"):
                to = target.removeprefix("o/") if verb == "moveTo" else target.partition("/o/")[2]
                content = self.server.objects[bucket][name][1]
                self.server.put(bucket, {to: content})
                if verb == "moveTo":
                    del self.server.objects[bucket][name]
                    return self.answer(200, self.about(bucket, to))
                return self.answer(200, {"done": True, "resource": self.about(bucket, to)})
            if self.command == "DELETE":
                del self.server.objects[bucket][name]
                return self.answer(204)
            self.read(bucket, name, asked)

    do_GET = do_POST = do_PUT = do_DELETE = handle_one
