"""Reads the body of a request: fields as JSON or as a form, and in a form one file."""

from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile

from vidjax.runtime.limits import from_json
from vidjax.serving.refused import Refused
from vidjax.serving.requests import invalid

MAX_FIELDS, MAX_FIELD_BYTES = 32, 2**16  # of a form
MAX_JSON = 2**20  # bytes
FORM_BYTES = 2**20  # around an uploaded file
FILE = "input_reference"


async def read_fields(request: Request, most: int) -> tuple[dict[str, Any], bytes | None]:
    """Reads the fields of a request, and the file that it uploads, of up to `most` bytes. Raises Refused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        return await read_form(request, most)
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
    if fields.get(FILE) is not None:
        raise invalid(f"{FILE} is a file in a form: addresses, paths and file ids are not read")
    return {name: value for name, value in fields.items() if value is not None}, None


async def read_form(request: Request, most: int) -> tuple[dict[str, Any], bytes | None]:
    """Reads a form."""
    async with request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES) as form:
        fields, content = dict(form), None
        if FILE in fields:
            file = fields.pop(FILE)
            if not isinstance(file, UploadFile):
                raise invalid(f"{FILE} is a file in a form: addresses, paths and file ids are not read")
            content = await file.read(most + 1)
        if any(isinstance(value, UploadFile) for value in fields.values()):
            raise invalid(f"the only file of a request is {FILE}")
    if content is not None and not content:
        raise invalid(f"{FILE} is empty")
    if content is not None and len(content) > most:
        raise Refused(413, "too_large", f"{FILE} has more than {most} bytes")
    return fields, content


def idempotency_of(request: Request) -> str | None:
    """Returns the key under which a request may be sent again. Raises Refused for one that is too long."""
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= 255:
        raise invalid("Idempotency-Key has 1 to 255 characters")
    return key
