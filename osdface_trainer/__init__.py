"""Training, data preparation and evaluation of OSDFace models on top of `osdface_core`."""
