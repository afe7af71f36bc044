"""Reads OpenEXR files in a process of its own, for `exr.py`, which starts this file by its path.

On some damaged files the package OpenEXR does not raise an error but ends the process. It needs nothing of ours.

Protocol: in, the file's length (8 bytes, little-endian) and its bytes. Out, a line of JSON: `height`, `width` and
`channels` (name -> [type, x sampling, y sampling]). In, a line of JSON: the names to read. Out, a line of JSON:
`sizes` of the channels in bytes, and then the values of each as they lie in memory. A line may be {"error": text}
instead; then the process ends.
"""

import io
import json
import os
import sys

import OpenEXR


def main() -> None:
    """Answer requests until standard input ends."""
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the library prints must not get among the answers

    def answer(value: object, *arrays: bytes) -> None:
        answers.write(json.dumps(value).encode() + b"\n")
        for array in arrays:
            answers.write(array)
        answers.flush()

    while length := requests.read(8):
        data = requests.read(int.from_bytes(length, "little"))
        try:
            # Its newer class `File` gives zeros for missing pixels, with a warning on stderr; this one raises.
            file = OpenEXR.InputFile(io.BytesIO(data))
            header = file.header()
            low, high = header["dataWindow"].min, header["dataWindow"].max
            channels = {
                name: (str(channel.type), channel.xSampling, channel.ySampling)
                for name, channel in header["channels"].items()
            }
            answer({"height": high.y - low.y + 1, "width": high.x - low.x + 1, "channels": channels})
            names = json.loads(requests.readline())
            planes = [file.channel(name) for name in names]
            answer({"sizes": [len(plane) for plane in planes]}, *planes)
            file.close()
        except Exception as error:  # noqa: BLE001 - the package raises what C++ threw, by several names
            answer({"error": str(error)})
            return  # its memory may be damaged


if __name__ == "__main__":
    main()
