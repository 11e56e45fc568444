"""Studies: runs on disk, tables and curves of many runs, tuning, the papers, the demo."""
