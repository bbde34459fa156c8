"""Time series: the UCR and UEA archives, tables, and data frames."""

from jepa_lightning.data.series.datamodule import SeriesDataModule
from jepa_lightning.data.series.scaling import Scaling

__all__ = ["Scaling", "SeriesDataModule"]
