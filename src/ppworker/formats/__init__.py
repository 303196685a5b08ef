"""Archives of datasets, read and written: one file per format."""
