"""State dicts of PyTorch into networks and back, without PyTorch: names, layouts, refusals."""

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from aa_flax.models.abstract import abstract_model
from aa_flax.models.base import Network
from aa_flax.models.create import create_model
from aa_flax.models.layers import Builder
from aa_flax.models.registry import family_of
from aa_flax.models.specs import resolve_spec
from aa_flax.models.variables import variables
from aa_flax.weights.errors import CheckpointError
from aa_flax.weights.input_channels import with_input_channels
from aa_flax.weights.mapping import (
    blurs_alike,
    convert_state_dict,
    tensors_in_layout,
    to_torch_state_dict,
)
from aa_flax.weights.torch.layout import below_prefix, detect_layout
from aa_flax.weights.torch.names import Rule, blur_sites, module_name, rules
from tests.state_files import file_of, filt, shapes_of

TINY_DENSENET = {"depths": (2, 1, 1, 1), "growth_rate": 4, "num_init_features": 8, "num_classes": 5}
TINY_RESNET = {"depths": (1, 1, 1, 1), "num_classes": 5}
TINY_MOBILENET = {"width_mult": 0.25, "num_classes": 5}


@functools.cache
def shapes_by_name(spec: str) -> dict[str, tuple[int, ...]]:
    return shapes_of(abstract_model(spec))


def names(spec: str, blurs: bool) -> dict[str, str]:
    """PyTorch's name of each of our variables."""
    shapes, resolved = shapes_by_name(spec), resolve_spec(spec)
    sites = blur_sites(resolved, shapes) if blurs else {}
    return {rule.path: rule.key for rule in rules(resolved, shapes, sites.keys())}


def values(model: Network) -> dict[str, np.ndarray]:
    return {path: np.asarray(variable[...]) for path, variable in variables(model).items()}


class TestNames:
    @pytest.mark.parametrize(
        ("spec", "reference", "torchvision"),
        [
            ("alexnet", "0 5 9 11 13", "0 3 6 8 10"),
            ("vgg11", "0 4 8 10 14 16 20 22", "0 3 6 8 11 13 16 18"),
            ("vgg16", "0 2 6 8 12 14 16 20 22 24 28 30 32", "0 2 5 7 10 12 14 17 19 21 24 26 28"),
            ("vgg16_bn", "0 3 8 11 16 19 22 27 30 33 38 41 44", "0 3 7 10 14 17 20 24 27 30 34 37 40"),
        ],
    )
    def test_positions_in_a_sequence(self, spec: str, reference: str, torchvision: str):
        for blurs, positions in ((True, reference), (False, torchvision)):
            found = names(spec, blurs)
            convs = [key for path, key in sorted(found.items()) if path.startswith("conv") and path.endswith("kernel")]
            assert convs == [f"features.{position}.weight" for position in positions.split()]

    def test_alexnet_with_pool_only_lacks_a_relu(self):
        model = abstract_model("alexnet", pool_only=True)
        sites = blur_sites(model.spec, shapes_of(model))
        keys = {rule.path: rule.key for rule in rules(model.spec, shapes_of(model), sites.keys())}
        assert [keys[f"conv{i}.bias"] for i in range(1, 6)] == [f"features.{i}.bias" for i in (0, 3, 7, 9, 11)]

    def test_batch_norm_of_vgg_follows_its_convolution(self):
        found = names("vgg16_bn", blurs=True)
        assert (found["conv5_1.kernel"], found["bn5_1.var"]) == ("features.38.weight", "features.39.running_var")

    def test_resnet(self):
        reference, torchvision = names("resnet50", blurs=True), names("resnet50", blurs=False)
        assert reference["layer2.0.conv3.kernel"] == "layer2.0.conv3.1.weight"
        assert reference["layer2.0.downsample.conv.kernel"] == "layer2.0.downsample.1.weight"
        assert reference["layer2.0.downsample.bn.mean"] == "layer2.0.downsample.2.running_mean"
        assert reference["layer1.0.downsample.bn.scale"] == torchvision["layer1.0.downsample.bn.scale"]
        assert torchvision["layer2.0.downsample.bn.scale"] == "layer2.0.downsample.1.weight"
        basic = names("resnet18", blurs=True)
        assert basic["layer3.0.conv2.kernel"] == "layer3.0.conv2.1.weight"
        assert basic["layer3.1.conv2.kernel"] == "layer3.1.conv2.weight"

    def test_mobilenet(self):
        reference, torchvision = names("mobilenet_v2", blurs=True), names("mobilenet_v2", blurs=False)
        moved = {path.split(".")[1] for path, key in reference.items() if key != torchvision[path] and "block" in path}
        assert moved == {"2", "4", "7", "14"}
        assert reference["blocks.2.project.conv.kernel"] == "features.2.conv.3.weight"
        assert reference["blocks.1.project.bn.scale"] == "features.1.conv.2.weight"
        assert (reference["classifier.bias"], torchvision["classifier.bias"]) == (
            "classifier.0.bias",
            "classifier.1.bias",
        )

    def test_densenets_names_do_not_depend_on_blurs(self):
        assert names("densenet121", blurs=True) == names("densenet121", blurs=False)

    @pytest.mark.parametrize("name", ["alexnet", "vgg16_bn", "resnet50", "densenet121", "mobilenet_v2"])
    @pytest.mark.parametrize("blurs", [True, False])
    def test_no_two_variables_have_one_name(self, name: str, blurs: bool):
        found = names(name, blurs)
        assert len(set(found.values())) == len(found)

    @pytest.mark.parametrize(
        ("spec", "options"),
        [
            ("alexnet", {}),
            ("alexnet", {"pool_only": True}),
            ("vgg11", {}),
            ("resnet18", TINY_RESNET),
            ("resnet50", {**TINY_RESNET, "width_per_group": 8, "groups": 2, "pool_only": False}),
            ("resnet50", {**TINY_RESNET, "output_stride": 16}),
            ("densenet121", {**TINY_DENSENET, "pool_only": False}),
            ("mobilenet_v2", TINY_MOBILENET),
        ],
    )
    def test_the_reference_blurs_where_the_network_does(self, spec: str, options: dict, monkeypatch):
        channels, blur = [], Builder.blur
        monkeypatch.setattr(
            Builder, "blur", lambda self, width, **kind: channels.append(width) or blur(self, width, **kind)
        )
        model = nnx.eval_shape(lambda: create_model(spec, rngs=nnx.Rngs(0), **options))
        assert sorted(blur_sites(model.spec, shapes_of(model)).values()) == sorted(channels)


class TestTensors:
    @settings(max_examples=50)
    @given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))
    def test_a_rule_is_a_bijection(self, outputs: int, inputs: int, height: int, width: int):
        for split in ((outputs, inputs, height, width), (outputs, inputs)):
            axes = (2, 3, 1, 0) if len(split) == 4 else (1, 0)
            shape = tuple(split[axis] for axis in axes)
            flat = (math.prod(shape[:-1]), outputs)
            tensor = np.arange(math.prod(split)).reshape(split)
            for torch_shape, ours in ((split, shape), ((outputs, math.prod(split[1:])), flat)):
                rule = Rule("k", "p", torch_shape, split, axes, ours)
                there = rule.from_torch(tensor.reshape(torch_shape))
                assert there.shape == ours
                np.testing.assert_array_equal(rule.to_torch(there), tensor.reshape(torch_shape))

    def test_convolutions_and_linears_turn_around(self):
        state = file_of("resnet18", **TINY_RESNET)
        found = values(convert_state_dict(state, "resnet18", **TINY_RESNET))
        np.testing.assert_array_equal(found["conv1.kernel"], state["conv1.weight"].transpose(2, 3, 1, 0))
        np.testing.assert_array_equal(found["fc.kernel"], state["fc.weight"].T)
        np.testing.assert_array_equal(found["bn1.var"], state["bn1.running_var"])
        np.testing.assert_array_equal(found["layer1.0.bn2.scale"], state["layer1.0.bn2.weight"])

    def test_the_first_linear_of_alexnet_reads_a_map(self):
        """PyTorch flattens channels first: input c*36 + h*6 + w there is (h*6 + w)*256 + c here."""
        shapes = shapes_by_name("alexnet")
        table = rules(resolve_spec("alexnet"), shapes, frozenset())
        rule = next(rule for rule in table if rule.path == "fc6.kernel")
        assert (rule.key, rule.torch_shape, rule.shape) == ("classifier.1.weight", (4096, 9216), (9216, 4096))
        row = rule.from_torch(np.broadcast_to(np.arange(9216), (4096, 9216)))[:, 7]
        c, h, w = 100, 2, 5
        assert row[(h * 6 + w) * 256 + c] == c * 36 + h * 6 + w

    def test_torchvisions_vgg16_lands_layer_by_layer_in_the_antialiased_network(self):
        """`features.28.weight` is conv5_3 in the file, and would be conv5_1 in a file of the network asked for."""
        plain = names("vgg16", blurs=False)
        marks = {key: np.float32(i + 1) for i, key in enumerate(plain.values())}
        table = rules(resolve_spec("vgg16"), shapes_by_name("vgg16"), frozenset())
        shapes = {rule.key: rule.torch_shape for rule in table}
        state = {key: np.broadcast_to(mark, shapes[key]) for key, mark in marks.items()}
        model = convert_state_dict(state, "vgg16_lpf4")
        for path, variable in variables(model).items():
            assert (variable[...].min(), variable[...].max()) == (marks[plain[path]],) * 2, path

    @pytest.mark.parametrize(
        ("spec", "options"),
        [
            ("resnet18_lpf3", TINY_RESNET),
            ("resnet50_lpf2", {**TINY_RESNET, "pool_only": False, "width_per_group": 4, "groups": 2}),
            ("resnet50_lpf1", {**TINY_RESNET, "replace_stride_with_dilation": (False, True, True)}),
            ("resnet50_plain", {**TINY_RESNET, "replace_stride_with_dilation": (False, False, True)}),
            ("densenet121_lpf5", {**TINY_DENSENET, "pool_only": False}),
            ("densenet121_plain", TINY_DENSENET),
            ("mobilenet_v2_lpf7", TINY_MOBILENET),
            ("mobilenet_v2_plain", TINY_MOBILENET),
        ],
    )
    def test_there_and_back(self, spec: str, options: dict[str, Any]):
        state = file_of(spec, **options)
        model = convert_state_dict(state, spec, **options)
        assert blurs_alike(detect_layout(state), model)
        back = to_torch_state_dict(model)
        assert back.keys() == state.keys()
        for key, array in state.items():
            if not key.endswith("num_batches_tracked"):
                np.testing.assert_array_equal(back[key], array, err_msg=key)

    def test_plain_export_of_an_antialiased_network(self):
        state = file_of("resnet18", **TINY_RESNET)
        model = convert_state_dict(state, "resnet18", **TINY_RESNET)
        plain = to_torch_state_dict(model, "torchvision")
        assert plain.keys() == file_of("resnet18_plain", **TINY_RESNET).keys()
        expected = values(model)
        for path, array in values(convert_state_dict(plain, "resnet18", **TINY_RESNET)).items():
            np.testing.assert_array_equal(array, expected[path], err_msg=path)

    def test_export_refuses_what_the_reference_does_not_have(self):
        model = create_model("densenet121_plain", **TINY_DENSENET, rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match="densenet121_plain is no network of the reference"):
            to_torch_state_dict(model, "reference")
        with pytest.raises(ValueError, match="reference or torchvision"):
            to_torch_state_dict(model, "caffe")  # pyright: ignore[reportArgumentType]

    @pytest.mark.parametrize("stored", [np.float16, np.float64, jnp.bfloat16])
    def test_other_types_are_cast(self, stored: Any):
        state = {key: np.asarray(a).astype(stored) for key, a in file_of("densenet121", **TINY_DENSENET).items()}
        found = values(convert_state_dict(state, "densenet121", **TINY_DENSENET))
        assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(found["norm0.mean"], state["features.norm0.running_mean"].astype(np.float32))

    def test_the_model_is_in_eval_mode_and_takes_options(self):
        state = file_of("densenet121", **TINY_DENSENET)
        model = convert_state_dict(state, "densenet121", **TINY_DENSENET, dtype=jnp.bfloat16)
        assert model.spec == resolve_spec("densenet121", **TINY_DENSENET)
        assert nnx.eval_shape(lambda x: model(x), jnp.ones((1, 33, 33, 3))).dtype == jnp.bfloat16
        modules = [node for _, node in nnx.iter_graph(model) if isinstance(node, nnx.BatchNorm | nnx.Dropout)]
        assert len(modules) > 10
        assert all(getattr(node, "use_running_average", True) for node in modules)
        assert all(getattr(node, "deterministic", True) for node in modules)


class TestSpellings:
    def check(self, state: dict[str, np.ndarray], spec: str = "densenet121", **options: Any):
        options = options or TINY_DENSENET
        expected = values(convert_state_dict(file_of(spec, **options), spec, **options))
        found = values(convert_state_dict(state, spec, **options))
        for path, array in expected.items():
            np.testing.assert_array_equal(found[path], array, err_msg=path)

    def test_data_parallel_and_compile_wrappers(self):
        state = file_of("densenet121", **TINY_DENSENET)
        self.check({f"module.{key}": array for key, array in state.items()})
        self.check({key.replace("features.", "features.module."): array for key, array in state.items()})
        self.check({f"_orig_mod.{key}": array for key, array in state.items()})

    def test_old_densenet_names(self):
        state = file_of("densenet121", **TINY_DENSENET)
        for layer in ("norm", "conv"):
            for i in (1, 2):
                state = {
                    key.replace(f".{layer}{i}.", f".{layer}.{i}.") if "denselayer" in key else key: array
                    for key, array in state.items()
                }
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
        self.check(state)

    def test_without_counters(self):
        state = file_of("densenet121", **TINY_DENSENET)
        self.check({key: array for key, array in state.items() if not key.endswith("num_batches_tracked")})

    def test_a_name_given_twice(self):
        state = file_of("densenet121", **TINY_DENSENET)
        state["module.classifier.bias"] = state["classifier.bias"]
        with pytest.raises(CheckpointError, match=r"classifier\.bias twice, once as module\.classifier\.bias"):
            convert_state_dict(state, "densenet121", **TINY_DENSENET)


class TestStartOfFineTuning:
    @pytest.mark.parametrize("filter_size", [1, 4, 9])
    def test_plain_weights_into_an_antialiased_network(self, filter_size: int):
        state = file_of("mobilenet_v2_plain", num_classes=5)
        model = convert_state_dict(state, f"mobilenet_v2_lpf{filter_size}", num_classes=5)
        assert model.spec.filter_size == filter_size
        found, keys = values(model), names("mobilenet_v2", blurs=False)
        for path in ("blocks.2.project.bn.scale", "blocks.3.project.bn.scale", "head.bn.var", "classifier.bias"):
            np.testing.assert_array_equal(found[path], state[keys[path]], err_msg=path)
        assert not blurs_alike(detect_layout(state), model)

    def test_a_fresh_head_for_other_classes(self):
        state = file_of("densenet121", **TINY_DENSENET)
        options = {**TINY_DENSENET, "num_classes": 3}
        models = [
            convert_state_dict(state, "densenet121", skip_head=True, rngs=nnx.Rngs(seed), **options)
            for seed in (0, 0, 1)
        ]
        first, same, other = (values(model)["classifier.kernel"] for model in models)
        assert first.shape[1] == 3
        assert first.std() > 0
        np.testing.assert_array_equal(first, same)
        assert (first != other).all()
        np.testing.assert_array_equal(values(models[0])["norm0.scale"], state["features.norm0.weight"])

    def test_a_fresh_head_needs_no_head_in_the_file(self):
        state = {k: a for k, a in file_of("densenet121", **TINY_DENSENET).items() if "classifier" not in k}
        convert_state_dict(state, "densenet121", skip_head=True, **TINY_DENSENET)
        with pytest.raises(CheckpointError, match=r"2 missing:\n    classifier\.bias"):
            convert_state_dict(state, "densenet121", **TINY_DENSENET)

    @pytest.mark.parametrize(
        ("spec", "options", "head", "place"),
        [
            ("resnet18", TINY_RESNET, "fc", "fc.1"),
            ("densenet121", TINY_DENSENET, "classifier", "classifier.2.fc"),
            ("mobilenet_v2", TINY_MOBILENET, "classifier.0", "classifier"),
            ("mobilenet_v2_plain", TINY_MOBILENET, "classifier.1", "classifier.1.0"),
        ],
    )
    def test_a_head_of_several_layers_is_dropped_whole(self, spec: str, options: dict, head: str, place: str):
        """`fc.1.weight` of `Sequential(Dropout, Linear)`, `classifier.weight` of a bare layer, and the like."""
        state = file_of(spec, **options)
        for leaf in ("weight", "bias"):
            state[f"{place}.{leaf}"] = array = state.pop(f"{head}.{leaf}")
            state[f"{head}.7.{leaf}"] = array[:2]
        with pytest.raises(CheckpointError, match=r"left over(.|\n)*another head than this network.*--skip-head"):
            convert_state_dict(state, spec, **options)
        model = convert_state_dict(state, spec, skip_head=True, **{**options, "num_classes": 3})
        assert values(model)[f"{model.last_linear}.kernel"].shape[1] == 3

    def test_the_layers_before_the_head_of_alexnet_and_vgg_stay_needed(self):
        shapes = shapes_by_name("alexnet")
        table = rules(resolve_spec("alexnet"), shapes, set())
        state = {rule.key: np.broadcast_to(np.float32(1), rule.torch_shape) for rule in table}
        for leaf in ("weight", "bias"):
            state[f"classifier.6.1.{leaf}"] = state.pop(f"classifier.6.{leaf}")
        convert_state_dict(state, "alexnet_plain", skip_head=True, num_classes=3)
        del state["classifier.4.bias"]
        with pytest.raises(CheckpointError, match=r"1 missing:\n    classifier\.4\.bias"):
            convert_state_dict(state, "alexnet_plain", skip_head=True, num_classes=3)

    def test_without_head(self):
        state = file_of("densenet121", **TINY_DENSENET)
        model = convert_state_dict(state, "densenet121", **{**TINY_DENSENET, "num_classes": 0})
        assert not any(path.startswith("classifier") for path in variables(model))
        np.testing.assert_array_equal(values(model)["norm0.scale"], state["features.norm0.weight"])

    def test_other_ways_to_downsample(self):
        state = file_of("densenet121_plain", **TINY_DENSENET)
        model = convert_state_dict(state, "densenet121", downsample="ddac", **TINY_DENSENET)
        learned = [path for path in variables(model) if "filters" in path]
        assert learned
        assert all(np.isfinite(values(model)[path]).all() for path in learned)
        np.testing.assert_array_equal(values(model)["norm0.scale"], state["features.norm0.weight"])
        np.testing.assert_array_equal(
            tensors_in_layout(model, detect_layout(state))["features.conv0.weight"], state["features.conv0.weight"]
        )
        with pytest.raises(ValueError, match="no network of the reference"):
            to_torch_state_dict(model)


class TestContradictions:
    """The reference's files say how their network blurs; another network must not take them in silence."""

    @pytest.mark.parametrize(
        ("file", "file_options", "wanted", "options", "message"),
        [
            ("densenet121_lpf4", {}, "densenet121_lpf3", {}, "filters of 4 taps, densenet121_lpf3 blurs with 3"),
            ("densenet121_lpf1", {}, "densenet121_lpf2", {}, "filters of 1 tap, densenet121_lpf2 blurs with 2"),
            ("densenet121_lpf4", {}, "densenet121_plain", {}, "anti-aliased .* densenet121_plain has no blur"),
            ("densenet121_lpf4", {"pool_only": False}, "densenet121_lpf4", {}, "with pool_only=False"),
            ("densenet121_lpf4", {}, "densenet121_lpf4", {"pool_only": False}, "with pool_only=True"),
            ("densenet121_lpf4", {}, "densenet121_lpf4", {"downsample": "aps"}, "downsamples otherwise"),
        ],
    )
    def test_densenet(self, file: str, file_options: Any, wanted: str, options: Any, message: str):
        state = file_of(file, **TINY_DENSENET, **file_options)
        options = {**TINY_DENSENET, **options}
        with pytest.raises(CheckpointError, match=message) as error:
            convert_state_dict(state, wanted, what="x.pth", **options)
        assert str(error.value).startswith("x.pth holds ")
        assert "allow_filter_change" in str(error.value)
        model = convert_state_dict(state, wanted, allow_filter_change=True, **options)
        assert not blurs_alike(detect_layout(state), model)
        np.testing.assert_array_equal(values(model)["norm5.mean"], state["features.norm5.running_mean"])

    @pytest.mark.parametrize(
        ("file", "wanted"),
        [
            ({"pool_only": False}, {}),
            ({}, {"pool_only": False}),
            ({"replace_stride_with_dilation": (False, True, True)}, {}),
            ({}, {"replace_stride_with_dilation": (False, False, True)}),
        ],
    )
    def test_resnet(self, file: dict[str, Any], wanted: dict[str, Any]):
        tiny = {**TINY_RESNET, "width_per_group": 4}
        state = file_of("resnet50", **tiny, **file)
        told = "pool_only" if "pool_only" in file or "pool_only" in wanted else "replace_stride_with_dilation"
        with pytest.raises(CheckpointError, match=told):
            convert_state_dict(state, "resnet50", **tiny, **wanted)
        model = convert_state_dict(state, "resnet50", allow_filter_change=True, **tiny, **wanted)
        back = tensors_in_layout(model, detect_layout(state))
        for key, array in back.items():
            np.testing.assert_array_equal(array, state[key], err_msg=key)

    def test_alexnet(self):
        shapes = shapes_by_name("alexnet")
        configs = {"pool_only": {"pool_only": True}, "relu_first": {"relu_first": False}}
        for told, options in configs.items():
            spec = resolve_spec("alexnet", **options)
            sites = blur_sites(spec, shapes)
            table = rules(spec, shapes, sites.keys())
            state = {rule.key: np.broadcast_to(np.float32(1), rule.torch_shape) for rule in table}
            state |= {f"{place}.filt": filt(4, channels) for place, channels in sites.items()}
            with pytest.raises(CheckpointError, match=f"{told}={options[told]}"):
                convert_state_dict(state, "alexnet")

    def test_a_filter_is_missing(self):
        """DenseNet's other names do not depend on its filters, so that nothing else would tell."""
        state = file_of("densenet121", **TINY_DENSENET)
        del state["features.transition2.pool.filt"]
        with pytest.raises(CheckpointError, match=r"1 missing:\n    features\.transition2\.pool\.filt"):
            convert_state_dict(state, "densenet121", **TINY_DENSENET)


def _spoil(key: str, change: Any) -> Any:
    def spoil(state: dict[str, np.ndarray]) -> None:
        state[key] = change(state[key])

    return spoil


def _with_value(value: float) -> Any:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.flat[-1] = value
        return array

    return change


FILT = "features.transition1.pool.filt"
WEIGHT = "features.denseblock1.denselayer2.conv1.weight"


class TestPrefixes:
    @pytest.mark.parametrize("spec", ["densenet121", "densenet121_plain"])
    @pytest.mark.parametrize("prefix", ["model.", "encoder_q.net.", "module.backbone."])
    def test_the_prefix_that_is_too_much_is_named(self, spec: str, prefix: str):
        state = file_of(spec, **TINY_DENSENET)
        total = len([key for key in state if not key.endswith(("num_batches_tracked", ".filt"))])
        named = {f"{prefix}{key}": array for key, array in state.items()} | {"queue": np.ones(3, np.float32)}
        bare = prefix.removeprefix("module.")
        with pytest.raises(CheckpointError) as error:
            convert_state_dict(named, spec, **TINY_DENSENET)
        first, hint = str(error.value).split("\n")
        assert first.endswith(f"does not fit {resolve_spec(spec)}:")
        assert hint.startswith(
            f"  all {total} fit without the prefix {bare!r}: read the file with --prefix {bare[:-1]}"
        )
        found = convert_state_dict(below_prefix(named, prefix), spec, **TINY_DENSENET)
        expected = values(convert_state_dict(state, spec, **TINY_DENSENET))
        for path, array in values(found).items():
            np.testing.assert_array_equal(array, expected[path], err_msg=path)

    def test_of_two_and_without_the_head(self):
        state = file_of("densenet121", **TINY_DENSENET)
        total = len([key for key in state if not key.endswith(("num_batches_tracked", ".filt"))])
        twice = {f"{net}.{key}": a for net in ("student", "teacher") for key, a in state.items() if "class" not in key}
        with pytest.raises(CheckpointError) as error:
            convert_state_dict(twice, "densenet121", **TINY_DENSENET)
        for net in ("student", "teacher"):
            assert f"{total - 2} of {total} fit without the prefix '{net}.'" in str(error.value)
        with pytest.raises(CheckpointError) as error:
            convert_state_dict(twice, "densenet121", skip_head=True, **TINY_DENSENET)
        assert f"all {total - 2} fit without the prefix 'teacher.'" in str(error.value)

    def test_no_hint_for_another_network(self):
        state = {f"model.{key}": array for key, array in file_of("densenet121", **TINY_DENSENET).items()}
        with pytest.raises(CheckpointError) as error:
            convert_state_dict(state, "resnet18", num_classes=5)
        assert "prefix" not in str(error.value)

    def test_nothing_below(self):
        with pytest.raises(CheckpointError, match=r"no name in it begins with 'net\.'; names begin with 'a', 'b'"):
            below_prefix({"module.a.weight": 1, "b": 2}, "net")
        assert below_prefix({"module.net.a": 1, "network.a": 2, "net.module.b": 3}, "net") == {"a": 1, "b": 3}


class TestInputChannels:
    @pytest.mark.parametrize("name", ["alexnet", "vgg11_bn", "resnet18", "densenet121", "mobilenet_v2"])
    def test_the_stem_of_every_family(self, name: str):
        spec = resolve_spec(name)
        reading = [r.key for r in rules(spec, shapes_by_name(name), set()) if r.torch_shape[1:2] == (3,)]
        assert reading == [f"{module_name(family_of(name).network.first_conv, spec)}.weight"]

    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_kernels(self, dtype: Any):
        kernel = np.random.default_rng(0).normal(size=(8, 3, 7, 7)).astype(dtype)
        state = {"module.conv1.weight": kernel, "fc.bias": np.ones(2)}
        wide = kernel.astype(np.float64)
        expected = {
            1: wide[:, :1] + wide[:, 1:2] + wide[:, 2:],
            2: wide[:, :2] * 3 / 2,
            3: wide,
            4: np.concatenate([wide, wide[:, :1]], 1) * 3 / 4,
            7: np.concatenate([wide, wide, wide[:, :1]], 1) * 3 / 7,
        }
        for channels, array in expected.items():
            found = with_input_channels(state, "resnet18", channels)
            assert found["conv1.weight"].dtype == dtype
            np.testing.assert_array_equal(found["conv1.weight"], array.astype(dtype))
            np.testing.assert_array_equal(found["fc.bias"], state["fc.bias"])

    def test_what_has_no_stem_stays(self):
        for state in ({"fc.bias": np.ones(2)}, {"conv1.weight": np.ones(3)}, {"conv1.weight": np.ones((2, 0, 3, 3))}):
            assert with_input_channels(state, "resnet18", 4).keys() == state.keys()


class TestRefusals:
    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (
                lambda s: s.pop(WEIGHT),
                r"1 missing:\n    features\.denseblock1\.denselayer2\.conv1\.weight \(16, 12, 1, 1\)",
            ),
            (lambda s: s.update(extra=np.ones(3, np.float32)), r"1 left over:\n    extra \(3,\)"),
            (_spoil(WEIGHT, lambda a: a[:, :5]), r"conv1\.weight: expected \(16, 12, 1, 1\), found \(16, 5, 1, 1\)"),
            (_spoil(WEIGHT, lambda a: a.reshape(16, 12)), r"expected \(16, 12, 1, 1\), found \(16, 12\)"),
            (_spoil(WEIGHT, lambda a: a.astype(np.int32)), r"1 not floating-point:\n    .*conv1\.weight: int32"),
            (_spoil(WEIGHT, _with_value(np.nan)), r"1 with NaN or infinite values:\n    .*denselayer2\.conv1\.weight"),
            (_spoil(WEIGHT, _with_value(-np.inf)), r"NaN or infinite values:\n    .*denselayer2\.conv1\.weight"),
            (_spoil(FILT, _with_value(0.5)), r"transition1\.pool\.filt: not the binomial filter of 4 taps"),
            (_spoil(FILT, _with_value(np.nan)), r"transition1\.pool\.filt: not the binomial filter"),
            (_spoil(FILT, lambda a: a * 2), r"transition1\.pool\.filt: not the binomial filter of 4 taps"),
            (_spoil(FILT, lambda a: a[:, :, :3]), r"expected shape \(C, 1, k, k\), found \(8, 1, 3, 4\)"),
            (_spoil(FILT, lambda a: a[:, 0]), r"expected shape \(C, 1, k, k\), found \(8, 4, 4\)"),
            (_spoil(FILT, lambda a: filt(3, len(a))), "mixes filters of 3, 4 taps"),
            (_spoil(FILT, lambda a: a[:-1]), r"transition1\.pool\.filt: expected 8 channels, found 7"),
        ],
    )
    def test_damage(self, spoil: Any, message: str):
        state = file_of("densenet121", **TINY_DENSENET)
        spoil(state)
        with pytest.raises(CheckpointError, match=message) as error:
            convert_state_dict(state, "densenet121", what="x.pth", **TINY_DENSENET)
        assert str(error.value).startswith("x.pth ")

    @settings(max_examples=15)
    @given(st.data())
    def test_any_missing_or_renamed_tensor_is_named(self, data: st.DataObject):
        state = file_of("densenet121", **TINY_DENSENET)
        keys = sorted(key for key in state if not key.endswith(("num_batches_tracked", ".filt")))
        for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=8, unique=True)):
            array = state.pop(key)
            if data.draw(st.booleans()):
                state[f"{key}_"] = array
        with pytest.raises(CheckpointError) as error:
            convert_state_dict(state, "densenet121", **TINY_DENSENET)
        missing = [key for key in keys if key not in state]
        assert f"{len(missing)} missing" in str(error.value)
        assert all(key in str(error.value) for key in missing)
        assert all(key in str(error.value) for key in state if key.endswith("_"))

    def test_other_number_of_classes(self):
        state = file_of("densenet121", **TINY_DENSENET)
        with pytest.raises(CheckpointError, match="head has 5 classes, the network's 7: set num_classes to 5, or keep"):
            convert_state_dict(state, "densenet121", **{**TINY_DENSENET, "num_classes": 7})

    def test_another_width_says_nothing_about_classes(self):
        state = file_of("mobilenet_v2", **TINY_MOBILENET)
        with pytest.raises(CheckpointError, match="of another shape") as error:
            convert_state_dict(state, "mobilenet_v2", **{**TINY_MOBILENET, "width_mult": 1.5})
        assert "num_classes" not in str(error.value)

    def test_another_architecture(self):
        state = file_of("densenet121", **TINY_DENSENET)
        with pytest.raises(CheckpointError, match=r"none of the .* tensors in it belongs to this network"):
            convert_state_dict(state, "resnet18", num_classes=5)
        with pytest.raises(CheckpointError, match="none of the 0 tensors"):
            convert_state_dict({}, "resnet18", num_classes=5)

    def test_unknown_network_and_option(self):
        with pytest.raises(ValueError, match="did you mean"):
            convert_state_dict({}, "resnet51")
        with pytest.raises(TypeError, match="has no option 'poolonly'"):
            convert_state_dict({}, "resnet50", poolonly=True)
