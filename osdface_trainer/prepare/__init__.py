"""`osdface prepare`: from any photos to aligned training faces."""
