import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from codmoe.models.layers import (
    BatchNorm,
    Doubled,
    PartialDecoder,
    ReceptiveFieldBlock,
    conv_bn,
    pad_channels,
    resize_map,
    resize_to,
)


@pytest.mark.parametrize("kernel", [1, 3, 5, (1, 7), (7, 1)])
@pytest.mark.parametrize("dilation", [1, 3])
def test_conv_keeps_the_size(kernel, dilation):
    layer = conv_bn(4, 6, kernel, dilation=dilation)
    assert layer(torch.randn(2, 4, 9, 11)).shape == (2, 6, 9, 11)
    assert layer.conv.bias is None and conv_bn(4, 6, act=False)(torch.randn(2, 4, 3, 3)).min() < 0


def test_batch_norm_of_a_single_value_uses_running_statistics():
    layer = conv_bn(4, 6, 3).train()
    layer.bn.running_mean.fill_(0.5)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    x = torch.randn(1, 4, 1, 1)
    out = layer(x)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    torch.testing.assert_close(out, layer.eval()(x))
    out.sum().backward()
    assert layer.conv.weight.grad is not None


def test_batch_norm_is_torchs_own_otherwise():
    layer, x = conv_bn(4, 6, 3, act=False).train(), torch.randn(1, 4, 1, 2)
    reference = torch.nn.BatchNorm2d(6)
    torch.testing.assert_close(layer(x), reference(layer.conv(x)))
    torch.testing.assert_close(layer.bn.running_var, reference.running_var)


@pytest.mark.parametrize("size", [(56, 56), (7, 9), (3, 12), (5, 8)])
def test_maps_are_resized_as_images_are(size):
    maps = torch.randn(3, 1, 5, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):  # stays in float32
        own, expected = resize_map(maps, size), resize_to(maps, size)
    torch.testing.assert_close(own, expected)
    weights = torch.randn_like(own)
    gradients = [torch.autograd.grad(x, maps, weights)[0] for x in (own, expected)]
    torch.testing.assert_close(*gradients)
    assert resize_map(maps.bfloat16(), size).dtype == torch.float32


def test_resize_to_tensor_or_size():
    x = torch.randn(1, 2, 4, 4)
    assert resize_to(x, (4, 4)) is x
    assert resize_to(x, torch.zeros(9, 5, 7, 3)).shape == (1, 2, 7, 3)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [(5, 8), (1, 3)])
def test_doubled_maps_and_their_gradients_are_torchs(size, layout):
    maps = torch.randn(2, 3, *size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    own, expected = Doubled.apply(maps), F.interpolate(maps, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(own, expected)
    weights = torch.randn_like(own)
    gradients = [torch.autograd.grad(x, maps, weights)[0] for x in (own, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 3, 5, 4), (10, 8)), ((2, 1, 5, 4), (40, 32)), ((2, 1, 4, 8), (2, 4))]
)
def test_compiled_resizes_add_up_nothing_by_index(shape, size):
    operations = []

    def noted(graph, _):
        operations.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    def head(maps):
        return resize_to(1.5 * maps, size)

    torch._dynamo.reset()
    compiled = torch.compile(head, backend=aot_autograd(fw_compiler=noted), dynamic=False)
    maps = torch.randn(shape).bfloat16().to(memory_format=torch.channels_last).requires_grad_()
    weights = torch.randn(*shape[:2], *size).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        own, expected = compiled(maps), head(maps.detach().float().requires_grad_())
    assert own.dtype == torch.bfloat16 and own.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(own.float(), expected, atol=0.05, rtol=0.02)
    (gradient,) = torch.autograd.grad(own, maps, weights)
    assert operations and not [name for name in operations if "_put" in name or "upsample" in name]
    reference = maps.detach().float().requires_grad_()
    torch.testing.assert_close(
        gradient.float(),
        torch.autograd.grad(head(reference), reference, weights.float())[0],
        atol=0.05,
        rtol=0.02,
    )


def test_receptive_field_grows_with_the_branch():
    block = ReceptiveFieldBlock(2, 4).eval()
    x = torch.zeros(1, 2, 31, 31, requires_grad=True)
    reach = []
    for branch in block.branches:
        (grad,) = torch.autograd.grad(branch(x)[0, :, 15, 15].sum(), x)
        reach.append(int(grad.abs().sum((0, 1, 2)).count_nonzero()))
    # k from the two strips, and 2k more from the 3×3 of dilation k
    assert reach[0] == 1
    assert all(3 <= r <= 3 * k for r, k in zip(reach[1:], (3, 5, 7), strict=True))
    assert reach == sorted(reach) and len(set(reach)) == 4


@pytest.mark.parametrize("chained", [False, True])
def test_partial_decoder_multiplies_neighbours(chained):
    decoder = PartialDecoder(8, chained=chained).eval()
    shallow, mid, deep = (torch.randn(1, 8, s, s) for s in (9, 5, 3))
    assert decoder(shallow, mid, deep).shape == (1, 1, 9, 9)
    seen = []
    decoder.deep_to_shallow.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    decoder(shallow, torch.zeros_like(mid), deep)
    # With nothing at stride 16, the chained product carries nothing on.
    assert bool(seen[0].any()) != chained


def test_batch_norm_is_torchs_but_for_the_count_of_batches():
    ours, theirs = BatchNorm(3).double(), torch.nn.BatchNorm2d(3).double()
    for training in (True, True, False):
        x = 2 + torch.randn(4, 3, 5, 6, dtype=torch.float64)
        torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in ours.state_dict().items():
        if name != "num_batches_tracked":
            torch.testing.assert_close(value, theirs.state_dict()[name])


@pytest.mark.parametrize("folded", [True, False])
def test_padded_channels_hold_zeros_and_change_nothing(folded):
    first, second = (conv_bn(*sizes, 3, stride=2).eval() for sizes in ((2, 5), (5, 4)))
    if folded:
        for module in (first, second):
            module.conv = torch.nn.utils.fuse_conv_bn_eval(module.conv, module.norm)
            setattr(module, module.norm_name, torch.nn.Identity())
    x = torch.randn(2, 2, 17, 12)
    with torch.no_grad():
        expected = second(first(x))
        pad_channels(first, outputs=True)
        pad_channels(second, outputs=False)
        between = first(x)
        torch.testing.assert_close(second(between), expected)
    assert between.shape[1] == (8 if folded else 5), "a batch norm knows its channels"
    assert first.conv.weight.shape[1] == second.conv.weight.shape[1] == 8
