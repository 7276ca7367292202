"""The kernels of the filtered nonlinearity against PyTorch's plain calls: in Triton's interpreter on any machine, and on a GPU."""
import copy
import dataclasses

import pytest
import torch

from sr_distill import kernels, stylegan
from sr_distill.core import POLICIES
from sr_distill.kernels import scale_backward, usable
from sr_distill.parallel import precision
from sr_distill.stylegan import StyleGANXL, SynthesisLayer, Ways, xl_config

def interpreted(test):
    "Runs in a process of its own where Triton interprets the kernels on the CPU."
    return pytest.mark.apart(TRITON_INTERPRET="1")(pytest.mark.skipif(kernels.triton is None, reason="triton is missing (pip install triton)")(test))

LAYERS = {"twice": (2, 12, (9, 8, 9, 8), (36, 29)), "four times": (4, 24, (-6, -9, -6, -9), (20, 17)), "critical": (2, 12, (-11, -12, -11, -12), (42, 40))}
EXACT = dict(float32=1e-5, float16=1.5e-3, bfloat16=1e-2)


def relative(a, b):
    a, b = (t.detach().double().cpu() for t in (a, b))
    return float((a - b).norm() / b.norm())

def layer(up, taps, padding, clamp, channels=3):
    "A layer of the generator with filters that are not symmetric, so that a turned one shows."
    s = dict(xl_config(16, layers=(3, 3), channel_max=2)["layers"][0], up_factor=up, up_taps=taps, padding=list(padding), conv_clamp=clamp, out_channels=channels)
    made = SynthesisLayer(s)
    made.up_filter, made.down_filter = torch.rand(taps) / taps * 2, torch.rand(12) / 6
    return made

def inputs(size, dtype, device, channels=3):
    x, scale, bias = torch.randn(2, channels, *size), torch.rand(2, channels) + .5, torch.randn(channels)
    return x.to(device, dtype), scale.to(device), bias.to(device)

def both(made, x, scale, bias, **how):
    "Output and gradients by the kernels, and by the plain calls in float64 on the same numbers."
    exact = copy.deepcopy(made).double().cpu()
    wide = [t.detach().double().cpu().requires_grad_() for t in (x, scale, bias)]
    out = exact.bend(wide[0] * wide[1][:, :, None, None] + wide[2][:, None, None])
    grad = torch.randn(out.shape).to(x)
    wanted = [out, *torch.autograd.grad(out, wide, grad.double().cpu())]
    fast = made.kernels(x, Ways())
    return [fast.forward(x, scale, bias, **how), *fast.backward(grad, x, scale, bias, **how)], wanted


@interpreted
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("clamp", (0, 1.5))
def test_kernels_equal_the_plain_calls(name, clamp):
    up, taps, padding, size = LAYERS[name]
    found, wanted = both(layer(up, taps, padding, clamp), *inputs(size, torch.float32, "cpu"))
    for a, b in zip(found, wanted): assert a.shape == b.shape and relative(a, b) < 2e-6

@interpreted
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_kernels_take_16_bits(dtype):
    up, taps, padding, size = LAYERS["twice"]
    found, wanted = both(layer(up, taps, padding, 256), *inputs(size, dtype, "cpu"))
    limit = EXACT[str(dtype).split(".")[1]]
    for a, b in zip(found, wanted): assert relative(a, b) < limit
    assert found[0].dtype == found[1].dtype == dtype and found[2].dtype == torch.float32

@interpreted
def test_kernels_take_channels_last_and_channels_left_out():
    up, taps, padding, size = LAYERS["twice"]
    x, scale, bias = inputs(size, torch.float32, "cpu", channels=8)
    fast = layer(up, taps, padding, 256).kernels(x, Ways())
    plain = fast.forward(x, scale, bias)
    assert fast.forward(x.contiguous(memory_format=torch.channels_last), scale, bias).equal(plain)
    assert fast.forward(x[:, :5], scale[:, :5].contiguous(), bias[:5]).equal(plain[:, :5])
    grad = torch.randn_like(x)
    for g in (grad, grad.contiguous(memory_format=torch.channels_last)):
        to_x, to_scale = scale_backward(g, x, scale)
        assert to_x.allclose(grad * scale[:, :, None, None]) and relative(to_scale, (grad * x).sum((2, 3))) < 1e-5

def gradients(g, ws, ways):
    g.ways, ws = ways, ws.detach().clone().requires_grad_()
    image = g.synthesize(ws)
    return image.detach(), torch.autograd.grad(image.square().mean() * 1e-4, ws)[0]   # a small loss: float16 alone would lose its gradient

def tiny(resolution=32): return StyleGANXL(xl_config(resolution, c_dim=0, layers=(3, 3), channel_max=6)).requires_grad_(False)

@interpreted
def test_a_generator_with_kernels_is_the_same_generator():
    g = tiny(16)
    ws = torch.randn(1, g.num_ws, 512)
    plain, wanted = gradients(g, ws, Ways(fused=False))
    image, grad = gradients(g, ws, Ways())
    assert g.layers[1].kernels(ws.new_empty(1), Ways()) and relative(image, plain) < 1e-5 and relative(grad, wanted) < 1e-5


def test_sixteen_bits_are_near_and_lose_no_small_gradient():
    g, ws = tiny(), torch.randn(2, tiny().num_ws, 512)
    plain, wanted = gradients(g, ws, Ways(fused=False))
    image, grad = gradients(g, ws, Ways(half=True, fused=False))
    assert image.dtype == torch.float32 and relative(image, plain) < 5e-3 and relative(grad, wanted) < 5e-2
    for p in g.parameters(): p.requires_grad_(True)
    assert gradients(g, ws, Ways(half=True, fused=False))[1].equal(gradients(g, ws, Ways(fused=False))[1])   # tuned weights: float32

@pytest.mark.parametrize("channels_last", (False, True))
def test_channels_of_zeros_for_tensor_cores_change_nothing(monkeypatch, channels_last):
    "As on a GPU, where 16-bit layers get a multiple of eight channels; here with the CPU's convolutions."
    g, ws = tiny(), torch.randn(2, tiny().num_ws, 512)
    wanted = gradients(g, ws, Ways(half=True, fused=False))
    seen = []
    monkeypatch.setitem(POLICIES, "cpu", dataclasses.replace(POLICIES["cpu"], cores=False))
    monkeypatch.setattr(stylegan, "_tensor_cores", lambda x: seen.append(x.shape[1]) or x.dtype == torch.float16)
    found = gradients(g, ws, Ways(half=True, fused=False, channels_last=channels_last))
    assert any(n % 8 for n in seen) and all(relative(a, b) < 5e-3 for a, b in zip(found, wanted))

@pytest.mark.parametrize("half", (False, True))
def test_values_that_are_computed_again_change_nothing(half):
    g, ws = tiny(), torch.randn(2, tiny().num_ws, 512)
    kept, again = (gradients(g, ws, Ways(half=half, fused=False, keep=keep)) for keep in (True, False))
    assert kept[0].equal(again[0]) and kept[1].equal(again[1])

def test_only_first_derivatives_go_through():
    g, ws = tiny(), torch.randn(1, tiny().num_ws, 512, requires_grad=True)
    first, = torch.autograd.grad(g.synthesize(ws).square().sum(), ws, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"): first.sum().backward()

def test_full_memory_computes_again(monkeypatch):
    again = []
    monkeypatch.setattr(stylegan, "checkpoint", lambda f, *args, **how: again.append(f) or f(*args))
    g, ws = tiny(), torch.randn(1, tiny().num_ws, 512, requires_grad=True)
    g.synthesize(ws)
    assert not again
    monkeypatch.setattr(stylegan, "memory_for", lambda device: 10_000)
    g.synthesize(ws)
    assert len(again) == g.num_ws - 1


@pytest.mark.cuda
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
def test_kernels_on_cuda(name, dtype):
    up, taps, padding, size = LAYERS[name]
    assert usable("cuda")
    found, wanted = both(layer(up, taps, padding, 256).cuda(), *inputs((150, 131), dtype, "cuda"))
    for a, b in zip(found, wanted): assert relative(a, b) < EXACT[str(dtype).split(".")[1]]

@pytest.mark.cuda
def test_generator_on_cuda():
    g, ws = StyleGANXL(xl_config(64, c_dim=0, channel_max=36)).requires_grad_(False).cuda(), torch.randn(2, 27, 512)[:, :1].expand(-1, 27, -1)
    ws = ws[:, :1].expand(-1, g.num_ws, -1).cuda()
    with precision():   # as the library does; PyTorch's own setting rounds convolutions to TF32
        plain, wanted = gradients(g, ws, Ways(half=False, fused=False))
        others = [gradients(g, ws, ways) for ways in (Ways(half=False), Ways(), Ways(channels_last=True))]
    for ways, (image, grad), image_off, grad_off in zip(("float32", "16 bits", "channels last"), others, (1e-4, 5e-3, 5e-3), (1e-3, 5e-2, 5e-2)):
        assert relative(image, plain) < image_off and relative(grad, wanted) < grad_off, ways


# ---- machine code, without a GPU

def compiled(kernel, tile: dict, half: bool, capability: int):
    "A kernel compiled for an NVIDIA GPU of this capability, with the numbers of one tile."
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    factors = dict(NUMBER=tl.float16, PRECISION="ieee") if half else dict(NUMBER=tl.float32, PRECISION="tf32x3")
    fixed = dict(tile, TOGETHER=4, **factors)
    number, floats = "*fp16" if half else "*fp32", ("scale", "bias", "up_filter", "down_filter", "up_grad", "down_grad", "sums")
    def kind(name): return "constexpr" if name in fixed else number if name in ("x", "out", "grad", "to_x") else "*fp32" if name in floats else "i32"
    signature = {name: kind(name) for name in kernel.arg_names}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): value for name, value in fixed.items()})
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(num_warps=4, num_stages=1))

@pytest.mark.apart(TRITON_INTERPRET="0")
@pytest.mark.skipif(kernels.triton is None, reason="triton is missing (pip install triton)")
@pytest.mark.parametrize("half, capability, room", [(True, 80, 90_000), (False, 90, 135_000)])   # Ampere and Hopper
def test_kernels_compile_for_a_gpu_and_fit_its_shared_memory(half, capability, room):
    made = kernels.FilteredReLU(torch.rand(12), 2, torch.rand(12), 2, (9, 8, 9, 8), clamp=256)
    t = made.tiles
    forward = dict(made.bend, STEP=t.step, FIRST=t.first, TILE=t.tile, OUT=32)
    backward = dict(made.bend, STEP=t.back_step, FIRST_X=t.first_x, FIRST_G=t.first_g, TILE=t.back_tile, OUT=32, EXACT="tf32x3")
    for kernel, tile in ((kernels._bent, forward), (kernels._unbent, backward)):
        made = compiled(kernel, tile, half, capability)
        assert len(made.asm["cubin"]) > 1000 and "mma" in made.asm["ptx"]   # machine code that uses the matrix units
        assert made.metadata.shared <= room   # `_exactly` asks for as much
