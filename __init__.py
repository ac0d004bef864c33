"""ComfyUI entry point: ComfyUI imports the repository's root as a package and reads these three names.

Without a package (pytest collects this file, an installer touches it) nothing is imported.
"""

if __package__:
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    WEB_DIRECTORY = "./web"  # help pages: web/docs/<node id>.md

    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
