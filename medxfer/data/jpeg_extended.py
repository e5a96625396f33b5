"""JPEG Extended of 12 bits (ITU-T T.81, process 4) for pydicom, whose own decoders stop at 8 bits."""

import imagecodecs
from pydicom.pixels.decoders.base import DecodeRunner, JPEGExtended12BitDecoder
from pydicom.uid import JPEGExtended12Bit

NAME = "imagecodecs"
"""Of the plug-in, as pydicom's `decoding_plugin` takes it."""

END = b"\xff\xd9"
"""The marker behind a picture; padding may follow."""

DECODER_DEPENDENCIES = {JPEGExtended12Bit: ("numpy", "imagecodecs")}
"""pydicom asks a plug-in for it."""


def is_available(uid: str) -> bool:
    """Return whether this plug-in decodes a transfer syntax; pydicom asks it."""
    return uid == JPEGExtended12Bit


def decode_frame(stream: bytes, runner: DecodeRunner) -> bytes:
    """Decode one frame, as pydicom's plug-ins do: native-endian pixels of 16 bits, grey only.

    Raises:
        ValueError: the stream is damaged, or not grey.
    """
    if END not in stream[-16:]:  # the decoder would fill what is missing with grey
        raise ValueError("the picture's end is missing")
    pixels = imagecodecs.jpeg8_decode(stream)
    if pixels.ndim != 2:
        raise ValueError(f"grey pixels are needed, found {pixels.shape[2]} channels")
    runner.set_option("bits_allocated", 8 * pixels.dtype.itemsize)
    return pixels.tobytes()


JPEGExtended12BitDecoder.add_plugin(NAME, (__name__, decode_frame.__name__))
