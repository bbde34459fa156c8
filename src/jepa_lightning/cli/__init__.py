"""`jepa`: one LightningCLI over the modules, data and callbacks of this package and of the user's own project."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import ActionConfigFile
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_warn

import jepa_lightning
from jepa_lightning.callbacks import FeatureWriter
from jepa_lightning.checkpoints import SafeCheckpointIO, load_encoder
from jepa_lightning.checkpoints.reading import read_file
from jepa_lightning.cli.last import last_checkpoint
from jepa_lightning.cli.parser import NearMissParser, nulls
from jepa_lightning.errors import UnknownEncoderError
from jepa_lightning.evaluation import evaluate, print_table, write_table
from jepa_lightning.modules import JEPA
from jepa_lightning.networks import SeriesTransformer


class EvaluatingTrainer(pl.Trainer):
    """A Trainer for a subcommand more."""

    def evaluate(
        self,
        model: pl.LightningModule,
        datamodule: pl.LightningDataModule,
        ckpt_path: str,
        num_train: int = 10_000,
        steps: int = 1_000,
        encoder_options: dict[str, Any] | None = None,
    ) -> None:
        """Read off a frozen encoder's features all that the data set has labels for, into one table.

        The table is printed, and written as `evaluation.csv` and `evaluation.md` into the Trainer's default_root_dir.

        Args:
            model: of a checkpoint that does not say what its encoder is, the module that takes its weights, whose
                `features` are read; not used otherwise.
            datamodule: the data, labelled.
            ckpt_path: a checkpoint of ours, an official one, or a Hugging Face folder.
            num_train: training samples that probes are fitted on, at most.
            steps: of a probe's training, on batches of 256.
            encoder_options: further arguments of `load_encoder`, such as `{network: context_encoder, num_heads: 3}`.
        """
        accelerator = self.strategy.root_device.type
        encoder: Any = ckpt_path
        try:
            of_series = isinstance(load_encoder(ckpt_path, **(encoder_options or {})), SeriesTransformer)
        except UnknownEncoderError:
            if not isinstance(model, JEPA):
                raise
            of_series = True
        if of_series and isinstance(model, JEPA):
            model.load_state_dict(read_file(Path(ckpt_path))["state_dict"])
            encoder = model
        readings = evaluate(encoder, datamodule, num_train, steps, accelerator, encoder_options)
        for ending in (".csv", ".md"):
            write_table(readings, Path(self.default_root_dir) / f"evaluation{ending}")
        print_table(readings)


class JEPACLI(LightningCLI):
    """Lightning's CLI with that parser, and without the checkpoint's hyper-parameters overriding the given ones."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """One more: `evaluate`."""
        return {**LightningCLI.subcommands(), "evaluate": {"model", "datamodule"}}

    def before_predict(self) -> None:
        """Write the features of a JEPA to `features.npz` in the Trainer's default_root_dir, unless told otherwise."""
        callbacks: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        given = any(isinstance(callback, FeatureWriter) for callback in callbacks)
        if isinstance(self.model, JEPA) and not given:
            callbacks.append(FeatureWriter(Path(self.trainer.default_root_dir) / "features.npz"))

    def after_validate(self) -> None:
        """No result is no success."""
        self._must_have(self.trainer.num_val_batches)

    def after_test(self) -> None:
        """No result is no success."""
        self._must_have(self.trainer.num_test_batches)

    def after_predict(self) -> None:
        """No result is no success."""
        self._must_have(self.trainer.num_predict_batches)

    def _must_have(self, batches: list[Any]) -> None:
        if not sum(batches):
            raise ValueError(
                f"{type(self.datamodule).__name__} gave no batch to {self.subcommand}, so there is no result: look "
                "where its held-out data are, and at the Trainer's limits"
            )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """No abbreviations: `--trainer.max_epoch` is a mistake, and to be told."""
        parser = NearMissParser(dump_header=[f"lightning.pytorch=={pl.__version__}"], allow_abbrev=False, **kwargs)
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="a YAML file; later ones are merged in")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line, with recipes looked up."""
        self.config = parser.parse_args([_find_recipe(argument) for argument in (args or sys.argv[1:])])
        chosen = self.config[self.config.subcommand]
        for line in nulls(chosen):
            parser.error(line)
        if "weights_only" in chosen and chosen.weights_only is None:
            chosen.weights_only = True  # Lightning's default runs what a file says
        if chosen.get("trainer.accumulate_grad_batches") == 0:
            parser.error("--trainer.accumulate_grad_batches is 0: it must be at least 1")
        if chosen.get("ckpt_path") == "last":
            try:
                chosen.ckpt_path = last_checkpoint(chosen)
            except FileNotFoundError as error:
                if self.config.subcommand != "fit":
                    parser.error(str(error))
                rank_zero_warn(f"{error}: the training starts anew")
                chosen.ckpt_path = None

    def instantiate_classes(self) -> None:
        """Make Trainer, module and data; what one of them objects to is said without the parser's words around it."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise (error.__cause__ or error) from None

    def instantiate_trainer(self, **options: Any) -> pl.Trainer:
        """The Trainer; unless told otherwise, checkpoints are read and written by `SafeCheckpointIO`."""
        plugins = self._get(self.config_init, "trainer.plugins") or []
        plugins = list(plugins) if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(SafeCheckpointIO())
        if self._get(self.config_init, "trainer.logger") in (None, True):
            # Lightning's default, but for a curve of -1 by the name of `hp_metric`.
            root = self._get(self.config_init, "trainer.default_root_dir") or os.getcwd()
            version = SLURMEnvironment.job_id()
            options["logger"] = TensorBoardLogger(root, version=version, default_hp_metric=False)
        return super().instantiate_trainer(plugins=plugins, **options)

    def _parse_ckpt_path(self) -> None:
        """Lightning lets the hyper-parameters in `--ckpt_path` override configs and command line without a word."""


def main(args: list[str] | None = None) -> None:
    """Run `jepa fit|validate|test|predict|evaluate --config …`.

    Configurations under `recipes/` that the working directory does not have are those of the installed package.

    Args:
        args: the command line after `jepa`; that of the process without.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # full paths of a user's own classes, which `python -m` would find too
    JEPACLI(
        pl.LightningModule,
        pl.LightningDataModule,
        trainer_class=EvaluatingTrainer,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        args=args,
    )


def _find_recipe(argument: str) -> str:
    option, _, path = argument.rpartition("=")
    if path.startswith("recipes/") and not Path(path).exists():
        installed = jepa_lightning.RECIPES / path.removeprefix("recipes/")
        if installed.exists():
            return f"{option}={installed}" if option else str(installed)
    return argument
