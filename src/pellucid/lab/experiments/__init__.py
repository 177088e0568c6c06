"""One module per experiment, with its `EXPERIMENT`; found by listing this folder."""
