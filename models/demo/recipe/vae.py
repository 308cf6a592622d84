"""Train the autoencoder (SDXL layout, small channels) on rendered scenes, then standardise its latents.

The loss is L1 and L2 on the pixels plus L1 on their differences (sharp edges). The latents carry a small fixed
noise and a weak pull to zero instead of a KL term, which at this size blurred small shapes. Afterwards the mean and standard deviation of every latent channel are folded into quant_conv and post_quant_conv,
so that latent * scaling_factor has mean 0 and variance 1 without any extra step at inference.
"""

import argparse
import math
import pathlib
import time

import numpy as np
import torch
from diffusers import AutoencoderKL

from scenes import render, sample_scene

SCALING = 0.13025
NOISE = 0.03


def build():
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(16, 32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1, act_fn="silu", norm_num_groups=8, sample_size=128,
        scaling_factor=SCALING, force_upcast=False)


def pictures(count, seed, frame=(128, 128), small=False):
    """Rendered scenes; `small`: only those with a small object, the hardest to keep."""
    rng = np.random.default_rng(seed)
    out = []
    while len(out) < count:
        scene = sample_scene(rng, frame)
        if not small or any(o["size"] == "small" for o in scene["objects"]):
            out.append(render(scene))
    return np.stack(out)


def to_unit(x):
    """uint8 [n, h, w, 3] to float [-1, 1] NCHW in channels-last memory."""
    t = torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2)
    return t.float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


def crops(rng, data, count, side):
    """Random windows, mostly with an edge inside (flat ones teach little)."""
    out = np.empty((count, side, side, 3), np.uint8)
    for n in range(count):
        for attempt in range(4):
            p = data[int(rng.integers(len(data)))]
            y, x = (int(rng.integers(0, p.shape[k] - side + 1)) for k in (0, 1))
            w = p[y:y + side, x:x + side]
            if attempt == 3 or rng.random() < 0.05 or np.any(w[::4, ::4] != w[0, 0]):
                break
        out[n] = w[:, ::-1] if rng.random() < 0.5 else w
    return out


def picture_loss(y, x):
    d = y - x
    edge = ((d[..., 1:, :] - d[..., :-1, :]).abs().mean() + (d[..., :, 1:] - d[..., :, :-1]).abs().mean())
    return d.abs().mean() + 0.5 * edge + 2.0 * d.square().mean()


@torch.no_grad()
def psnr(vae, data):
    vae.eval()
    values = []
    for part in np.array_split(data, max(1, len(data) // 32)):
        x = to_unit(part)
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
        mse = ((y - x) / 2).square().mean((1, 2, 3)).clamp_min(1e-9)
        values.append(-10 * mse.log10())
    vae.train()
    return torch.cat(values)


@torch.no_grad()
def standardise(vae, data):
    """Fold (z - mean) / std / SCALING into quant_conv, and the inverse into post_quant_conv."""
    vae.eval()
    z = torch.cat([vae.encode(to_unit(p)).latent_dist.mode() for p in np.array_split(data, max(1, len(data) // 32))])
    mean, gain = z.mean((0, 2, 3)), 1 / (z.std((0, 2, 3)) * SCALING)
    fold(vae, mean, gain)
    return mean, gain


@torch.no_grad()
def fold(vae, mean, gain):
    """Make the encoder give (z - mean) * gain, and the decoder take it."""
    q, p = vae.quant_conv, vae.post_quant_conv
    q.weight[:4].mul_(gain[:, None, None, None])
    q.bias[:4].sub_(mean).mul_(gain)
    q.weight[4:] = 0  # the same small log-variance everywhere
    q.bias[4:] = 2 * (NOISE * gain).log()
    p.bias.add_(p.weight[:, :, 0, 0] @ mean)
    p.weight.div_(gain[None, :, None, None])


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--out", type=pathlib.Path, required=True)
    a.add_argument("--minutes", type=float, default=18)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--batch", type=int, default=16)
    a.add_argument("--lr", type=float, default=2e-3)
    a.add_argument("--log", type=pathlib.Path)
    a.add_argument("--resume", type=pathlib.Path)
    a.add_argument("--decoder-only", action="store_true", help="polish the decoder; the latents stay as they are")
    o = a.parse_args()
    torch.set_num_threads(o.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    data, test = pictures(8000 if o.decoder_only else 12000, 4 if o.decoder_only else 1, small=o.decoder_only), pictures(64, 2)
    vae = build() if o.resume is None else AutoencoderKL.from_pretrained(o.resume)
    if o.resume:  # back to unit variance before the scaling factor
        fold(vae, torch.zeros(4), torch.full((4,), SCALING))
    vae = vae.to(memory_format=torch.channels_last).train()
    if o.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    noise = 2 * NOISE if o.decoder_only else NOISE  # drawn latents are never exact
    params = [p for p in vae.parameters() if p.requires_grad]
    print("parameters", sum(p.numel() for p in vae.parameters()), flush=True)
    ema = {k: v.detach().clone() for k, v in vae.state_dict().items()}
    opt = torch.optim.AdamW(params, o.lr, betas=(0.9, 0.98), weight_decay=1e-3, fused=True)
    log = open(o.log, "w") if o.log else None
    if log:
        print("seconds,step,loss,sd,psnr", file=log, flush=True)
    start = last = time.time()
    step, shown = 0, []
    while (now := (time.time() - start) / (60 * o.minutes)) < 1:
        rate = o.lr * min(1, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * now)))
        for g in opt.param_groups:
            g["lr"] = rate
        # Whole pictures now and then, because the attention in the middle sees the whole code.
        x = to_unit(crops(rng, data, o.batch, 64) if step % 6 else data[rng.integers(0, len(data), max(4, o.batch // 4))])
        mean = vae.encode(x).latent_dist.mean
        y = vae.decode(mean + noise * torch.randn_like(mean)).sample
        main_loss = picture_loss(y, x)
        loss = main_loss + 1e-4 * mean.square().mean()
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        step += 1
        decay = min(0.998, step / (step + 10))
        with torch.no_grad():
            for k, v in vae.state_dict().items():
                ema[k].lerp_(v, 1 - decay)
        shown.append(main_loss.item())
        if time.time() - last > 45:
            last = time.time()
            keep = {k: v.clone() for k, v in vae.state_dict().items()}
            vae.load_state_dict(ema)
            quality = psnr(vae, test).mean().item()
            line = f"{time.time() - start:.0f},{step},{np.mean(shown):.4f},{mean.std().item():.3f},{quality:.2f}"
            print(line, flush=True)
            if log:
                print(line, file=log, flush=True)
            vae.save_pretrained(o.out)
            vae.load_state_dict(keep)
            shown = []
    vae.load_state_dict(ema)
    print("test psnr", psnr(vae, test).mean().item())
    if o.decoder_only:
        fold(vae, torch.zeros(4), torch.full((4,), 1 / SCALING))
    else:
        print("folded mean, gain", *standardise(vae, pictures(600, 3)))
    print("test psnr after folding", psnr(vae, test).mean().item())
    vae.to(memory_format=torch.contiguous_format).save_pretrained(o.out)


if __name__ == "__main__":
    main()
