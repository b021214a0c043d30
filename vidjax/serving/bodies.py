"""Reads the body of a request: fields as JSON or as a form, and in a form its files."""

from collections.abc import Collection
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile

from vidjax.errors import printable
from vidjax.runtime.limits import from_json
from vidjax.serving.refused import Refused
from vidjax.serving.requests import invalid

MAX_FIELDS, MAX_FIELD_BYTES = 32, 2**16  # of a form
MAX_JSON = 2**20  # bytes
FORM_BYTES = 2**20  # around an uploaded file
FILE, MASK = "input_reference", "mask"


async def read_fields(
    request: Request, most: int, names: Collection[str] = (FILE,)
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Reads the fields of a request, and the files of these names that it uploads, each of up to `most` bytes. Raises
    Refused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        return await read_form(request, most, names)
    if kind != "application/json":
        raise Refused(415, "unsupported_media_type", "send application/json or multipart/form-data")
    body = b""
    async for part in request.stream():
        if len(body := body + part) > MAX_JSON:
            raise Refused(413, "too_large", f"{MAX_JSON} bytes of JSON are the most")
    try:
        fields = from_json(body)
    except ValueError as error:
        raise invalid(f"the body is no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise invalid("the body is no JSON object")
    fields = {name: value for name, value in fields.items() if value is not None}
    check_files(fields, names)
    return fields, {}


async def read_form(request: Request, most: int, names: Collection[str]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Reads a form."""
    async with request.form(max_files=len(names), max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES) as form:
        sent = {name: value for name, value in form.items() if isinstance(value, UploadFile)}
        if others := sorted(set(sent) - set(names)):
            raise invalid(f"{printable(others[0])[:80]} is no file that is read; there are {', '.join(names)}")
        fields = {name: value for name, value in form.items() if name not in sent}
        check_files(fields, names)
        files = {name: await file.read(most + 1) for name, file in sent.items()}
    for name, content in files.items():
        if not content:
            raise invalid(f"{name} is empty")
        if len(content) > most:
            raise Refused(413, "too_large", f"{name} has more than {most} bytes")
    return fields, files


def check_files(fields: Collection[str], names: Collection[str]) -> None:
    """Raises Refused for a field in place of a file."""
    for name in names:
        if name in fields:
            raise invalid(f"{name} is a file in a form: addresses, paths and file ids are not read")


def idempotency_of(request: Request) -> str | None:
    """Returns the key under which a request may be sent again. Raises Refused for one that is too long."""
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= 255:
        raise invalid("Idempotency-Key has 1 to 255 characters")
    return key
