"""XMP packets: orientation, announcements of pictures that are not carried along, packets above 64 kB.

Source: XMP specification part 3 (JPEG: 1.1.3.1, extended XMP); Ultra HDR and Motion Photo formats of Android.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any
from xml.dom import minidom
from xml.parsers.expat import ExpatError

TIFF = b"http://ns.adobe.com/tiff/1.0/"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
NOTE = "http://ns.adobe.com/xmp/note/"
XMLNS = "http://www.w3.org/2000/xmlns/"
XAP = "http://ns.adobe.com/xap/1.0/"
CAMERA = "http://ns.google.com/photos/1.0/camera/"
COMPANIONS = {
    "http://ns.adobe.com/hdr-gain-map/1.0/": "HDR gain map",
    "http://ns.apple.com/HDRGainMap/1.0/": "HDR gain map",
    "http://ns.google.com/photos/1.0/container/": "second picture or video",
    "http://ns.google.com/photos/1.0/container/item/": "second picture or video",
    "http://ns.google.com/photos/1.0/depthmap/": "depth map",
    "http://ns.google.com/photos/1.0/image/": "second picture or video",
    "http://ns.google.com/photos/1.0/audio/": "sound",
}
"""Namespaces that describe data which lies behind or beside the picture, and what that is."""
UNREADABLE = (ExpatError, ValueError, RecursionError)
MOST_TAGS = 50_000
"""Tags of a packet above which it is not taken apart."""
MOTION = ("MotionPhoto", "MicroVideo")
"""Properties of Google's camera namespace that announce a video behind the picture."""


def _orientation_pattern(packet: bytes) -> re.Pattern[bytes]:
    declared = re.search(rb"xmlns:([\w.-]{1,40})\s?=\s?[\"']" + re.escape(TIFF), packet)
    prefix = re.escape(declared[1]) if declared else b"tiff"
    return re.compile(rb"(" + prefix + rb":Orientation\s?(?:=\s?[\"']|>\s?))([1-8])(?=\s?[\"'<])")


def orientation(packet: bytes | None) -> int:
    """Find tiff:Orientation, 1 to 8; 1 where it is missing."""
    found = _orientation_pattern(packet).search(packet) if packet else None
    return int(found[2]) if found else 1


def reset_orientation(packet: bytes | None) -> bytes | None:
    """Make tiff:Orientation say upright (attribute or element); no other byte changes."""
    return _orientation_pattern(packet).sub(rb"\g<1>1", packet) if packet else packet


def with_size(packet: bytes | None, width: int, height: int) -> bytes | None:
    """Make the packet name the size of the written picture, where it names one."""
    if not packet:
        return packet
    sizes = {
        b"exif:PixelXDimension": width,
        b"exif:PixelYDimension": height,
        b"tiff:ImageWidth": width,
        b"tiff:ImageLength": height,
    }
    for name, value in sizes.items():
        packet = re.sub(rb"(" + name + rb"(?:=[\"']|>))\d{1,9}(?=[\"'<])", rb"\g<1>%d" % value, packet)
    return packet


def without_companions(packet: bytes | None, *, thumbnails: bool) -> tuple[bytes | None, list[str]]:
    """Take the announcements of companion pictures, depth maps, sound and video out of a packet.

    Args:
        thumbnails: take out the thumbnails inside the packet, too.
    Returns:
        the packet (the same bytes if it announces nothing; None if it cannot be taken apart), and a line for
        each kind of companion.
    """
    if packet is None or not _may_announce(packet, thumbnails):
        return packet, []
    try:
        document = _parse(packet)
        gone = _remove(document, lambda node: _companion(node, thumbnails))
        packet = _serialise(document) if gone else packet
    except UNREADABLE:
        return None, ["its XMP is damaged and left out"]
    kinds = set(gone) - {"thumbnail", "declaration"}
    if "HDR gain map" in kinds:
        kinds.discard("second picture or video")  # its list of parts names the gain map
    notes = [f"its {kind} is left out" for kind in sorted(kinds)]
    return packet, notes


def _may_announce(packet: bytes, thumbnails: bool) -> bool:
    names = [*COMPANIONS, CAMERA, *(["Thumbnails"] if thumbnails else [])]
    return any(name.encode() in packet for name in names)


def _companion(node: Any, thumbnails: bool) -> str:
    """What an attribute or element announces, or nothing."""
    space, name = node.namespaceURI, node.localName or ""
    if space == CAMERA and name.startswith(MOTION):
        return "motion video"
    if space == XAP and name == "Thumbnails" and thumbnails:
        return "thumbnail"
    if space == XMLNS and node.nodeValue in COMPANIONS:
        return "declaration"
    return COMPANIONS.get(space, "")


def _remove(document: minidom.Document, judge: Callable[[Any], str]) -> list[str]:
    """Remove the attributes and elements that `judge` gives a name; return the names."""
    gone = []
    for element in document.getElementsByTagName("*"):
        for attribute in _attributes(element):
            if name := judge(attribute):
                element.removeAttributeNode(attribute)
                gone.append(name)
        if (name := judge(element)) and element.parentNode is not None:
            element.parentNode.removeChild(element)
            gone.append(name)
    return gone


def merged(packet: bytes, extension: bytes | None) -> tuple[bytes | None, list[str]]:
    """Put an extended packet's properties into the main one, whose pointer to it goes.

    Args:
        extension: None if its parts are missing or damaged.
    Returns:
        the packet, and a line if something is left out.
    """
    try:
        document: Any = _parse(packet)
        _remove(document, _is_pointer)
        if extension is None:
            return _serialise(document), ["its extended XMP is damaged and left out"]
        more: Any = _parse(extension)
        for part in _tops(more):
            _rdf(document).appendChild(document.importNode(part, True))
        return _serialise(document), []
    except UNREADABLE:
        return None, ["its XMP is damaged and left out"]


def split(packet: bytes, limit: int) -> tuple[bytes, bytes] | None:
    """Share a packet between a main one of at most `limit` bytes and an extended one, for JPEG.

    Properties go to the extended packet, the largest first, until the rest fits.

    Returns:
        main packet, which names the extended one's MD5 sum, and extended packet; None if it cannot be done.
    """
    try:
        document, extension = _parse(packet), _parse(packet)
        pairs = zip(_properties(document), _properties(extension), strict=True)
        total = len(_serialise(document)) + 200  # the pointer
        for here, there in sorted(pairs, key=lambda pair: -len(pair[0].toxml())):
            gone = here if total > limit else there
            total -= len(here.toxml().encode()) if gone is here else 0
            gone.parentNode.removeChild(gone)
        _remove_empty(extension)
        second = _serialise(extension)
        first = _tops(document)[0]
        first.setAttributeNS(XMLNS, "xmlns:xmpNote", NOTE)
        first.setAttributeNS(NOTE, "xmpNote:HasExtendedXMP", checksum(second).decode())
        _remove_empty(document)
        main = _serialise(document)
    except (*UNREADABLE, IndexError):
        return None
    return (main, second) if len(main) <= limit else None


def _properties(document: Any) -> list[Any]:
    """The properties of a packet as elements; those that are attributes become such."""
    for top in _tops(document):
        for attribute in filter(_is_property, _attributes(top)):
            element = document.createElementNS(attribute.namespaceURI, attribute.name)
            element.appendChild(document.createTextNode(attribute.value))
            top.removeAttributeNode(attribute)
            top.appendChild(element)
    return [one for top in _tops(document) for one in _elements(top)]


def _remove_empty(document: minidom.Document) -> None:
    """Remove descriptions without a property."""
    for top in _tops(document):
        if not _elements(top) and not any(map(_is_property, _attributes(top))):
            top.parentNode.removeChild(top)


def _is_property(attribute: Any) -> bool:
    return attribute.namespaceURI not in (RDF, XMLNS, None)


def checksum(extension: bytes) -> bytes:
    """Name an extended packet: its MD5 sum in capital hexadecimal digits."""
    return hashlib.md5(extension, usedforsecurity=False).hexdigest().upper().encode()


def _is_pointer(node: Any) -> str:
    return "pointer" if node.localName == "HasExtendedXMP" else ""


def _attributes(element: minidom.Element) -> list[Any]:
    return [element.attributes.item(place) for place in range(element.attributes.length)]


def _tops(document: minidom.Document) -> list[Any]:
    return _elements(_rdf(document))


def _elements(parent: Any) -> list[Any]:
    return [part for part in parent.childNodes if isinstance(part, minidom.Element)]


def _rdf(document: minidom.Document) -> Any:
    found = document.getElementsByTagNameNS(RDF, "RDF")
    if not found:
        raise ValueError("no rdf:RDF")
    return found[0]


def _parse(packet: bytes) -> minidom.Document:
    if packet.count(b"<") > MOST_TAGS or packet.count(b"=") > 4 * MOST_TAGS:  # a kilobyte of memory each
        raise ValueError("too many elements")
    start = max(0, packet.find(b"<"))
    return minidom.parseString(packet[start : packet.rfind(b">") + 1])


def _serialise(document: minidom.Document) -> bytes:
    return b"".join(part.toxml().encode() for part in document.childNodes)
