"""A disk that is full neither stops nor blocks who writes logs, and costs no line of them."""

import contextlib
import json
import logging
import resource
import sys
import threading

from absl import logging as absl_logging

from vidjax.runtime import log_file
from vidjax.runtime.aside import send_aside
from vidjax.runtime.log_file import LogFile
from vidjax.runtime.processes import say
from vidjax.training.telemetry import Telemetry


@contextlib.contextmanager
def full_at(size):
    """No file grows beyond `size` bytes: the error comes in the middle of a write, as that of a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_a_full_disk_did_not_take_is_written_later(tmp_path, capsys):
    log = LogFile(tmp_path / "logs" / "a.log")
    with full_at(25):
        for i in range(5):
            log.append(b"%09d\n" % i)
    assert log.path.stat().st_size == 25
    log.append(b"%09d\n" % 5)
    with full_at(61):
        log.append(b"%09d\n" % 6)
    log.close()
    assert log.path.read_bytes() == b"".join(b"%09d\n" % i for i in range(7))
    assert capsys.readouterr().err.count("warning: ") == 2  # one for each time that it was full


def test_memory_is_bounded_and_records_stay_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(log_file, "MAX_WAITING_BYTES", 35)
    log = LogFile(tmp_path / "a.log")
    with full_at(5):
        for i in range(6):
            log.append(b"%09d\n" % i)
    log.close()
    assert log.path.read_bytes() == b"".join(b"%09d\n" % i for i in range(4)) and log.lost == 2


def test_a_run_logs_through_a_full_disk(tmp_path, capsys):
    from tensorboardX.proto.event_pb2 import Event

    telemetry = Telemetry(tmp_path, "diffusion", 40)
    with full_at(400):
        for step in range(1, 31):  # three times the queue of tensorboardX
            telemetry.log(step, {"loss": 1 / step})
        telemetry.flush()
    telemetry.log(31, {"loss": 1 / 31})
    telemetry.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 32))
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, steps = path.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        steps += [event.step for value in event.summary.value if value.tag == "loss"]
        data = data[16 + length :]
    assert steps == list(range(1, 32))
    assert capsys.readouterr().err.count("warning: ") == 2  # one a file


def test_a_reader_that_is_gone_does_not_stop_a_run(monkeypatch):
    class Gone:
        def write(self, text):
            raise BrokenPipeError

        flush = write

    monkeypatch.setattr(sys, "stdout", Gone())
    say("diffusion 1/2")


class Falls:
    def __del__(self):
        raise KeyError("nobody gets it")


def test_tracebacks_of_libraries_go_to_a_file(tmp_path, monkeypatch, capfd):
    for module, name in ((threading, "excepthook"), (sys, "unraisablehook")):
        monkeypatch.setattr(module, name, getattr(module, name))
    handler = absl_logging.get_absl_handler()
    file, root = tmp_path / "errors.log", logging.getLogger()
    send_aside(file)
    root.addHandler(handler)
    assert not file.exists()
    try:
        for name in ("absl", "library", "vidjax.data"):
            try:
                raise OSError("the disk is full")
            except OSError:
                logging.getLogger(name).exception("in %s", name)
        logging.getLogger("vidjax.data").warning("clip 1 is left out")
        threads = [threading.Thread(target=lambda: 1 / 0, name="saver") for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        Falls()
    finally:
        root.removeHandler(handler)
        handler.filters.clear()
    told, said = file.read_text(), capfd.readouterr().err
    assert (
        told.count("Traceback") == 43
        and "KeyError" in told
        and "in library" in told
        and "ZeroDivisionError" in told
        and "saver" in told
    )
    assert said.count("Traceback") == 1 and "in vidjax.data" in said and "clip 1 is left out" in said
