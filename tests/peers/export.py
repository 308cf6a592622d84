"""Times exports of the released sizes, random weights; prints tables. Linux.

    PYTHON tests/peers/export.py transformer  --pixart target/release/pixart --scratch DIR
    PYTHON tests/peers/export.py text_encoder --pixart target/release/pixart --scratch DIR \
        --precisions fp32 fp16 int8 int4

`transformer` exports a DiT-XL/2 with pixart and, from the same file, diffusers' class with both of PyTorch's
exporters; PYTHON needs torch, diffusers, onnx and onnxscript. It takes 5 GB of disk. PyTorch does not wait for the
disk, pixart and the copy do.
`text_encoder` exports a T5 v1.1 XXL encoder in two shards, and copies the same bytes on the same disk for
comparison; PYTHON needs numpy. It takes twice the model: 38 GB. What a step wrote is deleted after it.

Every row is a process of its own, and starts with the source out of the system's cache. Memory of its own is
the highest sample of RssAnon (200 a second), resident memory is VmHWM, which counts mapped files.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import time

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import process_memory  # noqa: E402
import random_models  # noqa: E402


def forget(folder):
    """Takes the files of a folder out of the system's cache, so that the next to read them reads the disk."""
    for path in folder.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def export(options, component, source, *flags):
    """One export by pixart; returns what it took and the bytes it wrote."""
    forget(source)
    output = options.scratch / "pixart"
    command = [options.pixart, "export", component, "--source", source, "--output", output, *flags]
    measured = process_memory.run(command)
    written = size(output)
    shutil.rmtree(output)
    return measured, written


def torch_export(exporter, source, target, side):
    """Runs in a process of its own: diffusers' class through one of PyTorch's exporters."""
    import torch
    from diffusers import PixArtTransformer2DModel
    model = PixArtTransformer2DModel.from_pretrained(source).eval()

    class Plain(torch.nn.Module):
        """The four inputs of the graph, by position."""
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, hidden_states, encoder_hidden_states, encoder_attention_mask, timestep):
            return self.model(hidden_states, encoder_hidden_states, timestep,
                              added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                              encoder_attention_mask=encoder_attention_mask, return_dict=False)[0]

    inputs = (torch.randn(2, 4, side, side), torch.randn(2, 300, 4096), torch.ones(2, 300),
              torch.tensor([949.0, 949.0]))
    names = ["hidden_states", "encoder_hidden_states", "encoder_attention_mask", "timestep"]
    start = time.perf_counter()
    with torch.inference_mode(False), torch.no_grad():
        torch.onnx.export(Plain().eval(), inputs, str(target), input_names=names, output_names=["out_hidden_states"],
                          dynamo=exporter == "dynamo", external_data=True)
    print(time.perf_counter() - start)


def transformer(options):
    source = options.scratch / "transformer"
    side = 32
    build = "import sys, pathlib, random_models; random_models.transformer(pathlib.Path(sys.argv[1]), {}, 0.5, {})"
    subprocess.run([sys.executable, "-c", build.format(side, options.layers), source], check=True, cwd=SCRIPTS)
    print(f"{options.layers} blocks, {size(source):,} bytes, latents {side} × {side}\n")
    print("| | seconds | of which export | memory of its own | resident |")
    print("|---|---|---|---|---|")
    rows = []
    for run in range(options.runs):
        measured, _ = export(options, "transformer", source)
        rows.append(("pixart", measured, measured.seconds))
    for exporter in options.exporters:
        forget(source)
        output = options.scratch / "torch"
        output.mkdir()
        measured = process_memory.run([sys.executable, __file__, "torch", "--exporter", exporter, "--source", source,
                                       "--target", output / "model.onnx", "--side", side])
        shutil.rmtree(output)
        rows.append((f"torch.onnx.export, {exporter}", measured, float(measured.output.split()[-1])))
    print(f"| cp and sync of the same file | {copy(options, source):.2f} | | | |")
    best = min((measured for name, measured, _ in rows if name == "pixart"), key=lambda measured: measured.seconds)
    for name, measured, seconds in rows:
        ratio = "" if name == "pixart" else \
            f" ({measured.seconds / best.seconds:.1f}×), ({measured.anonymous_mb / best.anonymous_mb:.0f}×)"
        time_ratio, memory_ratio = ratio.split(",") if ratio else ("", "")
        print(f"| {name} | {measured.seconds:.2f}{time_ratio} | {seconds:.2f} | {measured.anonymous_mb:.0f} MB"
              f"{memory_ratio} | {measured.peak_mb:.0f} MB |")


def copy(options, source):
    """Seconds to copy the files of a folder and flush them."""
    forget(source)
    target = options.scratch / "copy"
    start = time.perf_counter()
    subprocess.run(["cp", "-r", "--reflink=never", source, target], check=True)
    subprocess.run(["sync", *sorted(path for path in target.iterdir())], check=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def text_encoder(options):
    source = options.scratch / "text_encoder"
    total = random_models.text_encoder(source, options.layers, options.dtype)
    print(f"{options.layers} blocks, {options.dtype}, {total:,} bytes of weights in two shards\n")
    print("| | seconds | bytes written | read and written | against copying | memory of its own | resident |")
    print("|---|---|---|---|---|---|---|")
    for precision in options.precisions:
        before = copy(options, source)
        measured, written = export(options, "text_encoder", source, "--precision", precision, "--profile",
                                   options.profile)
        after = copy(options, source)
        copied = (before + after) / 2
        # A smaller precision writes less, so only bytes read and written compare.
        rate, copy_rate = (total + written) / measured.seconds, 2 * total / copied
        print(f"| cp, before and after | {before:.1f}, {after:.1f} | {total:,} | {copy_rate / 1e6:.0f} MB/s | | | |")
        print(f"| pixart, {precision} | {measured.seconds:.1f} | {written:,} | {rate / 1e6:.0f} MB/s | "
              f"{100 * rate / copy_rate:.0f} % | {measured.anonymous_mb:.0f} MB | {measured.peak_mb:.0f} MB |",
              flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for name, layers in (("transformer", 28), ("text_encoder", 24)):
        part = parts.add_parser(name)
        part.add_argument("--pixart", type=pathlib.Path, required=True)
        part.add_argument("--scratch", type=pathlib.Path, required=True, help="folder to make and delete")
        part.add_argument("--layers", type=int, default=layers)
    parts.choices["transformer"].add_argument("--runs", type=int, default=3, help="of pixart; the fastest counts")
    parts.choices["transformer"].add_argument("--exporters", nargs="*", default=["legacy", "dynamo"])
    parts.choices["text_encoder"].add_argument("--precisions", nargs="+", default=["fp32"])
    parts.choices["text_encoder"].add_argument("--profile", default="ort")
    parts.choices["text_encoder"].add_argument("--dtype", choices=["F32", "F16", "BF16"], default="F32")
    # Used by this script itself.
    part = parts.add_parser("torch")
    part.add_argument("--exporter")
    part.add_argument("--source", type=pathlib.Path)
    part.add_argument("--target", type=pathlib.Path)
    part.add_argument("--side", type=int)
    options = parser.parse_args()
    if options.part == "torch":
        return torch_export(options.exporter, options.source, options.target, options.side)

    options.scratch = options.scratch.resolve()
    options.pixart = options.pixart.resolve()
    options.scratch.mkdir(parents=True)
    try:
        {"transformer": transformer, "text_encoder": text_encoder}[options.part](options)
    finally:
        shutil.rmtree(options.scratch)


main()
