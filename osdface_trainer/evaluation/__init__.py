"""The parts of `osdface evaluate`: pairing files, statistics, targets, and the reports people look at."""
