"""What every room stands on: files, records, locks, processes, the log."""
