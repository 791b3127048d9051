"""docs/weights.md: what becomes of weight files of other code bases; every row is the outcome of loading one."""

from __future__ import annotations

import tempfile
from pathlib import Path

from weight_files import FILES, WeightFile, write

from dcal.weights.files import CheckpointError
from dcal.weights.load import load_weights

HEAD = """\
# Weight files

`backbone.checkpoint=FILE` takes the files below as they are; the layout is found out by the names in the file.
`backbone.name` has to name the architecture: a file does not say how many heads its attention has.

```bash
dcal-train backbone.name=vit_small_patch14_reg4_dinov2 backbone.checkpoint=dinov2_vits14_reg4_pretrain.pth
dcal-train backbone.name=hf-hub:timm/vit_base_patch16_siglip_224.v2_webli backbone.pretrained=true
dcal-train backbone.name=local-dir:~/models/my_vit backbone.pretrained=true
```

- Every tensor of the backbone has to be in the file. What else is in it (heads, decoders, optimizers) is left out, and
  one line of the log lists it. Parts on which the features depend, such as register tokens, are never left out.
- Position embeddings are resampled to the grid of `dataset.image_size`, from a square grid, from the model's, or from
  one of about its shape.
- Of a trained model and its moving average (`teacher`, `ema`), the average is taken.
- Nothing in a file runs: neither pickled objects nor TorchScript. `argparse.Namespace` is the one object allowed.
- The layout changes no digit: DeiT-Tiny's weights, written in each of the layouts here that hold a plain ViT, train to
  the same accuracy and the same weights, bit for bit (`tests/weights/test_layout_runs.py`: one epoch of DCAL on a fifth
  of cub10 at 64 pixels, 12.76 % from all of them; a comparison of files, not a result).
- `hf-hub:organisation/name` and `local-dir:FOLDER` are models that timm has saved: `config.json` names the
  architecture, and `backbone.pretrained=true` takes the weights. Without internet the hub's local cache is used.

| file | used for | `backbone.checkpoint` |
|---|---|---|
"""


def row(file: WeightFile, folder: Path) -> str:
    vit = file.source()
    path = write(file, vit.state_dict(), folder)
    try:
        loaded = load_weights(vit, path)
        outcome = "; ".join(["loads", *loaded.notes, *loaded.warnings])
    except CheckpointError as error:
        outcome = str(error).replace(f"backbone.checkpoint={path}:", "refused:")
    return f"| {file.title} | {file.use} | {outcome.replace('*', chr(92) + '*')} |"


def page() -> str:
    with tempfile.TemporaryDirectory() as folder:
        return HEAD + "\n".join(row(file, Path(folder)) for file in FILES) + "\n"
