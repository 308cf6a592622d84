"""Train the SentencePiece model on sampled captions and write the released tokenizer's file layout."""

import argparse
import json
import pathlib
import string

import numpy as np
import sentencepiece as spm

from scenes import caption, sample_scene, text_of

EXTRA = [f"<extra_id_{k}>" for k in range(100)]


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--out", type=pathlib.Path, required=True)
    o = a.parse_args()
    o.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    lines = [text_of(caption(rng, sample_scene(rng))[0]) for _ in range(40000)]
    # Single letters, so that any other English word still becomes known pieces.
    lines += [" ".join(string.ascii_lowercase + string.digits + ".,;:!?'\"-()")] * 200
    # The trainer only keeps a piece that occurs in two distinct words, hence every word with punctuation too.
    words = sorted({w.strip(".,") for line in lines for w in line.split() if len(w) > 1})
    lines += [f"{w} {w}, {w}. {w}; {w}! {w}?" for w in words] * 5
    corpus = o.out / "corpus.txt"
    corpus.write_text("\n".join(lines))
    spm.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(o.out / "spiece"), model_type="unigram", vocab_size=340,
        normalization_rule_name="nmt_nfkc_cf", character_coverage=1.0, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", eos_piece="</s>", unk_piece="<unk>",
        num_threads=1, minloglevel=2)
    corpus.unlink()
    (o.out / "spiece.vocab").unlink()
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    special = {**names, "additional_special_tokens": EXTRA}
    (o.out / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    config = {**names, "extra_ids": 100, "additional_special_tokens": EXTRA, "model_max_length": 512,
              "tokenizer_class": "T5Tokenizer"}
    (o.out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
