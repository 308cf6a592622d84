"""Put the trained parts into one diffusers folder, weights in fp16."""

import argparse
import json
import pathlib

import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from transformers import T5EncoderModel

# The released file has a bare -Infinity, which json.dumps writes too.
SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "_diffusers_version": "0.22.0.dev0",
    "algorithm_type": "dpmsolver++",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "dynamic_thresholding_ratio": 0.995,
    "euler_at_final": False,
    "lambda_min_clipped": float("-inf"),
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "solver_order": 2,
    "solver_type": "midpoint",
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "linspace",
    "trained_betas": None,
    "use_karras_sigmas": False,
    "use_lu_lambdas": False,
    "variance_type": None,
}
INDEX = {
    "_class_name": "PixArtSigmaPipeline",
    "_diffusers_version": "0.42.1",
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
    "transformer": ["diffusers", "PixArtTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


# Keys of the released configs that the libraries no longer write themselves.
RELEASED = {
    "text_encoder": {"tie_word_embeddings": False},
    "vae": {},
    "transformer": {"double_self_attention": False, "num_vector_embeds": None, "only_cross_attention": False,
                    "use_linear_projection": False},
}


def tidy(config, more):
    data = json.loads(config.read_text())
    data.pop("_name_or_path", None)  # the folder a model came from says nothing to others
    data.update(more)
    config.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")


def main():
    a = argparse.ArgumentParser()
    for part in ("text-encoder", "vae", "transformer", "out"):
        a.add_argument(f"--{part}", type=pathlib.Path, required=True)
    o = a.parse_args()
    for name, kind, source in (("text_encoder", T5EncoderModel, o.text_encoder), ("vae", AutoencoderKL, o.vae),
                               ("transformer", PixArtTransformer2DModel, o.transformer)):
        model = kind.from_pretrained(source).to(torch.float16)
        model.save_pretrained(o.out / name)
        tidy(o.out / name / "config.json", RELEASED[name])
        for file in (o.out / name).glob("*.safetensors"):
            file.chmod(0o644)
    (o.out / "scheduler").mkdir(exist_ok=True)
    (o.out / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER, indent=2) + "\n")
    (o.out / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")


if __name__ == "__main__":
    main()
