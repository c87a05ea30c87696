"""The published figures as data, and downloads from a server that does everything wrong."""

import dataclasses
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from aa_flax.files import cache_directory
from aa_flax.models.specs import parse_spec
from aa_flax.weights import catalog
from aa_flax.weights.catalog import DownloadError, Published
from tests.zoo import ZHANG
from train.data.datasets import DataConfig, open_dataset
from train.errors import CommandError

BODY = bytes(range(256)) * 3000
DIGEST = hashlib.sha256(BODY).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """What a path is called is what is wrong with it."""

    requests: list[str]

    def do_GET(self):
        type(self).requests.append(self.path)
        if "missing" in self.path:
            self.send_error(404)
            return
        if "moved" in self.path:
            self.send_response(302)
            self.send_header("Location", "/good.pth")
            self.end_headers()
            return
        self.send_response(200)
        if "chunked" not in self.path:
            self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:1000] if "truncated" in self.path else BODY)

    def log_message(self, format: str, *args: object):
        """Keeps the test's output clean."""


@pytest.fixture
def server() -> Iterator[str]:
    Handler.requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def entry(url: str, digest: str = DIGEST) -> Published:
    return Published(
        model="resnet18",
        filter_size=4,
        training="scratch",
        top1=71.48,
        consistency=88.07,
        sha256_prefix=digest[:8],
        url=url,
    )


class TestData:
    def test_everything_published_is_there(self):
        entries = catalog.published()
        checkpoints = [e for e in entries if e.url]
        assert (len(entries), len(checkpoints)) == (82, 59)
        assert {e.model for e in entries} == set(ZHANG)
        keys = [(e.model, e.filter_size, e.training) for e in entries]
        assert len(set(keys)) == len(keys)
        assert {e.training for e in entries} == {"scratch", "finetuned", "torchvision"}

    def test_entries_are_consistent(self):
        for e in catalog.published():
            assert parse_spec(e.spec) == (e.model, e.filter_size)
            assert 50 < e.top1 < e.consistency < 100
            assert (e.filter_size is None) == (e.training == "torchvision") == (e.url is None)
            assert (e.license == "CC BY-NC-SA 4.0") == (e.url is not None)
            if e.url:
                suffix = "_finetune" if e.training == "finetuned" else ""
                assert e.file_name == f"{e.model}_lpf{e.filter_size}{suffix}-{e.sha256_prefix}.pth"
                assert e.url.startswith("https://")

    def test_known_figures(self):
        figures = {
            ("resnet50_plain", None): (76.16, 89.20),
            ("resnet50_lpf4", "scratch"): (77.23, 91.29),
            ("resnet50_lpf4", None): (77.41, 91.32),
            ("mobilenet_v2_lpf5", None): (72.50, 87.79),
            ("densenet161", None): (77.88, 91.66),
        }
        for (spec, training), expected in figures.items():
            e = catalog.find(spec, training)
            assert (e.top1, e.consistency) == expected, spec

    def test_antialiasing_helps_every_network(self):
        for e in catalog.published():
            plain = catalog.find(f"{e.model}_plain")
            assert e.consistency >= plain.consistency
            assert e.top1 >= plain.top1

    def test_patterns(self):
        assert {e.model for e in catalog.list_published("vgg1?")} == {"vgg11", "vgg13", "vgg16", "vgg19"}
        assert {e.filter_size for e in catalog.list_published("*_lpf5")} == {5}
        assert catalog.list_published("nothing*") == []

    def test_what_is_not_published_lists_what_is(self):
        with pytest.raises(ValueError, match=r"nothing is published for resnet50_lpf7; .*resnet50_lpf4 \(finetuned\)"):
            catalog.find("resnet50_lpf7")
        with pytest.raises(ValueError, match=r"nothing is published for resnet50_lpf3 \(finetuned\)"):
            catalog.find("resnet50_lpf3", "finetuned")
        with pytest.raises(ValueError, match="did you mean resnet50"):
            catalog.find("resnet51")

    def test_a_file_is_recognised_by_its_hash(self):
        found = catalog.identify("994b528f" + "0" * 56)
        assert found is not None
        assert (found.spec, found.training) == ("resnet50_lpf4", "scratch")
        assert catalog.identify("0" * 64) is None


class TestDownload:
    def test_a_good_server(self, server: str, tmp_path: Path):
        seen: list[tuple[int, int | None]] = []
        path = catalog.download(entry(f"{server}/good.pth"), tmp_path / "new", lambda *args: seen.append(args))
        assert path == tmp_path / "new" / "good.pth"
        assert path.read_bytes() == BODY
        assert seen[-1] == (len(BODY), len(BODY))
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert sorted(file.name for file in path.parent.iterdir()) == ["good.pth", "good.pth.sha256"]

    def test_a_second_call_uses_the_cache(self, server: str, tmp_path: Path):
        for _ in range(2):
            catalog.download(entry(f"{server}/good.pth"), tmp_path)
        assert Handler.requests == ["/good.pth"]

    def test_a_damaged_cache_is_replaced(self, server: str, tmp_path: Path):
        (tmp_path / "good.pth").write_bytes(BODY[:-1])
        assert catalog.download(entry(f"{server}/good.pth"), tmp_path).read_bytes() == BODY

    def test_the_whole_digest_of_the_first_use_counts_from_then_on(self, server: str, tmp_path: Path):
        """Eight digits are published: files that share them are a matter of hours to a forger."""
        weak, path, record = (
            entry(f"{server}/good.pth", DIGEST[:1]),
            tmp_path / "good.pth",
            tmp_path / "good.pth.sha256",
        )
        forged = next(b for n in range(1000) if sha256(b := b"%d" % n).startswith(DIGEST[:1]))
        catalog.download(weak, tmp_path)
        assert record.read_text() == DIGEST + "\n"
        path.write_bytes(forged)
        assert catalog.download(weak, tmp_path).read_bytes() == BODY
        for kept in (sha256(forged), "nonsense", ""):
            record.write_text(kept)
            path.write_bytes(BODY)
            with pytest.raises(DownloadError, match=rf"is {DIGEST}, but was '{kept}' at first use \({record}\)"):
                catalog.download(weak, tmp_path)
        # Without a record the file that is there counts as the first.
        record.unlink()
        path.write_bytes(forged)
        assert catalog.download(weak, tmp_path).read_bytes() == forged
        assert record.read_text().strip() == sha256(forged)

    def test_a_cache_that_can_only_be_read(self, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        (tmp_path / "good.pth").write_bytes(BODY)

        def refused(*args: object):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(catalog, "write_atomically", refused)
        assert catalog.download(entry(f"{server}/good.pth"), tmp_path) == tmp_path / "good.pth"
        assert [file.name for file in tmp_path.iterdir()] == ["good.pth"]

    def test_redirects_and_servers_that_do_not_tell_the_size(self, server: str, tmp_path: Path):
        assert catalog.download(entry(f"{server}/moved.pth"), tmp_path).read_bytes() == BODY
        seen: list[tuple[int, int | None]] = []
        catalog.download(entry(f"{server}/chunked.pth"), tmp_path, lambda *args: seen.append(args))
        assert seen[-1] == (len(BODY), None)

    @pytest.mark.parametrize(
        ("name", "digest", "reason"),
        [
            ("missing.pth", DIGEST, "the server answers 404 Not Found"),
            ("truncated.pth", DIGEST, f"broke off after 1000 of {len(BODY)} bytes"),
            ("good.pth", "0" * 64, f"SHA-256 begins with {DIGEST[:8]} instead of 00000000"),
            ("chunked-truncated.pth", DIGEST, "SHA-256 begins with"),
        ],
    )
    def test_failures_leave_nothing_and_say_what_to_do(
        self, server: str, tmp_path: Path, name: str, digest: str, reason: str
    ):
        with pytest.raises(DownloadError) as error:
            catalog.download(entry(f"{server}/{name}", digest), tmp_path)
        assert reason in str(error.value)
        assert f"cannot download {server}/{name}" in str(error.value)
        assert f"copy it to {tmp_path / name}" in str(error.value)
        assert "python convert_weights.py FILE --model resnet18_lpf4 --output DIRECTORY" in str(error.value)
        assert list(tmp_path.iterdir()) == []

    def test_no_server(self, tmp_path: Path):
        with pytest.raises(DownloadError, match="no connection"):
            catalog.download(entry("http://127.0.0.1:9/x.pth"), tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_an_interrupt_leaves_nothing(self, server: str, tmp_path: Path):
        def interrupt(done: int, total: int | None):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            catalog.download(entry(f"{server}/good.pth"), tmp_path, interrupt)
        assert list(tmp_path.iterdir()) == []

    def test_endless_answers_end(self, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(catalog, "_MAX_BYTES", 1000)
        with pytest.raises(DownloadError, match="more than any checkpoint has"):
            catalog.download(entry(f"{server}/chunked.pth"), tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_cache_that_cannot_be_written(self, server: str, tmp_path: Path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(DownloadError, match="set AA_FLAX_CACHE"):
            catalog.download(entry(f"{server}/good.pth"), tmp_path / "file")

    def test_fetch(self, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        here = dataclasses.replace(entry(f"{server}/good.pth"), training="finetuned")
        monkeypatch.setattr(catalog, "published", lambda: (here,))
        monkeypatch.setenv("AA_FLAX_CACHE", str(tmp_path / "cache"))
        assert catalog.fetch("resnet18") == tmp_path / "cache" / "good.pth"
        assert catalog.fetch("resnet18_lpf4", cache_dir=tmp_path) == tmp_path / "good.pth"

    def test_plain_networks_are_torchvisions(self, tmp_path: Path):
        with pytest.raises(ValueError, match="torchvision's weights to a file"):
            catalog.fetch("resnet18_plain", cache_dir=tmp_path)


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("AA_FLAX_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("AA_FLAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "aa_flax"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_directory() == tmp_path / ".cache" / "aa_flax"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AA_FLAX_CACHE", "~/mine")
    assert cache_directory() == tmp_path / "mine"


@pytest.mark.parametrize("variable", ["AA_FLAX_CACHE", "XDG_CACHE_HOME"])
def test_downloads_and_decoded_images_lie_in_one_cache(variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """With `~` and a relative path, which two readers of the variables may take in two ways."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AA_FLAX_CACHE", raising=False)
    asked = []

    def remember(location: Path, cache: Path):
        asked.append(cache)
        raise CommandError("enough")

    monkeypatch.setattr("train.data.cifar.open_cifar10", remember)
    for value in ("~/mine", "relative", str(tmp_path)):
        monkeypatch.setenv(variable, value)
        with pytest.raises(CommandError, match="enough"):
            open_dataset(DataConfig(name="cifar10", dir=tmp_path))
        assert asked.pop() == cache_directory()
