"""The vision networks: the official counts of parameters, and outputs as PyTorch's."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from famo_jax.experiments.problems import _layers, _problem, _segnet, celeba

NYU = {"semantic": 13, "depth": 1, "normal": 3}
CITIES = {"semantic": 7, "depth": 1}
THIN = (4, 6, 5, 7, 7)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@contextlib.contextmanager
def in_float64(on=True):
    jax.config.update("jax_enable_x64", on)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


# How far outputs may be from PyTorch's, over the largest one.
PRECISIONS = pytest.mark.parametrize(("dtype", "atol"), [(np.float64, 1e-10), (np.float32, 1e-4)])


def count(make):
    """Of parameters, by part; None: of all."""
    shapes = nnx.state(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param)
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    return {None: size(shapes)} | {name: size(part) for name, part in shapes.items()}


# --- Counts ---------------------------------------------------------------------------------------


def test_mtan_has_the_official_parameters():
    assert count(lambda rngs: _segnet.Mtan(NYU, rngs)) == {
        None: 44_229_073,
        "encoder": 3_913_728,
        "decoder": 3_947_520,
        "encoder_more": 10_809_408,
        "decoder_more": 6_272_640,
        "encoder_attention": 5_506_944,
        "decoder_attention": 3_446_784,
        "encoder_shared": 6_272_640,
        "decoder_shared": 3_947_520,
        "heads": 37_773 + 36_993 + 37_123,
    }
    cities = count(lambda rngs: _segnet.Mtan(CITIES, rngs))
    assert (cities[None], cities["heads"]) == (41_206_984, 37_383 + 36_993)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (NYU, 25_055_185),
        (CITIES, 25_017_672),
        ({"semantic": 13}, 24_981_069),
        ({"depth": 1}, 24_980_289),
        ({"normal": 3}, 24_980_419),
        ({"semantic": 7}, 24_980_679),
    ],
)
def test_segnet_has_the_official_parameters(outputs, expected):
    assert count(lambda rngs: _segnet.SegNet(outputs, rngs))[None] == expected


def test_convolutions_start_as_xavier_normal_and_biases_as_zero():
    block = _segnet._block(16, 32, nnx.Rngs(0)).layer
    kernel = block.kernel[...]
    assert np.std(kernel) == pytest.approx((2 / (9 * (16 + 32))) ** 0.5, rel=0.03)
    assert np.abs(kernel).max() > 3 * np.std(kernel)  # not truncated
    assert not np.any(block.bias[...])


def test_the_nine_layers_have_the_official_parameters():
    parts = count(lambda rngs: celeba.Network(40, rngs))
    assert (parts[None], parts["heads"]) == (5_197_160, 20_520)


def test_the_nine_layers_start_as_pytorchs():
    """U(-a, a) with a = 1/sqrt(fan_in): convolutions, hidden layers, heads and their biases."""
    params, _ = _problem.init_stateful(lambda rngs: celeba.Network(40, rngs, width=8), [0])
    params = nnx.to_pure_dict(params)
    block, hidden = params["stages"]["layers"][1]["layers"][0], params["hidden"]["layers"][0]
    heads = params["heads"]
    for leaf, fan_in in ((block["layer"]["kernel"], 9 * 8), (hidden["layer"]["kernel"], 64),
                         (heads["kernel"], 64), (heads["bias"], 64)):  # fmt: skip
        bound, found = fan_in**-0.5, np.abs(leaf).max()
        assert 0.9 * bound < found <= bound
        assert np.std(leaf) == pytest.approx(bound / 3**0.5, rel=0.2)


# --- Layers ---------------------------------------------------------------------------------------


def to_torch(torch, array):
    """Channels first."""
    return torch.from_numpy(np.moveaxis(np.array(array), -1, 1).copy())


def from_torch(tensor):
    return np.moveaxis(tensor.detach().numpy(), 1, -1)


def test_pooling_takes_the_first_of_equal_maxima_and_puts_it_back(torch):
    x = np.random.default_rng(0).integers(0, 3, (2, 8, 6, 5)).astype(np.float32)  # many are equal
    pooled, greatest = _layers.max_pool(jnp.asarray(x))
    theirs, indices = torch.nn.functional.max_pool2d(to_torch(torch, x), 2, return_indices=True)
    np.testing.assert_array_equal(pooled, from_torch(theirs))
    back = torch.nn.functional.max_unpool2d(2 * theirs + 1, indices, 2)
    np.testing.assert_array_equal(_layers.max_unpool(2 * pooled + 1, greatest), from_torch(back))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 9, 12, 2)])
def test_doubling_is_bilinear_with_aligned_corners(torch, shape):
    x = np.random.default_rng(0).normal(size=shape)
    theirs = torch.nn.functional.interpolate(
        to_torch(torch, x), scale_factor=2, mode="bilinear", align_corners=True
    )
    with in_float64():
        np.testing.assert_allclose(_layers.double(jnp.asarray(x)), from_torch(theirs), atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (9, 3)])
def test_batch_norm_trains_and_evaluates_as_pytorchs(torch, shape):
    rng = np.random.default_rng(0)
    norm = torch.nn.BatchNorm2d(3) if len(shape) == 4 else torch.nn.BatchNorm1d(3)
    with in_float64():
        ours, norm = _layers.BatchNorm(3), norm.double()
        ours.scale[...], ours.bias[...] = jnp.array([1.0, 2.0, 0.5]), jnp.array([0.0, -1.0, 3.0])
        with torch.no_grad():
            norm.weight[:], norm.bias[:] = torch.tensor([1, 2, 0.5]), torch.tensor([0, -1, 3.0])
        for training in (True, True, False):
            x = 2 + 3 * rng.normal(size=shape)
            (ours.train if training else ours.eval)()
            norm.train(training)
            expected = from_torch(norm(to_torch(torch, x)))
            np.testing.assert_allclose(ours(jnp.asarray(x)), expected, atol=1e-12)
            np.testing.assert_allclose(ours.mean[...], norm.running_mean, atol=1e-12)
            np.testing.assert_allclose(ours.var[...], norm.running_var, atol=1e-12)


@pytest.mark.parametrize("full", [(288, 384), (128, 256)])
def test_crops_are_resized_as_pytorchs(torch, full):
    """All three scales, of both data sets' sizes."""
    rng = np.random.default_rng(0)
    image, label = rng.random((*full, 2)), rng.integers(-1, 13, full)
    image = image.astype(np.float32)
    crop = jax.jit(_layers.cropped, static_argnames="smooth")
    for scale in (1.0, 1.2, 1.5):
        size = int(full[0] / scale), int(full[1] / scale)
        corner = rng.integers(0, np.array(full) - size + 1)
        window = tuple(
            slice(start, start + length) for start, length in zip(corner, size, strict=True)
        )
        smooth = torch.nn.functional.interpolate(
            to_torch(torch, image[window][None]), full, mode="bilinear", align_corners=True
        )
        nearest = torch.nn.functional.interpolate(
            torch.from_numpy(label[window].astype(np.float32))[None, None], full, mode="nearest"
        )
        ours = crop(image, corner, size, smooth=True)
        # The place of a pixel is rounded, to some 2e-5 of a pixel.
        np.testing.assert_allclose(ours, from_torch(smooth)[0], atol=5e-5)
        np.testing.assert_array_equal(crop(label, corner, size, smooth=False), nearest[0, 0])


# --- Networks -------------------------------------------------------------------------------------


class Theirs:
    """Networks of PyTorch's functions, from section to section as the papers draw them.

    It reads our parameters, and keeps statistics of its own.
    """

    def __init__(self, torch, network, training):
        self.torch, self.f, self.training = torch, torch.nn.functional, training
        self.params, self.stats = (
            jax.tree.map(lambda leaf: torch.from_numpy(np.array(leaf)), nnx.to_pure_dict(state))
            for state in (nnx.state(network, nnx.Param), nnx.state(network, nnx.BatchStat))
        )
        for leaf in jax.tree.leaves(self.params):
            leaf.requires_grad_()

    def conv(self, own, x):
        kernel = own["kernel"].permute(3, 2, 0, 1)
        return self.f.conv2d(x, kernel, own.get("bias"), padding=kernel.shape[-1] // 2)

    def block(self, own, stats, x, activate):
        layer, norm = own["layer"], own["norm"]
        x = self.conv(layer, x) if layer["kernel"].ndim == 4 else x @ layer["kernel"]
        running = stats["norm"]["mean"], stats["norm"]["var"]
        return activate(
            self.f.batch_norm(x, *running, norm["scale"], norm["bias"], self.training, 0.1, 1e-5)
        )

    def at(self, *path):
        """The parameters and statistics of a block."""
        own, stats = self.params, self.stats
        for key in path:
            own, stats = own[key], stats[key]
            if isinstance(key, str):
                own, stats = own["layers"], stats["layers"]
        return own, stats

    def run(self, x, *path):
        """Through the blocks of a sequence, or the one block of a path."""
        own, stats = self.at(*path)
        if "layers" not in own:
            return self.block(own, stats, x, self.torch.relu)
        for key in sorted(own["layers"]):
            x = self.block(own["layers"][key], stats["layers"][key], x, self.torch.relu)
        return x

    def attention(self, x, *path):
        own, stats = (each["layers"] for each in self.at(*path))
        x = self.block(own[0], stats[0], x, self.torch.relu)
        return self.block(own[1], stats[1], x, self.torch.sigmoid)

    def heads(self, outputs, maps):
        found = []
        for task, (name, x) in enumerate(zip(outputs, maps, strict=True)):
            own = self.params["heads"]["layers"][task]["layers"]
            x = self.conv(own[1], self.conv(own[0], x))
            if name == "semantic":
                x = self.f.log_softmax(x, dim=1)
            if name == "normal":  # with the term of ours: the one difference that is meant
                x = x / ((x**2).sum(dim=1, keepdim=True) + 1e-12).sqrt()
            found.append(x)
        return found

    def segnet(self, outputs, x, mtan=False):
        early, late, indices, unpooled, decoded = [], [], [], [], []
        for level in range(5):
            early.append(self.run(x, "encoder", level))
            late.append(self.run(early[-1], "encoder_more", level))
            x, index = self.f.max_pool2d(late[-1], 2, return_indices=True)
            indices.append(index)
        for step in range(5):
            unpooled.append(self.f.max_unpool2d(x, indices[4 - step], 2))
            x = self.run(self.run(unpooled[-1], "decoder", step), "decoder_more", step)
            decoded.append(x)
        if not mtan:
            return self.heads(outputs, [x] * len(outputs))
        maps = []
        for task in range(len(outputs)):
            x = None
            for level in range(5):
                seen = early[level] if x is None else self.torch.cat([early[level], x], dim=1)
                x = self.attended(seen, "encoder_attention", task, level) * late[level]
                x = self.f.max_pool2d(self.run(x, "encoder_shared", level), 2)
            for step in range(5):
                x = self.f.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
                seen = self.torch.cat([unpooled[step], self.run(x, "decoder_shared", step)], dim=1)
                x = self.attended(seen, "decoder_attention", task, step) * decoded[step]
            maps.append(x)
        return self.heads(outputs, maps)

    def nine_layers(self, x):
        for stage in range(4):
            x = self.run(self.f.max_pool2d(x, 2) if stage else x, "stages", stage)
        x = x.mean(dim=(2, 3))
        for index in range(2):
            x = self.run(x, "hidden", index)
        heads = self.params["heads"]
        return [x @ heads["kernel"] + heads["bias"]]

    def attended(self, x, name, task, level):
        own, stats = (
            each[name]["layers"][task]["layers"][level]["layers"]
            for each in (self.params, self.stats)
        )
        x = self.block(own[0], stats[0], x, self.torch.relu)
        return self.block(own[1], stats[1], x, self.torch.sigmoid)


def drawn(make, dtype):
    """A network with random parameters and statistics, also those that start as ones and zeros."""
    rng = np.random.default_rng(0)
    graph, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        if "kernel" in name:
            deviation = (3 / np.prod(leaf.shape[:-1])) ** 0.5
            return jnp.asarray(deviation * rng.normal(size=leaf.shape), dtype)
        start = 1.0 if "scale" in name or "var" in name else 0.0
        return jnp.asarray(start + 0.3 * rng.uniform(-1, 1, leaf.shape), dtype)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, state))


def compare(torch, network, theirs_of, images, atol, training=True, gradients=False):
    """Outputs and statistics, and gradients of a scalar."""
    theirs = Theirs(torch, network, training)
    expected = theirs_of(theirs)(to_torch(torch, images))
    graph, params, stats = nnx.split(network, nnx.Param, ...)
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=from_torch(each).shape).astype(images.dtype) for each in expected]

    def total(params):
        model = nnx.merge(graph, params, stats, copy=True)
        (model.train if training else model.eval)()
        outputs = model(images)
        outputs = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
        scalar = sum(jnp.sum(own * weight) for own, weight in zip(outputs, weights, strict=True))
        return scalar, (outputs, nnx.state(model, nnx.BatchStat))

    run = jax.grad(total, has_aux=True) if gradients else lambda params: (None, total(params)[1])
    grads, (outputs, new) = jax.jit(run)(params)

    def close(own, other, scale=None):
        scale = np.abs(other).max() if scale is None else scale
        np.testing.assert_allclose(own, other, rtol=0, atol=atol * scale)

    for own, other in zip(outputs, map(from_torch, expected), strict=True):
        assert other.std() > 0.01
        close(own, other)
    jax.tree.map(close, nnx.to_pure_dict(new), jax.tree.map(np.asarray, theirs.stats))
    if gradients:
        pairs = zip(expected, weights, strict=True)
        sum((own * to_torch(torch, weight)).sum() for own, weight in pairs).backward()
        theirs = jax.tree.map(lambda leaf: leaf.grad.numpy(), theirs.params)
        scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
        jax.tree.map(lambda own, other: close(own, other, scale), nnx.to_pure_dict(grads), theirs)


@PRECISIONS
def test_segnet_is_pytorchs_with_its_gradients(torch, dtype, atol):
    with in_float64(dtype == np.float64):
        images = np.random.default_rng(0).random((2, 32, 64, 3)).astype(dtype)
        # In float32 without normals: where one is short, its direction is that of rounding.
        outputs = NYU if dtype == np.float64 else CITIES
        network = drawn(lambda rngs: _segnet.SegNet(outputs, rngs, THIN), dtype)
        own = lambda theirs: lambda x: theirs.segnet(outputs, x)
        # A tie of what ReLU has cut has no gradient; other ties have that of the first.
        compare(torch, network, own, images, atol, gradients=dtype == np.float64)


@PRECISIONS
@pytest.mark.parametrize("training", [True, False])
def test_mtan_is_pytorchs(torch, training, dtype, atol):
    """Whose shared blocks have the statistics of one task after the other."""
    with in_float64(dtype == np.float64):
        images = np.random.default_rng(0).random((2, 32, 32, 3)).astype(dtype)
        outputs = NYU if dtype == np.float64 else CITIES  # as above
        network = drawn(lambda rngs: _segnet.Mtan(outputs, rngs, THIN), dtype)
        own = lambda theirs: lambda x: theirs.segnet(outputs, x, mtan=True)
        gradients = training and dtype == np.float64
        compare(torch, network, own, images, atol, training, gradients)


@PRECISIONS
@pytest.mark.parametrize("training", [True, False])
def test_the_nine_layers_are_pytorchs(torch, training, dtype, atol):
    with in_float64(dtype == np.float64):
        images = np.random.default_rng(0).random((3, 16, 16, 3)).astype(dtype)
        network = drawn(lambda rngs: celeba.Network(5, rngs, width=4), dtype)
        gradients = training and dtype == np.float64
        compare(torch, network, lambda own: own.nine_layers, images, atol, training, gradients)
