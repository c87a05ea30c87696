"""Repositories as timm itself writes them, on a server of the Hub's form: by address, by published name, as a file."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import aa_flax
import convert_weights
from aa_flax.weights import catalog
from tests.loopback import COMMIT, Server, loopback
from tests.parity import oracles

# Where `timm` is missing, `oracles` skips the module.
from timm.models import _hub  # isort: skip

TAGGED = ("resnetaa50.a1h_in1k", "resnetblur50.bt_in1k")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    with loopback() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("AA_FLAX_CACHE", str(tmp_path / "cache"))
        yield server


@pytest.mark.parametrize("name", TAGGED)
def test_a_repository_of_timm(name: str, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    net = oracles.timm_network(name)
    _hub.save_for_hf(net, tmp_path / "saved", safe_serialization="both")
    files = [(tmp_path / "saved" / file).read_bytes() for file in ("config.json", "model.safetensors")]
    server.add_repository(f"timm/{name}", *files)
    images = oracles.images((96, 96))
    with oracles.torch.no_grad():
        expected = net(oracles.torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    entry = catalog.find(name)
    for given, options in (
        (f"hf://timm/{name}", {}),
        (name, {}),
        (entry.spec, {}),
        (tmp_path / "saved", {}),
        (tmp_path / "saved" / "pytorch_model.bin", {"spec": name}),
    ):
        model = aa_flax.load_pretrained(given, **options)
        with jax.default_matmul_precision("highest"):
            logits = np.asarray(nnx.jit(lambda model, x: model(x))(model, jnp.asarray(images)))
        np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
        known = model.provenance.config
        assert (known.preprocessing, known.test_preprocessing) == (entry.preprocessing, entry.test_preprocessing)
        if given != tmp_path / "saved":
            assert known.license == "Apache-2.0"
        if isinstance(given, str):
            assert known.metrics == entry.metrics
            assert known.source["revision"] == COMMIT
    assert len(server.requests) == 3
    with pytest.raises(aa_flax.CheckpointError, match="does not fit resnetaa50d"):
        aa_flax.load_pretrained(tmp_path / "saved" / "pytorch_model.bin", spec="resnetaa50d")
    out = tmp_path / "converted"
    assert convert_weights.main([name, "--output", str(out), "--verify"]) == 0
    printed = capsys.readouterr().out
    assert "  verified    " in printed
    assert f"\n  published   {entry.training} at 288 pixels, top1 {entry.test_top1:.2f} %, top5 " in printed
    config = aa_flax.read_config(out)
    assert (config.license, config.metrics) == ("Apache-2.0", entry.metrics)
    assert (config.preprocessing, config.test_preprocessing) == (entry.preprocessing, entry.test_preprocessing)
    assert len(server.requests) == 3
