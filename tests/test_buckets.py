"""Paths in a bucket behave as those of a disk; logs grow, leases exclude, and every fault is one line."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fnmatch import fnmatchcase as fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import aa_flax
from aa_flax import bucket_client
from aa_flax.buckets import BucketPath, any_path
from aa_flax.files import whole_directory, write_atomically
from aa_flax.weights.config import WEIGHTS_NAME
from aa_flax.weights.names import obtain
from aa_flax.weights.safetensors_file import read_safetensors
from tests.emulator import BUCKET, emulator
from train.__main__ import main
from train.errors import CommandError
from train.fit import appending, lease
from train.fit.appending import GrowingObject, open_growing
from train.fit.lease import Lease
from train.fit.rundir import claimed


@pytest.fixture(scope="module")
def server():
    with emulator() as environment:
        yield environment


@pytest.fixture
def bucket(server, monkeypatch, request) -> BucketPath:
    """A fresh directory of the emulator's bucket."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bucket_client, "_thread", threading.local())
    return BucketPath(f"gs://{BUCKET}") / str(abs(hash(request.node.name)))


@pytest.mark.parametrize("text", ["gs://b/a/c", "gs:/b/a/c", "gs://b//a/c/", Path("gs://b/a/c")])
def test_an_address_keeps_its_form(text):
    path = any_path(text)
    assert isinstance(path, BucketPath)
    assert (str(path), os.fspath(path), path.name, str(path.parent)) == ("gs://b/a/c", "gs://b/a/c", "c", "gs://b/a")
    assert path == BucketPath("gs://b") / "a" / "c"
    assert len({path, any_path("gs://b/a/c")}) == 1
    assert path.absolute() is path


def test_other_paths_are_those_of_the_disk():
    assert any_path("a/b") == Path("a/b")
    with pytest.raises(ValueError, match=r"s3://b/a: no path of this machine, and s3:// is not supported here"):
        any_path("s3://b/a")
    with pytest.raises(ValueError, match="begins with gs://BUCKET/"):
        BucketPath("b/a")


def test_it_behaves_as_a_path_of_the_disk(bucket, tmp_path):
    def history(root) -> list[object]:
        seen: list[object] = [root.exists(), (root / "a").is_file()]
        write_atomically(root / "a", b"one")
        write_atomically(root / "below" / "b.txt", "zwei ü\n".encode())
        write_atomically(root / "a", b"two")
        with whole_directory(root / "whole", last="z") as fresh:
            (fresh / "z").write_bytes(b"last")
            (fresh / "y").write_bytes(b"first")
        with suppress(RuntimeError), whole_directory(root / "never", last="z") as fresh:
            (fresh / "z").write_bytes(b"")
            raise RuntimeError
        seen += [(root / "a").read_bytes(), (root / "below" / "b.txt").read_text(encoding="utf-8")]
        for name in ("a", "below", "below/b.txt", "bel", "whole/y", "none", "never"):
            path = root / name
            seen += [name, path.exists(), path.is_file(), path.is_dir()]
        seen += [sorted(path.name for path in root.iterdir()), [path.name for path in root.glob("b*")]]
        seen += [(root / "a").stat().st_size]
        (root / "touched").touch()
        seen += [(root / "touched").read_bytes()]
        (root / "touched").unlink()
        (root / "touched").unlink(missing_ok=True)
        with pytest.raises(FileNotFoundError) as missing:
            (root / "touched").unlink()
        with pytest.raises(FileNotFoundError):
            (root / "touched").read_bytes()
        assert missing.value.filename == str(root / "touched") or isinstance(root, Path)
        return [*seen, (root / "touched").exists()]

    assert history(bucket) == history(tmp_path / "root")


def test_a_tree_moves_as_a_whole_and_its_mark_first(bucket):
    for name in ("mark", "a", "deep/b"):
        (bucket / "one" / name).write_bytes(name.encode())
    order: list[str] = []
    (bucket / "one").move_tree(bucket / "other", first=["mark"])
    order += [path.name for path in (bucket / "other").iterdir()]
    assert order == ["a", "deep", "mark"]
    assert (bucket / "other" / "deep" / "b").read_bytes() == b"deep/b"
    assert not (bucket / "one").exists()
    (bucket / "other").rmtree()
    assert not (bucket / "other").exists()


def test_only_the_state_that_is_named_is_replaced(bucket):
    path = bucket / "object"
    first = path.write_bytes(b"1", generation=0)
    with pytest.raises(FileExistsError, match="somebody else has written it meanwhile"):
        path.write_bytes(b"2", generation=0)
    second = path.write_bytes(b"22", generation=first.generation)
    assert (second.size, second.generation == first.generation) == (2, False)
    with pytest.raises(FileExistsError):
        path.write_bytes(b"3", generation=first.generation)
    assert path.stat().generation == second.generation


def test_a_log_grows_without_being_written_again(bucket, monkeypatch):
    sent: list[int] = []
    write = BucketPath.write_bytes

    def counted(self, content, **options):
        sent.append(len(content))
        return write(self, content, **options)

    monkeypatch.setattr(BucketPath, "write_bytes", counted)
    path, words = bucket / "metrics.jsonl", [f"line {i}\n" for i in range(40)]
    log = open_growing(path)
    for i, word in enumerate(words):
        log.write(word)
        if i % 4 == 3:
            log.flush()
    log.close()
    assert path.read_text() == "".join(words)
    assert sum(sent) == len("".join(words))
    again = open_growing(path)
    again.write("more\n")
    assert path.read_text() == "".join(words)
    monkeypatch.setattr(appending, "UPLOAD_SECONDS", -1.0)
    again.write("and more\n")
    assert path.read_text() == "".join(words) + "more\nand more\n"
    assert [path.name for path in bucket.iterdir()] == ["metrics.jsonl"]


def test_what_a_killed_process_has_left_of_a_part_is_removed(bucket):
    (bucket / "log").write_bytes(b"whole\n")
    (bucket / "log.part-1234").write_bytes(b"half\n")
    open_growing(bucket / "log").close()
    assert [path.name for path in bucket.iterdir()] == ["log"]
    assert (bucket / "log").read_bytes() == b"whole\n"


def test_a_log_that_is_removed_begins_anew(bucket):
    log = open_growing(bucket / "log")
    log.write("old\n")
    log.flush()
    (bucket / "log").unlink()
    log.write("new\n")
    log.close()
    assert (bucket / "log").read_bytes() == b"new\n"


def test_an_answer_that_was_lost_is_not_written_twice(bucket, monkeypatch):
    log = GrowingObject(bucket / "log")
    append = BucketPath.append

    def repeated(self, part, **options):
        append(self, part, **options)
        raise FileExistsError(17, "", str(self))

    log.write("a\n")
    log.flush()
    monkeypatch.setattr(BucketPath, "append", repeated)
    log.write("b\n")
    log.flush()
    assert (bucket / "log").read_bytes() == b"a\nb\n"
    (bucket / "log").write_bytes(b"another process\n")
    monkeypatch.setattr(BucketPath, "append", lambda self, part, **options: repeated(self, self, **options))
    log.write("c\n")
    with pytest.raises(FileExistsError, match="another process has written to it"):
        log.flush()


def test_a_directory_is_trained_in_by_one_run(bucket):
    run_dir = bucket / "run"
    with claimed(run_dir):
        with pytest.raises(CommandError) as refused, claimed(run_dir):
            pass
        message = str(refused.value)
        assert f"--run-dir {run_dir}: another process is training in it: process {os.getpid()} of" in message
        assert "has said so" in message
        assert "takes over after" in message
        assert "\n" not in message
    assert not run_dir.exists()
    with claimed(run_dir) as claim:
        claim.check()


def test_of_many_only_one_gets_it(bucket):
    held = []

    def take(_):
        try:
            held.append(Lease(bucket, ".lock"))
        except CommandError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(8))) == 1
    held[0].release()
    held[0].release()
    assert not bucket.exists()


def left_behind(path: BucketPath, **changes: object) -> None:
    """The lease of a process that can renew it no more."""
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    about = {**lease._about_this_process(), "pid": int(ended.stdout), "process": "another", "host": "elsewhere"}
    path.write_bytes(json.dumps({**about, **changes}).encode())


def test_that_of_a_dead_process_of_this_machine_is_taken_over_at_once(bucket):
    for changes in ({}, {"pid": os.getpid()}):
        left_behind(bucket / ".lock", **changes)
        Lease(bucket, ".lock").release()


@pytest.mark.parametrize("content", [None, b"no JSON", b"[]", b'{"pid": "x"}'])
def test_that_of_another_machine_only_when_it_is_stale(bucket, monkeypatch, content):
    left_behind(bucket / ".lock", machine="another")
    if content is not None:
        (bucket / ".lock").write_bytes(content)
    with pytest.raises(CommandError, match="on elsewhere" if content is None else "does not say its name"):
        Lease(bucket, ".lock")
    monkeypatch.setattr(lease, "STALE_SECONDS", -1.0)
    Lease(bucket, ".lock").release()
    assert not bucket.exists()


def test_who_has_lost_it_writes_no_more(bucket):
    held = Lease(bucket, ".lock")
    left_behind(bucket / ".lock", machine="another")
    held._renew()
    with pytest.raises(CommandError, match=r"process \d+ of .* on elsewhere has taken it over"):
        held.check()
    held.release()
    assert (bucket / ".lock").exists()


def test_it_is_renewed_also_where_it_was_removed_or_an_answer_was_lost(bucket, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    held = Lease(bucket, ".lock")
    before = (bucket / ".lock").stat().generation
    while (bucket / ".lock").stat().generation == before:
        pass
    held._over.set()
    held._thread.join()
    (bucket / ".lock").write_bytes(json.dumps(held._content).encode())
    held._renew()
    (bucket / ".lock").unlink()
    held._renew()
    held.check()
    assert json.loads((bucket / ".lock").read_bytes())["token"] == held._content["token"]


def test_out_of_reach_for_too_long_it_is_given_up(bucket, monkeypatch):
    held = Lease(bucket, ".lock")
    held._renewed -= 2 * lease.STALE_SECONDS
    monkeypatch.setattr(Lease, "_renew", lambda self: None)
    with pytest.raises(CommandError, match=r"out of reach for 12\d s"):
        held.check()
    monkeypatch.undo()
    held.release()


def faulty(status: int, body: bytes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            if status == 0:
                self.close_connection = True
                threading.Event().wait(3)
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, format: str, *args: object):
            """Keeps the test's output clean."""

    return Handler


FAULTS = [
    (404, b"Not Found", "there is no bucket a-bucket"),
    (403, b'{"error": {"message": "me@x lacks storage.buckets.get"}}', "permission denied (*storage.buckets.get*)"),
    (401, b'{"error": {"message": "Anonymous caller"}}', "no credentials that Google accepts (*"),
    (503, b"busy", "the storage service has failed (*busy*)"),
    (0, b"", "the storage service does not answer"),
]


@pytest.mark.parametrize(("status", "body", "expected"), FAULTS, ids=[str(fault[0]) for fault in FAULTS])
def test_every_fault_of_a_bucket_is_one_line(monkeypatch, capsys, tmp_path, status, body, expected):
    monkeypatch.setattr(bucket_client, "_thread", threading.local())
    for name in ("FIRST_SECONDS", "ANSWER_SECONDS", "PATIENCE_SECONDS"):
        monkeypatch.setattr(bucket_client, name, 0.2)
    with ThreadingHTTPServer(("127.0.0.1", 0), faulty(status, body)) as http:
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{http.server_port}")
        line = refused(capsys, "fit", "--run-dir", f"gs://{BUCKET}/x")
        assert fnmatch(line, f"error: --run-dir gs://{BUCKET}/x cannot be written to: {expected}")
        monkeypatch.setenv("AA_FLAX_CACHE", str(tmp_path))
        missing = expected.replace("there is no bucket a-bucket", "there is no such object")
        weights = ("--model", "resnet18", "--weights", f"gs://{BUCKET}/w", "--data", str(tmp_path))
        line = refused(capsys, "evaluate", *weights)
        assert fnmatch(line, f"error: --weights: gs://{BUCKET}/w*: {missing}")
        line = refused(capsys, "export", f"gs://{BUCKET}/x", "--output", str(tmp_path / "out"))
        assert fnmatch(line, f"error: gs://{BUCKET}/x/config.json cannot be read: {missing}")
        http.shutdown()


def refused(capsys, *words: str) -> str:
    assert main(words) == 2
    *before, error = capsys.readouterr().err.splitlines()
    assert all(line.startswith("getting gs://") for line in before)
    return error


def test_no_server_at_all_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(bucket_client, "_thread", threading.local())
    monkeypatch.setattr(bucket_client, "FIRST_SECONDS", 0.2)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    assert "the storage service cannot be reached" in refused(capsys, "fit", "--run-dir", f"gs://{BUCKET}/x")


def test_credentials_that_are_none_are_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bucket_client, "_thread", threading.local())
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    line = refused(capsys, "fit", "--run-dir", f"gs://{BUCKET}/x")
    assert "no credentials that Google accepts" in line
    assert "gcloud auth application-default login" in line


@pytest.mark.parametrize("package", ["gcsfs", "google.cloud"])
def test_packages_that_are_missing_are_named(monkeypatch, capsys, package):
    monkeypatch.setattr(bucket_client, "_thread", threading.local())
    monkeypatch.setitem(sys.modules, package, None)
    assert "pip install 'aa_flax[gcs]'" in refused(capsys, "fit", "--run-dir", f"gs://{BUCKET}/x")


def test_the_library_takes_addresses(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("AA_FLAX_CACHE", str(tmp_path / "cache"))
    saved = Path(__file__).parents[1] / "weights" / "mobilenet_v2_plain-cifar10"
    (bucket / "w").upload_tree(saved)
    assert aa_flax.read_config(f"{bucket}/w") == aa_flax.read_config(saved)
    model = aa_flax.load_pretrained(f"{bucket}/w")
    assert str(aa_flax.save_pretrained(model, f"{bucket}/again")) == f"{bucket}/again"
    with pytest.raises(FileExistsError, match=r"already holds config\.json"):
        aa_flax.save_pretrained(model, f"{bucket}/again", overwrite=False)
    written, expected = (read_safetensors(path)[0] for path in (obtain(f"{bucket}/again").path, saved / WEIGHTS_NAME))
    assert written.keys() == expected.keys()
    assert all((written[name] == array).all() for name, array in expected.items())


def test_what_was_fetched_is_fetched_again_when_it_has_changed(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("AA_FLAX_CACHE", str(tmp_path / "cache"))
    saved = Path(__file__).parents[1] / "weights" / "mobilenet_v2_plain-cifar10"
    (bucket / "w").upload_tree(saved)
    names = (f"{bucket}/w", Path(f"{bucket}/w"), f"{bucket}/w/{WEIGHTS_NAME}")
    (kept,) = {obtain(name).path for name in names}
    assert kept.read_bytes() == (saved / WEIGHTS_NAME).read_bytes()
    (bucket / "w" / WEIGHTS_NAME).upload(saved / WEIGHTS_NAME)
    again = obtain(f"{bucket}/w").path
    assert again != kept
    monkeypatch.setattr(BucketPath, "download", None)
    assert obtain(f"{bucket}/w").path == again


def test_weights_that_are_not_there_are_named(bucket, capsys, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{bucket}/none/.*there is no such object"):
        aa_flax.load_pretrained(f"{bucket}/none")
    (bucket / "run" / "checkpoints" / "1").touch()
    words = ("evaluate", "--data", str(tmp_path), "--weights", f"{bucket}/run")
    assert f"--weights {bucket}/run is the directory of a run: export its weights first" in refused(capsys, *words)
