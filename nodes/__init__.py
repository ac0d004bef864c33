"""The ComfyUI nodes: one explicit list. Importing this needs no ComfyUI."""

from . import host
from .detect import OSDFaceDetectFaces, OSDFaceSelectFaces
from .helpers import OSDFaceBeforeAfter, OSDFaceBlendByMask, OSDFacePreviewFaces
from .load import OSDFaceApplyLoRA, OSDFaceBackboneFromModel, OSDFaceLoadRestorer, OSDFaceLoadVRE
from .paste import OSDFacePasteBack
from .photo import OSDFaceRestorePhoto
from .restore import OSDFaceEncodePrompt, OSDFaceIdentityGuard, OSDFaceRestore
from .video import OSDFaceRestoreVideo
from .widgets import named

NODES = [
    (OSDFaceRestorePhoto, "OSDFace Restore Photo"),
    (OSDFaceLoadVRE, "OSDFace Load VRE"),
    (OSDFaceLoadRestorer, "OSDFace Load Restorer"),
    (OSDFaceBackboneFromModel, "OSDFace Backbone from MODEL + VAE"),
    (OSDFaceApplyLoRA, "OSDFace Apply LoRA"),
    (OSDFaceDetectFaces, "OSDFace Detect Faces"),
    (OSDFaceSelectFaces, "OSDFace Select Faces"),
    (OSDFacePreviewFaces, "OSDFace Preview Faces"),
    (OSDFaceEncodePrompt, "OSDFace Encode Prompt"),
    (OSDFaceRestore, "OSDFace One-Step Restore"),
    (OSDFaceIdentityGuard, "OSDFace Identity Guard"),
    (OSDFacePasteBack, "OSDFace Paste Back"),
    (OSDFaceBlendByMask, "OSDFace Blend by Mask"),
    (OSDFaceBeforeAfter, "OSDFace Before / After"),
]
if host.has_video():
    NODES.insert(1, (OSDFaceRestoreVideo, "OSDFace Restore Video"))
for node, _ in NODES:
    setattr(node, node.FUNCTION, named(getattr(node, node.FUNCTION)))
NODE_CLASS_MAPPINGS = {node.__name__: node for node, _ in NODES}
NODE_DISPLAY_NAME_MAPPINGS = {node.__name__: title for node, title in NODES}

host.register_folder()
