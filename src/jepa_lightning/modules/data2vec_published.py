"""How the published runs of data2vec and data2vec 2.0 differ from the defaults, by what they observe.

Official files do not tell it in a form that can be read safely. What shapes tell is not among it.
"""

from __future__ import annotations

from typing import Any

# fairseq's files of images, unlike those of the released models, come from a code that does not apply the head.
DATA2VEC: dict[str, dict[str, Any]] = {
    "images": {"head_layers": 0},
    "waves": {
        "num_layers": 8,
        "mlp_targets": True,
        "layer_norm": "instance",
        "target_norm": False,
        "beta": 0.0,
        "mask_ratio": 0.49,
        "mask_length": 10,
        "momentum": (0.999, 0.9999),
        "momentum_steps": 30_000,
    },
    "words": {
        "num_layers": 10,
        "mlp_targets": True,
        "layer_norm": "layer",
        "target_norm": False,
        "beta": 4.0,
        "loss_scale": 1.0,
        "head_layers": 2,
        "mask_ratio": 0.3,
        "mask_length": 4,
        "momentum": (0.999, 0.9999),
        "momentum_steps": 300_000,
    },
}

DATA2VEC2: dict[str, dict[str, Any]] = {
    "2.0 images": {},
    "2.0 waves": {
        "num_masks": 8,
        "mask_ratio": 0.39,
        "mask_length": 5,
        "num_layers": 8,
        "target_norm": False,
        "ema_tokenizer": False,
        "cls_weight": 0.0,
        "momentum": (0.999, 0.99999),
        "momentum_steps": 75_000,
    },
    "2.0 words": {
        "num_masks": 8,
        "mask_ratio": 0.48,
        "mask_length": 1,
        "num_layers": 12,
        "target_norm": False,
        "loss_scale": 1.0,
        "predictor_residual": False,
        "ema_tokenizer": False,
        "cls_weight": 0.0,
        "momentum": (0.9999, 0.99999),
    },
}
