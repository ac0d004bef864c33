"""`osdface app`: photos, folders and videos in a browser, on the functions of the command line."""
