"""Where antialias puts its blurs in classes of other people: places, arrows, replaced pools, other layers."""

import functools
import pickle

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import aa_flax
from tests.foreign_networks import with_values
from tests.foreign_zoo import VGG, BasicBlock, MaxPool2D, MBConv
from tests.surgery_results import REPLACE, REPLACE_MAXIMA, UNSEEN, changed, close, network, picture, shapes, strides

# --- places ---


def block() -> BasicBlock:
    model = with_values(lambda: BasicBlock(4, 6, 2, nnx.Rngs(0)))
    model.eval()
    return model


def dense(conv: nnx.Conv) -> nnx.Conv:
    conv = nnx.clone(conv)
    conv.strides = 1
    return conv


def test_an_arrow_is_the_order_of_the_paper():
    """What the class would compute had its author put the blur behind the ReLU."""
    model, x = block(), picture(13, 4)
    copy, _ = aa_flax.antialias(model, first=True, slots={BasicBlock: {"->conv2": "conv1"}})
    y = aa_flax.blur_pool(jax.nn.relu(model.bn1(dense(model.conv1)(x))))
    shortcut = model.shortcut.bn(dense(model.shortcut.conv)(aa_flax.blur_pool(x)))
    close(copy(x), jax.nn.relu(model.bn2(model.conv2(y)) + shortcut))
    assert isinstance(copy.conv2, nnx.Conv)
    # Through pickle and split the layer is what it was.
    again = pickle.loads(pickle.dumps(copy))
    assert nnx.graphdef(again) == nnx.graphdef(copy)
    close(again(x), copy(x))


def test_an_arrow_to_a_strided_layer_and_to_a_function():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.conv1 = nnx.Conv(5, 5, (3, 3), 2, padding=1, rngs=rngs)
            self.conv2 = nnx.Conv(5, 5, (3, 3), 2, padding=1, rngs=rngs)
            self.last = jnp.sin

        def __call__(self, x):
            return self.last(self.conv2(inputs=jax.nn.relu(self.conv1(x))))

    model, x = with_values(lambda: Two(nnx.Rngs(0))), picture(16, 5)
    slots = {"->conv2": "conv1", "->last": "conv2"}
    copy, report = aa_flax.antialias(model, 3, first=True, slots={Two: slots})
    assert changed(report) == {"conv1": "blur before conv2", "conv2": "blur before last"}
    y = aa_flax.blur_pool(jax.nn.relu(dense(model.conv1)(x)), 3)
    close(copy(x), jnp.sin(aa_flax.blur_pool(dense(model.conv2)(y), 3)))
    # Without a place for the second stride its layer is blurred twice: for the first stride and for its own.
    copy, _ = aa_flax.antialias(model, 3, first=True, slots={Two: {"->conv2": "conv1"}})
    close(copy(x), jnp.sin(model.conv2(aa_flax.blur_pool(y, 3, 1))))
    assert strides(copy, x) == []
    with pytest.raises(ValueError, match="already anti-aliased"):
        aa_flax.antialias(copy, 3, first=True, slots={Two: {"->conv2": "conv1"}})


class Chain(nnx.Module):
    """A strided convolution, what `between` makes of it, and the layers that take the result."""

    def __init__(self, between, rngs: nnx.Rngs):
        self.down, self.norm = nnx.Conv(5, 5, (3, 3), 2, padding=1, rngs=rngs), nnx.BatchNorm(5, rngs=rngs)
        self.next, self.other = nnx.Conv(5, 5, (3, 3), rngs=rngs), nnx.Conv(5, 5, (1, 1), rngs=rngs)
        self.between = between

    def __call__(self, x):
        return self.between(self, self.down(x), x)


SEEN = "blur before next, behind the activation"
CHAINS = {
    "normalised": (lambda m, y, x: m.next(jax.nn.relu(m.norm(y))), SEEN),
    "gelu, scaled and compiled apart": (lambda m, y, x: m.next(jax.jit(lambda y: 2 * nnx.gelu(y) - 1)(y)), SEEN),
    "a bias for each channel": (lambda m, y, x: m.next(jnp.tanh(y + m.norm.bias[...]) / x.max()), SEEN),
    "a gate for each example and channel": (
        lambda m, y, x: m.next(jax.nn.silu(y) * x.mean((1, 2), keepdims=True)),
        SEEN,
    ),
    "clipped in a block of its own": (lambda m, y, x: jax.checkpoint(m.next)(jnp.clip(y, 0, 6)), SEEN),
    "a product of two": (lambda m, y, x: m.next(y * (y + 1)), SEEN),
    "no activation": (lambda m, y, x: m.next(m.norm(y)), UNSEEN),
    "two layers take it": (lambda m, y, x: m.next(jax.nn.relu(y)) + m.other(jax.nn.relu(y)), UNSEEN),
    "a layer before the activation": (lambda m, y, x: m.next(jax.nn.relu(y)) + m.other(y), UNSEEN),
    "called twice": (lambda m, y, x: m.next(m.next(jax.nn.relu(y))), UNSEEN),
    "a residual": (lambda m, y, x: m.next(jax.nn.relu(y + x[:, ::2, ::2])), UNSEEN),
    "a residual behind": (lambda m, y, x: m.next(jax.nn.relu(y)) + y, UNSEEN),
    "a gate for each place": (lambda m, y, x: m.next(jax.nn.relu(y) * x[:, ::2, ::2, :1]), UNSEEN),
    "a mean over the map": (lambda m, y, x: m.next(jax.nn.relu(y - y.mean((1, 2), keepdims=True))), UNSEEN),
    "in a loop": (lambda m, y, x: jax.lax.map(lambda y: m.next(jax.nn.relu(y)), y[None])[0], UNSEEN),
    "an answer of its own": (lambda m, y, x: (m.next(z := jax.nn.relu(y)), z), UNSEEN),
}


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_what_an_example_shows(name):
    """A blur before the next layer is right only where all that lies between treats every place alike."""
    between, place = CHAINS[name]
    model, x = with_values(lambda: Chain(between, nnx.Rngs(0))), picture(8, 5)
    model.eval()
    copy, report = aa_flax.antialias(model, 1, example=x, first=True)
    assert changed(report) == {"down": place}
    if place is SEEN:
        assert copy.down.strides == 1
        got, want = nnx.jit(lambda copy, model, x: (copy(x), model(x)))(copy, model, x)
        close(got, want)


def test_a_pool_that_is_replaced_keeps_the_blur_before_it():
    class Pooled(nnx.Module):
        def __init__(self, rngs):
            self.down, self.pool = nnx.Conv(5, 5, (3, 3), 2, padding=1, rngs=rngs), MaxPool2D(2, 2)

        def __call__(self, x):
            return self.pool(jax.nn.relu(self.down(x)))

    model, x = with_values(lambda: Pooled(nnx.Rngs(0))), picture(16, 5)
    options = {"first": True, "replace": REPLACE_MAXIMA, "example": x}
    copy, report = aa_flax.antialias(model, **options)
    assert changed(report) == {"down": UNSEEN, "pool": "replaced by MaxBlurPool"}
    copy, report = aa_flax.antialias(model, slots={Pooled: {"->pool": "down"}}, **options)
    assert changed(report) == {"down": "blur before pool", "pool": "replaced by MaxBlurPool"}
    y = aa_flax.blur_pool(jax.nn.relu(dense(model.down)(x)))
    close(copy(x), aa_flax.nn.max_pool(y, (2, 2), (2, 2)))


def test_places():
    """Before and behind: the same numbers inside the border, at the convolution's cost or at four times that."""
    model = nnx.Sequential(nnx.Conv(6, 8, (3, 3), 2, padding=1, rngs=nnx.Rngs(0)), nnx.relu)
    x = picture(24, 6)
    networks, costs = {}, {}
    for place in ("activation", "before", "after"):
        networks[place], report = aa_flax.antialias(model, place=place, first=True, example=x)
        assert strides(networks[place], x) == []
        costs[place] = report.flops
    assert networks["activation"].layers[0].strides == networks["after"].layers[0].strides == 1
    before, after = (nnx.relu(networks[place].layers[0](x))[:, 2:-2, 2:-2] for place in ("before", "after"))
    close(before, after)
    conv = 2 * 9 * 6 * 8 * 12 * 12
    # A multiply and an add a tap and sample, the last axis at half the first one's size.
    assert costs["after"] == costs["activation"] == (conv, 4 * conv + 8 * 12 * 12 * (2 * 4 * 2 + 2 * 4))
    assert costs["before"] == (conv, conv + 2 * 6 * 24 * 24 * 2 * 4)
    assert "(x1.4) a pixel" in str(aa_flax.antialias(model, place="before", first=True)[1])
    with pytest.raises(ValueError, match="place must be one of activation, before, after, got 'behind'"):
        aa_flax.antialias(model, place="behind")


@pytest.mark.parametrize(("place", "left"), [("activation", 0), ("before", 0), ("after", 1)])
def test_normalisations_fold_into_blurred_convolutions(place, left):
    """Not where a blur lies between the two: at a border of zeros it does not keep the bias."""
    model, x = block(), picture(13, 4)
    slots = {BasicBlock: {"->conv2": "conv1"}} if place == "activation" else {}
    copy, _ = aa_flax.antialias(model, first=True, place=place, slots=slots, pad_type="zero")
    folded = aa_flax.fold_batchnorm(copy, example=x)
    norms = [path for path, layer in nnx.iter_modules(folded) if isinstance(layer, nnx.BatchNorm)]
    assert len(norms) == left
    got, want = nnx.jit(lambda folded, copy, x: (folded(x), copy(x)))(folded, copy, x)
    close(got, want)


def test_behind_the_activation_is_the_better_place():
    """What one pixel of a roll does to the answer, beside half a pixel of the answer: less there than elsewhere."""
    conv = nnx.Conv(8, 8, (3, 3), 2, padding="CIRCULAR", rngs=nnx.Rngs(0))
    model, x = nnx.Sequential(conv, nnx.relu), picture(32, 8)

    def error(network: nnx.Sequential) -> float:
        graphdef, state = nnx.split(network)
        still, rolled = jax.vmap(nnx.merge(graphdef, state))(jnp.stack([x, jnp.roll(x, 1, 2)]))
        phase = jnp.exp(-1j * jnp.pi * jnp.fft.fftfreq(still.shape[2]))[:, None]
        moved = jnp.fft.ifft(jnp.fft.fft(still, axis=2) * phase, axis=2).real
        return float(jnp.linalg.norm(rolled - moved) / jnp.linalg.norm(rolled))

    places = ("activation", "before", "after")
    behind, before, after = (error(aa_flax.antialias(model, place=place, first=True)[0]) for place in places)
    assert before == pytest.approx(after, rel=1e-4), "on a circle there is no border at which they differ"
    assert behind < 0.5 * before < 0.25 * error(model)


def test_what_stays_of_a_stride_is_said():
    model = nnx.Sequential(nnx.Conv(5, 8, (4, 6), (4, 6), rngs=nnx.Rngs(0)), nnx.relu)
    for place in ("before", "after", "activation"):
        copy, report = aa_flax.antialias(model, place=place, first=True)
        assert report.antialiased[0].left == "stride 2 of 4 and stride 3 of 6"
        assert "stride 2 of 4 and stride 3 of 6 stays; " in str(report)
        assert [s.stride for s in aa_flax.find_strided(copy, picture(48, 5))] == [(1, 2, 3, 1)]
        with pytest.raises(ValueError, match="already anti-aliased"):
            aa_flax.antialias(copy, place=place, first=True)


# --- pools of other packages, other layers, other borders ---


def test_replacing_layers():
    model, factory = network(VGG), REPLACE[MaxPool2D]
    copy, report = aa_flax.antialias(model, replace={MaxPool2D: factory}, where=lambda path, _: path.endswith("5"))
    assert changed(report) == {"features.layers.5": "replaced by MaxBlurPool"}
    assert [c.detail for c in report.skipped if c.layer == "MaxPool2D"] == ["left out by `where`"] * 2
    assert isinstance(copy.features.layers[2], MaxPool2D)
    with pytest.raises(
        ValueError, match=r"replaces MaxPool2D at features.layers.2 has to return a layer, got NoneType"
    ):
        aa_flax.antialias(model, replace={MaxPool2D: lambda pool: None})
    with pytest.raises(ValueError, match=r"replace takes \{PoolClass: function"):
        aa_flax.antialias(model, replace={MaxPool2D: 3})


def test_a_layer_in_two_places_is_replaced_once():
    class Shared(nnx.Module):
        def __init__(self):
            self.a = MaxPool2D(2, 2)
            self.both = nnx.data((self.a, nnx.relu))
            self.table = nnx.data({"pool": self.a})

        def __call__(self, x):
            return self.table["pool"](self.both[0](self.a(x)))

    with nnx.set_graph_mode(True):
        copy, report = aa_flax.antialias(nnx.List([network(VGG), nnx.data(Shared())]), replace=REPLACE_MAXIMA)
    shared = copy[1]
    assert shared.a is shared.both[0] is shared.table["pool"]
    assert len(report.antialiased) == 4
    assert jax.eval_shape(shared, picture(16)).shape == (1, 2, 2, 3)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("aps", aa_flax.AdaptivePolyphase),
        ("ideal", aa_flax.IdealLowPass),
        ("ddac", aa_flax.ContentAdaptiveBlur),
    ],
)
def test_other_layers_that_subsample(name, layer):
    """Behind an activation, behind a convolution where that cannot be seen, and behind a pool."""
    rngs = nnx.Rngs(0)
    model = nnx.List(
        [
            nnx.Sequential(nnx.Conv(6, 8, (3, 3), 2, padding=1, rngs=rngs), nnx.relu),
            nnx.Conv(8, 8, (1, 1), 2, padding=0, rngs=rngs),
            functools.partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2)),
        ]
    )
    copy, report = aa_flax.antialias(model, 3, downsample=name, first=True, rngs=rngs)
    assert [c.detail.split(":")[0] for c in report.antialiased] == [
        "blur after the activation 0.layers.1",
        "blur after the convolution",
        "blur after a dense max_pool",
    ][: 2 if name == "ddac" else 3]
    assert [type(layer) for _, layer in nnx.iter_modules(copy) if type(layer) in LAYERS] == [layer] * (
        2 if name == "ddac" else 3
    )
    model.eval(), copy.eval()
    x = picture(8, 6)

    def both(model, copy, x):
        y = copy[0](x)
        want = copy[0].layers[1].blur(nnx.relu(dense(model[0].layers[0])(x)))
        return (y, copy[1](y), copy[2](copy[1](y)).shape), (
            want,
            copy[1].output_blur(dense(model[1])(want)),
            (1, 1, 1, 8),
        )

    got, want = nnx.jit(both)(model, copy, x)
    jax.tree.map(close, got, want)
    assert set(shapes(model)) <= set(shapes(copy))
    made = []

    def own(channels, factors):
        made.append((channels, factors))
        return aa_flax.BlurPool2D(2, factors)

    aa_flax.antialias(model, downsample=own, first=True)
    assert made == [(8, (2, 2)), (8, (2, 2)), (None, (2, 2))]


LAYERS = (aa_flax.AdaptivePolyphase, aa_flax.IdealLowPass, aa_flax.ContentAdaptiveBlur)


def test_other_layers_misused():
    model = block()
    for options, message in (
        ({"downsample": "ddac"}, r"downsample='ddac' has parameters: give rngs=nnx.Rngs\(0\)"),
        ({"downsample": "mean"}, "must be one of blur, aps, lps, ddac, ideal, asap or a function, got 'mean'"),
        ({"downsample": "aps", "place": "before"}, "place='before' lets the convolution subsample"),
    ):
        with pytest.raises(ValueError, match=message):
            aa_flax.antialias(model, first=True, **options)


def test_blurs_follow_circular_convolutions():
    """A circular network stays one: rolled by its whole stride it answers with rolled maps, in every place."""
    rngs = nnx.Rngs(0)
    circle = {"padding": "CIRCULAR", "rngs": rngs}
    model = nnx.Sequential(
        nnx.Conv(5, 6, (3, 3), 2, **circle),
        nnx.relu,
        nnx.Conv(6, 6, (3, 3), 2, **circle),
    )
    x = picture(16, 5)
    for place in ("activation", "before", "after"):
        copy, _ = aa_flax.antialias(model, place=place, first=True)
        close(copy(jnp.roll(x, (4, 8), (1, 2))), jnp.roll(copy(x), (1, 2), (1, 2)))
    reflected, _ = aa_flax.antialias(model, pad_type="reflect", first=True)
    assert float(jnp.abs(reflected(x) - copy(x)).max()) > 1e-3
    # One convolution that is not circular: only the others' blurs are.
    pool = functools.partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
    assert aa_flax.antialias(nnx.List([*model.layers, pool]))[0][3].keywords["pad_type"] == "circular"
    mixed = nnx.List([nnx.Conv(5, 6, (3, 3), 2, rngs=rngs), nnx.Conv(6, 6, (3, 3), 2, **circle), pool])
    copy, _ = aa_flax.antialias(mixed, first=True)
    assert [copy[i].input_blur.pad_type for i in range(2)] == ["reflect", "circular"]
    assert copy[2].keywords["pad_type"] == "reflect"


# --- wrong spellings ---


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        (
            {BasicBlock: {"->conv3": "conv1"}},
            "no such attribute 'conv3': BasicBlock has bn1, bn2, conv1, conv2, shortcut",
        ),
        ({BasicBlock: {"->conv2": "conv0"}}, "no such attribute 'conv0': BasicBlock has bn1"),
        ({BasicBlock: {"->shortcut.conv3": "conv1"}}, "'shortcut.conv3': Shortcut has bn, conv"),
        ({BasicBlock: {"conv1": "->conv2"}}, "the arrow belongs to the slot: '->conv2': 'conv1'"),
        ({BasicBlock: {"->conv1": "conv1"}}, "a layer cannot take its own stride over"),
        ({BasicBlock: {"->conv2": 2}}, "takes the stride of a convolution, which it has to name"),
        ({BasicBlock: {"conv2": 1}}, "a pool's stride is at least 2"),
        ({BasicBlock: {"conv2": None}}, "no pair of an attribute and a convolution's name"),
        ({BasicBlock: {"conv2": "conv1"}}, 'holds Conv: it must hold None or an activation.*"->conv2" blurs before it'),
        ({BasicBlock: {"->bn2": "bn1"}}, "names 'bn1', which is no nnx.Conv but BatchNorm"),
        ({BasicBlock: "conv1"}, "slots takes {Block: .*}, got BasicBlock: 'conv1'"),
        ({"BasicBlock": {"->conv2": "conv1"}}, "slots takes {Block: .*}, got 'BasicBlock'"),
        ("conv1", "slots takes {Block: .*}, got str"),
        ({MBConv: {"->se": "depthwise"}}, "slots names MBConv, of which the network has none; it has Conv"),
    ],
)
def test_wrong_spellings_give_one_line(slots, message):
    with pytest.raises(ValueError, match=message) as caught:
        aa_flax.antialias(block(), first=True, slots=slots)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_table_of_slots_may_serve_several_networks():
    slots: dict = {BasicBlock: {"->conv2": "conv1"}}
    _, alone = aa_flax.antialias(block(), first=True, slots=slots)
    _, among = aa_flax.antialias(block(), first=True, slots={MBConv: {"->se": "depthwise"}, **slots})
    assert among.antialiased == alone.antialiased
    assert [change.path for change in alone.antialiased]


def test_arrows_into_shared_layers():
    class Both(nnx.Module):
        def __init__(self, rngs):
            self.down, self.next = nnx.Conv(5, 5, (3, 3), 2, rngs=rngs), nnx.Conv(5, 5, (3, 3), rngs=rngs)
            self.again = nnx.List([self.next])

        def __call__(self, x):
            return self.again[0](self.next(self.down(x)))

    with nnx.set_graph_mode(True):
        model = with_values(lambda: Both(nnx.Rngs(0)))
        with pytest.raises(ValueError, match="are one module, which can hold no blur: give each place its own"):
            aa_flax.antialias(model, first=True, slots={Both: {"->next": "down"}})
