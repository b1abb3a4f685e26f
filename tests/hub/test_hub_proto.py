"""The generated code is what hub.proto says, and hub.proto says what the code serves."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from house.house_source import SRC

from thinwire.hub import rpc

PROTO = SRC / "hub" / "hub.proto"


def test_the_committed_code_is_what_the_proto_generates(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "grpc_tools.protoc", f"-I{SRC.parent}"]
    command += [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", str(PROTO)]
    subprocess.run(command, check=True, timeout=60)
    for name in ("hub_pb2.py", "hub_pb2.pyi"):
        fresh = (tmp_path / "thinwire" / "hub" / name).read_text()
        assert fresh == PROTO.with_name(name).read_text(), f"{name}: run `make proto`"


def test_the_methods_are_those_the_proto_names() -> None:
    text = PROTO.read_text()
    package = re.search(r"^package (.+);", text, re.MULTILINE)[1]
    named = {f"/{package}.Hub/{name}" for name in re.findall(r"rpc (\w+)\(", text)}
    assert named == {rpc.SETTINGS, rpc.TRAIN, rpc.STATUS}


def test_a_frame_is_cut_and_its_last_piece_says_so() -> None:
    frame = bytes(range(256)) * 3000
    cut = list(rpc.pieces(frame))
    assert b"".join(data for data, _ in cut) == frame
    assert [last for _, last in cut] == [False, False, True]
    assert all(len(data) <= rpc.PIECE_BYTES for data, _ in cut)
