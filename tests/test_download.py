"""Downloads from servers that do everything wrong: one line that says so, and nothing half-written."""

import errno
import hashlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from aa_flax.weights import download as downloads
from aa_flax.weights.download import DownloadError, SourceError, download
from tests.loopback import Server, loopback

BODY = bytes(range(256)) * 3000
DIGEST = hashlib.sha256(BODY).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def server() -> Iterator[Server]:
    with loopback() as server:
        server.files["/good.pth"] = BODY
        yield server


def get(server: Server, tmp_path: Path, name: str = "good.pth", *, prefix: str = DIGEST[:8], **options) -> Path:
    path = tmp_path / name
    download([f"{server.address}/{name}"], path, sha256_prefix=prefix, **options)
    return path


def test_a_good_server(server: Server, tmp_path: Path):
    seen: list[tuple[int, int | None]] = []
    path = get(server, tmp_path / "new", progress=lambda *args: seen.append(args))
    assert path.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert sorted(file.name for file in path.parent.iterdir()) == ["good.pth", "good.pth.sha256"]


def test_a_second_call_asks_nobody(server: Server, tmp_path: Path):
    for _ in range(2):
        get(server, tmp_path)
    assert server.requests == ["/good.pth"]


def test_a_damaged_file_is_replaced(server: Server, tmp_path: Path):
    (tmp_path / "good.pth").write_bytes(BODY[:-1])
    assert get(server, tmp_path).read_bytes() == BODY


def test_the_next_address_is_asked_where_one_fails(server: Server, tmp_path: Path):
    server.files["/altered.pth"] = BODY
    server.faults["altered"] = "altered"
    addresses = [f"{server.address}/{name}" for name in ("missing.pth", "altered.pth", "good.pth", "never.pth")]
    assert download(addresses, tmp_path / "x.pth", sha256_prefix=DIGEST[:8]) == DIGEST
    assert server.requests == ["/missing.pth", "/altered.pth", "/good.pth"]
    with pytest.raises(DownloadError) as caught:
        download(addresses[:2], tmp_path / "y.pth", sha256_prefix=DIGEST[:8], what="these", otherwise="Copy it there")
    altered = sha256(BODY[:-1] + b"\0")[:8]
    assert str(caught.value) == (
        f"cannot download these: {addresses[0]}: the server answers 404 Not Found; {addresses[1]}: its SHA-256 begins "
        f"with {altered} instead of {DIGEST[:8]}: it was altered. Copy it there"
    )
    assert not caught.value.offline


def test_the_whole_digest_of_the_first_use_counts_from_then_on(server: Server, tmp_path: Path):
    """Eight digits are published: files that share them are a matter of hours to a forger."""
    path, record = tmp_path / "good.pth", tmp_path / "good.pth.sha256"
    forged = next(b for n in range(1000) if sha256(b := b"%d" % n).startswith(DIGEST[:1]))
    get(server, tmp_path, prefix=DIGEST[:1])
    assert record.read_text() == DIGEST + "\n"
    path.write_bytes(forged)
    assert get(server, tmp_path, prefix=DIGEST[:1]).read_bytes() == BODY
    for kept in (sha256(forged), "nonsense", ""):
        record.write_text(kept)
        path.write_bytes(BODY)
        with pytest.raises(DownloadError, match=rf"is {DIGEST}, but was '{kept}' at first use \({record}\)"):
            get(server, tmp_path, prefix=DIGEST[:1])
    # Without a record the file that is there counts as the first.
    record.unlink()
    path.write_bytes(forged)
    assert get(server, tmp_path, prefix=DIGEST[:1]).read_bytes() == forged
    assert record.read_text().strip() == sha256(forged)


def test_a_cache_that_can_only_be_read(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "good.pth").write_bytes(BODY)

    def refused(*args: object):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(downloads, "write_atomically", refused)
    assert get(server, tmp_path) == tmp_path / "good.pth"
    assert [file.name for file in tmp_path.iterdir()] == ["good.pth"]


class Odd(BaseHTTPRequestHandler):
    """Answers by its path: somewhere else, without a length, or two lengths."""

    def do_GET(self):
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/chunked")
        elif self.path == "/downgraded":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/x")
        else:
            self.send_response(200)
        if self.path == "/promised":
            self.send_header("X-Linked-Etag", f'"{"0" * 64}"')
        self.end_headers()
        if self.path in ("/chunked", "/promised"):
            self.wfile.write(BODY)

    def log_message(self, format: str, *args: object):
        """Keeps the test's output clean."""


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("tests.loopback._handler", lambda server: Odd)
    with loopback() as server:
        yield server


def test_redirects_and_servers_that_do_not_tell_the_size(odd: Server, tmp_path: Path):
    seen: list[tuple[int, int | None]] = []
    assert get(odd, tmp_path, "moved", progress=lambda *args: seen.append(args)).read_bytes() == BODY
    assert seen[-1] == (len(BODY), None)
    with pytest.raises(DownloadError, match="redirects to an address without encryption, ftp://127"):
        get(odd, tmp_path, "downgraded")
    with pytest.raises(DownloadError, match=rf"SHA-256 begins with {DIGEST[:8]}, the server promised 00000000"):
        get(odd, tmp_path, "promised")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (404, "the server answers 404 Not Found"),
        (403, "the server answers 403 Forbidden"),
        (500, "the server answers 500 Internal Server Error"),
        ("cut", f"broke off after {len(BODY) // 2} of {len(BODY)} bytes"),
        ("altered", f"instead of {DIGEST[:8]}: it was altered"),
        ("mute", "no answer within 0.3 seconds"),
    ],
)
def test_failures_leave_nothing(
    fault: int | str, reason: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if fault == "mute":
        monkeypatch.setattr(downloads, "TIMEOUT_SECONDS", 0.3)
    server.faults["good"] = fault
    with pytest.raises(DownloadError) as caught:
        get(server, tmp_path)
    assert f"cannot download good.pth: {server.address}/good.pth: " in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (caught.value.refused, caught.value.offline) == (fault == 403, fault == "mute")
    assert list(tmp_path.iterdir()) == []


def test_no_server(tmp_path: Path):
    with pytest.raises(DownloadError, match=r"http://127.0.0.1:9/x.pth: no connection \(") as caught:
        download(["http://127.0.0.1:9/x.pth"], tmp_path / "x.pth")
    assert caught.value.offline
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(server: Server, tmp_path: Path):
    def interrupt(done: int, total: int | None):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(server, tmp_path, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_endless_answers_end(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(downloads, "_MAX_BYTES", 1000)
    with pytest.raises(DownloadError, match="more than any such file has"):
        get(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No other address would help: none is asked."""

    def full(address: str, file: object, **options: object):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloads, "stream", full)
    with pytest.raises(DownloadError) as caught:
        download(["http://one/x", "http://two/x"], tmp_path / "x")
    assert str(caught.value) == f"cannot keep downloads in {tmp_path}: No space left on device; set AA_FLAX_CACHE"
    assert list(tmp_path.iterdir()) == []


def test_what_a_disk_refuses_is_not_the_servers_fault(server: Server, tmp_path: Path):
    class Full:
        def write(self, chunk: bytes):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        downloads.stream(f"{server.address}/good.pth", Full())  # type: ignore[arg-type]
    assert not isinstance(caught.value, SourceError | DownloadError)


def test_a_place_that_cannot_be_written(server: Server, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match=r"cannot keep downloads in .*/file/x: .*; set AA_FLAX_CACHE"):
        get(server, tmp_path / "file" / "x")
