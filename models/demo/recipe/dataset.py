"""Prepare training data once: captions as T5 states, pictures as latents. One shard = one .npz-like folder.

The two halves are separate commands, because captions can be encoded while the autoencoder still trains.
"""

import argparse
import pathlib
import pickle

import numpy as np
import torch

from scenes import FRAMES, caption, is_held_out, render, sample_scene, semantic_map

CAPTIONS = 3  # per scene


def encode_captions(shard, count, seed, tokenizer, encoder_path):
    from text_encoder import Pieces
    from transformers import T5EncoderModel
    pieces, t5 = Pieces(tokenizer / "spiece.model"), T5EncoderModel.from_pretrained(encoder_path).eval()
    rng = np.random.default_rng(seed)
    scenes = {f: [] for f in FRAMES}
    while sum(map(len, scenes.values())) < count:
        s = sample_scene(rng)
        if not is_held_out(s):
            scenes[tuple(s["frame"])].append(s)
    shard.mkdir(parents=True, exist_ok=True)
    for frame, group in scenes.items():
        ids = [pieces(caption(rng, s)[0])[0] for s in group for _ in range(CAPTIONS)]
        start = np.concatenate([[0], np.cumsum([len(i) for i in ids])])
        states = np.zeros((start[-1], t5.config.d_model), np.float16)
        order = np.argsort([len(i) for i in ids])
        with torch.no_grad():
            for part in np.array_split(order, max(1, len(order) // 256)):
                length = max(len(ids[n]) for n in part)
                x = torch.zeros(len(part), length, dtype=torch.long)
                for k, n in enumerate(part):
                    x[k, :len(ids[n])] = torch.tensor(ids[n])
                h = t5(input_ids=x, attention_mask=(x != 0).long()).last_hidden_state.numpy()
                for k, n in enumerate(part):
                    states[start[n]:start[n + 1]] = h[k, :len(ids[n])]
        name = f"{frame[0]}x{frame[1]}"
        np.save(shard / f"{name}-states.npy", states)
        np.save(shard / f"{name}-start.npy", start)
        np.save(shard / f"{name}-labels.npy", np.stack([semantic_map(s) for s in group]))
        (shard / f"{name}-scenes.pkl").write_bytes(pickle.dumps(group))


def encode_pictures(shard, vae_path):
    from diffusers import AutoencoderKL
    from vae import SCALING, to_unit
    vae = AutoencoderKL.from_pretrained(vae_path).eval().to(memory_format=torch.channels_last)
    for file in sorted(shard.glob("*-scenes.pkl")):
        scenes = pickle.loads(file.read_bytes())
        parts = []
        with torch.no_grad():
            for part in np.array_split(np.arange(len(scenes)), max(1, len(scenes) // 32)):
                x = to_unit(np.stack([render(scenes[n]) for n in part]))
                parts.append((vae.encode(x).latent_dist.mode() * SCALING).numpy().astype(np.float16))
        z = np.concatenate(parts)
        print(file.name, len(z), "mean", z.mean((0, 2, 3), dtype=np.float64), "sd", z.std((0, 2, 3), dtype=np.float64), flush=True)
        np.save(str(file).replace("-scenes.pkl", "-latents.npy"), z)
    (shard / "ready").write_text("")  # the trainer looks for this file


def main():
    a = argparse.ArgumentParser()
    a.add_argument("part", choices=["captions", "pictures"])
    a.add_argument("--shards", type=pathlib.Path, required=True)
    a.add_argument("--which", type=int, nargs="+", default=[0])
    a.add_argument("--count", type=int, default=12000)
    a.add_argument("--threads", type=int, default=1)
    a.add_argument("--tokenizer", type=pathlib.Path)
    a.add_argument("--text-encoder", type=pathlib.Path)
    a.add_argument("--vae", type=pathlib.Path)
    o = a.parse_args()
    torch.set_num_threads(o.threads)
    for k in o.which:
        if o.part == "captions":
            encode_captions(o.shards / f"{k:02d}", o.count, 1000 + k, o.tokenizer, o.text_encoder)
        else:
            encode_pictures(o.shards / f"{k:02d}", o.vae)


if __name__ == "__main__":
    main()
