"""Time and memory of a training step of XL/2 in PyTorch and in the trainer's example, one after the other:

    PYTHON-WITH-DIFFUSERS scripts/benchmark_step.py --target target/release [--side 256] [--steps 3] [--threads 4]

PyTorch's step has the error of the noise alone, gradient checkpointing, clipping, and CAME as the tests have it."""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from diffusers import PixArtTransformer2DModel

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "fixtures" / "make"))
from training_steps import Came  # noqa: E402

CONFIG = dict(
    num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28,
    cross_attention_dim=1152, attention_bias=True, sample_size=32, patch_size=2, activation_fn="gelu-approximate",
    norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=4096,
    interpolation_scale=0.5, use_additional_conditions=False,
)  # fmt: skip


def pytorch(side, steps):
    model = PixArtTransformer2DModel(**CONFIG)
    model.enable_gradient_checkpointing()
    model.train()
    optimizer = Came(
        model.parameters(), 2e-5, betas=(0.9, 0.999, 0.9999), eps=(1e-30, 1e-16), clip_threshold=1.0, weight_decay=0.0
    )
    latents, captions = torch.randn(1, 4, side // 8, side // 8), torch.randn(1, 120, 4096) * 0.1
    noise, mask = torch.randn_like(latents), torch.ones(1, 120)
    for _ in range(steps):
        start = time.perf_counter()
        output = model(
            latents, encoder_hidden_states=captions, encoder_attention_mask=mask, timestep=torch.tensor([500])
        ).sample
        forward = time.perf_counter() - start
        ((output[:, :4] - noise) ** 2).mean().backward()
        backward = time.perf_counter() - start - forward
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        optimizer.zero_grad()
        whole = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{whole:.2f} s, forward {forward:.2f}, backward {backward:.2f}, "
            f"optimizer {whole - forward - backward:.2f}, at most {peak} kB",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, required=True, help="where cargo has built the examples")
    parser.add_argument("--side", type=int, default=256, help="side of the picture in pixels")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=4, help="of PyTorch; the example takes all processors")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # First, so that its memory is not counted on top of PyTorch's on a small machine.
    example = arguments.target / "examples" / "step"
    subprocess.run([example, str(arguments.side), str(arguments.steps)], check=True)
    print(f"PyTorch {torch.__version__}, {arguments.threads} threads")
    pytorch(arguments.side, arguments.steps)


if __name__ == "__main__":
    main()
