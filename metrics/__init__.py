"""The registry of the measures of a trained network, by column of nc_metrics.csv.

docs/measures.md defines them. Imports no torch: an entry names its function as text. To add a
measure, write its function and its entry here: column, printed table, curve and report follow.
"""

from __future__ import annotations

from dataclasses import dataclass

EVALUATED = "nc_metrics.csv"  # a run's table of measures
EVALUATED_EMA = "nc_metrics_ema.csv"  # the same of the averages of its weights
SPLIT_NAMES = {"train": "training set", "test": "test set"}


@dataclass(frozen=True)
class Panel:
    """A panel of the picture of the measures over the epochs.

    Attributes:
        title: stands above it.
        scale: of the y axis: "linear", "zero" (begins at 0), "log", or "late" (leaves out the rise
            of the first epochs).
        alone: whether only the picture of a single run has it. Its measures have colours of their
            own.
    """

    title: str
    scale: str = "linear"
    alone: bool = False


@dataclass(frozen=True)
class Measure:
    """A column of nc_metrics.csv.

    Attributes:
        function: maps a `metrics.measures.Evaluation` to a number, or to a dict of numbers by
            column. Measures with the same function share one call. The number of an optional
            measure may be None.
        title: its short name, which heads a column.
        label: its name in words, for legends and lists; by default the title.
        unit: "%" or nothing.
        digits: decimals in tables and reports.
        significant: whether `digits` counts significant digits instead, for a measure that spans
            many powers of ten.
        shown: whether eval_nc.py prints it. An optional measure is printed only if its function
            gives a number for any run.
        optional: whether a cell may be empty. An older table without an optional measure stays as
            it is. Other measures are computed for the rows of an older table.
        split: the split that reports and curves take if both are evaluated.
        panel: where its curve is drawn: a name of `PANELS`, or a new name for a panel of its own.
            None: no curve.
        history: the column of metrics.csv that holds the same number after every epoch.
        predicted: the measure that is its exact prediction.
        quantity: the score or bias that it summarises. Its curve takes that colour and mark.
    """

    function: str
    title: str
    label: str = ""
    unit: str = ""
    digits: int = 4
    significant: bool = False
    shown: bool = True
    optional: bool = False
    split: str = "train"
    panel: str | None = None
    history: str | None = None
    predicted: str | None = None
    quantity: str | None = None

    @property
    def name(self) -> str:
        """Its name in words."""
        return self.label or self.title

    @property
    def heading(self) -> str:
        """Its title and unit, for the head of a column."""
        return f"{self.title} {self.unit}".rstrip()

    def format(self, value: float | None, sign: str = "") -> str:
        """Return the value as tables show it; `sign` "+" puts a plus before a positive one."""
        if value is None:
            return "-"
        return f"{value:{sign}.{self.digits}{'g' if self.significant else 'f'}}"


# The picture has this order. A panel that is not listed here has its name as its title.
PANELS: dict[str, Panel] = {
    "nc1": Panel("NC1: within-class variability", scale="log"),
    "nc2": Panel("NC2: distance to a simplex ETF", scale="zero"),
    "nc3": Panel("NC3: W against class means", scale="zero"),
    "accuracy": Panel("accuracy, %", scale="late"),
    "scores": Panel("decision scores and bias", alone=True),
}

TOP = "metrics.measures:measure_top"
UNIFORM = "metrics.measures:measure_uniform_accuracy"
COLLAPSE = "metrics.measures:measure_neural_collapse"
PROPERTIES = "metrics.measures:measure_feature_properties"
STATISTICS = "metrics.measures:measure_score_statistics"
BIAS = "metrics.measures:measure_bias_statistics"
PREDICTION = "metrics.measures:measure_prediction"
GROUPS = "metrics.measures:measure_group_accuracies"

# The columns have this order.
MEASURES: dict[str, Measure] = {
    "top1": Measure(
        TOP,
        "top-1",
        label="top-1 accuracy",
        unit="%",
        digits=2,
        split="test",
        panel="accuracy",
        history="test_top1",
    ),
    "top5": Measure(
        TOP, "top-5", unit="%", digits=2, shown=False, split="test", history="test_top5"
    ),
    "uniform_accuracy": Measure(
        UNIFORM,
        "uniform",
        label="uniform accuracy",
        unit="%",
        digits=2,
        split="test",
        panel="accuracy",
        history="test_uniform",
    ),
    "uniform_threshold": Measure(UNIFORM, "threshold", digits=3, shown=False, split="test"),
    "nc1": Measure(COLLAPSE, "NC1", digits=3, significant=True, panel="nc1"),
    "nc2": Measure(COLLAPSE, "NC2", label="NC2, classifier W", panel="nc2"),
    "nc2_h": Measure(COLLAPSE, "NC2_h", label="NC2, class means", panel="nc2"),
    "nc3": Measure(COLLAPSE, "NC3", panel="nc3"),
    "nc4": Measure(COLLAPSE, "NC4"),
    "compactness": Measure(PROPERTIES, "compactness"),
    "distinctiveness": Measure(PROPERTIES, "distinctiveness"),
    "positive_mean": Measure(
        STATISTICS,
        "positive",
        label="positive score, mean",
        digits=3,
        panel="scores",
        predicted="predicted_positive",
        quantity="positive_score",
    ),
    "positive_std": Measure(STATISTICS, "positive std", digits=3, shown=False),
    "positive_min": Measure(STATISTICS, "positive min", digits=3, shown=False),
    "positive_max": Measure(STATISTICS, "positive max", digits=3, shown=False),
    "negative_mean": Measure(
        STATISTICS,
        "negative",
        label="negative score, mean",
        digits=3,
        panel="scores",
        predicted="predicted_negative",
        quantity="negative_score",
    ),
    "negative_std": Measure(STATISTICS, "negative std", digits=3, shown=False),
    "negative_min": Measure(STATISTICS, "negative min", digits=3, shown=False),
    "negative_max": Measure(STATISTICS, "negative max", digits=3, shown=False),
    "bias_mean": Measure(
        BIAS,
        "bias",
        label="bias, mean",
        digits=3,
        panel="scores",
        predicted="predicted_bias",
        quantity="bias",
    ),
    "bias_std": Measure(BIAS, "bias std", digits=3, shown=False),
    "bias_min": Measure(BIAS, "bias min", digits=3, shown=False),
    "bias_max": Measure(BIAS, "bias max", digits=3, shown=False),
    "predicted_positive": Measure(PREDICTION, "pred. pos.", digits=3, optional=True),
    "predicted_negative": Measure(PREDICTION, "pred. neg.", digits=3, optional=True),
    "predicted_bias": Measure(PREDICTION, "pred. bias", digits=3, optional=True),
    "top1_many": Measure(
        GROUPS,
        "many",
        label="top-1 accuracy, many images",
        unit="%",
        digits=2,
        optional=True,
        split="test",
    ),
    "top1_medium": Measure(
        GROUPS,
        "medium",
        label="top-1 accuracy, medium images",
        unit="%",
        digits=2,
        optional=True,
        split="test",
    ),
    "top1_few": Measure(
        GROUPS,
        "few",
        label="top-1 accuracy, few images",
        unit="%",
        digits=2,
        optional=True,
        split="test",
    ),
}
