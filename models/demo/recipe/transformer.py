"""Train the PixArt-Sigma transformer on cached latents and caption states.

Two helpers beside the diffusion loss: the loss is weighted towards the noisy times where layout and colour
are decided, and a linear head on a middle block names colour and shape of every latent cell. The head is
thrown away afterwards. Learning rate and weights follow the clock, so the run ends when it is told to.
"""

import argparse
import math
import pathlib
import time

import numpy as np
import torch
from diffusers import PixArtTransformer2DModel
from torch import nn
from transformers import T5EncoderModel

from scenes import FRAMES, PALETTE, SHAPES

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
ALPHA_BAR = torch.cumprod(1 - BETAS, 0)
LENGTH = 28  # tokens per caption in a batch
LABELS = [len(PALETTE), len(SHAPES) + 1]


def build(heads, head_width, depth):
    width = heads * head_width
    model = PixArtTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=head_width, num_layers=depth, cross_attention_dim=width,
        in_channels=4, out_channels=8, patch_size=2, sample_size=16, interpolation_scale=0.25, caption_channels=128,
        activation_fn="gelu-approximate", attention_bias=True, attention_type="default", dropout=0.0,
        norm_elementwise_affine=False, norm_eps=1e-6, norm_num_groups=32, norm_type="ada_norm_single",
        num_embeds_ada_norm=1000, upcast_attention=False, use_additional_conditions=False)
    for m in model.modules():
        if isinstance(m, nn.Linear):
            nn.init.xavier_uniform_(m.weight)
            nn.init.zeros_(m.bias)
    nn.init.xavier_uniform_(model.pos_embed.proj.weight.data.view(width, -1))
    e = model.adaln_single.emb.timestep_embedder
    for m in (e.linear_1, e.linear_2, model.adaln_single.linear):
        nn.init.normal_(m.weight, std=0.02)
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    return model


class Store:
    """All ready shards, by picture size. New shards are picked up while training runs."""

    def __init__(self, root):
        self.root, self.seen, self.parts = root, set(), {f: [] for f in FRAMES}

    def refresh(self):
        for ready in sorted(self.root.glob("*/ready")):
            shard = ready.parent
            if shard in self.seen:
                continue
            self.seen.add(shard)
            for frame in FRAMES:
                load = lambda what: np.load(shard / f"{frame[0]}x{frame[1]}-{what}.npy")
                self.parts[frame].append({w: load(w) for w in ("latents", "labels", "states", "start")})

    def draw(self, rng, count):
        sizes = {f: [len(p["latents"]) for p in ps] for f, ps in self.parts.items()}
        totals = np.array([sum(s) for s in sizes.values()], float)
        frame = FRAMES[int(rng.choice(len(FRAMES), p=totals / totals.sum()))]
        parts, size = self.parts[frame], np.array(sizes[frame])
        which = rng.choice(len(parts), count, p=size / size.sum())
        rows = [(parts[w], int(rng.integers(size[w]))) for w in which]
        per = [(len(p["start"]) - 1) // len(p["latents"]) for p, _ in rows]
        # One length for all, so that a compiled graph fits every batch; the few longer captions are cut.
        states = np.zeros((count, LENGTH, parts[0]["states"].shape[1]), np.float32)
        mask = np.zeros((count, LENGTH), np.float32)
        for n, ((p, row), c) in enumerate(zip(rows, per)):
            k = row * c + int(rng.integers(c))
            span = p["states"][p["start"][k]:p["start"][k + 1]][:LENGTH]
            states[n, :len(span)], mask[n, :len(span)] = span, 1
        latents = np.stack([p["latents"][n] for p, n in rows]).astype(np.float32)
        labels = np.stack([p["labels"][n] for p, n in rows]).astype(np.int64)
        return tuple(map(torch.from_numpy, (latents, labels, states, mask)))


def drop_captions(states, mask, empty, rng, share=0.1):
    """Replace some captions by the empty one: half of them under their own mask, half under the caption's mask.

    Programs differ here (diffusers does the first, the original code the second); the model learns both.
    """
    for n in np.flatnonzero(rng.random(len(states)) < share):
        states[n] = empty[1]
        states[n, 0] = empty[0]
        if rng.random() < 0.5:
            mask[n] = 0
            mask[n, 0] = 1


def empty_caption(t5):
    """States of [eos, pad, pad, ...]: the eos one, and the one that all the pads share."""
    ids = torch.zeros(1, 16, dtype=torch.long)
    ids[0, 0] = 1
    with torch.no_grad():
        h = t5(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state[0]
    assert torch.allclose(h[1], h[-1], atol=1e-4)
    return h[:2]


def position_table(model, rows, columns):
    """The sine table of diffusers for this grid, [1, rows * columns, width]."""
    p = model.pos_embed
    blank = torch.zeros(1, 4, 2 * rows, 2 * columns)
    with torch.no_grad():
        return p(blank) - p.proj(blank).flatten(2).transpose(1, 2)


def forward(model, table, x, states, mask, t, middle):
    """What PixArtTransformer2DModel.forward does, plus the hidden states after block `middle`."""
    height, width = x.shape[2] // 2, x.shape[3] // 2
    x = model.pos_embed.proj(x).flatten(2).transpose(1, 2) + table
    rows, te = model.adaln_single(t, {"resolution": None, "aspect_ratio": None}, batch_size=len(x), hidden_dtype=x.dtype)
    y = model.caption_projection(states)
    bias = ((1 - mask) * -10000.0).unsqueeze(1)
    for k, block in enumerate(model.transformer_blocks):
        x = block(x, encoder_hidden_states=y, encoder_attention_mask=bias, timestep=rows)
        if k == middle:
            hidden = x
    shift, scale = (model.scale_shift_table[None] + te[:, None]).chunk(2, 1)
    x = model.proj_out(model.norm_out(x) * (1 + scale) + shift)
    x = x.view(len(x), height, width, 2, 2, -1).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(len(x), -1, 2 * height, 2 * width).float(), hidden


def variance_loss(v, eps_hat, noise, x0, xt, t):
    """The bound term for the learned variance, in bits, for t > 0; the predicted noise gets no gradient."""
    ab, shape = ALPHA_BAR.to(torch.float32), (-1, 1, 1, 1)
    previous = torch.cat([torch.ones(1), ab[:-1]])
    beta = BETAS.float()
    tilde = beta * (1 - previous) / (1 - ab)
    tilde[0] = tilde[1]
    pick = lambda table: table[t].view(shape)
    low, high = pick(tilde).log(), pick(beta).log()
    logvar = (v + 1) / 2 * high + (1 - (v + 1) / 2) * low
    c0, ct = pick(previous.sqrt() * beta / (1 - ab)), pick((1 - beta).sqrt() * (1 - previous) / (1 - ab))
    guess = (xt - pick((1 - ab).sqrt()) * eps_hat.detach()) / pick(ab.sqrt())
    apart = c0 * (guess - x0)
    kl = 0.5 * (-1 + logvar - low + (low - logvar).exp() + apart.square() * (-logvar).exp())
    return (kl / math.log(2)).mean((1, 2, 3)) * (t > 0)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--shards", type=pathlib.Path, required=True)
    a.add_argument("--text-encoder", type=pathlib.Path, required=True)
    a.add_argument("--out", type=pathlib.Path, required=True)
    a.add_argument("--minutes", type=float, default=70)
    a.add_argument("--heads", type=int, default=2)
    a.add_argument("--head-width", type=int, default=80)
    a.add_argument("--depth", type=int, default=6)
    a.add_argument("--batch", type=int, default=64)
    a.add_argument("--lr", type=float, default=1.5e-3)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--compile", action="store_true")
    a.add_argument("--resume", type=pathlib.Path)
    a.add_argument("--emphasis", type=float, default=0.5, help="of noisy times and of the naming loss, at the start")
    a.add_argument("--log", type=pathlib.Path)
    a.add_argument("--save-every", type=float, default=240, help="seconds")
    o = a.parse_args()
    torch.set_num_threads(o.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(21)
    empty = empty_caption(T5EncoderModel.from_pretrained(o.text_encoder).eval())
    store = Store(o.shards)
    store.refresh()
    model = PixArtTransformer2DModel.from_pretrained(o.resume) if o.resume else build(o.heads, o.head_width, o.depth)
    model.train()
    head = nn.Linear(o.heads * o.head_width, 4 * sum(LABELS))
    print("parameters", sum(p.numel() for p in model.parameters()), flush=True)
    ema = [p.detach().clone() for p in model.parameters()]
    params = [*model.parameters(), *head.parameters()]
    # Muon for the matrices of the blocks: twice the progress per sample here (AdamW for all the rest).
    matrices = [p for n, p in model.transformer_blocks.named_parameters() if n.endswith("weight") and p.ndim == 2]
    known = {id(p) for p in matrices}
    optimizers = [
        torch.optim.Muon(matrices, o.lr, weight_decay=1e-2, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([p for p in params if id(p) not in known], o.lr, betas=(0.9, 0.98), weight_decay=1e-2,
                          fused=True),
    ]
    tables = {f: position_table(model, f[0] // 16, f[1] // 16) for f in FRAMES}

    def losses(xt, states, mask, t, noise, x0, labels, weight, table):
        out, hidden = forward(model, table, xt, states, mask, t, o.depth // 2)
        eps, v = out.chunk(2, 1)
        mse = (eps - noise).square().mean((1, 2, 3))
        h, w = labels.shape[2] // 2, labels.shape[3] // 2
        # [B, N, 4 * classes] -> one prediction per latent cell of the 2 x 2 patch.
        cells = head(hidden).float().view(len(xt), h, w, 2, 2, -1).permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        colour, shape = cells.split(LABELS, 1)
        named = nn.functional.cross_entropy(colour, labels[:, 0]) + nn.functional.cross_entropy(shape, labels[:, 1])
        bound = variance_loss(v, eps, noise, x0, xt, t).mean()
        return (mse * weight).mean(), mse.mean(), named, bound

    step_losses = torch.compile(losses, dynamic=False) if o.compile else losses
    weight_table = (1 / ALPHA_BAR.sqrt()).clamp_max(8).float()
    log = open(o.log, "w") if o.log else None
    if log:
        print("seconds,step,samples,weighted,mse,named,bound,scenes", file=log)
    start = saved = last = time.time()
    step, shown = 0, []

    def save():
        keep = [p.detach().clone() for p in model.parameters()]
        with torch.no_grad():
            for p, e in zip(model.parameters(), ema):
                p.copy_(e)
            model.save_pretrained(o.out)
            for p, k in zip(model.parameters(), keep):
                p.copy_(k)

    while (now := (time.time() - start) / (60 * o.minutes)) < 1:
        # Constant, then down to nothing in the last third.
        rate = o.lr * min(1, (step + 1) / 150) * min(1, 3 * (1 - now) + 0.002)
        for g in (g for opt in optimizers for g in opt.param_groups):
            g["lr"] = rate
        x0, labels, states, mask = store.draw(rng, o.batch)
        drop_captions(states, mask, empty, rng)
        t = torch.from_numpy(rng.integers(0, 1000, o.batch))
        ab = ALPHA_BAR[t].float().view(-1, 1, 1, 1)
        noise = torch.randn_like(x0)
        xt = ab.sqrt() * x0 + (1 - ab).sqrt() * noise
        early = o.emphasis * max(0.0, 1 - now / 0.85)
        weight = 1 + (weight_table[t] - 1) * (0.25 + 0.75 * early)
        with torch.autocast("cpu", torch.bfloat16):
            weighted, mse, named, bound = step_losses(xt, states, mask, t, noise, x0, labels, weight,
                                                        tables[tuple(8 * s for s in x0.shape[2:])])
        loss = weighted + 0.1 * bound + 0.5 * min(1, 0.1 + early * 1.5) * named
        for p in params:
            p.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        for opt in optimizers:
            opt.step()
        step += 1
        decay = min(0.9985, step / (step + 20))
        torch._foreach_lerp_(ema, [p.detach() for p in model.parameters()], 1 - decay)
        shown.append([weighted.item(), mse.item(), named.item(), bound.item()])
        if time.time() - last > 30:
            last = time.time()
            store.refresh()
            count = sum(len(p["latents"]) for ps in store.parts.values() for p in ps)
            line = f"{time.time() - start:.0f},{step},{step * o.batch}," + ",".join(f"{x:.4f}" for x in np.mean(shown, 0)) + f",{count}"
            print(line, flush=True)
            if log:
                print(line, file=log, flush=True)
            shown = []
        if time.time() - saved > o.save_every:
            saved = time.time()
            save()
    save()


if __name__ == "__main__":
    main()
