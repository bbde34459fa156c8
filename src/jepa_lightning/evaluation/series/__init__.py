"""What a frozen encoder of time series is good for: classes, forecasts, anomalies; in the terms of scikit-learn.

Needs the extra `series`.
"""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError("series are evaluated by scikit-learn: pip install 'jepa-lightning[series]'") from error

from jepa_lightning.evaluation.series.anomalies import AnomalyDetector, nearest_window
from jepa_lightning.evaluation.series.classes import classify, fit_linear, fit_svm
from jepa_lightning.evaluation.series.encoder import SeriesEncoder
from jepa_lightning.evaluation.series.forecasts import Forecast, RidgeForecaster, forecast, seasonal_naive

__all__ = [
    "AnomalyDetector",
    "Forecast",
    "RidgeForecaster",
    "SeriesEncoder",
    "classify",
    "fit_linear",
    "fit_svm",
    "forecast",
    "nearest_window",
    "seasonal_naive",
]
