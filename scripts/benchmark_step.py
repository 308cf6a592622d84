"""Time and memory of training steps in PyTorch and here, one after the other on the same shapes; prints a table. Linux.

    PYTHON scripts/benchmark_step.py --target target/release [--steps 5] [--threads 4] [--cases demo demo-lora xl2 xl2-lora]

PYTHON needs torch, diffusers and peft. XL/2 has random weights, one picture of 256 px and a caption of 120 tokens; the
demo model 64 pictures of 128 px and 24 tokens. CAME, clipping, gradient checkpointing on both sides, fp32; LoRAs of
rank 16 in all attention layers. The fastest of the steps counts, for the first ones allocate. PyTorch's loss is that of
the noise alone, the variational bound is left out there. Each measurement is a process of its own.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "models" / "demo" / "transformer" / "config.json"
# Side, batch, tokens of the caption, rank.
CASES = {
    "demo": (128, 64, 24, 0), "demo-lora": (128, 64, 24, 16),
    "xl2": (256, 1, 120, 0), "xl2-lora": (256, 1, 120, 16),
}  # fmt: skip
XL2 = dict(
    num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28,
    cross_attention_dim=1152, attention_bias=True, sample_size=32, patch_size=2, activation_fn="gelu-approximate",
    norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=4096,
    interpolation_scale=0.5, use_additional_conditions=False,
)  # fmt: skip


def pytorch(case, steps, threads):
    import torch
    from diffusers import PixArtTransformer2DModel

    sys.path.insert(0, str(ROOT / "tests" / "fixtures" / "make"))
    from training_steps import Came

    torch.set_num_threads(threads)
    side, batch, tokens, rank = CASES[case]
    config = json.loads(DEMO.read_text()) if case.startswith("demo") else XL2
    model = PixArtTransformer2DModel.from_config(config)
    width = model.config.caption_channels
    if rank:
        from peft import LoraConfig, inject_adapter_in_model

        model.requires_grad_(False)
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        model = inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), model)
    model.enable_gradient_checkpointing()
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = Came(weights, 2e-5, betas=(0.9, 0.999, 0.9999), eps=(1e-30, 1e-16), clip_threshold=1.0, weight_decay=0.0)
    latents, captions = torch.randn(batch, 4, side // 8, side // 8), torch.randn(batch, tokens, width) * 0.1
    noise, mask, times = torch.randn_like(latents), torch.ones(batch, tokens), torch.full((batch,), 500)
    for _ in range(steps):
        start = time.perf_counter()
        output = model(latents, encoder_hidden_states=captions, encoder_attention_mask=mask, timestep=times).sample
        ((output[:, :4] - noise) ** 2).mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 0.01)
        optimizer.step()
        optimizer.zero_grad()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{time.perf_counter() - start:.3f} s, at most {peak} kB", flush=True)


def measure(command):
    """Seconds of the fastest step, and the largest memory in GB."""
    lines = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout
    steps = re.findall(r"([\d.]+) s,.*at most (\d+) kB", lines)
    return min(float(seconds) for seconds, _ in steps), max(int(kilobytes) for _, kilobytes in steps) * 1024 / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, help="where cargo has built the examples")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--pytorch", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pytorch:
        return pytorch(options.pytorch, options.steps, options.threads)
    print(f"{options.threads} threads\n")
    print("| | here | PyTorch | times as fast | memory here | PyTorch |")
    print("|---|---|---|---|---|---|")
    common = [f"steps={options.steps}", f"threads={options.threads}"]
    for case in options.cases:
        side, batch, tokens, rank = CASES[case]
        example = [options.target / "examples" / "step", *common, f"side={side}", f"batch={batch}", f"caption={tokens}",
                   f"rank={rank}", *([f"config={DEMO}"] if case.startswith("demo") else [])]
        ours = measure(example)
        theirs = measure([sys.executable, __file__, "--pytorch", case, "--steps", options.steps, "--threads",
                          options.threads])
        print(f"| {case} | {ours[0]:.2f} s | {theirs[0]:.2f} s | {theirs[0] / ours[0]:.2f} | {ours[1]:.2f} GB | "
              f"{theirs[1]:.2f} GB |", flush=True)


main()
