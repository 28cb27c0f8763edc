"""The registry of the measures of a trained network, by column of nc_metrics.csv; and `measure`.

docs/measures.md defines them. Imports no torch: an entry names its function as text. To add a
measure, write its function and its entry here: column, printed table, curve and report follow.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.registry import load_function

if TYPE_CHECKING:
    from torch import nn

EVALUATED = "nc_metrics.csv"  # a run's table of measures
EVALUATED_EMA = "nc_metrics_ema.csv"  # the same of the averages of its weights
TRIVIAL = 1e-6  # a collapse that is predicted to be at most this is 0, as the definitions say
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
        is_error: whether it is a share of what goes wrong: less is better.
        digits: decimals in tables and reports.
        significant: whether `digits` counts significant digits instead, for a measure that spans
            many powers of ten.
        shown: whether eval_nc.py prints it. An optional measure is printed only if its function
            gives a number for any run.
        optional: whether its number may be None. An older table without an optional measure stays
            as it is.
        later: whether rows from before it existed stay without it, too: eval_nc.py counts them, and
            its --force computes them. Measures that are neither optional nor later are computed for
            the rows of an older table.
        split: the split that reports and curves take if both are evaluated.
        panel: where its curve is drawn: a name of `PANELS`, or a new name for a panel of its own.
            None: no curve.
        history: the column of metrics.csv that holds the same number after every epoch.
        predicted: the measure that is its exact prediction, which figures and reports show if it
            says more than that the value is 0.
        quantity: the score or bias that it summarises. Its curve takes that colour and mark.
    """

    function: str
    title: str
    label: str = ""
    unit: str = ""
    is_error: bool = False
    digits: int = 4
    significant: bool = False
    shown: bool = True
    optional: bool = False
    later: bool = False
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

    @property
    def may_be_empty(self) -> bool:
        """Whether a cell of a table may be empty."""
        return self.optional or self.later

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
CALIBRATION = "metrics.measures:measure_calibration"
COLLAPSE = "metrics.measures:measure_neural_collapse"
GEOMETRY = "metrics.measures:measure_geometry"
PROPERTIES = "metrics.measures:measure_feature_properties"
VARIABILITY = "metrics.measures:measure_variability"
STATISTICS = "metrics.measures:measure_score_statistics"
BIAS = "metrics.measures:measure_bias_statistics"
PREDICTION = "metrics.measures:measure_prediction"
CLASSES = "metrics.classes:measure_classes"
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
    "nc1": Measure(
        COLLAPSE, "NC1", digits=3, significant=True, panel="nc1", predicted="predicted_nc1"
    ),
    "nc2": Measure(
        COLLAPSE, "NC2", label="NC2, classifier W", panel="nc2", predicted="predicted_nc2"
    ),
    "nc2_h": Measure(
        COLLAPSE, "NC2_h", label="NC2, class means", panel="nc2", predicted="predicted_nc2_h"
    ),
    "nc3": Measure(COLLAPSE, "NC3", panel="nc3", predicted="predicted_nc3"),
    "nc4": Measure(COLLAPSE, "NC4"),
    "compactness": Measure(PROPERTIES, "compactness", predicted="predicted_compactness"),
    "distinctiveness": Measure(
        PROPERTIES, "distinctiveness", predicted="predicted_distinctiveness"
    ),
    "cdnv": Measure(
        VARIABILITY,
        "CDNV",
        label="class-distance normalised variance",
        digits=3,
        significant=True,
        shown=False,
        later=True,
    ),
    "equinorm_means": Measure(
        GEOMETRY, "equinorm", label="equinorm, class means", shown=False, later=True
    ),
    "equinorm_classifier": Measure(
        GEOMETRY, "equinorm W", label="equinorm, classifier W", shown=False, later=True
    ),
    "equiangularity_means": Measure(
        GEOMETRY, "equiangular", label="equiangularity, class means", shown=False, later=True
    ),
    "equiangularity_classifier": Measure(
        GEOMETRY, "equiangular W", label="equiangularity, classifier W", shown=False, later=True
    ),
    "maximal_angle_means": Measure(
        GEOMETRY, "max. angle", label="maximal angle, class means", shown=False, later=True
    ),
    "maximal_angle_classifier": Measure(
        GEOMETRY, "max. angle W", label="maximal angle, classifier W", shown=False, later=True
    ),
    "self_duality": Measure(GEOMETRY, "self-duality", shown=False, later=True),
    "effective_rank": Measure(
        VARIABILITY,
        "eff. rank",
        label="effective rank of the features",
        digits=2,
        shown=False,
        later=True,
    ),
    "ece": Measure(
        CALIBRATION,
        "ECE",
        label="expected calibration error",
        unit="%",
        is_error=True,
        digits=2,
        shown=False,
        later=True,
        split="test",
    ),
    "nll": Measure(
        CALIBRATION,
        "NLL",
        label="negative log-likelihood",
        shown=False,
        later=True,
        split="test",
    ),
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
    "predicted_nc1": Measure(
        PREDICTION, "pred. NC1", digits=3, significant=True, shown=False, optional=True
    ),
    "predicted_nc2": Measure(PREDICTION, "pred. NC2", shown=False, optional=True),
    "predicted_nc2_h": Measure(PREDICTION, "pred. NC2_h", shown=False, optional=True),
    "predicted_nc3": Measure(PREDICTION, "pred. NC3", shown=False, optional=True),
    "predicted_compactness": Measure(PREDICTION, "pred. compact.", shown=False, optional=True),
    "predicted_distinctiveness": Measure(PREDICTION, "pred. distinct.", shown=False, optional=True),
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

# The columns of nc_classes.csv after epoch, split and class: of each class of a run whose classes
# differ in size.
CLASS_MEASURES: dict[str, Measure] = {
    "class_size": Measure(CLASSES, "training images", digits=0),
    "top1": Measure(CLASSES, "top-1", label="top-1 accuracy", unit="%", digits=2),
    "positive_mean": Measure(
        CLASSES, "positive score", predicted="predicted_positive", quantity="positive_score"
    ),
    "negative_mean": Measure(
        CLASSES, "negative score", predicted="predicted_negative", quantity="negative_score"
    ),
    "bias": Measure(CLASSES, "bias", predicted="predicted_bias", quantity="bias"),
    "weight_norm": Measure(CLASSES, "norm of w", predicted="predicted_weight_norm"),
    "mean_norm": Measure(CLASSES, "norm of class mean", predicted="predicted_mean_norm"),
    "predicted_positive": Measure(CLASSES, "pred. positive", optional=True),
    "predicted_negative": Measure(CLASSES, "pred. negative", optional=True),
    "predicted_bias": Measure(CLASSES, "pred. bias", optional=True),
    "predicted_weight_norm": Measure(CLASSES, "pred. norm of w", optional=True),
    "predicted_mean_norm": Measure(CLASSES, "pred. norm of class mean", optional=True),
}


def name_class_table(name: str) -> str:
    """Return the name of the table of the classes beside a table of measures."""
    return name.replace("nc_metrics", "nc_classes")


def measure(
    model: nn.Module,
    loader: Iterable[Any],
    classifier: nn.Module,
    bias_added: bool = True,
) -> dict[str, float | None]:
    """Compute all measures of a network on the samples of a loader.

    The features are the input of `classifier` and the logits its output, whatever the network
    returns. Features are kept, 4·N·d bytes in float32; where that exceeds a third of a GPU's free
    memory, they lie on the host. Logits are not kept. All numbers are computed in float64, on the
    classifier's device. Afterwards each module of the network has its training or evaluation mode
    again. A caller's torch.autocast holds for the network alone.

    Args:
        model: any network on one device. It is called with the images of a batch, in evaluation
            mode and without gradients.
        loader: batches (images, labels). labels are integers [B] from 0 to K−1; each class needs a
            sample. Images and labels may be tensors, NumPy arrays or nested lists.
        classifier: the last linear layer of the network, with a weight [K, d] and a bias [K], [1]
            or none. The network must call it once for a batch, with features [B, d].
        bias_added: whether it computes W h + b, as torch.nn.Linear does, or W h − b, as this
            project's classifier. The bias of the measures is always the subtracted one.

    Returns:
        A number for each name of `MEASURES`, defined in docs/measures.md. The `predicted_…` and the
        `top1_…` of many, medium and few images are None: they need the settings of a training.

    Raises:
        ValueError: the classifier is not linear, not called once, or fits the other sign of the
            bias; batches or labels are not as above; or a measure is not defined, because values
            are not finite or a class has no sample.
    """
    compute = load_function("metrics.collection:measure_network")
    return compute(model, loader, classifier, bias_added)
