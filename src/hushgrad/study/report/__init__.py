"""Reports: what a run or a sweep guarantees and reached, as a page, as JSON and as a section of a model card."""

from hushgrad.extras import EXTRAS, require

# Here, so that the extra that brings all of them is named, and not that of whichever is missed first.
require(*EXTRAS["report"], extra="report", what="a report")
