"""Training for OSDFace: both stages, data, degradation, evaluation. Built on osdface_core."""
