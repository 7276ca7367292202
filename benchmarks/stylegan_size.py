"""Seconds and peak memory of a real-size StyleGAN-XL with random weights: one image, one gradient step in w.

usage: python benchmarks/stylegan_size.py [RESOLUTION] [BATCH] [DEVICE]
"""
import resource
import sys
import time

import torch

from sr_distill.stylegan import StyleGANXL, xl_config


def main(resolution=512, batch=1, device="cpu"):
    torch.manual_seed(0)
    clock = time.perf_counter
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    g = StyleGANXL(xl_config(resolution)).requires_grad_(False).to(device)
    ws = g.map(torch.randn(batch, 64, device=device), torch.full((batch,), 207, device=device)).clone().requires_grad_()
    if device.startswith("cuda"): g.decode(ws.detach())   # warm up
    synchronize()
    start = clock()
    image = g.decode(ws)
    synchronize()
    middle = clock()
    used = lambda: torch.cuda.max_memory_allocated() / 1e9 if device.startswith("cuda") else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"forward {middle - start:.1f} s, {time.process_time():.0f} s of CPU so far, peak {used():.1f} GB", flush=True)
    image.square().mean().backward()
    synchronize()
    end = clock()
    assert image.shape == (batch, 3, resolution, resolution) and ws.grad.isfinite().all() and ws.grad.abs().sum() > 0
    print(f"{resolution}², batch {batch}, {device}, {torch.get_num_threads()} threads: {g.num_ws} w's, {sum(p.numel() for p in g.parameters()) / 1e6:.1f} M weights, "
          f"forward {middle - start:.1f} s, backward {end - middle:.1f} s, {time.process_time():.0f} s of CPU in all, peak {used():.1f} GB")


if __name__ == "__main__": main(*map(int, sys.argv[1:3]), *sys.argv[3:])
