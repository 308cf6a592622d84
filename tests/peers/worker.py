"""One contender in a process of its own: loads, runs, and prints {"seconds": [...]} as its last line.

    PYTHON worker.py KIND JSON

KIND is `diffusers-step`, `diffusers-decode`, `transformers-text` or `openvino`; JSON has `model`, `inputs` (safetensors
under the names of the exported graph's inputs), `threads`, `warmup` and `repeats`, and perhaps `output`, a file for the
result. `diffusers-step` also takes `device`, `dtype` and `compile`.
"""

import json
import sys
import time


def timed(run, spec):
    """Runs so often, and gives the last result and the seconds that count."""
    seconds, result = [], None
    for _ in range(spec["warmup"] + spec["repeats"]):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    return result, seconds[spec["warmup"]:]


def torch_inputs(spec):
    import torch
    from safetensors.torch import load_file
    torch.set_num_threads(spec["threads"])
    return load_file(spec["inputs"])


def diffusers_step(spec):
    import torch
    from diffusers import PixArtTransformer2DModel
    device, dtype = spec.get("device", "cpu"), getattr(torch, spec.get("dtype", "float32"))
    inputs = {name: value.to(device, dtype if value.is_floating_point() else None)
              for name, value in torch_inputs(spec).items()}
    mask = inputs["encoder_attention_mask"].to(dtype)
    model = PixArtTransformer2DModel.from_pretrained(spec["model"], torch_dtype=dtype).eval().to(device)
    if spec.get("compile"):
        model = torch.compile(model)
    with torch.inference_mode():
        # The copy waits for the device.
        return timed(lambda: model(
            inputs["hidden_states"], inputs["encoder_hidden_states"], inputs["timestep"],
            added_cond_kwargs={"resolution": None, "aspect_ratio": None}, encoder_attention_mask=mask,
            return_dict=False)[0].float().cpu().numpy(), spec)


def diffusers_decode(spec):
    import torch
    from diffusers import AutoencoderKL
    inputs = torch_inputs(spec)
    model = AutoencoderKL.from_pretrained(spec["model"]).eval()
    with torch.inference_mode():
        return timed(lambda: model.decode(inputs["latent_sample"], return_dict=False)[0].numpy(), spec)


def transformers_text(spec):
    import torch
    from transformers import T5EncoderModel
    inputs = torch_inputs(spec)
    model = T5EncoderModel.from_pretrained(spec["model"], dtype=torch.float32).eval()
    with torch.inference_mode():
        return timed(lambda: model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])[0].numpy(),
                     spec)


def openvino(spec):
    import openvino
    from safetensors.numpy import load_file
    inputs = load_file(spec["inputs"])
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": spec["threads"], "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "f32"}
    model = core.compile_model(spec["model"], "CPU", settings)
    return timed(lambda: next(iter(model(inputs).values())), spec)


def main():
    kind, spec = sys.argv[1], json.loads(sys.argv[2])
    run = {"diffusers-step": diffusers_step, "diffusers-decode": diffusers_decode,
           "transformers-text": transformers_text, "openvino": openvino}[kind]
    result, seconds = run(spec)
    if spec.get("output"):
        import numpy
        from safetensors.numpy import save_file
        save_file({"result": numpy.ascontiguousarray(result, dtype="float32")}, spec["output"])
    print(json.dumps({"seconds": seconds}))


main()
