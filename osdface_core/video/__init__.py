"""Videos of any length and image sequences: read, followed, restored and written as a stream."""

from .formats import is_video
from .restore import VideoResult, restore_stream, restore_video

__all__ = ["VideoResult", "is_video", "restore_stream", "restore_video"]
