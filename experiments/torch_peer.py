"""The step of a PyTorch program of style transfer, for `experiments.benchmark --vs_torch`. Needs torch, not JAX.

python experiments/torch_peer.py SIZE REPEATS LAYOUT

The work is that of the benchmark's own step: VGG16 to block5_conv1 on random weights, Gram matrices of the first
layer of each block, content at block4_conv2, and the gradient with respect to the image. It runs on the GPU where
PyTorch sees one. Prints one JSON line.
"""

import json
import resource
import sys
import time

import torch
from torch.nn.functional import conv2d, max_pool2d, relu

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 1))


def forward(image, convolutions):
    """Feature maps of all layers, by (block, convolution)."""
    maps, taps = image, {}
    for block, (_, count) in enumerate(BLOCKS, start=1):
        if block > 1:
            maps = max_pool2d(maps, 2)
        for number in range(1, count + 1):
            kernel, bias = convolutions[block, number]
            maps = taps[block, number] = relu(conv2d(maps, kernel, bias, padding=1))
    return taps


def gram(maps):
    flat = maps.flatten(2)[0]
    return flat @ flat.T / flat.shape[1]


def finished() -> float:
    """The time when all that was asked of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main(size: int, repeats: int, layout: torch.memory_format) -> list[float]:
    """Seconds of each of `repeats` steps."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True  # cuDNN's fastest, as XLA looks for its own with --nodeterministic
    generator, width, convolutions = torch.Generator().manual_seed(0), 3, {}
    for block, (channels, count) in enumerate(BLOCKS, start=1):
        for number in range(1, count + 1):
            kernel = torch.randn(channels, width, 3, 3, generator=generator) * (2 / (9 * width)) ** 0.5
            kernel = kernel.to(device).contiguous(memory_format=layout)
            convolutions[block, number] = kernel, torch.zeros(channels, device=device)
            width = channels
    image, style = (
        torch.randn(1, 3, size, size, generator=generator).to(device).contiguous(memory_format=layout)
        for _ in range(2)
    )
    with torch.no_grad():
        targets = {block: gram(forward(style, convolutions)[block, 1]) for block in range(1, 6)}
        content = forward(image, convolutions)[4, 2]
    image = (image + 0.1).requires_grad_()
    seconds = []
    for _ in range(repeats + 2):
        begun = finished()
        image.grad = None
        taps = forward(image, convolutions)
        loss = sum((gram(taps[block, 1]) - target).square().sum() for block, target in targets.items())
        (loss + (taps[4, 2] - content).square().mean()).backward()
        seconds.append(finished() - begun)
    return seconds[2:]  # the first two warm up


if __name__ == "__main__":
    layouts = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    times = main(int(sys.argv[1]), int(sys.argv[2]), layouts[sys.argv[3]])
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": times, "peak_bytes": peak, "torch": torch.__version__}))
