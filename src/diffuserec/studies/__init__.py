"""Studies: runs on disk, experiments of several runs, sensitivity curves, examples, the demo."""
