"""Statistics of the training records that are paid for: sums over all records, clipped, noised and charged.

A mean for normalisation, a histogram of classes, accuracy on private records, a head by least squares: each is read off
the data, so each needs noise and stands in the ledger beside the steps.
"""

from hushgrad.releases.accuracy import Accuracy
from hushgrad.releases.histogram import Histogram
from hushgrad.releases.least_squares import LeastSquares
from hushgrad.releases.normalisation import MeanAndStd, Normalisation
from hushgrad.releases.query import Query
from hushgrad.releases.released import Released
from hushgrad.releases.releasing import release
from hushgrad.releases.sums import Count, Mean, Sum
from hushgrad.releases.tally import Tally

__all__ = [
    "Accuracy",
    "Count",
    "Histogram",
    "LeastSquares",
    "Mean",
    "MeanAndStd",
    "Normalisation",
    "Query",
    "Released",
    "Sum",
    "Tally",
    "release",
]
