"""The parts of `osdface evaluate`: pairing files, statistics, and the reports people look at."""
