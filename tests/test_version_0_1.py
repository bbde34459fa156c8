"""Checkpoints that version 0.1.0 has written (`golden/0.1`): their features, and trainings that go on from them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_close, quiet_trainer
from torch.utils.data import DataLoader, TensorDataset

from jepa_lightning import CJEPA, DMTJEPA, IJEPA, VJEPA, VJEPA2, LeJEPA, load_encoder
from jepa_lightning.callbacks import CollapseMonitor, KNNProbe, LinearProbe

METHODS: dict[str, type[Any]] = {
    "ijepa": IJEPA,
    "cjepa": CJEPA,
    "dmtjepa": DMTJEPA,
    "lejepa": LeJEPA,
    "vjepa": VJEPA,
    "vjepa2": VJEPA2,
}
FOLDER = Path(__file__).parent / "golden" / "0.1"


@pytest.mark.parametrize("name", METHODS)
def test_features(name: str) -> None:
    """Of the module, and of the encoder alone."""
    stored = torch.load(FOLDER / f"{name}.pt", weights_only=True)
    module = METHODS[name].load_from_checkpoint(FOLDER / f"{name}.ckpt", weights_only=True).eval()
    assert_close(module.features(stored["x"]).values, stored["features"], "features")
    assert_close(load_encoder(FOLDER / f"{name}.ckpt")(stored["x"]), stored["features"], "encoder")


@pytest.mark.parametrize("name", METHODS)
def test_go_on(name: str, tmp_path: Path) -> None:
    """Optimiser, schedules, guard, monitor and probes take over their states, and the third epoch is trained."""
    stored = torch.load(FOLDER / f"{name}.pt", weights_only=True)
    checkpoint = torch.load(FOLDER / f"{name}.ckpt", weights_only=True)
    module = METHODS[name].load_from_checkpoint(FOLDER / f"{name}.ckpt", weights_only=True)
    seen: list[dict[str, Any]] = []

    class Look(CollapseMonitor):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append(copy.deepcopy(trainer.optimizers[0].state_dict()))
            assert trainer.global_step == 4

    probes = [KNNProbe(bank_size=8), LinearProbe(num_classes=2)]
    trainer = quiet_trainer(tmp_path, max_epochs=3, callbacks=[Look(1), *probes])
    data = DataLoader(TensorDataset(stored["x"], torch.arange(8) % 2), 4)
    trainer.fit(module, data, ckpt_path=FOLDER / f"{name}.ckpt", weights_only=True)
    assert trainer.global_step == 6
    theirs = checkpoint["optimizer_states"][0]["state"]
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    decayed = [n for n in names if module.get_parameter(n).ndim > 1] + [
        n for n in names if module.get_parameter(n).ndim <= 1
    ]
    assert len(theirs) == len(decayed) == len(seen[0]["state"])
    for number, name_ in enumerate(decayed):
        assert theirs[number]["exp_avg"].shape == module.get_parameter(name_).shape, name_
        assert torch.equal(seen[0]["state"][number]["exp_avg"], theirs[number]["exp_avg"])
