"""What the Automatic1111 and Forge extension is made of; scripts/osdface_webui.py puts it into the web UI."""
