"""Reports: what a run or a sweep guarantees and reached, as a page, as JSON and as a section of a model card."""
