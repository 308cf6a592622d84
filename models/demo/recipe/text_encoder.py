"""Train the T5 encoder to understand scene captions, before any picture is made.

Linear heads read every token state: the tokens of a noun phrase (and of its place) must know shape, colour,
size and cell of their object; every token must know the background and the number of objects, and the final
token the whole scene. The heads are thrown away. What a caption leaves open is a class of its own.
"""

import argparse
import math
import pathlib
import time

import numpy as np
import sentencepiece
import torch
from torch import nn
from transformers import T5Config, T5EncoderModel

from scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, caption, is_held_out, sample_scene, text_of

# Classes per object attribute; the last class of colour, row and column means "not said".
OBJECT_CLASSES = [len(SHAPES), len(COLOURS) + 1, len(SIZES), 4, 4]
SCENE_CLASSES = [len(BACKGROUNDS) + 1, 2]


def build():
    return T5EncoderModel(T5Config(
        vocab_size=320, d_model=128, d_kv=32, num_heads=4, num_layers=3, d_ff=256, feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=32, relative_attention_max_distance=128, layer_norm_epsilon=1e-6,
        dropout_rate=0.1, pad_token_id=0, eos_token_id=1, tie_word_embeddings=False))


class Pieces:
    """SentencePiece ids word by word (pieces never cross a blank), so that word tags become token tags."""

    def __init__(self, path):
        self.model = sentencepiece.SentencePieceProcessor(str(path))
        self.known = {}

    def __call__(self, words):
        ids, tags = [], []
        for word, tag in words:
            if word not in self.known:
                self.known[word] = self.model.encode(word)
            ids += self.known[word]
            tags += [tag] * len(self.known[word])
        return ids + [1], tags + [-2]


def object_labels(scene, k, said):
    o = scene["objects"][k]
    if scene["kind"] == "pair":
        cell = [0 if k == 0 else 2, 1] if scene["axis"] == "vertical" else [1, 0 if k == 0 else 2]
        cell = cell if said["place"] else [3, 3]
    else:
        cell = o["cell"] if said["place"] else [3, 3]
    colour = COLOURS.index(o["colour"]) if said["colour"] else len(COLOURS)
    return [SHAPES.index(o["shape"]), colour, SIZES.index(o["size"]), *cell]


def example(rng, pieces, held_out=False):
    while True:
        scene = sample_scene(rng, (128, 128))
        if is_held_out(scene) == held_out:
            break
    words, said = caption(rng, scene)
    ids, tags = pieces(words)
    whole = [BACKGROUNDS.index(scene["background"]) if said["background"] else len(BACKGROUNDS), len(scene["objects"]) - 1]
    objects = [object_labels(scene, k, said) for k in range(len(scene["objects"]))]
    tokens = np.full((len(ids), 5), -100)
    for n, tag in enumerate(tags):
        if tag >= 0:
            tokens[n] = objects[tag]
    # The final token tells both objects, the one named first first.
    order = list(dict.fromkeys(t for t in tags if t >= 0))
    final = np.full((2, 5), -100)
    for n, k in enumerate(order):
        final[n] = objects[k]
    return ids, tokens, whole, final


def batch(rng, pieces, count, held_out=False):
    items = [example(rng, pieces, held_out) for _ in range(count)]
    length = max(len(i[0]) for i in items)
    ids = np.zeros((count, length), np.int64)
    tokens = np.full((count, length, 5), -100)
    whole = np.full((count, length, 2), -100)
    for n, (i, t, w, _) in enumerate(items):
        ids[n, :len(i)], tokens[n, :len(i)], whole[n, :len(i)] = i, t, w
    final = np.stack([i[3] for i in items])
    last = np.array([len(i[0]) - 1 for i in items])
    return tuple(map(torch.from_numpy, (ids, tokens, whole, final, last)))


class Heads(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.token = nn.Linear(width, sum(OBJECT_CLASSES))
        self.whole = nn.Linear(width, sum(SCENE_CLASSES))
        self.final = nn.Linear(width, 2 * sum(OBJECT_CLASSES))

    def forward(self, h, last):
        end = h[torch.arange(len(h)), last]
        pairs = [(self.token(h), OBJECT_CLASSES), (self.whole(h), SCENE_CLASSES),
                 (self.final(end).unflatten(-1, (2, -1)), OBJECT_CLASSES)]
        return [x.split(c, -1) for x, c in pairs]


def score(groups, labels):
    """Sum of cross-entropies, and per group the share of right answers."""
    loss, right = 0.0, []
    for outputs, target in zip(groups, labels):
        hits, total = 0, 0
        for k, out in enumerate(outputs):
            y = target[..., k].reshape(-1)
            loss = loss + nn.functional.cross_entropy(out.reshape(len(y), -1), y, ignore_index=-100)
            known = y >= 0
            hits += (out.reshape(len(y), -1).argmax(-1) == y)[known].sum().item()
            total += known.sum().item()
        right.append(hits / max(total, 1))
    return loss, right


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--tokenizer", type=pathlib.Path, required=True)
    a.add_argument("--out", type=pathlib.Path, required=True)
    a.add_argument("--minutes", type=float, default=6)
    a.add_argument("--threads", type=int, default=1)
    a.add_argument("--lr", type=float, default=2e-3)
    a.add_argument("--resume", type=pathlib.Path)
    a.add_argument("--log", type=pathlib.Path)
    o = a.parse_args()
    torch.set_num_threads(o.threads)
    torch.manual_seed(0)
    pieces = Pieces(o.tokenizer / "spiece.model")
    rng, probe = np.random.default_rng(11), np.random.default_rng(12)
    test = batch(probe, pieces, 600, held_out=True)
    t5 = (T5EncoderModel.from_pretrained(o.resume) if o.resume else build()).train()
    heads = Heads(128)
    print("parameters", sum(p.numel() for p in t5.parameters()), flush=True)
    params = [*t5.parameters(), *heads.parameters()]
    opt = torch.optim.AdamW(params, o.lr, betas=(0.9, 0.98), weight_decay=1e-2, fused=True)
    log = open(o.log, "w") if o.log else None
    if log:
        print("seconds,step,loss,token_right,whole_right,final_right", file=log)
    start, step = time.time(), 0
    while (now := (time.time() - start) / (60 * o.minutes)) < 1:
        for g in opt.param_groups:
            g["lr"] = o.lr * min(1, (step + 1) / 200) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * now)))
        ids, *labels, last = batch(rng, pieces, 64)
        h = t5(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
        loss, _ = score(heads(h, last), labels)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        step += 1
        if step % 200 == 0:
            t5.eval()
            with torch.no_grad():
                ids, *labels, last = test
                h = t5(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
                loss, right = score(heads(h, last), labels)
            t5.train()
            line = f"{time.time() - start:.0f},{step},{loss.item():.4f}," + ",".join(f"{r:.4f}" for r in right)
            print(line, flush=True)
            if log:
                print(line, file=log, flush=True)
    t5.eval()
    with torch.no_grad():
        # Unit variance for the caption states: fold the gain into the last norm's weight.
        ids, *_ = batch(rng, pieces, 500)
        keep = ids != 0
        h = t5(input_ids=ids, attention_mask=keep.long()).last_hidden_state[keep]
        t5.encoder.final_layer_norm.weight.div_(h.std(0).clamp_min(1e-3))
    t5.save_pretrained(o.out)


if __name__ == "__main__":
    main()
